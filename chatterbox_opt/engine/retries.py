"""Retry policy of one chunk: retries empty output and output that fails the quality checks.

Responsible for attempts, their seeds and the choice among them. Not responsible for how a chunk is
synthesized: callers run the requests it returns and pass it the results.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from chatterbox_opt.engine.quality import Guard, find_faults
from chatterbox_opt.engine.sequence import Attempt, ChunkRequest, OnToken
from chatterbox_opt.errors import SilenceError
from chatterbox_opt.sampling import Sampling, chunk_seed
from chatterbox_opt.text.chunking import Chunk
from chatterbox_opt.voice import Voice

if TYPE_CHECKING:
    from chatterbox_opt.engine.sequence import AudioOutput

log = logging.getLogger(__name__)
MAX_SILENT_RETRIES = 3  # further seeds of an attempt if the model generates no speech


class ChunkAttempts:
    """The attempts at chunk number ``index`` of a text.

    Attributes:
        chunk: the text.
        index: its number in the request.
    """

    def __init__(
        self,
        chunk: Chunk,
        index: int,
        voice: Voice,
        sampling: Sampling,
        *,
        seed: int,
        on_token: OnToken,
        guard: Guard | None = None,
    ) -> None:
        """Prepare the first attempt.

        Args:
            seed: of the whole text.
            guard: None uses the first attempt that has audio.
        """
        self.chunk, self.index = chunk, index
        self._voice, self._sampling, self._seed = voice, sampling, seed
        self._on_token, self._guard = on_token, guard
        self._attempts: list[Attempt] = []
        self._silences = 0

    def next_request(self) -> ChunkRequest:
        """The request of the next attempt, with a seed of its own."""
        number = len(self._attempts) * (MAX_SILENT_RETRIES + 1) + self._silences
        seed = chunk_seed(self._seed, self.index, number)
        return ChunkRequest(self.chunk, self._voice, self._sampling, seed, self._on_token)

    def on_result(self, outcome: AudioOutput | Exception) -> Attempt | Exception | None:
        """Record the result of the last request.

        Returns:
            the best of all attempts, or the error if none has audio; None if ``next_request``
            must be called again.
        """
        if isinstance(outcome, SilenceError) and self._silences < MAX_SILENT_RETRIES:
            log.warning("%s (retrying)", outcome)
            self._silences += 1
            return None
        if isinstance(outcome, Exception):
            return self._best() if self._attempts else outcome
        self._silences = 0
        if self._guard is None:
            return Attempt(outcome)
        self._attempts.append(Attempt(outcome, find_faults(self.chunk.text, outcome)))
        if self._attempts[-1].faults and len(self._attempts) <= self._guard.retries:
            return None
        return self._best()

    def _best(self) -> Attempt:
        assert self._guard is not None
        return self._guard.best(self.chunk.text, self._attempts)
