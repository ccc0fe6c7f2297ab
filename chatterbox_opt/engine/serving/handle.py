"""The handle of a submitted request: its pieces as they become ready, its result, its end.

Responsible for what the caller of ``Engine.submit`` holds. Not responsible for the work.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterator, Generator, Iterator

from chatterbox_opt.engine.sequence import Event, RequestState
from chatterbox_opt.engine.serving.loop import EngineLoop, with_pieces
from chatterbox_opt.request import Metrics, Observer, Piece, Result
from chatterbox_opt.utils.arguments import seconds_to_wait


class RequestHandle(Iterator[Piece], AsyncIterator[Piece]):
    """A submitted request. One thread, or the coroutines of one asyncio loop, may use it.

    If it is garbage collected before the request has ended, the request is cancelled.

    Usage:
        for piece in engine.submit(Request("a", text)):  # or: async for
            play(piece.samples)
        result = engine.submit(Request("b", text)).result()  # or: await engine.submit(...)
    """

    def __init__(
        self, loop: EngineLoop, request: RequestState, observe: Observer | None = None
    ) -> None:
        self._request, self._observe = request, observe
        self._pieces: list[Piece] = []
        self._taken = 0  # pieces that were iterated
        self._result: Result | None = None
        self._finalizer = weakref.finalize(self, loop.cancel, request)
        self._finalizer.atexit = False

    @property
    def id(self) -> str:
        """Of the request."""
        return self._request.id

    @property
    def seed(self) -> int:
        """That is used; reproduces the samples."""
        return self._request.seed

    @property
    def done(self) -> bool:
        """Whether the request has ended: finished, failed or cancelled."""
        return self._request.result is not None

    @property
    def text_tokens(self) -> int:
        """Tokens of its text, of the chunks that have been admitted: in the end all of them."""
        return sum(sequence.text_tokens for sequence in self._request.sequences)

    @property
    def metrics(self) -> Metrics:
        """The request's times so far."""
        return self._request.metrics()

    def cancel(self) -> None:
        """End the request with ``RequestCancelledError``; its slots are free at the next readback.

        Does nothing if it has ended. Returns at once.
        """
        self._finalizer()

    def __next__(self) -> Piece:
        """The next piece, in the order of the text.

        Raises:
            Exception: the request's error.
        """
        while not self._can_take() and self._result is None:
            self._receive(self._request.events.get())
        piece = self._take()
        if piece is None:
            raise StopIteration
        return piece

    async def __anext__(self) -> Piece:
        while not self._can_take() and self._result is None:
            await self._receive_async()
        piece = self._take()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end; the result with all pieces, or with the error as a value.

        Raises:
            TimeoutError: after ``timeout`` seconds; the request continues.
            InputError: ``timeout`` is not a number.
        """
        timeout = seconds_to_wait("timeout", timeout)
        end = None if timeout is None else time.monotonic() + timeout
        while self._result is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            self._receive(self._request.events.get(left))
        return self._result

    def __await__(self) -> Generator[object, None, Result]:
        """As ``result``, without blocking the asyncio loop."""
        while self._result is None:
            yield from self._receive_async().__await__()
        return self._result

    async def _receive_async(self) -> None:
        """Receive an event, or wait until another coroutine may have received one."""
        if (event := self._request.events.poll()) is not None:
            self._receive(event)
        else:
            await self._request.events.wait_async()

    def _receive(self, event: Event) -> None:
        _, value = event
        if isinstance(value, Result):
            self._result = with_pieces(value, self._pieces)
            self._finalizer.detach()
        elif isinstance(value, Piece):
            self._pieces.append(value)
        elif self._observe is not None:
            self._observe(value)

    def _can_take(self) -> bool:
        return self._taken < len(self._pieces)

    def _take(self) -> Piece | None:
        if self._can_take():
            self._taken += 1
            return self._pieces[self._taken - 1]
        if self._result is not None and self._result.error is not None:
            raise self._result.error
        return None
