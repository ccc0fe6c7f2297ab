"""The engines of the models that are served: loaded when first asked for, closed when idle.

Responsible for how long an engine lives. Not responsible for requests (speech.py).

An engine's methods block, so they run in threads; everything else is of one asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.server.errors import engine_errors
from chatterbox_opt.server.timeouts import to_its_end

if TYPE_CHECKING:
    from chatterbox_opt.engine.engine import Engine

Value = TypeVar("Value")
log = logging.getLogger(__name__)
WARM_UP = "A reply of typical length, with about a dozen words in it."


@dataclass(slots=True)
class Served:
    """A model that is served.

    Attributes:
        spec: what its engine is loaded from.
        engine: None while it is not loaded.
        users: requests that use the engine.
        last_used: when the last of them ended, by ``time.monotonic``.
        changing: held while the engine is loaded or closed.
        loading: the task that loads the engine; it goes on when those who wait for it have gone.
    """

    spec: EngineSpec
    engine: Engine | None = None
    users: int = 0
    last_used: float = 0.0
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    loading: asyncio.Task[Engine] | None = None


class Engines:
    """The engines of a server.

    Args:
        specs: one for each model, the default first.
        idle_seconds: after which an engine without requests is closed; None: never.
        load: makes an engine of a spec, in a thread; raises ChatterboxOptError.
    """

    def __init__(
        self,
        specs: Sequence[EngineSpec],
        idle_seconds: float | None = None,
        load: Callable[[EngineSpec], Engine] = EngineSpec.load,
    ) -> None:
        self._served = {spec.model: Served(spec) for spec in specs}
        self._idle_seconds, self._load = idle_seconds, load
        # not those of asyncio, of which every stream needs one for each piece; two for each
        # engine: it can be closed while it warms up
        self._threads = ThreadPoolExecutor(2 * len(self._served), "engine")

    @property
    def models(self) -> tuple[str, ...]:
        """Names, the default first."""
        return tuple(self._served)

    def known(self, model: str | None) -> str:
        """The model that serves a request for ``model``: clients send names of other services."""
        return model if model in self._served else self.models[0]

    def spec(self, model: str) -> EngineSpec:
        """What a served model's engine is loaded from."""
        return self._served[model].spec

    def is_loaded(self, model: str) -> bool:
        """Whether a request for a served model is not delayed by loading it."""
        return self._served[model].engine is not None

    @property
    def slots(self) -> int:
        """Decode slots of the engines that are loaded."""
        engines = (served.engine for served in self._served.values())
        return sum(engine.plan.slots for engine in engines if engine is not None)

    @asynccontextmanager
    async def use(self, model: str) -> AsyncIterator[Engine]:
        """The engine of a served model, which is not closed meanwhile; loads it if need be.

        Raises:
            ChatterboxOptError: it cannot be loaded.
        """
        served = self._served[model]
        served.users += 1
        try:
            engine = served.engine
            if engine is None:
                engine = await asyncio.shield(self._loading(served))
            yield engine
        finally:
            served.users -= 1
            served.last_used = time.monotonic()

    async def warm_up(self) -> None:
        """Load the default model and synthesize a little.

        Raises:
            ChatterboxOptError: it cannot be loaded, or cannot speak.
        """
        async with self.use(self.models[0]) as engine:
            if engine.checkpoint.conditionals.is_file():  # it has a voice of its own
                await self._in_thread(engine.warm_up, WARM_UP)

    async def close_idle(self) -> None:
        """Close engines that have been idle for long enough, for as long as this is awaited."""
        if self._idle_seconds is None:
            return
        while True:
            await asyncio.sleep(min(5.0, self._idle_seconds / 2))
            for model, served in self._served.items():
                idle = time.monotonic() - served.last_used
                if served.engine and not served.users and idle >= self._idle_seconds:
                    log.info("closing %s after %.0f s without a request", model, idle)
                    await self._close(served)

    async def close(self) -> None:
        """Close all engines; requests that are left end with ``RequestCancelledError``."""
        for served in self._served.values():
            await self._close(served)

    def _loading(self, served: Served) -> asyncio.Task[Engine]:
        """The task that loads an engine: one for all who wait for it."""
        if served.loading is None:
            served.loading = asyncio.create_task(self._loaded(served))
            served.loading.add_done_callback(_heard)
        return served.loading

    async def _loaded(self, served: Served) -> Engine:
        try:
            async with served.changing:
                log.info("loading %s", served.spec.model)
                with engine_errors():
                    served.engine = engine = await self._in_thread(self._load, served.spec)
                return engine
        finally:
            served.loading = None

    async def _close(self, served: Served) -> None:
        if served.loading is not None:
            await to_its_end(asyncio.wait({served.loading}))
        async with served.changing:
            engine, served.engine = served.engine, None
            if engine is not None:
                await to_its_end(self._in_thread(engine.close))

    def _in_thread(self, call: Callable[..., Value], *arguments: Any) -> asyncio.Future[Value]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _heard(loading: asyncio.Task[Any]) -> None:
    """Retrieve an error, or asyncio would log it if no request waits for the engine any more."""
    if not loading.cancelled():
        loading.exception()
