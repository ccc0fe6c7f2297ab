"""A pool of workers that is called as one engine is: requests in, results out.

Responsible for which request is in flight on which worker, and for recovery from crashes. Not
responsible for engines or for where the workers run: in processes of this machine
(local_workers.py) or as actors of a cluster (ray_workers.py), each with a model that it loads once.

A worker requests its next item when its engine has a free slot, so no more requests are taken from
the source than are in flight. Messages:

    to a worker     a Request; None: no more for now, finish those in flight
    from a worker   READY once, after loading; WANTED when a slot is free; Results; log records;
                    or the error that prevented loading
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from typing import Any, Protocol, TypeAlias

from chatterbox_opt.errors import ChatterboxOptError, WorkerError, in_words
from chatterbox_opt.request import Request, Result, SynthesizeBatch
from chatterbox_opt.utils.closing import Closing

log = logging.getLogger(__name__)

READY, WANTED = "ready", "wanted"
# picklable: called in the worker
EngineFactory = Callable[[], AbstractContextManager[SynthesizeBatch]]
Message: TypeAlias = "str | Result | logging.LogRecord | ChatterboxOptError"

MAX_CRASHES = 3  # an item that crashed this many workers (the last time alone) is marked failed
MAX_LOAD_ATTEMPTS = 3  # a worker that crashed this often while loading is not restarted
EXTRA_CRASHES = 2  # items, beyond one per worker, that may crash workers in a row before giving up


class WorkerDied(Exception):
    """A worker died; ``str()`` is the cause."""


class Worker(Protocol):
    """The parent's handle to one worker."""

    @property
    def ends(self) -> Sequence[Any]:
        """Objects for ``WorkerFactory.wait``.

        One of them is ready when there is a message or when the worker has died.
        """

    def send(self, request: Request | None) -> None:
        """Send a request, or None. No-op if the worker is dead; ``receive`` then raises."""

    def receive(self) -> Message:
        """The next message, after one of ``ends`` was ready.

        Raises:
            WorkerDied: it died, and all its messages were received.
        """

    def close(self) -> None:
        """Stop the worker, even in the middle of a request."""


class WorkerFactory(Protocol):
    """Starts workers and waits for them."""

    def start(self, number: int) -> Worker:
        """Start a worker.

        Args:
            number: from 0; a replacement has the number of the dead worker.
        """

    def wait(self, ends: Sequence[Any]) -> Collection[Any]:
        """Wait until at least one of the workers' ``ends`` is ready; return those that are."""


@dataclass(slots=True)
class _WorkerSlot:
    """A position in the pool, its current worker, and the worker's requests.

    Attributes:
        worker: None if it is not restarted any more.
        ready: it has loaded its model.
        accepting: the last message sent to it was a request and not None, so it may request more.
        exclusive: its request must run alone, because it is suspected of crashing workers.
        in_flight: requests sent and not yet answered, by id.
        failed_loads: crashes while loading, in a row.
    """

    number: int
    worker: Worker | None
    ready: bool = False
    accepting: bool = False
    exclusive: bool = False
    in_flight: dict[str, Request] = field(default_factory=dict)
    failed_loads: int = 0


