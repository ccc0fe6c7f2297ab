"""The texts of an engine: as chunks that its model can read, and those that prepare it.

Responsible for what is read for which model, and for the requests of a warm-up. Not responsible for
splitting or spelling (text/), or for running anything (engine.py).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chatterbox_opt.config.model_config import TOKEN_RATE, ModelConfig
from chatterbox_opt.request import Request, VoiceSource
from chatterbox_opt.sampling import MAX_TOKENS, Sampling
from chatterbox_opt.script.spans import Script, Span
from chatterbox_opt.text import languages
from chatterbox_opt.text.chunking import (
    INNER_PAUSE,
    Chunk,
    clean,
    has_speech,
    pause_between,
    split,
)
from chatterbox_opt.text.detection import resolve
from chatterbox_opt.text.english.reading import Dropped, Reading
from chatterbox_opt.text.rules import TextRules
from chatterbox_opt.text.tags import warning as tag_warning

if TYPE_CHECKING:
    from chatterbox_opt.words.written import WrittenWord

log = logging.getLogger(__name__)
WARM_UP = (  # about 1, 5 and 12 seconds of audio
    "Hello, hello.",
    "This sentence is synthesized once at the start, and its audio is dropped.",
    "The first call of everything takes longer: kernels are compiled, libraries set themselves up, "
    "and CUDA graphs are captured. So these three texts are synthesized before the first request.",
)
TOKENS_PER_LETTER = 4  # speech tokens, in slow speech


def rules(config: ModelConfig, language: str | None = None) -> TextRules:
    """How texts of a model in a language are normalized and split.

    Raises:
        InputError: the model does not know the language, or its library is not installed.
    """
    languages.check_model(language, config)
    known = languages.chosen(language, config)
    return TextRules(config.text, None if known == languages.AUTO else known)


def chunks(
    text: str, config: ModelConfig, language: str | None = None, tags: Collection[str] = ()
) -> list[Chunk]:
    """A text as chunks that the model can read; what it cannot is named in a warning.

    Args:
        language: a code of text/languages.py, or ``AUTO``; None: not known.
        tags: sounds in square brackets that the model has a token for.

    Raises:
        InputError: as ``rules``.
        TextError: no word that the model can read.
    """
    _warn_of_tags(text, tags)
    return _split(_with_words(_reported(_reading(text, config)), config), config, language)


def _reading(text: str, config: ModelConfig) -> Reading:
    """What the model reads aloud of a text; it may have no word."""
    if not config.needs_text_normalization:
        return Reading(text)
    # imported only for the built-in model, which alone needs the libraries of this module
    from chatterbox_opt.text.english.normalizer import reading_of

    return reading_of(text)


def _with_words(reading: Reading, config: ModelConfig) -> Reading:
    """The same; ``split`` refuses a text without a word for the other models."""
    if not config.needs_text_normalization:
        return reading
    from chatterbox_opt.text.english.normalizer import with_words

    return with_words(reading)


def _split(reading: Reading, config: ModelConfig, language: str | None) -> list[Chunk]:
    chosen = rules(config, resolve(language, reading.text, config))
    return split(reading.text, chosen.limit, chosen)


def _reported(reading: Reading) -> Reading:
    """The same, after a warning of what is not read."""
    if reading.dropped:
        log.warning("%s", reading.summary)
    return reading


def _warn_of_tags(text: str, tags: Collection[str]) -> None:
    if "[" in text and (warning := tag_warning(text, tags)):
        log.warning("%s", warning)


def written_words(
    script: Script, chunks: Sequence[Chunk], config: ModelConfig
) -> list[list[WrittenWord]]:
    """For each chunk of a script its words, as the person wrote them, that are heard in it."""
    from chatterbox_opt.words import written as words  # only if somebody asks for word times

    read = words.english_words if config.needs_text_normalization else None
    return words.written_words(script.parts, [chunk.text for chunk in chunks], read)


def script_chunks(
    script: Script, config: ModelConfig, language: str | None = None, tags: Collection[str] = ()
) -> list[Chunk]:
    """A text with markup as chunks, each with its voice, its rate and the silence around it.

    A pause that was asked for is heard as long as that: the chunks' own silence is left out. Where
    none was, spans are as far apart as chunks of one voice would be. A script of one span without a
    pause has the chunks of its text.

    Args:
        language, tags: as of ``chunks``.

    Raises:
        InputError: as ``rules``.
        TextError: no word that the model can read.
    """
    _warn_of_tags(script.text, tags)
    joined = _Joined()
    dropped: list[Dropped] = []
    for span in script.spans:
        joined.pause(span.pause)
        # as the text around it, but without the blanks where it was cut off
        text = span.text if len(script.spans) == 1 else span.text.strip()
        reading = _reading(text, config) if has_speech(text) else Reading("")
        dropped += reading.dropped
        joined.add(span, _split(reading, config, language) if has_speech(reading.text) else [])
    whole = _reported(Reading("", tuple(dropped)))
    if not joined.chunks:
        clean(script.text)
        _with_words(whole, config)
    return joined.end()


class _Joined:
    """Chunks of spans, with the silence between them."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._before = ""  # text since the last chunk began
        self._pause: float | None = None  # asked for, since the last chunk

    def pause(self, seconds: float | None) -> None:
        """Add silence that was asked for."""
        if seconds is not None:
            self._pause = (self._pause or 0.0) + seconds

    def add(self, span: Span, found: list[Chunk]) -> None:
        """Add the chunks of a span; none, if it has no word."""
        if not found:
            self._before += span.text
            return
        if self.chunks and self._pause is None:
            between = pause_between(self._before, span.text)
            self._end_last(between, is_exact=between == INNER_PAUSE)
        elif self.chunks:
            self._end_last(self._pause or 0.0, is_exact=True)
        lead = self._pause
        if self.chunks:
            lead = 0.0 if self.chunks[-1].is_exact else None
        found = [replace(one, voice=span.voice, rate=span.rate) for one in found]
        self.chunks += [replace(found[0], lead=lead), *found[1:]]
        self._before, self._pause = span.text, None

    def end(self) -> list[Chunk]:
        """All chunks, with the pause at the end of the text."""
        if self._pause is not None:
            self._end_last(self._pause, is_exact=True)
        return self.chunks

    def _end_last(self, pause: float, *, is_exact: bool) -> None:
        self.chunks[-1] = replace(self.chunks[-1], pause=pause, is_exact=is_exact)


def warm_up_requests(texts: Sequence[str], voice: VoiceSource) -> Iterator[Request]:
    """A request for each text, or for ``WARM_UP``; no longer than slow speech takes.

    Raises:
        TextError, VoiceError: a text or the voice is of another type.
    """
    for text in texts or WARM_UP:
        request = Request("", text, voice)
        tokens = TOKEN_RATE + TOKENS_PER_LETTER * len(request.text)
        yield Request("", text, voice, Sampling(seed=0, max_tokens=min(MAX_TOKENS, tokens)))
