"""Wyoming connections: clients that go or say nothing, and the end of the server."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.http_server import FakeHandle, FakeServedEngine, settings_of
from wyoming.client import AsyncUnixClient
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop

from chatterbox_opt.cli.serve.command import serve_until_asked, server_of
from chatterbox_opt.request import Piece
from chatterbox_opt.server.clients import wyoming, wyoming_reading, wyoming_server
from chatterbox_opt.server.engines import Engines
from chatterbox_opt.server.service import SpeechService


class GatedHandle(FakeHandle):
    """Goes on after its first piece when it may."""

    async def __anext__(self) -> Piece:
        while self.given and not self.request.go_on.is_set() and not self.cancelled:
            await asyncio.sleep(0.005)
        return await super().__anext__()


class Engine(FakeServedEngine):
    """Speaks a text that arrives too; "gated" texts go on when ``go_on`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def submit(self, request, timeout):
        handle = super().submit(request, timeout)
        if "gated" in request.text:
            handle.__class__ = GatedHandle
            handle.request = SimpleNamespace(text=request.text, go_on=self.go_on)
        return handle

    def pieces(self, text, voice, latency, language):
        for part in text:
            yield Piece(np.zeros(2_400, np.float32), part, 3, {})


async def until(condition) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), 5)


def unix_socket(path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


@asynccontextmanager
async def connected(path, *sent):
    async with AsyncUnixClient(str(path)) as client:
        for event in sent:
            await client.write_event(event.event())
        yield client


async def kinds(client) -> list[str]:
    """Of the events until the connection ends."""
    found = []
    while (event := await asyncio.wait_for(client.read_event(), 5)) is not None:
        found.append(event.type)
    return found


def with_server(tmp_path, conversation) -> None:
    """Run ``conversation(service, engine, path)`` with a server."""

    async def run() -> None:
        settings, engine = settings_of(tmp_path), Engine()
        service = SpeechService.of(settings, Engines(settings.engines, None, lambda _: engine))
        path = tmp_path / "socket"
        async with await wyoming_server.serve(service, unix_socket(path)):
            await conversation(service, engine, path)
        await service.engines.close()

    asyncio.run(run())


def test_a_client_that_goes_before_its_first_sound_makes_room(tmp_path):
    async def conversation(service, engine, path):
        async with connected(path, Synthesize("silent")):
            await until(lambda: engine.handles)
            assert service.admission.active == 1
        await until(lambda: service.admission.active == 0 and engine.handles[0].cancelled)

    with_server(tmp_path, conversation)


def test_texts_of_one_connection_are_read_one_after_the_other_and_bounded(tmp_path):
    async def conversation(service, engine, path):
        texts = [Synthesize("gated"), *[Synthesize("next")] * (wyoming.MAX_JOBS - 1)]
        async with connected(path, *texts, Synthesize("one too many")) as client:
            assert (await client.read_event()).type in ("error", "audio-start")
            await until(lambda: engine.handles)
            await asyncio.sleep(0.02)
            assert len(engine.handles) == service.admission.active == 1
            engine.go_on.set()
            await until(lambda: len(engine.handles) == wyoming.MAX_JOBS)

    with_server(tmp_path, conversation)


def test_a_stream_without_text_takes_nobodys_place_and_ends(tmp_path, monkeypatch):
    async def conversation(service, engine, path):
        async with connected(path, SynthesizeStart(), SynthesizeStop()) as client:
            assert (await client.read_event()).type == "synthesize-stopped"
        monkeypatch.setattr(wyoming, "CLIENT_SECONDS", 0.1)
        async with connected(path, SynthesizeStart(), SynthesizeChunk(" ")) as client:
            await asyncio.sleep(0.02)
            assert service.admission.active == 0
            assert await kinds(client) == ["error"]

    with_server(tmp_path, conversation)


def test_a_client_that_stops_sending_its_text_is_cut_off(tmp_path, monkeypatch):
    async def conversation(service, engine, path):
        monkeypatch.setattr(wyoming, "CLIENT_SECONDS", 0.1)
        async with connected(path, SynthesizeStart(), SynthesizeChunk("Hello. ")) as client:
            await until(lambda: service.admission.active == 1)
            assert (await kinds(client))[-1] == "error"
        assert service.admission.active == 0

    with_server(tmp_path, conversation)


def test_an_event_without_its_end_is_not_waited_for(tmp_path, monkeypatch):
    async def conversation(service, engine, path):
        monkeypatch.setattr(wyoming_reading, "CLIENT_SECONDS", 0.1)
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"type": "synthesize", "data_length": 50}\n{')
        await asyncio.wait_for(reader.read(), 5)
        writer.close()

    with_server(tmp_path, conversation)


@pytest.mark.parametrize("drain", [5, 0])
def test_both_protocols_end_together(tmp_path, drain):
    async def run() -> None:
        reported: list = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
        settings, engine = settings_of(tmp_path), Engine()
        server = server_of(settings, drain, Engines(settings.engines, None, lambda _: engine))
        http, path = unix_socket(tmp_path / "http"), tmp_path / "socket"
        serving = asyncio.create_task(serve_until_asked(server, [http, unix_socket(path)], drain))
        await until(lambda: server.started)
        async with connected(path) as idle, connected(path, Synthesize("gated")) as busy:
            assert (await busy.read_event()).type == "audio-start"
            server.should_exit = True
            assert await kinds(idle) == []
            with pytest.raises(ConnectionError):
                await asyncio.open_unix_connection(str(path))
            if drain:
                assert not engine.closed
                engine.go_on.set()
            heard = await kinds(busy)
            assert ("audio-stop" in heard) is bool(drain)
        await asyncio.wait_for(serving, 10)
        assert engine.closed and not reported

    asyncio.run(run())
