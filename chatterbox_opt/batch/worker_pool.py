"""Many engines as one: a pool of workers behind the same function from requests to results.

Knows who has which request in work, and what becomes of it when a worker dies. Knows nothing of
engines, and not where the workers are: processes of this machine (local_workers.py) or a cluster's
actors (ray_workers.py), each with a model of its own that it loads once.

A worker asks for a request whenever its engine has room for one, so no more are out than are in
work. These go up and down, as values:

    down   a Request; None: there are no more for now, finish what is in work
    up     READY once; WANTED when there is room; Results; log records; or why it cannot load
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from chatterbox_opt.errors import ChatterboxOptError, WorkerError, in_words
from chatterbox_opt.request import Request, Result, Speak

log = logging.getLogger(__name__)

READY, WANTED = "ready", "wanted"
Opening = Callable[[], AbstractContextManager[Speak]]  # picklable: it is called in the worker
Message: TypeAlias = "str | Result | logging.LogRecord | ChatterboxOptError"

MAX_CRASHES = 3  # deaths with one item in work, the last one alone, after which it is its fault
MAX_LOAD_ATTEMPTS = 3  # deaths of one worker before it was ready after which it is not replaced
SPARE = 2  # so many more items than workers may be fatal in a row before all is given up


class WorkerDied(Exception):
    """A worker died; ``str()`` says of what."""


class Worker(Protocol):
    """The near end of one worker."""

    @property
    def ends(self) -> Sequence[Any]:
        """What ``WorkerFactory.wait`` waits for: one of them is ready when there is a message, or none
        will come any more."""

    def give(self, request: Request | None) -> None:
        """Send a request, or None; a worker that is dead takes it and says so in ``receive``."""

    def receive(self) -> Message:
        """The next message, after an end was ready.

        Raises:
            Gone: it died, and has nothing more to say.
        """

    def close(self) -> None:
        """End it, whatever it does."""


class WorkerFactory(Protocol):
    """Where workers are."""

    def start(self, number: int) -> Worker:
        """Start one; ``number`` counts from 0, and a dead worker's is given again."""

    def wait(self, ends: Sequence[Any]) -> Collection[Any]:
        """Wait until at least one end of a worker is ready; return those that are."""


@dataclass(slots=True)
class _WorkerSlot:
    """A place for a worker, and what it has in work.

    Attributes:
        worker: None when it died too often while loading.
        ready: it has loaded its model.
        open: it has been given a request and no None since: it may want more.
        alone: what it has is to be in work without company.
    """

    number: int
    worker: Worker | None
    ready: bool = False
    open: bool = False
    alone: bool = False
    out: dict[str, Request] = field(default_factory=dict)
    loads: int = 0


