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
# the name at the beginning of a line, before a colon; blanks follow it, as not in 10:30 or http://
_NAME = re.compile(r"[ \t]*([^\W\d_][^:：\n\[\]<>]{0,39}?)[ \t]*(?::(?=\s|\Z)|：)[ \t]*")
_LIKE_A_NAME = re.compile(r"[^\W\d_][\w'’-]*\.?(?: [\w'’-]+\.?){0,2}")
_NAMED = 10  # unknown names in a message


@dataclass(frozen=True, slots=True)
class Member:
    """One who speaks.

    Attributes:
        name: as at the beginning of a line; capitals are as good as small letters.
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
        if len({member.name.casefold() for member in made}) < len(made):
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
        folded = None if name is None else " ".join(name.split()).casefold()
        return next((m for m in self.members if m.name.casefold() == folded), None)

    def lines(self, text: str) -> list[Line]:
        """Who speaks what of a text, in order.

        Raises:
            TextError: lines begin with names that are not in the cast; all are listed.
        """
        narrator = self.find(NARRATOR)
        nobody = narrator.name if narrator else None
        found: list[Line] = []
        unknown: dict[str, int] = {}
        speaker, is_new = nobody, True
        for number, (start, end) in enumerate(_line_ends(text), 1):
            if not text[start:end].strip():
                speaker, is_new = nobody, True
                continue
            name = _NAME.match(text, start, end)
            member = self.find(name[1]) if name else None
            if name and member:
                speaker, is_new, start = member.name, True, name.end()
            elif name and _is_name(name[1]):
                unknown.setdefault(name[1], number)
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


def _is_name(words: str) -> bool:
    """Whether words before a colon look like a name: up to three, none of which is small."""
    return _LIKE_A_NAME.fullmatch(words) is not None and not any(
        word[0].islower() for word in words.split()
    )


def _member(name: object, settings: object) -> Member:
    if not isinstance(name, str) or not any(c.isalnum() for c in name) or ":" in name:
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
