"""The command ``serve``: speech over HTTP, and over Home Assistant's protocol.

Responsible for its options, for the sockets and for how the process ends. Not responsible for what
is answered (chatterbox_opt/server).
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from chatterbox_opt.cli import options, signals
from chatterbox_opt.cli.options import EngineOptions, OutputOptions
from chatterbox_opt.cli.serve import workers
from chatterbox_opt.cli.terminal.console import Reporter
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.server.settings import PORT, Limits, ServerSettings

if TYPE_CHECKING:
    from chatterbox_opt.engine.spec import EngineSpec
    from chatterbox_opt.server.engines import Engines

REMEDY = 'pip install "chatterbox-opt[server]"'
UNITS = {"s": 1, "m": 60, "h": 3600}
# the last one is this machine for those in a container; no page can have that name
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "host.docker.internal")
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Where the server listens, and to whom."""

    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.", min=0, max=65535)] = (
        PORT
    )
    wyoming: Annotated[
        Optional[int],
        typer.Option(help="Port of the Wyoming protocol (Home Assistant), such as 10200."),
    ] = None
    api_key: Annotated[
        Optional[str],
        typer.Option(
            envvar="CHATTERBOX_API_KEY",
            show_envvar=False,
            help="Key that clients must send (default: $CHATTERBOX_API_KEY).",
        ),
    ] = None
    cors_origin: Annotated[
        Optional[list[str]],
        typer.Option(help="Origin whose pages may call, such as https://example.org; repeat it."),
    ] = None
    allow_host: Annotated[
        Optional[list[str]],
        typer.Option(help="Name by which a proxy calls a local server; repeat it."),
    ] = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names by which clients may call; empty: any."""
        named = tuple(self.allow_host or ())
        return (*LOCAL_HOSTS, self.host, *named) if self.is_local else named


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What is served, and how much of it."""

    also: Annotated[
        Optional[list[str]],
        typer.Option(help="A further model, which clients choose by its name; repeat it."),
    ] = None
    voices: Annotated[
        Optional[Path], typer.Option(help="Directory of saved voices (default: the user's).")
    ] = None
    strict_voices: Annotated[
        bool, typer.Option("--strict-voices", help="Refuse unknown voices.")
    ] = False
    max_queue: Annotated[
        int, typer.Option(help="Requests at once, of all clients; others get 429.", min=1)
    ] = Limits().requests
    max_per_client: Annotated[
        int, typer.Option(help="Requests at once of one client address.", min=1)
    ] = Limits().requests_per_client
    max_characters: Annotated[int, typer.Option(help="Longest text of a request.", min=1)] = (
        Limits().characters
    )
    idle_unload: Annotated[
        Optional[str], typer.Option(help="Free the model after this time unused, such as 10m.")
    ] = None
    warm_up: Annotated[
        bool, typer.Option("--warm-up/--no-warm-up", help="Load the model at the start.")
    ] = True
    workers: Annotated[
        int, typer.Option(help="Processes behind the port: one for each GPU.", min=1)
    ] = 1
    drain: Annotated[
        int, typer.Option(help="Seconds that running requests have left at the end.", min=0)
    ] = 30


@options.with_groups
def serve(
    *,
    listen: ListenOptions,
    service: ServiceOptions,
    engine: EngineOptions,
    printing: OutputOptions,
) -> None:
    """Serve speech over HTTP, as OpenAI's API does."""
    import asyncio  # takes time that other commands need not spend

    reporter = printing.reporter()
    settings = _settings(listen, service, engine)
    for spec in settings.engines:
        spec.check(None)
    _check_installed()
    printing.set_up_logging(reporter)
    if sockets := workers.inherited():
        asyncio.run(_run(settings, sockets, service.drain))
        return
    _warn_if_open(reporter, listen)
    with contextlib.ExitStack() as stack:
        ports = (listen.port,) if listen.wyoming is None else (listen.port, listen.wyoming)
        sockets = [stack.enter_context(listening(listen.host, port)) for port in ports]
        shown = f"[{listen.host}]" if ":" in listen.host else listen.host
        reporter.status(f"http://{shown}:{sockets[0].getsockname()[1]} speaks; Ctrl-C ends it")
        if service.workers == 1:
            asyncio.run(_run(settings, sockets, service.drain))
        else:
            environments = _environments(service.workers, engine.device)
            workers.supervise(environments, sockets, service.drain, reporter.warn)


