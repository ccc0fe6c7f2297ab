"""One chunk until it is well said: silence is asked again, faults are judged by a guard.

Knows attempts, their seeds and what is kept of them. Knows nothing of engines or of how a line is
spoken: it gives out lines and is told what became of them.
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
MAX_SILENT_RETRIES = 3  # further seeds for an attempt of which the model says nothing


class ChunkAttempts:
    """What was tried for chunk number ``index`` of a text.

    Attributes:
        chunk: what is to be said.
        index: its number in the text.
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
            guard: without one the first sound is kept.
        """
        self.chunk, self.index = chunk, index
        self._voice, self._sampling, self._seed = voice, sampling, seed
        self._on_token, self._guard = on_token, guard
        self._takes: list[Attempt] = []
        self._silences = 0

    def next_request(self) -> ChunkRequest:
        """The line of the next attempt, with a seed of its own."""
        number = len(self._takes) * (MAX_SILENT_RETRIES + 1) + self._silences
        seed = chunk_seed(self._seed, self.index, number)
        return ChunkRequest(self.chunk, self._voice, self._sampling, seed, self._on_token)

    def on_result(self, outcome: AudioOutput | Exception) -> Attempt | Exception | None:
        """Take what became of the last line.

        Returns:
            what is kept of all attempts, or the error if there is nothing; None: try ``next_request``
            again.
        """
        if isinstance(outcome, SilenceError) and self._silences < MAX_SILENT_RETRIES:
            log.warning("%s (asking again)", outcome)
            self._silences += 1
            return None
        if isinstance(outcome, Exception):
            return self._best() if self._takes else outcome
        self._silences = 0
        if self._guard is None:
            return Attempt(outcome)
        self._takes.append(Attempt(outcome, find_faults(self.chunk.text, outcome)))
        if self._takes[-1].faults and len(self._takes) <= self._guard.retries:
            return None
        return self._best()

    def _best(self) -> Attempt:
        assert self._guard is not None
        return self._guard.best(self.chunk.text, self._takes)
