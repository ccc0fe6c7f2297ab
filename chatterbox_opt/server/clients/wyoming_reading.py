"""What a Wyoming client sends, within bounds of size and time.

Responsible for these bounds, and for text that comes in parts. Not responsible for what an event
means (wyoming.py).
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Coroutine, Iterator
from typing import Any

from chatterbox_opt.errors import TextError
from chatterbox_opt.server.timeouts import within

MAX_BYTES = 1 << 20  # of an event
CLIENT_SECONDS = 60  # that a client may take to read anything, or to send more of a text


class ArrivingText:
    """A text that one thread reads while a coroutine writes it.

    Attributes:
        begun: set when there is text, or there will be none.
        is_empty: whether there was no text so far.
    """

    def __init__(self, limit: int) -> None:
        self._parts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._left = limit
        self.begun, self.is_empty = asyncio.Event(), True

    def add(self, part: str) -> None:
        """Append a part.

        Raises:
            TextError: all parts together are too long.
        """
        self._left -= len(part)
        if self._left < 0:
            raise TextError("the text is too long: send it in parts")
        self._parts.put(part)
        if part.strip():
            self.is_empty = False
            self.begun.set()

    def end(self) -> None:
        """There will be no more."""
        self._parts.put(None)
        self.begun.set()

    def __iter__(self) -> Iterator[str]:
        while (part := self._parts.get()) is not None:
            yield part


class BoundedReader:
    """A stream of which no event is longer than ``MAX_BYTES``, nor later than it may be.

    Attributes:
        due: when the next event must be there, by the loop's clock; None: at any time.
        is_late: whether one was not.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.due: float | None = None
        self.is_late = False

    async def readline(self) -> bytes:
        """As ``StreamReader``; longer lines than its own limit are a ValueError.

        Raises:
            asyncio.TimeoutError: it did not come in time.
        """
        return await self._in_time(self._reader.readline(), self.due)

    async def readexactly(self, size: int) -> bytes:
        """As ``StreamReader``; an end within is a ValueError, as what Wyoming takes for damage.

        Raises:
            asyncio.TimeoutError: it did not come in time.
        """
        if not 0 <= size <= MAX_BYTES:
            raise ValueError(f"an event of {size} bytes")
        end = asyncio.get_running_loop().time() + CLIENT_SECONDS
        try:
            return await self._in_time(self._reader.readexactly(size), end)
        except asyncio.IncompleteReadError as error:
            raise ValueError("an event without its end") from error

    async def _in_time(self, reading: Coroutine[Any, Any, bytes], due: float | None) -> bytes:
        if due is None:
            return await reading
        try:
            return await within(due - asyncio.get_running_loop().time(), reading)
        except asyncio.TimeoutError:
            self.is_late = True
            raise

    def feed_eof(self) -> None:
        """As ``StreamReader``."""
        self._reader.feed_eof()
