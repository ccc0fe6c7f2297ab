"""The connections of Wyoming clients: from the first to the end of the server.

Responsible for accepting them and for how they end. Not responsible for the events of one
(wyoming.py).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from chatterbox_opt.server.clients.wyoming import WyomingHandler, cancelled
from chatterbox_opt.server.service import SpeechService
from chatterbox_opt.server.timeouts import within

CLOSE_SECONDS = 1  # that a client has to read what is left
KEEP_ALIVE = 60  # seconds of silence after which the system asks whether a client is there


class WyomingServer:
    """Answers the clients of a socket that listens, until it is ended."""

    def __init__(self, service: SpeechService) -> None:
        self._service = service
        self._handlers: dict[asyncio.Task[None], WyomingHandler] = {}
        self._listener: asyncio.Server | None = None
        self._ending: asyncio.Task[None] | None = None

    async def listen(self, listening: socket.socket) -> None:
        """Accept clients of a socket; before the service's engines are closed they are ended."""
        self._listener = await asyncio.start_server(self._connected, sock=listening)
        self._service.before_closing.append(self.end)

    def end(self, seconds: float = 0) -> asyncio.Task[None]:
        """The task that ends all connections; the same one for every call.

        Args:
            seconds: that running jobs have left. Connections without one end at once.
        """
        if self._ending is None:
            if self._listener is not None:
                self._listener.close()  # not waited for: from 3.12 on it waits for clients, too
            self._ending = asyncio.create_task(self._end(seconds))
        return self._ending

    async def __aenter__(self) -> WyomingServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def _end(self, seconds: float) -> None:
        async def finish(connection: asyncio.Task[None], handler: WyomingHandler) -> None:
            await handler.finish()
            connection.cancel()

        connections = list(self._handlers.items())
        finishing = [asyncio.create_task(finish(*one)) for one in connections]
        if finishing:
            await asyncio.wait(finishing, timeout=seconds)
        await cancelled([*finishing, *(connection for connection, _ in connections)])

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ending is not None:
            writer.close()
            return
        _keep_alive(writer.get_extra_info("socket"))
        handler = WyomingHandler(self._service, reader, writer)
        connection = asyncio.create_task(_run(handler))
        self._handlers[connection] = handler
        connection.add_done_callback(self._handlers.pop)


async def _run(handler: WyomingHandler) -> None:
    try:
        with suppress(ConnectionError, asyncio.TimeoutError):
            await handler.run()
    finally:
        handler.writer.close()  # also if it was cancelled before it began
        with suppress(ConnectionError, asyncio.TimeoutError):
            await within(CLOSE_SECONDS, handler.writer.wait_closed())
        handler.writer.transport.abort()
        await asyncio.sleep(0)  # in which the transport closes its socket


def _keep_alive(connection: socket.socket) -> None:
    """Let the system find out about clients that have gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if connection.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE)


async def serve(service: SpeechService, listening: socket.socket) -> WyomingServer:
    """Answer the Wyoming clients of a socket that listens."""
    server = WyomingServer(service)
    await server.listen(listening)
    return server
