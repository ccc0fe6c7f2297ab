"""Sends a speech over HTTP while it is made, and stops it when the client has gone.

Responsible for the ASGI messages: chunks of sound, or server-sent events; a client that goes away,
at whatever point of its request, or stalls. Not responsible for the bytes (speech.py) or for what
is answered to an error before there is sound (errors.py).

A response whose synthesis fails after the first bytes is not completed, so that the client sees a
broken transfer and not a short sound.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chatterbox_opt.errors import ChatterboxOptError, OutputError
from chatterbox_opt.server import errors
from chatterbox_opt.server.speech import SpeechStream
from chatterbox_opt.server.timeouts import within

log = logging.getLogger(__name__)
# no cache: each answer is spoken anew; no buffering: of a proxy in front (nginx)
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
EVENT_STREAM = "text/event-stream"


class SpeechResponse(Response):
    """The bytes of a speech, as they are made.

    Args:
        body: the bytes, whose first part is there.
        media_type: of the bytes.
        stalled: seconds that the client may take for nothing at all.
        on_end: called at the end with whether all was sent.
    """

    def __init__(
        self,
        body: AsyncGenerator[bytes, None],
        media_type: str,
        headers: Mapping[str, str],
        *,
        stalled: float,
        on_end: Callable[[bool], None],
    ) -> None:
        super().__init__(headers={**HEADERS, **headers}, media_type=media_type)
        del self.headers["content-length"]
        self._stalled, self._on_end = stalled, on_end
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False
        try:
            await self._send(send)
            complete = True
        except ChatterboxOptError as error:
            log.warning("a speech broke off: %s", error)
        finally:
            self._on_end(complete)

    async def _send(self, send: Send) -> None:
        async def out(message: Any) -> None:
            try:
                await within(self._stalled, send(message))
            except asyncio.TimeoutError as error:
                raise OutputError("the client has stopped reading") from error

        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await out(start)
        async with aclosing(self._body) as body:
            async for part in body:
                await out({"type": "http.response.body", "body": part, "more_body": True})
        await out({"type": "http.response.body", "body": b"", "more_body": False})


class ConnectedResponse(Response):
    """An answer that is made and sent for as long as the client is there.

    Making it is part of the response, and not of the route that returns it: only a response can
    hear that the client has gone.

    Args:
        make: makes the answer; what it puts on the stack is held until the answer is sent.
    """

    def __init__(self, make: Callable[[AsyncExitStack], Coroutine[Any, Any, Response]]) -> None:
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as held:

            async def answer() -> None:
                response = await self._make(held)
                await response(scope, receive, send)

            answering = asyncio.create_task(answer())
            await _while_connected(receive, answering)
        if not answering.cancelled():
            answering.result()


async def _while_connected(receive: Receive, work: asyncio.Task[Any]) -> None:
    """Wait until ``work`` is done; it is cancelled if the client goes."""
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (gone, work):
            task.cancel()
        await asyncio.wait({gone, work})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def events(stream: SpeechStream) -> AsyncGenerator[bytes, None]:
    """The bytes as OpenAI's server-sent events.

    An error after the first bytes is an event too. Usage counts the model's tokens: of
    the text, and of speech.
    """
    try:
        async for part in stream.parts():
            audio = base64.b64encode(part).decode()
            yield _event({"type": "speech.audio.delta", "audio": audio})
    except ChatterboxOptError as error:
        _, body = errors.error_answer(error, {})
        yield _event({"type": "error", **body})
        return
    read, made = stream.handle.text_tokens, stream.tokens
    usage = {"input_tokens": read, "output_tokens": made, "total_tokens": read + made}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(value: Mapping[str, object]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
