"""Workers that are actors of a Ray cluster: an engine each, on whatever machine Ray finds for it.

Knows Ray. Knows nothing of engines, nor of what is in a message. The cluster's machines must have
the same version of this package; ``--model DIR`` must be there too. Voices come with the requests.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from chatterbox_opt import __version__
from chatterbox_opt.batch.worker_pool import Message, Opening, WorkerDied, forward_logs, serve
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Request

REMEDY = 'pip install "chatterbox-opt[ray]"'
TIMEOUT = 10.0  # seconds for a cluster to pick up
Answer = TypeVar("Answer")


@contextmanager
def connected(address: str | None, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """Yield a cluster, which is left when the block ends.

    Args:
        address: of a cluster; None takes RAY_ADDRESS, else the one that runs on this machine, else
            starts one here that ends with the block.
        environment: variables that the workers find set.

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
        where = f"at {address}" if address else "to be had"
        reason = " ".join(str(error).split())
        raise InputError(f"no Ray cluster {where} ({reason}): check --ray-address") from error
    try:
        yield RayCluster()
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raise OSError if nobody listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), TIMEOUT).close()


@dataclass(frozen=True, slots=True)
class ResourceShare:
    """What Ray keeps free for one worker."""

    cores: int
    cards: int


class RayCluster:
    """The cluster that this process is connected to."""

    def __init__(self) -> None:
        import ray

        self._resources = ray.cluster_resources()
        self._machines = sum(node["Alive"] for node in ray.nodes())

    @property
    def has_cards(self) -> bool:
        """Whether any machine of it has a GPU."""
        return bool(self._resources.get("GPU", 0))

    def count(self) -> int:
        """How many workers to have if nobody says: one a card, or else one a machine."""
        return int(self._resources.get("GPU", 0)) or self._machines

    def share(self, count: int, *, on_card: bool) -> ResourceShare:
        """What each of ``count`` workers may have for itself."""
        if on_card:
            return ResourceShare(1, 1)
        return ResourceShare(max(1, int(self._resources.get("CPU", 1)) // count), 0)

    def ask(self, question: Callable[..., Answer], *args: object) -> Answer:
        """Call a function where the workers will be; its errors are raised here."""
        import ray

        task = ray.remote(question).options(num_gpus=int(self.has_cards))
        try:
            return ray.get(task.remote(*args))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


class RayActors:
    """A crew (see worker_pool.py) of actors."""

    def __init__(self, opening: Opening, share: ResourceShare) -> None:
        self._opening, self._share = opening, share

    def start(self, number: int) -> _ActorHandle:
        """Have Ray start an actor; until a machine has room for it, it is not ready."""
        import ray

        actor = ray.remote(_Actor).options(
            num_cpus=self._share.cores, num_gpus=self._share.cards, max_concurrency=_Actor.CALLS
        )
        return _ActorHandle(actor.remote(), self._opening)

    def wait(self, ends: Sequence[Any]) -> list[Any]:
        """See ``Crew``."""
        import ray

        ready: list[Any] = ray.wait(list(ends))[0]
        return ready


class _ActorHandle:
    """The near end of an actor: it has one call of ``take`` in waiting, always."""

    def __init__(self, actor: Any, opening: Opening) -> None:
        self._actor = actor
        self._run = actor.run.remote(opening, __version__)
        self._take = actor.take.remote()

    @property
    def ends(self) -> tuple[Any, Any]:
        """See ``Worker``."""
        return self._take, self._run

    def give(self, request: Request | None) -> None:
        """See ``Worker``."""
        self._actor.give.remote(request)

    def receive(self) -> Message:
        """See ``Worker``."""
        import ray

        try:
            ready, _ = ray.wait([self._take], timeout=0)
            message: Message = ray.get(self._take if ready else self._run)
        except ray.exceptions.RayError as error:
            raise WorkerDied(str(error).strip().splitlines()[0]) from error
        self._take = self._actor.take.remote()
        return message

    def close(self) -> None:
        """See ``Worker``."""
        import ray

        ray.kill(self._actor)


class _Actor:
    """The far end: one call works, another gives, a third takes."""

    CALLS = 3

    def __init__(self) -> None:
        self._down: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._up: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def run(self, opening: Opening, version: str) -> None:
        """Work until the actor is killed."""
        forward_logs(self._up.put)
        if version != __version__:
            self._up.put(
                InputError(
                    f"the cluster has chatterbox-opt {__version__}, this machine has {version}: "
                    "install the same on both"
                )
            )
            return
        serve(opening, self._down.get, self._up.put)

    def give(self, request: Request | None) -> None:
        """Take a message to ``run``."""
        self._down.put(request)

    def take(self) -> Message:
        """Wait for a message of ``run``."""
        return self._up.get()
