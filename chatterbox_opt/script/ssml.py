"""SSML: speak p s break prosody(rate) voice sub say-as emphasis; everything else is an error.

Responsible for its elements, attributes and errors. Not responsible for the words of ``say-as``
(say_as.py). The parser is Python's own (expat): it resolves entities, and since a DTD is refused,
no text can declare one, and none can grow when it is read. Blanks and line ends are one blank each,
as in XML documents that are indented.

Source: W3C, Speech Synthesis Markup Language 1.1. It leaves open how long the strengths of a
``break`` are and how fast the names of a rate; ``_STRENGTHS`` and ``_RATES`` are this package's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.parsers import expat

from chatterbox_opt.config.speaking_rate import check_rate
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.script.brackets import duration
from chatterbox_opt.script.say_as import KINDS, words_of
from chatterbox_opt.script.spans import MAX_PAUSE, SpanBuilder, error_in

ELEMENTS = ("speak", "p", "s", "break", "prosody", "voice", "sub", "say-as", "emphasis")
MAX_DEPTH = 32  # of elements
_STRENGTHS = {
    "none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5,
}  # fmt: skip
_RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.5}
_NO_EFFECT = ("pitch", "contour", "range", "duration", "volume")  # of prosody
_PERCENT = re.compile(r"([+-]?)(\d{1,4}(?:\.\d{1,6})?)%")
_IS_SSML = re.compile(
    r"\s*(?:<\?xml\b[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:speak\b|!DOCTYPE\b)", re.DOTALL
)
_LOOKS_LIKE = re.compile(r"<(?:speak|break|prosody|say-as)\b[^<>]{0,99}>")


def is_ssml(text: str) -> bool:
    """Whether a text is an SSML document, or one with a DTD, which is refused."""
    return _IS_SSML.match(text) is not None


def find(text: str) -> str:
    """The first of what looks like SSML in a text, or ""."""
    found = _LOOKS_LIKE.search(text)
    return found[0] if found else ""


def read_ssml(text: str, builder: SpanBuilder, language: str) -> None:
    """Read an SSML document into a builder.

    Args:
        language: of numbers and dates.

    Raises:
        TextError: not XML, a DTD, elements too deep, an unknown element, or a value that has no
            meaning, with the place.
    """
    reader = _Reader(builder, language)
    try:
        reader.parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise error_in(
            error.lineno, error.offset + 1, f"this is not XML ({reason}): correct the SSML"
        ) from error


class _Reader:
    """One document while it is read."""

    def __init__(self, builder: SpanBuilder, language: str) -> None:
        self._builder, self._language = builder, language
        # of each element that is open: its name, and voice and rate before it
        self._open: list[tuple[str, str | None, float]] = []
        self._inner: str | None = None  # text of the open sub or say-as
        self._attributes: Mapping[str, str] = {}  # of that
        self.parser = expat.ParserCreate("utf-8")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype

    def _doctype(self, *_: object) -> None:
        raise self._error("a DTD is not read: remove <!DOCTYPE …>")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name not in ELEMENTS:
            raise self._error(f"<{name[:30]}> is unknown; known: {', '.join(ELEMENTS)}")
        if (name == "speak") != (not self._open):
            raise self._error("<speak> is the outermost element, and only that")
        if self._inner is not None:
            raise self._error(f"<{name}> is within <{self._open[-1][0]}>, which holds text only")
        if len(self._open) >= MAX_DEPTH:
            raise self._error(f"elements are nested more than {MAX_DEPTH} deep")
        self._open.append((name, self._builder.voice, self._builder.rate))
        if name == "p":
            self._builder.add("\n\n")
        elif name == "break":
            self._break(attributes)
        elif name == "voice":
            self._builder.voice = self._value(name, attributes, "name")
        elif name == "prosody":
            self._prosody(attributes)
        elif name in ("sub", "say-as"):
            self._value(name, attributes, "alias" if name == "sub" else "interpret-as")
            self._inner, self._attributes = "", attributes

    def _end(self, name: str) -> None:
        _, self._builder.voice, self._builder.rate = self._open.pop()
        if self._inner is not None:
            inner, self._inner = " ".join(self._inner.split()), None
            self._builder.add(self._read_inner(name, inner), inner)
        elif name == "p":
            self._builder.add("\n\n")
        elif name == "s":
            if self._builder.ends_with_word:
                self._builder.add(".", "")
            self._builder.add(" ")

    def _text(self, text: str) -> None:
        if self._inner is not None:
            self._inner += text
        else:
            self._builder.add(re.sub(r"\s+", " ", text))

    def _read_inner(self, name: str, inner: str) -> str:
        """What is read for the content of a sub or say-as."""
        if name == "sub":
            return self._attributes["alias"]
        kind, form = self._attributes["interpret-as"].strip(), self._attributes.get("format", "")
        try:
            return words_of(kind, inner, form.strip(), self._language)
        except ValueError as error:
            raise self._error(str(error)) from error

    def _break(self, attributes: Mapping[str, str]) -> None:
        strength = attributes.get("strength", "medium").strip()
        seconds: float | None
        if "time" in attributes:
            seconds = duration(attributes["time"].strip().removeprefix("+"))
            if seconds is None:
                raise self._error(f"time of <break> is '{attributes['time'][:30]}'; give 700ms or "
                                  f"1.5s, at most {MAX_PAUSE:g}s")  # fmt: skip
        else:
            seconds = _STRENGTHS.get(strength)
            if seconds is None:
                raise self._error(f"strength of <break> is '{strength[:30]}'; known: "
                                  f"{', '.join(_STRENGTHS)}")  # fmt: skip
            if not seconds:
                return
        try:
            self._builder.pause(seconds)
        except ValueError as error:
            raise self._error(str(error)) from error

    def _prosody(self, attributes: Mapping[str, str]) -> None:
        for name in _NO_EFFECT:
            if name in attributes:
                self._builder.remarks[f"{name} of <prosody> has no effect; rate has"] = None
        if "rate" not in attributes:
            return
        value = attributes["rate"].strip().lower()
        try:
            factor = check_rate(_rate(value))
        except (ValueError, InputError) as error:
            raise self._error(f"rate of <prosody> is '{value[:30]}'; give 50% to 200%, 0.5 to 2, "
                              f"or {', '.join(_RATES)}") from error  # fmt: skip
        self._builder.scale_rate(factor)

    def _value(self, name: str, attributes: Mapping[str, str], wanted: str) -> str:
        value = attributes.get(wanted, "").strip()
        if not value:
            known = f"; known: {', '.join(KINDS)}" if name == "say-as" else ""
            raise self._error(f'<{name}> has no {wanted}="…"{known}')
        return value

    def _error(self, problem: str) -> TextError:
        parser = self.parser
        return error_in(parser.CurrentLineNumber, parser.CurrentColumnNumber + 1, problem)


def _rate(value: str) -> float:
    """A rate in the forms of SSML as a factor: slow, 90%, +10%, 0.9.

    Raises:
        ValueError: none of these.
    """
    if value in _RATES:
        return _RATES[value]
    if percent := _PERCENT.fullmatch(value):
        sign, share = percent[1], float(percent[2]) / 100
        return share if not sign else 1 + share if sign == "+" else 1 - share
    return float(value)
