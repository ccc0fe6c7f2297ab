"""Who steps the scheduler: the threads that wait for events, or one thread of the engine.

A plain call (``Engine.pieces``, ``batch``) steps in its own thread until its events are there: no
thread is needed for one caller, and Ctrl-C interrupts the work. Two such threads alternate, and
each step moves the requests of both on. Once ``submit`` was called, one thread of the engine steps
while there is work, and all others wait for it.

Requests and cancellations are left in two queues and taken at the next step, so that neither waits
for a step in progress. A cancellation takes no lock, because the garbage collector may cause one
anywhere, even inside a step.

Responsible for threads, the bounded queue, and ending. Not responsible for what a step does
(scheduler.py).
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

from chatterbox_opt.engine.rendering.renderer import RENDER_THREAD
from chatterbox_opt.engine.scheduler import FINISH_THREAD, Scheduler
from chatterbox_opt.engine.sequence import REQUEST_ERRORS, Capacity, Event, RequestState
from chatterbox_opt.errors import InputError, QueueFullError, RequestCancelledError
from chatterbox_opt.request import Observer, Piece, Result
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.utils.event_queue import EventQueue

WORKER_THREADS = (RENDER_THREAD, FINISH_THREAD)
MAX_QUEUED = 1024  # requests of which no sequence was admitted yet


class HasSeed(Protocol):
    """What ``EngineLoop.results`` takes: a ``Request`` or a ``Conversion``."""

    @property
    def id(self) -> str:
        """Of the result."""

    @property
    def sampling(self) -> Sampling:
        """Its parameters."""

    def with_seed(self: Job) -> Job:
        """The same with a seed, drawn if it has none."""


Job = TypeVar("Job", bound=HasSeed)
BeginRequest = Callable[[Job], RequestState]


class EngineLoop:
    """Steps a scheduler."""

    def __init__(self, scheduler: Scheduler, max_queued: int = MAX_QUEUED) -> None:
        """Start without a thread."""
        self._scheduler, self._max_queued = scheduler, max_queued
        self._added: deque[RequestState] = deque()
        self._cancelled: deque[RequestState] = deque()
        self._lock = threading.Lock()  # held while the scheduler is used
        self._changed = threading.Condition()  # of the queue, the thread, and whether it is closed
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, request: RequestState) -> None:
        """Add a request of a thread that will wait for its events.

        Raises:
            InputError: closed.
        """
        with self._changed:
            self._append(request)

    def submit(self, request: RequestState, timeout: float | None = None) -> None:
        """Add a request that the engine's thread works on; starts the thread.

        Args:
            timeout: seconds to wait while the queue is full; None waits for ever.

        Raises:
            QueueFullError: after ``timeout``.
            InputError: closed.
        """
        with self._changed:
            if not self._changed.wait_for(self._accepts, timeout):
                raise QueueFullError(
                    f"{self._max_queued} requests wait for the engine: try again later"
                )
            if self._thread is None and not self._closed:
                self._start()
            self._append(request)

    def cancel(self, *requests: RequestState) -> None:
        """End requests that have not ended, at the next step at the latest.

        Without other requests, what belongs to slots and threads is freed.
        """
        self._cancelled.extend(requests)
        if threading.current_thread().name.startswith(WORKER_THREADS):
            return  # by the garbage collector; to free the thread from itself is not possible
        while self._thread is None and self._lock.acquire(blocking=False):
            try:
                self._take()
                self._release_if_idle()
            finally:
                self._lock.release()
            if not self._cancelled:  # left by a thread that did not get the lock
                return

    def next_event(self, events: EventQueue[Event]) -> Event:
        """Step, or wait, until there is an event."""
        while (event := events.poll()) is None:
            self._advance(events)
        return event

    def pieces(self, request: RequestState, observe: Observer | None = None) -> Iterator[Piece]:
        """Yield a request's pieces as they become ready.

        Args:
            observe: gets its progress events.

        Raises:
            Exception: the request's error.
        """
        self.add(request)
        try:
            while not isinstance(event := self.next_event(request.events)[1], Result):
                if isinstance(event, Piece):
                    yield event
                elif observe is not None:
                    observe(event)
            if event.error is not None:
                raise event.error
        finally:
            self.cancel(request)

    def results(
        self, requests: Iterable[Job], begin: BeginRequest[Job], capacity: Capacity
    ) -> Iterator[Result]:
        """Yield the results of many requests as they end.

        Args:
            requests: taken when a slot is free.
            begin: may raise one of ``REQUEST_ERRORS``, which is then the request's result.
            capacity: of each.

        Raises:
            Exception: ``requests`` failed; what was taken from it is finished first.
        """
        source, events = iter(requests), EventQueue[Event]()
        running: dict[RequestState, list[Piece]] = {}
        source_error: Exception | None = None
        try:
            while True:
                # 1) take requests while slots are free
                try:
                    for started in self._start_requests(source, begin, capacity, events, running):
                        if isinstance(started, Result):
                            yield started
                        else:
                            running[started] = []
                except REQUEST_ERRORS as error:
                    source_error, source = error, iter(())
                if not running:
                    break
                # 2) step, and collect what is ready
                self._advance(events)
                while (found := events.poll()) is not None:
                    state, event = found
                    if isinstance(event, Piece):
                        running[state].append(event)
                    elif isinstance(event, Result):
                        yield with_pieces(event, running.pop(state))
        finally:
            self.cancel(*running)
        if source_error is not None:
            raise source_error

    def _start_requests(
        self,
        source: Iterator[Job],
        begin: BeginRequest[Job],
        capacity: Capacity,
        events: EventQueue[Event],
        running: Collection[RequestState],
    ) -> Iterator[RequestState | Result]:
        """Add requests while slots are free, or one if none runs; yield each, or its error."""
        while (not running or self._has_room(capacity, running)) and (
            request := next(source, None)
        ) is not None:
            request = request.with_seed()
            try:
                state = begin(request)
            except REQUEST_ERRORS as error:
                yield Result(request.id, request.sampling.seed or 0, error=error)
                continue
            state.events = events
            self.add(state)
            yield state

    def close(self) -> None:
        """End the thread after its step, and all requests with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        atexit.unregister(self.close)
        if (thread := self._thread) is not None:
            thread.join()
        with self._lock:
            self._take()
            self._scheduler.abort(_closed())

    def _append(self, request: RequestState) -> None:
        if self._closed:
            raise _closed()
        self._added.append(request)
        self._changed.notify_all()

    def _accepts(self) -> bool:
        return self._closed or len(self._added) + self._scheduler.queued < self._max_queued

    def _has_work(self) -> bool:
        return self._closed or bool(self._added) or not self._scheduler.idle

    def _take(self) -> None:
        """Take what other threads have left."""
        while self._added:
            self._scheduler.add(self._added.popleft())
        while self._cancelled:
            self._scheduler.cancel(self._cancelled.popleft())

    def _release_if_idle(self) -> None:
        if self._scheduler.idle:
            self._scheduler.release()

    def _has_room(self, capacity: Capacity, running: Collection[RequestState]) -> bool:
        """Whether another request would find a free slot at the next step."""
        if self._thread is not None:
            # the engine's thread does not wait for this one: it needs requests in advance
            return sum(len(request.waiting) for request in running) < capacity.slots
        with self._lock:
            self._take()
            return self._scheduler.room(capacity) > 0

    def _advance(self, events: EventQueue[Event]) -> None:
        """Do one step, or wait for events if the engine's thread does the steps."""
        if self._thread is not None:
            events.wait()
        else:
            self._step()
            if self._cancelled:  # meanwhile, by a thread that did not get the lock
                self.cancel()

    def _step(self) -> bool:
        """One step; False if there is nothing to do."""
        with self._lock:
            complete = False
            try:
                self._take()
                if worked := not self._scheduler.idle:
                    self._scheduler.step()
                complete = True
            finally:
                if not complete:  # it may have left anything, and none of it is used again
                    error = sys.exc_info()[1]
                    interrupted = RequestCancelledError("the engine was interrupted")
                    self._scheduler.abort(error if isinstance(error, Exception) else interrupted)
        return worked

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="engine", daemon=True)
        thread.start()
        self._thread = thread
        atexit.register(self.close)

    def _run(self) -> None:
        """The engine's thread. A bug in a step ends it; the next request starts another."""
        try:
            while not self._closed:
                worked = self._step()
                with self._changed:
                    self._changed.notify_all()  # the queue may have room
                if worked:
                    continue
                with self._lock:
                    self._release_if_idle()
                with self._changed:
                    self._changed.wait_for(self._has_work)
        finally:
            with self._lock, self._changed:
                self._thread = None
                self._changed.notify_all()
                if self._has_work() and not self._closed:
                    self._start()


def with_pieces(result: Result, pieces: Iterable[Piece]) -> Result:
    """The result with its request's pieces; a failed one has none."""
    return result if result.error is not None else replace(result, pieces=tuple(pieces))


def _closed() -> InputError:
    return InputError("this engine is closed; load another")
