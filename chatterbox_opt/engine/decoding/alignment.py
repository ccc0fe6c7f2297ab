"""When the words of a sequence are heard: from what T3 has decoded to the words of a piece.

Responsible for what of a sequence is needed for that. Not responsible for T3's pass
(models/t3/text_attention.py), for the path (words/timing.py) or for errors (decoder.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Values
from dataclasses import replace

import numpy as np

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.sequence import Sequence
from chatterbox_opt.errors import NumericsError
from chatterbox_opt.models.t3.llama import LlamaT3
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.models.t3.text_attention import text_attention
from chatterbox_opt.utils.wave import Wave
from chatterbox_opt.words.timing import Span, heard_spans, word_spans
from chatterbox_opt.words.word import Word


def align(t3: T3, sequence: Sequence, space: int | None) -> list[Span]:
    """The frames of each word that T3 has read, of a sequence that it has decoded.

    Args:
        space: the text token between words.

    Raises:
        NumericsError: NaN or Inf.
    """
    prompt, heads = sequence.prompt, sequence.request.alignment_heads
    assert prompt is not None and isinstance(t3, LlamaT3)
    exaggeration = sequence.sampling.exaggeration
    attention = text_attention(t3, prompt, sequence.tokens, exaggeration, heads).cpu().numpy()
    if not np.isfinite(attention).all():
        raise NumericsError(
            "t3's pass that times words gave NaN or Inf: its weights may be damaged"
        )
    spans = word_spans(attention, token_words(prompt.text_tokens.tolist(), space))
    count = len(sequence.chunk.text.split())
    # the same number, unless a language's library has added or removed blanks
    return [spans[word * len(spans) // count] for word in range(count)]


def token_words(ids: Values[int], space: int | None) -> list[int]:
    """The index of each text token's word. Blanks belong to the word behind them, as in training
    (training/pico/train_t3.py); those at both ends to the first and the last word."""
    words, index = [], 0
    last = max((i for i, id in enumerate(ids) if id != space), default=0)
    for i, id in enumerate(ids):
        index += 0 < i < last and id == space != ids[i - 1]
        words.append(index)
    return words


def words_of(sequence: Sequence, waves: Values[Wave]) -> tuple[Word, ...]:
    """The words of a sequence, in seconds of its sound; none if they were not asked for.

    Args:
        waves: float32 [n] at 24 kHz, all of its sound in order, without the pause after it.
    """
    if not sequence.spans:
        return ()
    spans, written = sequence.spans, sequence.written
    of_words = [(spans[word.first][0], spans[word.last - 1][1]) for word in written]
    seconds = heard_spans(of_words, len(sequence.tokens), np.concatenate(waves))
    chunk = sequence.request.first_chunk + sequence.index
    return tuple(Word(word.text, *span, chunk) for word, span in zip(written, seconds, strict=True))


def placed(sequence: Sequence, words: tuple[Word, ...]) -> tuple[Word, ...]:
    """Words in seconds of the chunk: after the silence before it, without what was left out of its
    sound.

    Args:
        words: in seconds of its sound.
    """
    if not words:
        return ()
    lead, _ = sequence.chunk.silences
    skipped = sequence.trimmer.skipped / SAMPLE_RATE if sequence.trimmer else 0.0
    moved = (word.later(lead - skipped) for word in words)
    return tuple(replace(word, start=max(word.start, lead)) for word in moved)