class Pool:
    """Call it with requests for an iterator over their results, in the order they finish.

    What a dead worker had in work is done again, by the others or by a new one. An item that was
    there twice is then done alone, so that it takes no other with it; if that fails too, its
    result is a WorkerError. Draw each iterator to its end before the next call.
    """

    def __init__(self, crew: WorkerFactory, count: int) -> None:
        self._crew, self._count = crew, count
        self._places: list[_WorkerSlot] = []
        self._source: Iterator[Request] = iter(())
        self._dry = True  # the source has no more
        self._again: deque[Request] = deque()  # what dead workers had in work
        self._deaths: dict[str, int] = {}  # by id, of those
        self._row = 0  # deaths since the last result

    def __enter__(self) -> Pool:
        with ExitStack() as undo:
            undo.callback(self.close)
            for number in range(self._count):
                self._places.append(_WorkerSlot(number, self._crew.start(number)))
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what they have in work is lost."""
        for place in self._places:
            if place.worker is not None:
                place.worker.close()
        self._places.clear()

    def wait(self) -> None:
        """Return when the first worker is ready.

        Raises:
            ChatterboxOptError: why it cannot load.
            WorkerError: they die while they load.
        """
        while not any(place.ready for place in self._places):
            for place in self._speaking():
                for _ in self._hear(place):
                    pass  # nothing was given out yet

    def __call__(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield a result for each request.

        Raises:
            WorkerError: workers die one after the other, whatever they are given.
            ChatterboxOptError: why none can load any more.
        """
        self._source, self._dry = iter(requests), False
        while True:
            self._feed()
            if self._dry and not self._again and not any(p.out for p in self._places):
                return
            for place in self._speaking():
                yield from self._hear(place)

    def _speaking(self) -> list[_WorkerSlot]:
        """Wait for those that have something to say."""
        workers = [(place, place.worker) for place in self._places if place.worker is not None]
        ready = self._crew.wait([end for _, worker in workers for end in worker.ends])
        return [place for place, worker in workers if any(end in ready for end in worker.ends)]

    def _next(self) -> Request | None:
        if self._again:
            return self._again.popleft()
        request = None if self._dry else next(self._source, None)
        self._dry = request is None
        return request

    def _feed(self) -> None:
        """Give to those that have nothing in work and are not about to ask."""
        for place in self._places:
            if place.ready and not place.out and not place.open:
                request = self._next()
                place.alone = request is not None and self._is_suspect(request)
                if request is not None:
                    self._give(place, request)

    def _is_suspect(self, request: Request) -> bool:
        return self._deaths.get(request.id, 0) >= MAX_CRASHES - 1

    def _give(self, place: _WorkerSlot, request: Request | None) -> None:
        assert place.worker is not None
        place.open = request is not None
        if request is not None:
            place.out[request.id] = request
        place.worker.give(request)

    def _hear(self, place: _WorkerSlot) -> Iterator[Result]:
        assert place.worker is not None
        try:
            message = place.worker.receive()
        except WorkerDied as death:
            yield from self._bury(place, str(death))
            return
        if isinstance(message, Result):
            place.out.pop(message.id, None)
            self._deaths.pop(message.id, None)
            self._row = 0
            yield message
        elif isinstance(message, logging.LogRecord):
            if place.ready or place.number == 0:  # all would say the same while they load
                logging.getLogger(message.name).handle(message)
        elif isinstance(message, ChatterboxOptError):
            self._leave_out(place, message)
        elif message == READY:
            place.ready, place.loads = True, 0
        else:
            suspect = bool(self._again) and self._is_suspect(self._again[0])
            # one that is to be alone waits until a place is empty
            self._give(place, None if place.alone or suspect else self._next())

    def _leave_out(self, place: _WorkerSlot, error: ChatterboxOptError) -> None:
        """Go on without one that cannot load, as long as there are others."""
        if not any(other.ready for other in self._places):
            raise error
        assert place.worker is not None
        place.worker.close()
        place.worker = None
        log.warning("worker %d is left out: %s", place.number, error)

    def _bury(self, place: _WorkerSlot, cause: str) -> Iterator[Result]:
        """Have its work done again, and put another in its place."""
        assert place.worker is not None
        place.worker.close()
        lost, ready = list(place.out.values()), place.ready
        place.out.clear()
        place.ready = place.open = False
        self._row += 1
        for request in lost:
            died = self._deaths[request.id] = self._deaths.get(request.id, 0) + 1
            if died >= MAX_CRASHES and len(lost) == 1:
                del self._deaths[request.id]
                reason = f"{died} workers died of it, the last one alone with it ({cause})"
                yield _failed(request, WorkerError(f"{reason}: see whether the text is too long"))
            else:
                self._again.append(request)
        if not ready:
            place.loads += 1
        if self._row >= MAX_CRASHES * (self._count + SPARE):
            raise WorkerError(f"{self._row} workers died in a row ({cause}): try --workers 1")
        if place.loads >= MAX_LOAD_ATTEMPTS:
            place.worker = None
            log.warning("worker %d died while loading (%s) and is left out", place.number, cause)
            if not any(p.worker for p in self._places):
                raise WorkerError(f"no worker can load ({cause}): give fewer --workers")
            return
        if ready:
            log.warning("a worker died (%s): %d items are done again", cause, len(lost))
        place.worker = self._crew.start(place.number)


def _failed(request: Request, error: ChatterboxOptError) -> Result:
    return Result(request.id, request.sampling.seed or 0, error=error)


def serve(
    opening: Opening, receive: Callable[[], Request | None], send: Callable[[Message], None]
) -> None:
    """The worker's side: open once, then speak for as long as requests come.

    Args:
        receive: waits for the next message; it never returns once nobody is there.
        send: takes one away.
    """
    try:
        with opening() as speak:
            send(READY)
            while True:
                if (first := receive()) is not None:
                    for result in speak(_stream(first, receive, send)):
                        send(_portable(result))
    except ChatterboxOptError as error:
        send(error)


def _stream(
    first: Request, receive: Callable[[], Request | None], send: Callable[[Message], None]
) -> Iterator[Request]:
    request: Request | None = first
    while request is not None:
        yield request
        send(WANTED)
        request = receive()


def _portable(result: Result) -> Result:
    """Errors of other libraries as words: not all survive a journey between processes."""
    error = result.error
    if error is None or isinstance(error, ChatterboxOptError):
        return result
    return replace(result, error=ChatterboxOptError(in_words(error)))


class _Forward(QueueHandler):
    """Sends a record, put into words, to where the person is."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """See ``QueueHandler``: a picklable record comes in."""
        self.queue(record)  # type: ignore[operator]


def forward_logs(send: Callable[[Message], None]) -> None:
    """Have the library's warnings shown by the process that the person talks to."""
    logger = logging.getLogger("chatterbox_opt")
    logger.handlers, logger.propagate = [_Forward(send)], False  # type: ignore[arg-type]
