"""What a server is told at its start: models, limits, key.

Responsible for these values and their bounds. Not responsible for command-line options
(cli/serve/command.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError

PORT = 8004
MIB = 1 << 20
# an environment variable: the directory in which several processes count together (metrics.py)
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, or all of them, may ask for.

    Attributes:
        characters: of a text.
        requests: that are queued or being synthesized, of all clients.
        requests_per_client: of one address.
        body: bytes of a request that is not an upload.
        upload: bytes of an upload.
        body_seconds: until the whole body has come.
        buffered: bytes of sound that wait for a slow reader, then its request is cancelled.
        stalled_seconds: that a reader may take for nothing at all.
    """

    characters: int = 10_000
    requests: int = 64
    requests_per_client: int = 64
    body: int = MIB
    upload: int = 64 * MIB
    body_seconds: float = 60
    buffered: int = 16 * MIB
    stalled_seconds: float = 60


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything that the application needs.

    Attributes:
        engines: one for each model that is served; the first is for clients that name another.
        api_key: that clients must send, without white space at its ends; None: none is wanted.
        strict_voices: an unknown voice is an error, not the model's own voice with a warning.
        idle_seconds: without a request after which an engine is closed, or None.
        warm_up: load the first model and compile its kernels before the first request.
        cors_origins: pages of other origins that may call.
        hosts: names by which clients may call the server, without port; empty: any.
        limits: of clients.
    """

    engines: tuple[EngineSpec, ...]
    api_key: str | None = None
    strict_voices: bool = False
    idle_seconds: float | None = None
    warm_up: bool = True
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raise InputError for a key that no client could send."""
        if self.api_key is None:
            return
        key = self.api_key.strip()
        if not key:
            raise InputError("the API key is empty: give one of at least one character, or none")
        if not (key.isascii() and key.isprintable()):
            raise InputError("the API key has characters that no header can hold: use ASCII only")
        object.__setattr__(self, "api_key", key)
