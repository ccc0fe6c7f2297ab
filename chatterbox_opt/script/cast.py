"""Casts: who speaks in a dialogue, with which voice, and lines of the form NAME: words.

Responsible for the file's format and for which line is whose. Not responsible for what is in a line
(reader.py) or for finding voices (voices/library.py).

    Anna: ada                # a voice: a name, or a recording
    Bob:
      voice: bruno
      exaggeration: 0.7      # any sampling parameter but the seed
      rate: 0.95
    narrator: clara          # of lines without a name, in place of the request's voice

A line without a name goes on with the line before it; after an empty line it is the narrator's.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from chatterbox_opt.config.bounded_yaml import made_of, shortened
from chatterbox_opt.config.speaking_rate import check_rate
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.sampling import WHOLE_NUMBERS, Sampling
from chatterbox_opt.script.spans import quoted

if TYPE_CHECKING:
    from chatterbox_opt.voice import Voice

NARRATOR = "narrator"
MAX_BYTES = 64 << 10  # of a file
VOICE, RATE = "voice", "rate"
KNOBS = tuple(field.name for field in fields(Sampling) if field.name != "seed")
_KEYS = (VOICE, RATE, *KNOBS)
_FORMAT = "write NAME: VOICE, or voice, rate and sampling parameters below the name"
_COLON, _WIDE_COLON = ":", "："
# of a name that is not in the cast, without combining marks
_LIKE_A_NAME = re.compile(r"[^\W\d_][\w'’-]*\.?(?: [\w'’-]+\.?){0,2}")
_LONGEST = 40  # letters of such a name
_NAMED = 10  # unknown names in a message


@dataclass(frozen=True, slots=True)
class Member:
    """One who speaks.

    Attributes:
        name: as at the beginning of a line; capitals are as good as small letters, and it does not
            matter how accents are encoded.
        voice: as of a ``Request``; None: the request's.
        sampling: parameters by name that are not the request's.
        rate: how fast, in proportion to the request's rate.
    """

    name: str
    voice: Voice | str | None = None
    sampling: tuple[tuple[str, float], ...] = ()
    rate: float = 1.0


class Line(NamedTuple):
    """What one speaks before another does.

    Attributes:
        name: of the member; None: nobody's, for want of a narrator.
        start, end: of the words in the text.
    """

    name: str | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Cast:
    """Who speaks; equal by content.

    Attributes:
        members: in order; names differ by more than capitals.
        dialogue: whether lines begin with names. Else they are names for [voice:NAME] only.
    """

    members: tuple[Member, ...] = ()
    dialogue: bool = True

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Cast:
        """A cast from a mapping in the format of the file; a voice may be a ``Voice``.

        Raises:
            InputError: a name, a key or a value is wrong.
        """
        made = tuple(_member(name, settings) for name, settings in members.items())
        if not made:
            raise InputError(f"cast: it has no names: {_FORMAT}")
        if len({_key(member.name) for member in made}) < len(made):
            raise InputError("cast: two names differ by capitals only: rename one")
        return cls(made)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cast:
        """Read a file.

        Raises:
            InputError: it cannot be read, or is no cast.
        """
        return made_of(path, "cast", cls.of, most=MAX_BYTES, remedy=_FORMAT)

    def find(self, name: str | None) -> Member | None:
        """The member of a name, or None."""
        key = None if name is None else _key(name)
        return next((m for m in self.members if _key(m.name) == key), None)

    def begins(self, line: str) -> bool:
        """Whether a line begins with a name, in the cast or not, and a colon."""
        name, _ = _before_colon(line, 0, len(line))
        return self.dialogue and (self.find(name) is not None or _is_name(name))

    def lines(self, text: str) -> list[Line]:
        """Who speaks what of a text, in order.

        A line that begins with the name of a member and a colon is theirs, whatever the name is.

        Raises:
            TextError: lines begin with names that are not in the cast; all are listed.
        """
        members = {_key(member.name): member for member in self.members}
        narrator = members.get(_key(NARRATOR))
        nobody = narrator.name if narrator else None
        found: list[Line] = []
        unknown: dict[str, int] = {}
        speaker, is_new = nobody, True
        for number, (start, end) in enumerate(_line_ends(text), 1):
            if not text[start:end].strip():
                speaker, is_new = nobody, True
                continue
            name, behind = _before_colon(text, start, end)
            if member := members.get(_key(name)):
                speaker, is_new, start = member.name, True, behind
            elif _is_name(name):
                unknown.setdefault(name, number)
            if is_new or not found:
                found.append(Line(speaker, start, end))
            else:
                found[-1] = found[-1]._replace(end=end)
            is_new = False
        if unknown:
            raise self._unknown(unknown)
        return found

    def _unknown(self, lines: Mapping[str, int]) -> TextError:
        shown = [f"'{name}' (line {line})" for name, line in lines.items()][:_NAMED]
        more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
        verb = "is" if len(lines) == 1 else "are"
        return TextError(
            f"{', '.join(shown)}{more} {verb} not in the cast, which has "
            f"{quoted(member.name for member in self.members)}: add a name, or mend it"
        )


def member_of(cast: Cast | None, name: str | None) -> Member:
    """Who speaks a span: a member of the cast, or else the voice of that name.

    Args:
        name: a span's voice; None: the request's own.
    """
    return (cast and cast.find(name)) or Member(name or "", name)


def _line_ends(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each line, without its line end."""
    position = 0
    for line in text.splitlines(keepends=True):
        yield position, position + len(line.rstrip("\r\n"))
        position += len(line)