def _environments(count: int, device: str) -> list[dict[str, str]]:
    """The environment variables of each process: a GPU, or a share of the cores."""
    from chatterbox_opt.batch.local_workers import split_resources
    from chatterbox_opt.engine.probe import visible_gpus

    return split_resources(count, [] if device == "cpu" else visible_gpus(), os.environ)


def _settings(
    listen: ListenOptions, service: ServiceOptions, engine: EngineOptions
) -> ServerSettings:
    first = _with_voices(engine.spec(), service.voices)
    names = dict.fromkeys([first.model, *(service.also or ())])
    limits = Limits(
        characters=service.max_characters,
        requests=service.max_queue,
        requests_per_client=service.max_per_client,
    )
    return ServerSettings(
        engines=tuple(dataclasses.replace(first, model=name) for name in names),
        api_key=listen.api_key,
        strict_voices=service.strict_voices,
        idle_seconds=None if service.idle_unload is None else seconds_of(service.idle_unload),
        warm_up=service.warm_up,
        cors_origins=tuple(listen.cors_origin or ()),
        hosts=listen.hosts,
        limits=limits,
    )


def _with_voices(spec: EngineSpec, voices: Path | None) -> EngineSpec:
    if voices is None:
        return spec
    if voices.exists() and not voices.is_dir():
        raise InputError(f"--voices '{voices}' is not a directory")
    store = dataclasses.replace(spec.store, saved=voices, earlier=None)
    return dataclasses.replace(spec, store=store)


def seconds_of(text: str) -> float:
    """The seconds of a duration such as "90", "90s", "10m" or "1h".

    Raises:
        InputError: it is something else, or 0.
    """
    match = DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * UNITS[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise InputError(f"'{text}' is no duration; use one such as 90s, 10m or 1h")
    return seconds


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        import wyoming  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: {REMEDY}") from error


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: no such address.
        OutputError: the port is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise InputError(f"--host '{host}' is no address of this machine") from error
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise OutputError(
            f"port {port} at {host} cannot be used ({error.strerror}); choose another: --port 0 "
            "takes a free one"
        ) from error


def _warn_if_open(reporter: Reporter, listen: ListenOptions) -> None:
    if listen.is_local:
        return
    if not listen.api_key:
        reporter.warn(f"{listen.host} is open to others, and there is no key: use --api-key")
    if listen.wyoming is not None:
        reporter.warn("the Wyoming protocol has no key: whoever reaches its port can speak")


@contextlib.contextmanager
def _drained_by_signals(server: Any) -> Iterator[None]:
    """Signals end the server and nothing else: when it has drained, the command has succeeded."""
    numbers = signals.heard(signal.SIGINT, *signals.ending())
    before = {number: signal.signal(number, server.handle_exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def server_of(settings: ServerSettings, drain: int, engines: Engines | None = None) -> Any:
    """A ``uvicorn.Server`` of the application.

    Args:
        drain: seconds that running requests have at the end.
        engines: None makes them of the settings.
    """
    import uvicorn

    from chatterbox_opt.server.app import create_app

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        create_app(settings, engines),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain,
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
        ws="none",
    )
    return uvicorn.Server(config)


async def _run(settings: ServerSettings, sockets: list[socket.socket], drain: int) -> None:
    """Serve until a signal; then let requests end, for ``drain`` seconds.

    Args:
        sockets: that listen: of HTTP, and perhaps of the Wyoming protocol.
    """
    await serve_until_asked(server_of(settings, drain), sockets, drain)


async def serve_until_asked(server: Any, sockets: list[socket.socket], drain: int) -> None:
    """Serve until the server should exit; all protocols end at the same time.

    Args:
        server: from ``server_of``.
        sockets, drain: see ``_run``.
    """
    server.capture_signals = lambda: _drained_by_signals(server)
    http, *others = sockets
    if not others:
        await server.serve(sockets=[http])
        return
    from chatterbox_opt.server.clients import wyoming_server

    async with await wyoming_server.serve(server.config.app.state.service, others[0]) as other:
        shut_down_http = server.shutdown

        async def shut_down(sockets: list[socket.socket] | None = None) -> None:
            other.end(drain)  # the application waits for it before it closes the engines
            await shut_down_http(sockets)

        server.shutdown = shut_down
        await server.serve(sockets=[http])
