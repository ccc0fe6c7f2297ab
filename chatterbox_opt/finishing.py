"""The last work on a chunk's sound: its watermark, and the silence after it.

Knows waves and, for many chunks, a thread beside the stages' work. Knows nothing of models.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from chatterbox_opt.attempts import Attempts
from chatterbox_opt.guard import Take
from chatterbox_opt.shapes import SAMPLE_RATE
from chatterbox_opt.speech import Piece
from chatterbox_opt.watermark import Watermark


def piece(attempts: Attempts, take: Take, watermark: Watermark | None) -> Piece:
    """A chunk as it goes out."""
    chunk, spoken = attempts.chunk, take.spoken
    wave, seconds = spoken.wave, dict(spoken.seconds)
    if watermark:
        start = time.perf_counter()
        wave = watermark.apply(wave)
        seconds["watermark"] = time.perf_counter() - start
    silence = np.zeros(round(chunk.pause * SAMPLE_RATE), dtype=np.float32)
    samples = np.concatenate((wave, silence))
    return Piece(samples, chunk.text, spoken.tokens, seconds, take.faults, take.attempts)


class Finisher:
    """Finishes chunks of a batch. Use it as a context manager."""

    def __init__(self, watermark: Watermark | None, *, aside: bool) -> None:
        """Prepare.

        Args:
            aside: work in a thread, off the stages' path. Not on a processor: there the thread
                would only take the cores from the stages.
        """
        self._watermark = watermark
        self._thread = ThreadPoolExecutor(1) if aside else None

    def __enter__(self) -> Finisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def finish(self, attempts: Attempts, take: Take) -> Future[Piece]:
        """A chunk's piece, there or under way."""
        if self._thread is not None:
            return self._thread.submit(piece, attempts, take, self._watermark)
        done: Future[Piece] = Future()
        done.set_result(piece(attempts, take, self._watermark))
        return done
