"""A server of a test's own, on a unix socket: the suite opens no others."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import uvicorn

from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.request import Piece, Request
from chatterbox_opt.server.app import create_app
from chatterbox_opt.server.engines import Engines
from chatterbox_opt.server.settings import ServerSettings
from chatterbox_opt.voices.store import VoiceStore


@dataclass
class Running:
    """A server that runs in a thread; ``engines``: those that it has loaded, in this order."""

    socket: str
    service: object
    server: uvicorn.Server
    engines: list

    def client(self, **more) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=self.socket)
        return httpx.Client(transport=transport, base_url="http://server", timeout=60, **more)

    def metric(self, line: str) -> float:
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(one.split()[-1]) for one in lines if one.startswith(line))


@contextmanager
def running(settings: ServerSettings, load=None) -> Iterator[Running]:
    """Serve with engines that ``load`` makes; None loads them as the settings say."""
    loaded: list = []

    def note(spec: EngineSpec) -> object:
        loaded.append((load or EngineSpec.load)(spec))
        return loaded[-1]

    app = create_app(settings, Engines(settings.engines, settings.idle_seconds, note))
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        config = uvicorn.Config(
            app, uds=path, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield Running(path, app.state.service, server, loaded)
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class FakeHandle:
    """Yields pieces of 0.1 s; a text with "fail" in it fails after as many as its digits say.

    One with "silent" in it never yields any.
    """

    request: Request
    pieces: int
    fail_after: int | None
    seed: int = 7
    cancelled: bool = False
    given: int = 0
    text_tokens: int = 5

    def cancel(self) -> None:
        self.cancelled = True

    def __aiter__(self):
        return self

    async def __anext__(self) -> Piece:
        import asyncio

        from chatterbox_opt.errors import DeviceError

        await asyncio.sleep(1e6 if "silent" in self.request.text else 0.001)
        if self.given == self.fail_after:
            raise DeviceError("/secret/path: the device has failed: buy another")
        if self.given == self.pieces or self.cancelled:
            raise StopAsyncIteration
        self.given += 1
        wave = np.full(SAMPLE_RATE // 10, 0.1, np.float32)
        return Piece(wave, self.request.text, 3, {})


@dataclass
class FakeServedEngine:
    """An engine whose sound takes no time; "pieces=N" and "fail=N" in a text say what comes."""

    handles: list[FakeHandle] = field(default_factory=list)
    closed: bool = False
    plan: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(slots=2))
    hops: HopSchedule = field(default_factory=HopSchedule)

    def submit(self, request: Request, timeout: float) -> FakeHandle:
        words = dict(word.split("=") for word in request.text.split() if "=" in word)
        fail = words.get("fail")
        handle = FakeHandle(
            request, int(words.get("pieces", 2)), None if fail is None else int(fail)
        )
        self.handles.append(handle)
        return handle

    def close(self) -> None:
        self.closed = True


def settings_of(directory: Path, model: str = "pico", **more) -> ServerSettings:
    store = VoiceStore(directory / "cache", saved=directory / "saved")
    spec = EngineSpec(model=model, device="cpu", profile="dev", store=store, watermark=False)
    return ServerSettings(engines=(spec,), **{"warm_up": False, **more})
