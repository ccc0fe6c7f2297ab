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
    best = sequence.best
    if best is None or rank(piece) < rank(best):
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
    wave, text = np.concatenate(sequence.heard), sequence.chunk.text
    faults = find_faults(text, wave, sequence.tokens, truncated=sequence.truncated)
    if faults:
        log.warning("%r has faults and was streamed already: %s", text[:40], "; ".join(faults))
    return faults


def _piece(sequence: Sequence) -> Piece:
    """The attempt as a piece without watermark and pause, checked if the request has a guard."""
    wave, tokens = sequence.audio, sequence.tokens
    assert wave is not None
    checked, text = sequence.request.guard is not None, sequence.chunk.text
    faults = find_faults(text, wave, tokens, truncated=sequence.truncated) if checked else ()
    words = words_of(sequence, [wave])
    return Piece(wave, text, len(tokens) or sequence.num_tokens, {}, faults, words=words)
