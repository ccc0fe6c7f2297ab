"""Workers that are actors of a Ray cluster, each with an engine, on a node that Ray selects.

Responsible for Ray. Not responsible for engines or the content of messages. All nodes must have
the same version of this package, and the directory of ``--model DIR``. Voices are sent with the
requests.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from chatterbox_opt.batch.worker_pool import (
    EngineFactory,
    Message,
    WorkerDied,
    forward_logs,
    serve,
)
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Request
from chatterbox_opt.version import __version__

REMEDY = 'pip install "chatterbox-opt[ray]"'
TIMEOUT = 10.0  # seconds to connect to the head node
Returned = TypeVar("Returned")


@contextmanager
def connected(address: str | None, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """Connect to a cluster while the block runs.

    Args:
        address: of the head node; None uses RAY_ADDRESS, else a cluster that runs on this machine,
            else starts one here that ends with the block.
        environment: environment variables of the actors.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--executor ray needs Ray, which is not installed: {REMEDY}") from error
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _check_port(address or "")
        ray.init(
            address,
            log_to_driver=False,
            logging_level="WARNING",
            runtime_env={"env_vars": dict(environment)},
        )
    except (OSError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "available"
        reason = " ".join(str(error).split())
        raise InputError(f"no Ray cluster {where} ({reason}): check --ray-address") from error
    try:
        yield RayCluster()
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raise OSError if the port of an address is closed; Ray itself would retry for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), TIMEOUT).close()


@dataclass(frozen=True, slots=True)
class ResourceShare:
    """Resources that Ray reserves for one actor."""

    cpus: int
    gpus: int


class RayCluster:
    """The cluster that this process is connected to."""

    def __init__(self) -> None:
        import ray

        self._resources = ray.cluster_resources()
        self._nodes = sum(node["Alive"] for node in ray.nodes())

    @property
    def has_gpus(self) -> bool:
        """Whether any node has a GPU."""
        return bool(self._resources.get("GPU", 0))

    def count(self) -> int:
        """Default number of workers: one per GPU, or without GPUs one per node."""
        return int(self._resources.get("GPU", 0)) or self._nodes

    def share(self, count: int, *, use_gpu: bool) -> ResourceShare:
        """The resources of each of ``count`` workers."""
        if use_gpu:
            return ResourceShare(cpus=1, gpus=1)
        return ResourceShare(cpus=max(1, int(self._resources.get("CPU", 1)) // count), gpus=0)

    def call(self, function: Callable[..., Returned], *args: object) -> Returned:
        """Call a function on a node as the actors use (with a GPU, if any); raise its errors."""
        import ray

        task = ray.remote(function).options(num_gpus=int(self.has_gpus))
        try:
            return ray.get(task.remote(*args))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


class RayActors:
    """A ``WorkerFactory`` of actors."""

    def __init__(self, load_engine: EngineFactory, share: ResourceShare) -> None:
        self._load_engine, self._share = load_engine, share

    def start(self, number: int) -> _ActorHandle:
        """Start an actor; it is not ready until a node has the resources for it."""
        import ray

        actor = ray.remote(_Actor).options(
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            max_concurrency=_Actor.CONCURRENCY,
        )
        return _ActorHandle(actor.remote(), self._load_engine)

    def wait(self, ends: Sequence[Any]) -> list[Any]:
        import ray

        ready: list[Any] = ray.wait(list(ends))[0]
        return ready


class _ActorHandle:
    """The driver's handle to an actor: one call of ``next_message`` is always pending."""

    def __init__(self, actor: Any, load_engine: EngineFactory) -> None:
        self._actor = actor
        self._run = actor.run.remote(load_engine, __version__)
        self._pending = actor.next_message.remote()

    @property
    def ends(self) -> tuple[Any, Any]:
        return self._pending, self._run

    def send(self, request: Request | None) -> None:
        self._actor.put.remote(request)

    def receive(self) -> Message:
        import ray

        try:
            ready, _ = ray.wait([self._pending], timeout=0)
            message: Message = ray.get(self._pending if ready else self._run)
        except ray.exceptions.RayError as error:
            raise WorkerDied(str(error).strip().splitlines()[0]) from error
        self._pending = self._actor.next_message.remote()
        return message

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


class _Actor:
    """The actor. Its three methods run concurrently: one synthesizes, the others do the I/O."""

    CONCURRENCY = 3

    def __init__(self) -> None:
        self._incoming: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def run(self, load_engine: EngineFactory, version: str) -> None:
        """Load and synthesize until the actor is killed."""
        forward_logs(self._outgoing.put)
        if version != __version__:
            self._outgoing.put(
                InputError(
                    f"the cluster has chatterbox-opt {__version__}, this machine has {version}: "
                    "install the same on both"
                )
            )
            return
        serve(load_engine, self._incoming.get, self._outgoing.put)

    def put(self, request: Request | None) -> None:
        """Pass a request to ``run``."""
        self._incoming.put(request)

    def next_message(self) -> Message:
        """Wait for a message of ``run``."""
        return self._outgoing.get()
