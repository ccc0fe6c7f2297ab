"""Spans: the parts of a text that are spoken by one voice, at one rate, without a pause within.

Responsible for these values, for collecting them, and for errors with line and column. Not
responsible for any grammar (brackets.py, ssml.py, cast.py) or for chunks (engine/texts.py).

A span keeps both what is read aloud and what the person wrote, part by part, so that what is heard
can be shown in the person's own words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chatterbox_opt.config.speaking_rate import combined
from chatterbox_opt.errors import TextError

_ENDS = ("Po", "Pe", "Pf", "Pd")  # categories of punctuation that belongs to the word before it
_QUOTES = "\"'"  # that may open or close
_OPENERS = "¿¡"
MAX_PAUSE = 600.0  # seconds of one pause


class Part(NamedTuple):
    """Some words of a span.

    Attributes:
        text: what is read aloud.
        written: what the person wrote there, without markup; "" for a mark that nobody wrote.
    """

    text: str
    written: str

    @property
    def is_literal(self) -> bool:
        """Whether it is read as it was written."""
        return self.text == self.written


@dataclass(frozen=True, slots=True)
class Span:
    """Words that are spoken by one voice, at one rate, without a pause within.

    Attributes:
        parts: in order.
        voice: a name of the cast or of a voice, or a recording; None: the request's own.
        rate: how fast it is spoken, in proportion to the request's rate.
        pause: seconds of silence before it; None: none was asked for, and the text decides.
    """

    parts: tuple[Part, ...] = ()
    voice: str | None = None
    rate: float = 1.0
    pause: float | None = None

    @property
    def text(self) -> str:
        """What is read aloud."""
        return "".join(part.text for part in self.parts)

    @property
    def written(self) -> str:
        """What the person wrote, without markup."""
        return "".join(part.written for part in self.parts)


@dataclass(frozen=True, slots=True)
class Script:
    """A text that was read.

    Attributes:
        spans: in order; a pause at the end is one without parts.
        hits: words that the lexicon has replaced, and what is read in their place, in order.
        remarks: what has no effect, for a person, each once.
    """

    spans: tuple[Span, ...]
    hits: tuple[Part, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Script:
        """A text without markup."""
        return cls((Span((Part(text, text),)),))

    @property
    def parts(self) -> list[Part]:
        """Of all spans in order, with a blank where speech breaks and there is none."""
        read = _separators(self.spans, [span.text for span in self.spans])
        written = _separators(self.spans, [span.written for span in self.spans])
        separators = map(Part, read, written)
        pairs = zip(separators, self.spans, strict=True)
        return [part for separator, span in pairs for part in (separator, *span.parts)]

    @property
    def text(self) -> str:
        """What is read aloud, without pauses and voices; these end a word."""
        return "".join(part.text for part in self.parts)

    @property
    def written(self) -> str:
        """What the person wrote, without markup; pauses and other voices end a word."""
        return "".join(part.written for part in self.parts)

    @property
    def voices(self) -> list[str]:
        """The names of its voices, each once, in the order in which they speak."""
        return list(dict.fromkeys(span.voice for span in self.spans if span.voice is not None))

    @property
    def seconds(self) -> float:
        """Of all pauses together."""
        return sum(span.pause or 0.0 for span in self.spans)


def _separators(spans: Sequence[Span], texts: Sequence[str]) -> list[str]:
    """For each text of a span what separates it from those before: a blank where speech breaks and
    the texts have none, or "".

    A pause or another voice breaks it; another rate does not, which may begin within a word.
    """
    separators: list[str] = []
    before = ""  # the last text that is not ""
    voice: str | None = None  # of the span before
    breaks = False  # since the last text
    for span, text in zip(spans, texts, strict=True):
        breaks = breaks or span.pause is not None or span.voice != voice
        voice = span.voice
        ends = before != "" and not before[-1].isspace()
        separators.append(" " if breaks and ends and text and _begins_a_word(text) else "")
        if text:
            before, breaks = text, False
    return separators


def _begins_a_word(text: str) -> bool:
    """Whether a text goes on with a word, and not with a blank or with what ends a sentence."""
    first, second = text[0], text[1:2]
    if first in _QUOTES:
        return second.isalnum()
    is_end = unicodedata.category(first) in _ENDS and first not in _OPENERS
    return not (first.isspace() or is_end)


@dataclass(slots=True)
class SpanBuilder:
    """Collects spans while a text is read.

    Attributes:
        voice, rate: of the words that come next.
        remarks: as of a ``Script``.
    """

    voice: str | None = None
    rate: float = 1.0
    remarks: dict[str, None] = field(default_factory=dict)
    _spans: list[Span] = field(default_factory=list)
    _parts: list[Part] = field(default_factory=list)
    _literal: list[str] = field(default_factory=list)  # of the part that is open, after these
    _last: str = ""  # character of the span that is open, but for blanks
    _speaks: tuple[str | None, float] = (None, 1.0)  # of the parts
    _pause: float | None = None

    def add(self, text: str, written: str | None = None) -> None:
        """Add words.

        Args:
            text: what is read aloud.
            written: what the person wrote, if it is something else.
        """
        if not (text or written):
            return
        if self._speaks != (self.voice, self.rate):
            self._end()
            self._speaks = (self.voice, self.rate)
        self._last = text.rstrip()[-1:] or self._last
        if written is None or written == text:
            self._literal.append(text)
        else:
            self._end_part()
            self._parts.append(Part(text, written))

    def pause(self, seconds: float) -> None:
        """Add silence to what is there since the last word.

        Raises:
            ValueError: together they are longer than ``MAX_PAUSE``.
        """
        self._end()
        self._pause = (self._pause or 0.0) + seconds
        if self._pause > MAX_PAUSE:
            raise ValueError(f"pauses add up to {self._pause:g}s; at most {MAX_PAUSE:g}s")

    def scale_rate(self, factor: float) -> None:
        """Speak what comes next at another rate, in proportion to the one so far."""
        self.rate = combined(self.rate, factor)

    @property
    def ends_with_word(self) -> bool:
        """Whether the last character that is read is a letter or a digit."""
        return self._last.isalnum()

    def spans(self) -> tuple[Span, ...]:
        """What was collected."""
        self._end()
        if self._pause is not None:
            self._spans.append(Span(pause=self._pause))
            self._pause = None
        return tuple(self._spans)

    def _end(self) -> None:
        """End the span that is open, if it has words."""
        self._end_part()
        if self._parts:
            voice, rate = self._speaks
            self._spans.append(Span(tuple(self._parts), voice, rate, self._pause))
            self._parts, self._pause, self._last = [], None, ""

    def _end_part(self) -> None:
        """End the part that is open: words that are read as they were written."""
        if self._literal:
            words = "".join(self._literal)
            self._parts.append(Part(words, words))
            self._literal = []


def error_at(text: str, position: int, problem: str) -> TextError:
    """The error of a text at a position, counted as editors do, from line 1 and column 1."""
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return error_in(line, column, problem)


def error_in(line: int, column: int, problem: str) -> TextError:
    """The error of a text in a line and column, both from 1."""
    return TextError(f"line {line}, column {column}: {problem}")


def quoted(names: Iterable[str]) -> str:
    """Names for a message: 'Anna', 'Bob'."""
    return ", ".join(f"'{name}'" for name in names)
