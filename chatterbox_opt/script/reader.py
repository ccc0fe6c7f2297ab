"""From a text to spans: which grammar it is written in, then the lexicon.

Responsible for the order: the lines of a dialogue, the markup in each, the lexicon over what is
read as it was written. Not responsible for the grammars themselves, or for chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from chatterbox_opt.script import brackets, ssml
from chatterbox_opt.script.cast import Cast
from chatterbox_opt.script.lexicon import Lexicon
from chatterbox_opt.script.spans import Part, Script, Span, SpanBuilder
from chatterbox_opt.text.languages import AUTO, DEFAULT

BETWEEN_LINES = "\n\n"  # each line of a dialogue is a paragraph


class Readable(Protocol):
    """What ``script_of`` takes: a ``Request``, or an item of a job."""

    @property
    def text(self) -> str:
        """What a person wrote."""

    @property
    def markup(self) -> bool:
        """Whether tags in it are more than text."""

    @property
    def lexicon(self) -> Lexicon | None:
        """Its words are replaced."""

    @property
    def cast(self) -> Cast | None:
        """Who speaks."""

    @property
    def language(self) -> str | None:
        """Of the text."""


def script_of(source: Readable, language: str | None = None) -> Script:
    """The text of a request in spans.

    Args:
        language: that was found in the text; None: the request's.

    Raises:
        TextError: as ``read``.
    """
    return read(
        source.text,
        markup=source.markup,
        lexicon=source.lexicon,
        cast=source.cast,
        language=language or source.language,
    )


def read(
    text: str,
    *,
    markup: bool = False,
    lexicon: Lexicon | None = None,
    cast: Cast | None = None,
    language: str | None = None,
) -> Script:
    """Read a text.

    Args:
        markup: whether tags in brackets, or SSML, are more than text.
        language: a code; None: English.

    Raises:
        TextError: wrong markup, or an unknown name, with its place.
    """
    language = DEFAULT if language in (None, AUTO) else language
    assert language is not None
    script = _spans(text, cast, language, markup=markup)
    return script if lexicon is None else _respelled(script, lexicon, language)


def markup_in(text: str) -> str:
    """The first of what looks like markup in a text, or ""."""
    return brackets.find(text) or ssml.find(text)


def _spans(text: str, cast: Cast | None, language: str, *, markup: bool) -> Script:
    builder = SpanBuilder()
    if markup and ssml.is_ssml(text):
        ssml.read_ssml(text, builder, language)
    elif cast is not None and cast.dialogue:
        for number, line in enumerate(cast.lines(text)):
            builder.voice = line.name
            if number:
                builder.add(BETWEEN_LINES)
            _read_words(text, builder, line.start, line.end, markup=markup)
    else:
        _read_words(text, builder, 0, len(text), markup=markup)
    return Script(builder.spans(), remarks=tuple(builder.remarks))


def _read_words(text: str, builder: SpanBuilder, start: int, end: int, *, markup: bool) -> None:
    if markup:
        brackets.read_brackets(text, builder, start, end)
    else:
        builder.add(text[start:end])


def _respelled(script: Script, lexicon: Lexicon, language: str) -> Script:
    """The script with what the lexicon says in place of its words."""
    hits: list[Part] = []

    def parts(span: Span) -> Iterator[Part]:
        for part in span.parts:
            end = 0
            for match in lexicon.matches(part.text, language) if part.is_literal else ():
                yield from _literal(part.text[end : match.start])
                hits.append(Part(match.respelling, part.text[match.start : match.end]))
                yield hits[-1]
                end = match.end
            yield from _literal(part.text[end:]) if part.is_literal else (part,)

    spans = tuple(replace(span, parts=tuple(parts(span))) for span in script.spans)
    return replace(script, spans=spans, hits=tuple(hits)) if hits else script


def _literal(text: str) -> Iterator[Part]:
    if text:
        yield Part(text, text)