class Pool(Closing):
    """Call it with requests for an iterator over their results, in the order they finish.

    The requests in flight on a worker that dies are requeued, and a replacement is started. A
    request that was in flight at two crashes is then run alone, so that another crash affects no
    other request; if it does crash, its result is a WorkerError. Exhaust each iterator before the
    next call.
    """

    def __init__(self, factory: WorkerFactory, count: int) -> None:
        self._factory, self._count = factory, count
        self._slots: list[_WorkerSlot] = []
        self._source: Iterator[Request] = iter(())
        self._exhausted = True  # the source has no more requests
        self._requeued: deque[Request] = deque()  # were in flight on workers that died
        self._crashes: dict[str, int] = {}  # by id of such a request
        self._crashes_in_a_row = 0  # since the last result
        self._logged_while_loading: set[str] = set()

    def __enter__(self) -> Pool:
        with ExitStack() as undo:
            undo.callback(self.close)
            for number in range(self._count):
                self._slots.append(_WorkerSlot(number, self._factory.start(number)))
            undo.pop_all()
        return self

    def close(self) -> None:
        """Stop the workers; their requests in flight are lost."""
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.close()
        self._slots.clear()

    def wait(self) -> None:
        """Return when the first worker is ready.

        Raises:
            ChatterboxOptError: the error that prevented loading.
            WorkerError: workers die while loading.
        """
        while not any(slot.ready for slot in self._slots):
            for slot in self._with_messages():
                for _ in self._receive(slot):
                    pass  # no results: no requests were sent yet

    def __call__(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield a result for each request.

        Raises:
            WorkerError: workers die in a row, on different requests.
            ChatterboxOptError: no worker can load any more; the error that prevented it.
        """
        self._source, self._exhausted = iter(requests), False
        while True:
            self._fill_idle()
            in_flight = any(slot.in_flight for slot in self._slots)
            if self._exhausted and not self._requeued and not in_flight:
                return
            for slot in self._with_messages():
                yield from self._receive(slot)

    def _with_messages(self) -> list[_WorkerSlot]:
        """Wait for messages; return the slots that have one or whose worker died."""
        workers = [(slot, slot.worker) for slot in self._slots if slot.worker is not None]
        ready = self._factory.wait([end for _, worker in workers for end in worker.ends])
        return [slot for slot, worker in workers if any(end in ready for end in worker.ends)]

    def _next(self) -> Request | None:
        if self._requeued:
            return self._requeued.popleft()
        request = None if self._exhausted else next(self._source, None)
        self._exhausted = request is None
        return request

    def _fill_idle(self) -> None:
        """Send a request to each idle worker that will not request one itself."""
        for slot in self._slots:
            if slot.ready and not slot.in_flight and not slot.accepting:
                request = self._next()
                slot.exclusive = request is not None and self._is_suspect(request)
                if request is not None:
                    self._send(slot, request)

    def _is_suspect(self, request: Request) -> bool:
        return self._crashes.get(request.id, 0) >= MAX_CRASHES - 1

    def _send(self, slot: _WorkerSlot, request: Request | None) -> None:
        assert slot.worker is not None
        slot.accepting = request is not None
        if request is not None:
            slot.in_flight[request.id] = request
        slot.worker.send(request)

    def _receive(self, slot: _WorkerSlot) -> Iterator[Result]:
        """Handle one message; yield a result if the message is one or causes one."""
        assert slot.worker is not None
        try:
            message = slot.worker.receive()
        except WorkerDied as death:
            yield from self._on_worker_death(slot, str(death))
            return
        if isinstance(message, Result):
            slot.in_flight.pop(message.id, None)
            self._crashes.pop(message.id, None)
            self._crashes_in_a_row = 0
            yield message
        elif isinstance(message, logging.LogRecord):
            if slot.ready or self._is_first(message):
                logging.getLogger(message.name).handle(message)
        elif isinstance(message, ChatterboxOptError):
            self._drop_worker(slot, message)
        elif message == READY:
            slot.ready, slot.failed_loads = True, 0
        else:
            suspect = bool(self._requeued) and self._is_suspect(self._requeued[0])
            # a suspect request waits until a worker has nothing else in flight
            self._send(slot, None if slot.exclusive or suspect else self._next())

    def _is_first(self, record: logging.LogRecord) -> bool:
        """Whether no worker has logged it while loading, when all log the same; remembers it."""
        text = record.getMessage()
        is_first = text not in self._logged_while_loading
        self._logged_while_loading.add(text)
        return is_first

    def _drop_worker(self, slot: _WorkerSlot, error: ChatterboxOptError) -> None:
        """Continue without a worker that cannot load, as long as there are others."""
        if not any(other.ready for other in self._slots):
            raise error
        assert slot.worker is not None
        slot.worker.close()
        slot.worker = None
        log.warning("worker %d is not used: %s", slot.number, error)

    def _on_worker_death(self, slot: _WorkerSlot, cause: str) -> Iterator[Result]:
        """Requeue its requests and start a replacement.

        Yields the failure of a request that crashed too many workers.
        """
        assert slot.worker is not None
        slot.worker.close()
        lost, was_ready = list(slot.in_flight.values()), slot.ready
        slot.in_flight.clear()
        slot.ready = slot.accepting = False
        self._crashes_in_a_row += 1
        for request in lost:
            crashes = self._crashes[request.id] = self._crashes.get(request.id, 0) + 1
            if crashes >= MAX_CRASHES and len(lost) == 1:
                del self._crashes[request.id]
                reason = f"it crashed {crashes} workers, the last one while running alone ({cause})"
                yield _failed(request, WorkerError(f"{reason}: check whether the text is too long"))
            else:
                self._requeued.append(request)
        if not was_ready:
            slot.failed_loads += 1
        if self._crashes_in_a_row >= MAX_CRASHES * (self._count + EXTRA_CRASHES):
            raise WorkerError(
                f"{self._crashes_in_a_row} workers died in a row ({cause}): try --workers 1"
            )
        if slot.failed_loads >= MAX_LOAD_ATTEMPTS:
            slot.worker = None
            log.warning("worker %d died while loading (%s) and is not used", slot.number, cause)
            if not any(other.worker for other in self._slots):
                raise WorkerError(f"no worker can load ({cause}): give fewer --workers")
            return
        if was_ready:
            log.warning("a worker died (%s): %d requests are requeued", cause, len(lost))
        slot.worker = self._factory.start(slot.number)


def _failed(request: Request, error: ChatterboxOptError) -> Result:
    return Result(request.id, request.sampling.seed or 0, error=error)


def serve(
    load_engine: EngineFactory,
    receive: Callable[[], Request | None],
    send: Callable[[Message], None],
) -> None:
    """The main loop of a worker: load once, then synthesize until the process is ended.

    Args:
        receive: waits for the next message of the parent; never returns after the parent exited.
        send: sends a message to the parent.
    """
    try:
        with load_engine() as synthesize:
            send(READY)
            while True:
                if (first := receive()) is not None:
                    for result in synthesize(_requests(first, receive, send)):
                        send(_picklable(result))
    except ChatterboxOptError as error:
        send(error)


def _requests(
    first: Request, receive: Callable[[], Request | None], send: Callable[[Message], None]
) -> Iterator[Request]:
    request: Request | None = first
    while request is not None:
        yield request
        send(WANTED)
        request = receive()


def _picklable(result: Result) -> Result:
    """The result, with errors of other libraries as text, as not all can be unpickled."""
    error = result.error
    if error is None or isinstance(error, ChatterboxOptError):
        return result
    return replace(result, error=ChatterboxOptError(in_words(error)))


class _ForwardingHandler(QueueHandler):
    """Sends formatted log records to the parent."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record, which ``QueueHandler.prepare`` made picklable."""
        self.queue(record)  # type: ignore[operator]


def forward_logs(send: Callable[[Message], None]) -> None:
    """Send the library's warnings to the parent, which shows them."""
    logger = logging.getLogger("chatterbox_opt")
    logger.handlers, logger.propagate = [_ForwardingHandler(send)], False  # type: ignore[arg-type]
