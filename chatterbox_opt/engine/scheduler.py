"""Scheduler: splits requests into chunks, synthesizes the chunks, reassembles results.

Responsible for which chunk belongs to which request and when a request is finished. Not responsible
for models: functions that start a request, synthesize chunks and finish a chunk are passed in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.retries import ChunkAttempts
from chatterbox_opt.engine.sequence import (
    REQUEST_ERRORS,
    Attempt,
    ChunkRequest,
    ChunkResult,
    NextChunk,
)
from chatterbox_opt.request import Piece, Request, Result
from chatterbox_opt.utils.closing import Closing

StartRequest = Callable[[Request, int], list[ChunkAttempts]]
FinishChunk = Callable[[ChunkAttempts, Attempt], "Future[Piece]"]
SynthesizeChunks = Callable[[NextChunk], Iterator[ChunkResult]]


@dataclass(slots=True, eq=False)
class _RequestState:
    """A running request and its pieces, each None until it is synthesized."""

    id: str
    seed: int
    pieces: list[Future[Piece] | None]
    failed: bool = False

    def result(self) -> Result:
        """The result; waits for its pieces."""
        pieces = tuple(piece.result() for piece in self.pieces if piece is not None)
        return Result(self.id, self.seed, pieces)

    @property
    def finished(self) -> bool:
        """Whether all pieces are finished."""
        return all(piece is not None and piece.done() for piece in self.pieces)


class Scheduler:
    """One run over requests; call ``results`` once."""

    def __init__(
        self,
        requests: Iterable[Request],
        seed_of: Callable[[Request], int],
        begin: StartRequest,
        finish: FinishChunk,
    ) -> None:
        """Prepare a run.

        Args:
            seed_of: returns a request's own seed, or a random one.
            begin: (request, seed) -> its chunks; may raise one of ``REQUEST_ERRORS``.
            finish: (chunk, best attempt) -> its piece, computed inline or on another thread.
        """
        self._requests = iter(requests)
        self._seed_of, self._begin, self._finish = seed_of, begin, finish
        self._chunks: deque[tuple[ChunkAttempts, _RequestState]] = deque()
        self._running: dict[ChunkAttempts, _RequestState] = {}
        self._failed: deque[Result] = deque()
        self._complete: deque[_RequestState] = deque()
        self._source_error: Exception | None = None

    def results(self, synthesize: SynthesizeChunks) -> Iterator[Result]:
        """Yield results as they finish.

        Raises:
            Exception: the requests' iterator failed; running requests are finished first.
        """
        for attempts, outcome in run_with_retries(self._next_chunk, synthesize):
            self._on_chunk(attempts, self._running.pop(attempts), outcome)
            while self._failed:
                yield self._failed.popleft()
            while self._complete and self._complete[0].finished:
                yield self._complete.popleft().result()
        yield from self._failed
        for state in self._complete:
            yield state.result()
        if self._source_error is not None:
            raise self._source_error

    def _next_chunk(self) -> ChunkAttempts | None:
        """The next chunk; splits a new request if no chunk is waiting."""
        while True:
            while self._chunks:
                attempts, state = self._chunks.popleft()
                if not state.failed:
                    self._running[attempts] = state
                    return attempts
            try:
                request = next(self._requests, None)
            except REQUEST_ERRORS as error:  # raised once the running requests have finished
                self._source_error, request = error, None
            if request is None:
                return None
            self._split(request)

    def _split(self, request: Request) -> None:
        seed = self._seed_of(request)
        try:
            chunks = self._begin(request, seed)
        except REQUEST_ERRORS as error:
            self._failed.append(Result(request.id, seed, error=error))
            return
        state = _RequestState(request.id, seed, [None] * len(chunks))
        self._chunks.extend((attempts, state) for attempts in chunks)

    def _on_chunk(
        self, attempts: ChunkAttempts, state: _RequestState, outcome: Attempt | Exception
    ) -> None:
        if state.failed:
            return
        if isinstance(outcome, Exception):
            state.failed = True
            self._failed.append(Result(state.id, state.seed, error=outcome))
            return
        state.pieces[attempts.index] = self._finish(attempts, outcome)
        if None not in state.pieces:
            self._complete.append(state)


def run_with_retries(
    next_chunk: Callable[[], ChunkAttempts | None], synthesize: SynthesizeChunks
) -> Iterator[tuple[ChunkAttempts, Attempt | Exception]]:
    """Synthesize chunks until there are none; yield each with its best attempt, or its error.

    Retries come before new chunks.

    Args:
        next_chunk: called whenever a slot is free; returns None if no chunk is left.
    """
    retries: deque[ChunkAttempts] = deque()
    running: dict[ChunkRequest, ChunkAttempts] = {}

    def next_request() -> ChunkRequest | None:
        attempts = retries.popleft() if retries else next_chunk()
        if attempts is None:
            return None
        request = attempts.next_request()
        running[request] = attempts
        return request

    while True:
        for request, result in synthesize(next_request):
            attempts = running.pop(request)
            outcome = attempts.on_result(result)
            if outcome is None:
                retries.append(attempts)
            else:
                yield attempts, outcome
        if not retries:
            return


def finish_chunk(attempts: ChunkAttempts, best: Attempt, watermark: Watermark | None) -> Piece:
    """Add watermark and pause to a chunk's audio."""
    chunk, output = attempts.chunk, best.output
    wave, seconds = output.wave, dict(output.seconds)
    if watermark:
        start = time.perf_counter()
        wave = watermark.apply(wave)
        seconds["watermark"] = time.perf_counter() - start
    silence = np.zeros(round(chunk.pause * SAMPLE_RATE), dtype=np.float32)
    samples = np.concatenate((wave, silence))
    return Piece(samples, chunk.text, output.tokens, seconds, best.faults, best.attempts)


class ChunkFinisher(Closing):
    """Finishes the chunks of a batch. Use it as a context manager."""

    def __init__(self, watermark: Watermark | None, *, overlap: bool) -> None:
        """Prepare.

        Args:
            overlap: run on a thread, in parallel with the stages. Not useful on a CPU, where the
                thread would compete with them for the cores.
        """
        self._watermark = watermark
        self._thread = ThreadPoolExecutor(1) if overlap else None

    def close(self) -> None:
        """Wait for the chunk in work; those that wait for the thread are dropped."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def finish(self, attempts: ChunkAttempts, best: Attempt) -> Future[Piece]:
        """The future of the chunk's piece; already done without a thread."""
        if self._thread is not None:
            return self._thread.submit(finish_chunk, attempts, best, self._watermark)
        done: Future[Piece] = Future()
        done.set_result(finish_chunk(attempts, best, self._watermark))
        return done
