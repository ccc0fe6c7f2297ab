"""The texts of an engine: as chunks that its model can read, and those that prepare it.

Responsible for what is read for which model, and for the requests of a warm-up. Not responsible for
splitting or spelling (text/), or for running anything (engine.py).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from chatterbox_opt.config.model_config import TOKEN_RATE, ModelConfig
from chatterbox_opt.request import Request, VoiceSource
from chatterbox_opt.sampling import MAX_TOKENS, Sampling
from chatterbox_opt.text import languages
from chatterbox_opt.text.chunking import Chunk, split
from chatterbox_opt.text.detection import resolve
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
    chosen = rules(config, resolve(language, text, config))
    if "[" in text and (warning := tag_warning(text, tags)):
        log.warning("%s", warning)
    if not config.needs_text_normalization:
        return split(text, chosen.limit, chosen)
    # imported only for the built-in model, which alone needs the libraries of this module
    from chatterbox_opt.text.english import read_english

    reading = read_english(text)
    if reading.dropped:
        log.warning("%s", reading.summary)
    return split(reading.text, chosen.limit, chosen)


def written_words(
    written: str, chunks: Sequence[Chunk], config: ModelConfig
) -> list[list[WrittenWord]]:
    """For each chunk the words of a text, as the person wrote them, that are heard in it."""
    from chatterbox_opt.words import written as words  # only if somebody asks for word times

    read = words.english_words if config.needs_text_normalization else None
    return words.written_words(written, [chunk.text for chunk in chunks], read)


def warm_up_requests(texts: Sequence[str], voice: VoiceSource) -> Iterator[Request]:
    """A request for each text, or for ``WARM_UP``; no longer than slow speech takes.

    Raises:
        TextError, VoiceError: a text or the voice is of another type.
    """
    for text in texts or WARM_UP:
        request = Request("", text, voice)
        tokens = TOKEN_RATE + TOKENS_PER_LETTER * len(request.text)
        yield Request("", text, voice, Sampling(seed=0, max_tokens=min(MAX_TOKENS, tokens)))
