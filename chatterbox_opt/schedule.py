"""Requests to results: texts are cut into chunks, chunks go their own ways, texts come together.

Knows which chunk belongs to which request and when a request is finished. Knows nothing of models:
it is given functions that begin a request, speak chunks and finish a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from chatterbox_opt.attempts import Attempts, Speak, settle
from chatterbox_opt.guard import Take
from chatterbox_opt.reader import FAILURES
from chatterbox_opt.speech import Piece, Request, Result

Begin = Callable[[Request, int], list[Attempts]]


@dataclass(slots=True, eq=False)
class _Job:
    """A request in work: its pieces as far as they are there."""

    id: str
    seed: int
    pieces: list[Piece | None]
    failed: bool = False


class Schedule:
    """One run over requests. ``results`` it once."""

    def __init__(
        self,
        requests: Iterable[Request],
        seed_of: Callable[[Request], int],
        begin: Begin,
        piece: Callable[[Attempts, Take], Piece],
    ) -> None:
        """Prepare.

        Args:
            seed_of: a request's own seed, or one that is drawn.
            begin: a request and its seed to its chunks; may raise one of ``FAILURES``.
            piece: a chunk and what is kept of it to its sound.
        """
        self._requests = iter(requests)
        self._seed_of, self._begin, self._piece = seed_of, begin, piece
        self._chunks: deque[tuple[Attempts, _Job]] = deque()
        self._jobs: dict[Attempts, _Job] = {}
        self._ready: deque[Result] = deque()
        self._broken: Exception | None = None

    def results(self, speak: Speak) -> Iterator[Result]:
        """Yield results as they are finished.

        Raises:
            Exception: the requests' iterator failed; what was in work is finished first.
        """
        for attempts, kept in settle(self._more, speak):
            self._settled(attempts, self._jobs.pop(attempts), kept)
            yield from self._finished()
        yield from self._finished()
        if self._broken is not None:
            raise self._broken

    def _finished(self) -> Iterator[Result]:
        while self._ready:
            yield self._ready.popleft()

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
            self._ready.append(Result(request.id, seed, error=error))
            return
        job = _Job(request.id, seed, [None] * len(chunks))
        self._chunks.extend((attempts, job) for attempts in chunks)

    def _settled(self, attempts: Attempts, job: _Job, kept: Take | Exception) -> None:
        if job.failed:
            return
        if isinstance(kept, Exception):
            job.failed = True
            self._ready.append(Result(job.id, job.seed, error=kept))
            return
        job.pieces[attempts.index] = self._piece(attempts, kept)
        pieces = tuple(piece for piece in job.pieces if piece is not None)
        if len(pieces) == len(job.pieces):
            self._ready.append(Result(job.id, job.seed, pieces))
