"""Requests to results: texts are cut into chunks, chunks go their own ways, texts come together.

Knows which chunk belongs to which request and when a request is finished. Knows nothing of models:
it is given functions that begin a request, speak chunks and finish a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from chatterbox_opt.attempts import Attempts, Speak, settle
from chatterbox_opt.guard import Take
from chatterbox_opt.reader import FAILURES
from chatterbox_opt.speech import Piece, Request, Result

Begin = Callable[[Request, int], list[Attempts]]
Finish = Callable[[Attempts, Take], "Future[Piece]"]


@dataclass(slots=True, eq=False)
class _Job:
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


class Schedule:
    """One run over requests. ``results`` it once."""

    def __init__(
        self,
        requests: Iterable[Request],
        seed_of: Callable[[Request], int],
        begin: Begin,
        finish: Finish,
    ) -> None:
        """Prepare.

        Args:
            seed_of: a request's own seed, or one that is drawn.
            begin: a request and its seed to its chunks; may raise one of ``FAILURES``.
            finish: a chunk and what is kept of it to its piece, here or in another thread.
        """
        self._requests = iter(requests)
        self._seed_of, self._begin, self._finish = seed_of, begin, finish
        self._chunks: deque[tuple[Attempts, _Job]] = deque()
        self._jobs: dict[Attempts, _Job] = {}
        self._failed: deque[Result] = deque()
        self._whole: deque[_Job] = deque()
        self._broken: Exception | None = None

    def results(self, speak: Speak) -> Iterator[Result]:
        """Yield results as they are finished.

        Raises:
            Exception: the requests' iterator failed; what was in work is finished first.
        """
        for attempts, kept in settle(self._more, speak):
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

    def _more(self) -> Attempts | None:
        """The next chunk, of a new request if need be."""
        while True:
            while self._chunks:
                attempts, job = self._chunks.popleft()
                if not job.failed:
                    self._jobs[attempts] = job
                    return attempts
            try:
                request = next(self._requests, None)
            except FAILURES as error:  # raised when what is in work has ended
                self._broken, request = error, None
            if request is None:
                return None
            self._cut(request)

    def _cut(self, request: Request) -> None:
        seed = self._seed_of(request)
        try:
            chunks = self._begin(request, seed)
        except FAILURES as error:
            self._failed.append(Result(request.id, seed, error=error))
            return
        job = _Job(request.id, seed, [None] * len(chunks))
        self._chunks.extend((attempts, job) for attempts in chunks)

    def _settled(self, attempts: Attempts, job: _Job, kept: Take | Exception) -> None:
        if job.failed:
            return
        if isinstance(kept, Exception):
            job.failed = True
            self._failed.append(Result(job.id, job.seed, error=kept))
            return
        job.pieces[attempts.index] = self._finish(attempts, kept)
        if None not in job.pieces:
            self._whole.append(job)
