"""Requests to results: texts are cut into chunks, chunks go their own ways, texts come together.

Knows which chunk belongs to which request and when a request is finished. Knows nothing of models:
it is given functions that begin a request, speak chunks and finish a chunk.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.retries import ChunkAttempts
from chatterbox_opt.engine.sequence import REQUEST_ERRORS, Attempt, ChunkRequest, NextChunk
from chatterbox_opt.request import Piece, Request, Result

if TYPE_CHECKING:
    from chatterbox_opt.engine.sequence import AudioOutput

StartRequest = Callable[[Request, int], list[ChunkAttempts]]
FinishChunk = Callable[[ChunkAttempts, Attempt], "Future[Piece]"]


@dataclass(slots=True, eq=False)
class _RequestState:
    """A request in work: its pieces as far as they are there, or under way."""

    id: str
    seed: int
    pieces: list[Future[Piece] | None]
    failed: bool = False

    def result(self) -> Result:
        """Wait for the pieces."""
        pieces = tuple(piece.result() for piece in self.pieces if piece is not None)
        return Result(self.id, self.seed, pieces)

    @property
    def finished(self) -> bool:
        """Whether nothing has to be waited for."""
        return all(piece is not None and piece.done() for piece in self.pieces)


class Scheduler:
    """One run over requests. ``results`` it once."""

    def __init__(
        self,
        requests: Iterable[Request],
        seed_of: Callable[[Request], int],
        begin: StartRequest,
        finish: FinishChunk,
    ) -> None:
        """Prepare.

        Args:
            seed_of: a request's own seed, or one that is drawn.
            begin: a request and its seed to its chunks; may raise one of ``REQUEST_ERRORS``.
            finish: a chunk and what is kept of it to its piece, here or in another thread.
        """
        self._requests = iter(requests)
        self._seed_of, self._begin, self._finish = seed_of, begin, finish
        self._chunks: deque[tuple[ChunkAttempts, _RequestState]] = deque()
        self._jobs: dict[ChunkAttempts, _RequestState] = {}
        self._failed: deque[Result] = deque()
        self._whole: deque[_RequestState] = deque()
        self._broken: Exception | None = None

    def results(self, speak: SynthesizeChunks) -> Iterator[Result]:
        """Yield results as they are finished.

        Raises:
            Exception: the requests' iterator failed; what was in work is finished first.
        """
        for attempts, kept in run_with_retries(self._more, speak):
            self._settled(attempts, self._jobs.pop(attempts), kept)
            while self._failed:
                yield self._failed.popleft()
            while self._whole and self._whole[0].finished:
                yield self._whole.popleft().result()
        yield from self._failed
        for job in self._whole:
            yield job.result()
        if self._broken is not None:
            raise self._broken

    def _more(self) -> ChunkAttempts | None:
        """The next chunk, of a new request if need be."""
        while True:
            while self._chunks:
                attempts, job = self._chunks.popleft()
                if not job.failed:
                    self._jobs[attempts] = job
                    return attempts
            try:
                request = next(self._requests, None)
            except REQUEST_ERRORS as error:  # raised when what is in work has ended
                self._broken, request = error, None
            if request is None:
                return None
            self._cut(request)

    def _cut(self, request: Request) -> None:
        seed = self._seed_of(request)
        try:
            chunks = self._begin(request, seed)
        except REQUEST_ERRORS as error:
            self._failed.append(Result(request.id, seed, error=error))
            return
        job = _RequestState(request.id, seed, [None] * len(chunks))
        self._chunks.extend((attempts, job) for attempts in chunks)

    def _settled(
        self, attempts: ChunkAttempts, job: _RequestState, kept: Attempt | Exception
    ) -> None:
        if job.failed:
            return
        if isinstance(kept, Exception):
            job.failed = True
            self._failed.append(Result(job.id, job.seed, error=kept))
            return
        job.pieces[attempts.index] = self._finish(attempts, kept)
        if None not in job.pieces:
            self._whole.append(job)


log = logging.getLogger(__name__)
SynthesizeChunks = Callable[[NextChunk], Iterator[tuple[ChunkRequest, "AudioOutput | Exception"]]]


def run_with_retries(
    more: Callable[[], ChunkAttempts | None], speak: SynthesizeChunks
) -> Iterator[tuple[ChunkAttempts, Attempt | Exception]]:
    """Speak what ``more`` gives until it gives nothing; yield each with what is kept of it.

    Args:
        more: asked whenever there is room; None if there is nothing left.
    """
    again: deque[ChunkAttempts] = deque()
    spoken: dict[ChunkRequest, ChunkAttempts] = {}

    def take() -> ChunkRequest | None:
        attempts = again.popleft() if again else more()
        if attempts is None:
            return None
        request = attempts.next_request()
        spoken[request] = attempts
        return request

    while True:
        for request, outcome in speak(take):
            attempts = spoken.pop(request)
            kept = attempts.on_result(outcome)
            if kept is None:
                again.append(attempts)
            else:
                yield attempts, kept
        if not again:
            return


def finish_chunk(attempts: ChunkAttempts, take: Attempt, watermark: Watermark | None) -> Piece:
    """A chunk as it goes out."""
    chunk, spoken = attempts.chunk, take.output
    wave, seconds = spoken.wave, dict(spoken.seconds)
    if watermark:
        start = time.perf_counter()
        wave = watermark.apply(wave)
        seconds["watermark"] = time.perf_counter() - start
    silence = np.zeros(round(chunk.pause * SAMPLE_RATE), dtype=np.float32)
    samples = np.concatenate((wave, silence))
    return Piece(samples, chunk.text, spoken.tokens, seconds, take.faults, take.attempts)


class ChunkFinisher:
    """Finishes chunks of a batch. Use it as a context manager."""

    def __init__(self, watermark: Watermark | None, *, aside: bool) -> None:
        """Prepare.

        Args:
            aside: work in a thread, off the stages' path. Not on a processor: there the thread
                would only take the cores from the stages.
        """
        self._watermark = watermark
        self._thread = ThreadPoolExecutor(1) if aside else None

    def __enter__(self) -> ChunkFinisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def finish(self, attempts: ChunkAttempts, take: Attempt) -> Future[Piece]:
        """A chunk's piece, there or under way."""
        if self._thread is not None:
            return self._thread.submit(finish_chunk, attempts, take, self._watermark)
        done: Future[Piece] = Future()
        done.set_result(finish_chunk(attempts, take, self._watermark))
        return done