def _before_colon(text: str, start: int, end: int) -> tuple[str, int]:
    """The words before the first colon of a line, and where those behind it begin.

    No words, if there is none, or if no blank follows it, as in 10:30 or http://.
    """
    found = [at for mark in (_COLON, _WIDE_COLON) if (at := text.find(mark, start, end)) >= 0]
    colon = min(found, default=end)
    behind = colon + 1
    if colon == end or (text[colon] == _COLON and behind < end and not text[behind].isspace()):
        return "", start
    while behind < end and text[behind].isspace():
        behind += 1
    return " ".join(text[start:colon].split()), behind


def _key(name: str) -> str:
    """What names are compared by."""
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


def _is_name(words: str) -> bool:
    """Whether words before a colon look like a name: up to three, none of which is small."""
    if not 0 < len(words) <= _LONGEST:
        return False
    # re takes combining marks, of which many scripts are full, for signs
    letters = "".join(c for c in words if not unicodedata.category(c).startswith("M"))
    is_like_one = _LIKE_A_NAME.fullmatch(letters) is not None
    return is_like_one and not any(word[0].islower() for word in letters.split())


def _member(name: object, settings: object) -> Member:
    if (
        not isinstance(name, str)
        or not any(c.isalnum() for c in name)
        or _COLON in name
        or _WIDE_COLON in name
    ):
        raise InputError(f"cast: {shortened(name)} is no name: {_FORMAT}")
    name = " ".join(name.split())
    if not isinstance(settings, Mapping):
        return Member(name, _voice(name, settings))
    if unknown := [key for key in settings if key not in _KEYS]:
        raise InputError(
            f"cast: '{name}' has the unknown key {shortened(unknown[0])}; known: {', '.join(_KEYS)}"
        )
    try:
        knobs = {key: _number(key, settings[key]) for key in KNOBS if key in settings}
        Sampling(**knobs)  # checks the ranges
        rate = check_rate(_number(RATE, settings.get(RATE, 1.0)))
    except InputError as error:
        raise InputError(f"cast: '{name}': {error}") from error
    return Member(name, _voice(name, settings.get(VOICE)), tuple(knobs.items()), rate)


def _voice(name: str, voice: Any) -> Any:
    """A voice as of a ``Request``; what is no name, such as a ``Voice``, the engine checks."""
    voice = os.fspath(voice) if isinstance(voice, os.PathLike) else voice
    if isinstance(voice, (bytes, int, float, list, tuple)) or voice == "":
        raise InputError(
            f"cast: the voice of '{name}' is {shortened(voice)}; give a name or a file"
        )
    return voice


def _number(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return int(value) if key in WHOLE_NUMBERS else float(value)
    except ValueError as error:
        raise InputError(f"{key} is {shortened(value)}; give a number") from error
