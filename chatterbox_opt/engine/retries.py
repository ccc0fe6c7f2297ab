"""Retry policy of one sequence: empty output, and output that fails the quality checks.

Responsible for whether there is another attempt, its seed, and which attempt is used. Not
responsible for retries with the same seed after failures of the device (decoder.py, renderer.py).
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from chatterbox_opt.engine.decoding.alignment import words_of
from chatterbox_opt.engine.quality import find_faults, rank
from chatterbox_opt.engine.sequence import Sequence
from chatterbox_opt.errors import SilenceError
from chatterbox_opt.request import Piece
from chatterbox_opt.utils.wave import Wave

log = logging.getLogger(__name__)
SEEDS_PER_ATTEMPT = 4  # an attempt without any speech tokens is repeated with three more seeds


def retry(sequence: Sequence) -> bool:
    """Decide about an attempt that has ended.

    Returns:
        whether the sequence waits for a slot again, with another seed; otherwise ``best`` is the
        attempt that is used, or ``error`` says why there is none.
    """
    number, repeated = divmod(sequence.attempt, SEEDS_PER_ATTEMPT)
    error, guard = sequence.error, sequence.request.guard
    if isinstance(error, SilenceError) and repeated + 1 < SEEDS_PER_ATTEMPT:
        log.warning("%s (retrying)", error)
        sequence.next_attempt(sequence.attempt + 1)
        return True
    if error is not None:
        return False
    piece = _piece(sequence)
    best, rate = sequence.best, sequence.chunk.rate
    if best is None or rank(piece, rate) < rank(best, rate):
        best = piece
    sequence.best = replace(best, attempts=number + 1)
    if guard is None or not piece.faults or number >= guard.retries:
        return False
    sequence.next_attempt((number + 1) * SEEDS_PER_ATTEMPT)
    return True


def faults_in_parts(sequence: Sequence) -> tuple[str, ...]:
    """The faults of a sequence that was given out in parts; they are logged.

    Its parts cannot be taken back, so there is no other attempt.
    """
    faults = _faults(sequence, np.concatenate(sequence.heard))
    if faults:
        text = sequence.chunk.text[:40]
        log.warning("%r has faults and was streamed already: %s", text, "; ".join(faults))
    return faults


def _piece(sequence: Sequence) -> Piece:
    """The attempt as a piece without watermark and pause, checked if the request has a guard."""
    wave, tokens = sequence.audio, sequence.tokens
    assert wave is not None
    faults = () if sequence.request.guard is None else _faults(sequence, wave)
    text, count = sequence.chunk.text, len(tokens) or sequence.num_tokens
    return Piece(wave, text, count, {}, faults, words=words_of(sequence, [wave]))


def _faults(sequence: Sequence, wave: Wave) -> tuple[str, ...]:
    chunk = sequence.chunk
    return find_faults(
        chunk.text, wave, sequence.tokens, truncated=sequence.truncated, rate=chunk.rate
    )
