r"""Markup in square brackets: [pause:700ms] [voice:anna] [rate:0.9]…[/rate] [say:alias]word[/say].

Responsible for its grammar and its errors. Not responsible for what becomes of spans.

    text   = (words | tag | "\[")*
    tag    = "[pause:" number ("ms" | "s") "]"     silence
           | "[voice:" name "]" | "[/voice]"       another voice from here on; the one at the start
           | "[rate:" number "]" text "[/rate]"    faster or slower; in proportion, if nested
           | "[say:" words "]" words "[/say]"      the first words are read, the others shown

Any other name in brackets that is followed by a colon, or that a slash precedes, is an error: it
would be read aloud. What has neither is text, such as [laugh], a tag of some models, or [3].
"""

from __future__ import annotations

import re
from re import Match

from chatterbox_opt.config.speaking_rate import check_rate
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.script.spans import MAX_PAUSE, SpanBuilder, error_at

KNOWN = r"[pause:700ms], [voice:NAME], [rate:0.9]…[/rate], [say:ALIAS]word[/say]; \[ is a bracket"
_NAMES = ("pause", "voice", "rate", "say")
_TAG = re.compile(
    r"\\\[|\[(?P<close>/?)(?P<name>[A-Za-z]+)(?:(?P<colon>:)(?P<value>[^\[\]\n]*))?(?P<end>\]?)"
)
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}) ?(ms|s)", re.ASCII)
_LOOKS_LIKE = re.compile(r"\[(?:pause|voice|rate|say):[^\[\]\n]{1,99}\]")
_SHOWN = 30  # characters of a tag in a message


def find(text: str) -> str:
    """The first of what looks like this markup in a text, or ""."""
    found = _LOOKS_LIKE.search(text)
    return found[0] if found else ""


def is_tag(text: str) -> bool:
    """Whether a text is nothing but one tag, such as "[pause:1s]" or "[/rate]"."""
    tag = _TAG.fullmatch(text)
    if tag is None or not tag["end"] or tag["name"].lower() not in _NAMES:
        return False
    if tag["close"]:
        return not tag["colon"] and tag["name"].lower() != "pause"
    return bool(tag["colon"])


def duration(value: str) -> float | None:
    """Seconds of "700ms" or "1.5s"; None if it is neither, or longer than ``MAX_PAUSE``."""
    found = _DURATION.fullmatch(value.strip().lower())
    if found is None:
        return None
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1)
    return seconds if seconds <= MAX_PAUSE else None


def read_brackets(text: str, builder: SpanBuilder, start: int = 0, end: int | None = None) -> None:
    """Read a text, or its part from ``start`` to ``end``, into a builder.

    Raises:
        TextError: an unknown or unfinished tag, or a value that has no meaning, with the place.
    """
    _Brackets(text, builder).read(start, len(text) if end is None else end)


class _Brackets:
    """One text while it is read."""

    def __init__(self, text: str, builder: SpanBuilder) -> None:
        self._text, self._builder = text, builder
        self._voice = builder.voice  # of the text without tags
        self._open: list[tuple[Match[str], float]] = []  # [rate:…], and the rate before it
        self._say: Match[str] | None = None
        self._word: list[str] = []  # in [say:…]

    def read(self, start: int, end: int) -> None:
        """Read the text from ``start`` to ``end``."""
        position = start
        for tag in _TAG.finditer(self._text, start, end):
            name = (tag["name"] or "").lower()
            is_escape = tag["name"] is None
            is_tag = tag["colon"] or tag["close"] or (tag["end"] and name in _NAMES)
            if not (is_escape or is_tag):
                continue
            self._words(self._text[position : tag.start()])
            position = tag.end()
            if is_escape:
                self._words("[")
            else:
                self._read_tag(tag, name)
        self._words(self._text[position:end])
        unclosed = self._say or (self._open[-1][0] if self._open else None)
        if unclosed is not None:
            raise self._error(unclosed, f"has no [/{unclosed['name'].lower()}] behind it")
        self._builder.voice = self._voice

    def _words(self, words: str) -> None:
        if self._say is None:
            self._builder.add(words)
        else:
            self._word.append(words)

    def _read_tag(self, tag: Match[str], name: str) -> None:
        if name not in _NAMES:
            raise self._error(tag, f"is unknown; known: {KNOWN}")
        if not tag["end"]:
            raise self._error(tag, "has no ] at its end")
        value = (tag["value"] or "").strip()
        if self._say is not None and not (tag["close"] and name == "say"):
            raise self._error(tag, "is within [say:…], which holds words only: close it by [/say]")
        if tag["close"]:
            self._close(tag, name)
        elif not value:
            raise self._error(tag, f"has no value; known: {KNOWN}")
        else:
            {"pause": self._pause, "voice": self._other_voice, "rate": self._rate}.get(
                name, self._begin_say
            )(tag, value)

    def _close(self, tag: Match[str], name: str) -> None:
        if tag["colon"]:
            raise self._error(tag, f"has a value: write [/{name}]")
        if name == "voice":
            self._builder.voice = self._voice
        elif name == "rate" and self._open:
            self._builder.rate = self._open.pop()[1]
        elif name == "say" and self._say is not None:
            self._builder.add(self._say["value"].strip(), "".join(self._word))
            self._say, self._word = None, []
        else:
            raise self._error(tag, "closes nothing that is open" if name != "pause" else
                              "has no meaning: a pause is one tag, [pause:700ms]")  # fmt: skip

    def _pause(self, tag: Match[str], value: str) -> None:
        seconds = duration(value)
        if seconds is None:
            raise self._error(tag, f"is no pause; give [pause:700ms] or [pause:1.5s], at most "
                              f"{MAX_PAUSE:g}s")  # fmt: skip
        try:
            self._builder.pause(seconds)
        except ValueError as error:
            raise self._error(tag, f"is too long here: {error}") from error

    def _other_voice(self, tag: Match[str], value: str) -> None:
        self._builder.voice = value

    def _rate(self, tag: Match[str], value: str) -> None:
        try:
            factor = check_rate(float(value))
        except (ValueError, InputError) as error:
            raise self._error(tag, "is no rate; give [rate:0.5] to [rate:2]") from error
        self._open.append((tag, self._builder.rate))
        self._builder.scale_rate(factor)

    def _begin_say(self, tag: Match[str], value: str) -> None:
        self._say = tag

    def _error(self, tag: Match[str], problem: str) -> TextError:
        shown = tag[0] if len(tag[0]) <= _SHOWN else tag[0][: _SHOWN - 1] + "…"
        return error_at(self._text, tag.start(), f"{shown} {problem}")
