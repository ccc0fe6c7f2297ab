"""How long an engine lives: loaded once for all who wait, closed to the end, even if requests are cancelled."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from helpers.http_server import FakeServedEngine, settings_of

from chatterbox_opt.errors import WeightsError
from chatterbox_opt.server.engines import Engines


class Slow(FakeServedEngine):
    """Closes when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.closing, self.may_close = threading.Event(), threading.Event()

    def close(self) -> None:
        self.closing.set()
        assert self.may_close.wait(10)
        super().close()


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.005)


def engines_of(load, idle_seconds=None) -> Engines:
    return Engines(settings_of(Path("nowhere")).engines, idle_seconds, load)


async def use(engines: Engines) -> object:
    async with engines.use("pico") as engine:
        return engine


def test_a_load_goes_on_when_those_who_wait_for_it_go():
    begun, go_on, loaded = threading.Event(), threading.Event(), []

    def load(_):
        begun.set()
        assert go_on.wait(10)
        loaded.append(FakeServedEngine())
        return loaded[-1]

    async def run():
        engines = engines_of(load)
        gone = asyncio.create_task(use(engines))
        await until(begun)
        gone.cancel()
        await asyncio.wait({gone})
        others = [asyncio.create_task(use(engines)) for _ in range(2)]
        await asyncio.sleep(0.02)
        go_on.set()
        assert await asyncio.gather(*others) == loaded * 2 and len(loaded) == 1
        await engines.close()
        assert loaded[0].closed

    asyncio.run(run())


def test_an_engine_that_is_being_loaded_at_the_end_is_closed():
    begun, go_on, loaded = threading.Event(), threading.Event(), FakeServedEngine()

    def load(_):
        begun.set()
        assert go_on.wait(10)
        return loaded

    async def run():
        engines = engines_of(load)
        gone = asyncio.create_task(use(engines))
        await until(begun)
        gone.cancel()
        closing = asyncio.create_task(engines.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        go_on.set()
        await asyncio.wait_for(closing, 10)
        assert loaded.closed

    asyncio.run(run())


def test_a_load_that_fails_for_nobody_is_tried_again():
    begun, go_on = threading.Event(), threading.Event()
    outcomes = [WeightsError("damaged"), WeightsError("damaged"), FakeServedEngine()]

    def load(_):
        begun.set()
        assert go_on.wait(10)
        if isinstance(one := outcomes.pop(0), Exception):
            raise one
        return one

    async def run():
        engines, reported = engines_of(load), []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
        gone = asyncio.create_task(use(engines))
        await until(begun)
        gone.cancel()
        await asyncio.wait({gone})
        go_on.set()
        while len(outcomes) == 3 or engines._served["pico"].loading:
            await asyncio.sleep(0.005)
        with pytest.raises(WeightsError):
            await use(engines)
        assert isinstance(await use(engines), FakeServedEngine)
        assert not reported

    asyncio.run(run())


def test_closing_idle_engines_can_be_cancelled_while_one_is_closed():
    engine = Slow()

    async def run():
        engines = engines_of(lambda _: engine, idle_seconds=0.01)
        await use(engines)
        watching = asyncio.create_task(engines.close_idle())
        await until(engine.closing)
        watching.cancel()
        await asyncio.sleep(0.02)
        assert not watching.done(), "it is closed to the end"
        engine.may_close.set()
        done, _ = await asyncio.wait({watching}, timeout=2)
        assert watching in done and watching.cancelled() and engine.closed

    asyncio.run(run())
