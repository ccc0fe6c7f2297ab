"""A queue between threads whose consumer may be a thread or an asyncio loop.

Responsible for the hand-over. Not responsible for what is handed over.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

Event = TypeVar("Event")


class EventQueue(Generic[Event]):
    """An unbounded queue with one consumer: a thread, or coroutines of one asyncio loop.

    Every event wakes all coroutines that wait; one of them may take it before the others look.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._waiting: list[asyncio.Future[None]] = []

    def put(self, event: Event) -> None:
        """Append an event and wake the consumer."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            with suppress(RuntimeError):  # its loop is closed
                future.get_loop().call_soon_threadsafe(_wake, future)

    def poll(self) -> Event | None:
        """The next event, or None."""
        return self._events.popleft() if self._events else None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is an event; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._events), timeout)

    def get(self, timeout: float | None = None) -> Event:
        """Wait for the next event.

        Raises:
            TimeoutError: after ``timeout`` seconds.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"no event within {timeout} seconds")
        return self._events.popleft()

    async def wait_async(self) -> None:
        """Wait until there may be an event, without blocking the asyncio loop."""
        with self._changed:
            if self._events:
                return
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
        try:
            await future
        finally:
            with self._changed:
                if future in self._waiting:
                    self._waiting.remove(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():  # the waiting task may have been cancelled
        future.set_result(None)
