"""The application: all routes, checks and handlers put together.

Responsible for the assembly and for what happens at start and end. Not responsible for any answer
but those about the server itself: its page, its health, its metrics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from chatterbox_opt.errors import ChatterboxOptError
from chatterbox_opt.server import errors
from chatterbox_opt.server.clients import openai, sillytavern
from chatterbox_opt.server.engines import Engines
from chatterbox_opt.server.guards import ApiKey, BodyLimits, Origins
from chatterbox_opt.server.metrics import Metrics
from chatterbox_opt.server.service import SpeechService
from chatterbox_opt.server.settings import ServerSettings
from chatterbox_opt.version import __version__

log = logging.getLogger(__name__)
LAG_PERIOD, RESOURCES_PERIOD = 0.1, 1.0  # seconds
PAGE = "page.html"
PAGES = ("/", "/docs")  # which other sites may link to
UPLOADS = tuple(prefix + openai.VOICES for prefix in openai.PREFIXES)
# without a key: the page, which asks for it; what monitors read; the lists of Open WebUI, which
# sends no key for them
OPEN = ("/", "/health", *UPLOADS, *(prefix + openai.AUDIO_MODELS for prefix in openai.PREFIXES))
# nothing of other origins: no script, no style, no frame around the page
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; media-src 'self' blob:; img-src data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def create_app(settings: ServerSettings, engines: Engines | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        engines: None makes them of the settings.
    """
    own = engines or Engines(settings.engines, settings.idle_seconds)
    service = SpeechService.of(settings, own)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = (own.close_idle(), _watch_lag(service.metrics), _watch_resources(service))
        tasks = [asyncio.create_task(one) for one in watching]
        if settings.warm_up:
            tasks.append(asyncio.create_task(_warm_up(own)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in service.before_closing:
                await end()
            await own.close()
            service.close()

    app = FastAPI(title="chatterbox-opt", version=__version__, lifespan=lifespan)
    app.state.service = service
    speech_routes = openai.router(service)
    for prefix in openai.PREFIXES:
        described = prefix == openai.PREFIXES[0]
        app.include_router(speech_routes, prefix=prefix, include_in_schema=described)
    app.include_router(sillytavern.router(service))
    _own_routes(app, service)
    app.add_exception_handler(ChatterboxOptError, errors.on_error)
    app.add_exception_handler(RequestValidationError, errors.on_validation_error)
    app.add_exception_handler(HTTPException, errors.on_http_error)
    app.add_exception_handler(Exception, errors.on_failure)
    app.add_middleware(BodyLimits, limits=settings.limits, uploads=UPLOADS)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key, open_paths=OPEN)
    origins, hosts = settings.cors_origins, settings.hosts
    app.add_middleware(Origins, allowed=origins, hosts=hosts, pages=PAGES)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


async def _warm_up(engines: Engines) -> None:
    try:
        await engines.warm_up()
    except ChatterboxOptError as error:
        log.error("%s cannot be used: %s", engines.models[0], error)
    else:
        log.info("%s is ready", engines.models[0])


async def _watch_lag(metrics: Metrics) -> None:
    """Measure how late this loop is: whatever blocks it delays all clients."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + LAG_PERIOD
        await asyncio.sleep(LAG_PERIOD)
        metrics.lag.observe(max(0.0, clock() - due))


async def _watch_resources(service: SpeechService) -> None:
    """Note what the metrics cannot ask of other processes."""
    while True:
        service.metrics.slots.set(service.engines.slots)
        service.metrics.measure_memory()
        await asyncio.sleep(RESOURCES_PERIOD)


def _own_routes(app: FastAPI, service: SpeechService) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(
            Path(__file__).with_name(PAGE), headers={"Content-Security-Policy": PAGE_POLICY}
        )

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, Any]:
        """Answers at once, also while all slots are busy."""
        models = {name: service.engines.is_loaded(name) for name in service.engines.models}
        return {"status": "ok", "loaded": models, "active": service.admission.active}

    @app.get("/metrics", response_class=PlainTextResponse, tags=["server"])
    async def metrics() -> PlainTextResponse:
        """The metrics for Prometheus."""
        return PlainTextResponse(service.metrics.text())
