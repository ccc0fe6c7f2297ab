"""Where a batch is spoken: in this process, in processes of this machine, on a Ray cluster.

Knows which of them was asked for and what each needs to be told. Knows nothing of job files or
manifests: all three are the same function from requests to results.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chatterbox_opt.batch import local_workers, ray_workers
from chatterbox_opt.batch.worker_pool import Pool
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli import console
from chatterbox_opt.config.hardware import Hardware
from chatterbox_opt.config.plan import Plan
from chatterbox_opt.engine import probe
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.spec import Machine
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Request, Result, Speak

if TYPE_CHECKING:
    from chatterbox_opt.voice import Voice

PROCESS, RAY = "process", "ray"
EXECUTORS = (PROCESS, RAY)
MAX_WORKERS = 256  # workers
FORWARDED = ("CHATTERBOX_", "DISABLE_OPTIMIZATION", "HF_HUB_OFFLINE", "HF_ENDPOINT")  # to Ray


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A model and how it is guarded: what a worker opens, picklable."""

    machine: Machine
    retries: int
    debug: bool

    @contextmanager
    def __call__(self) -> Iterator[Speak]:
        """Load it in a worker, which has nobody to talk to."""
        if not self.debug:
            console.be_quiet()
        with self.speaking(console.Reporter(quiet=True)) as speak:
            yield speak

    @contextmanager
    def speaking(self, talk: console.Reporter) -> Iterator[Speak]:
        """Load it here."""
        with self.machine.load(talk) as engine:
            yield functools.partial(engine.batch, guard=Guard(self.retries))

    def settled(self, how: Plan) -> WorkerSpec:
        """The same for a worker: it decides nothing anew, so that all sound alike."""
        return replace(self, machine=replace(self.machine, profile=how.profile, device=how.device))


class LocalExecutor:
    """In this process, or in several of this machine."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def probe(self, device: str) -> Hardware:
        """What there is to work on."""
        return probe.probe(device)

    @contextmanager
    def speaking(self, speech: WorkerSpec, how: Plan, talk: console.Reporter) -> Iterator[Speak]:
        """Load, and yield a function from requests to results."""
        if self._workers == 1:
            with speech.speaking(talk) as speak:
                yield speak
            return
        cards = probe.visible_gpus() if how.device == "cuda" else []
        environments = local_workers.split_resources(self._workers, cards, os.environ)
        crew = local_workers.ProcessWorkers(speech.settled(how), environments)
        with Pool(crew, self._workers) as pool:
            pool.wait()
            _say(talk, how, self._workers)
            yield pool


class RayExecutor:
    """On a Ray cluster."""

    def __init__(self, found: ray_workers.RayCluster, workers: int | None) -> None:
        self._cluster = found
        self._workers = workers or found.count()

    def probe(self, device: str) -> Hardware:
        """What a machine of the cluster has."""
        return self._cluster.call(probe.probe, device)

    @contextmanager
    def speaking(self, speech: WorkerSpec, how: Plan, talk: console.Reporter) -> Iterator[Speak]:
        """As ``LocalExecutor``; recordings are read on this machine."""
        from chatterbox_opt.voices.library import VoiceLibrary

        speakers = VoiceLibrary(registry.locate(speech.machine.model), speech.machine.store)
        share = self._cluster.share(self._workers, use_gpu=how.device == "cuda")
        with Pool(ray_workers.RayActors(speech.settled(how), share), self._workers) as pool:
            pool.wait()
            _say(talk, how, self._workers)
            yield with_voices(pool, speakers.voice)


@contextmanager
def open_executor(
    executor: str, workers: int | None, address: str | None
) -> Iterator[LocalExecutor | RayExecutor]:
    """The place to work at, while the block runs.

    Args:
        workers: None is one here, and on Ray as many as there are cards, or machines.

    Raises:
        InputError: Ray is not installed, or its cluster not there.
    """
    if executor == PROCESS:
        yield LocalExecutor(workers or 1)
        return
    environment = {k: v for k, v in os.environ.items() if k.startswith(FORWARDED)}
    with ray_workers.connected(address, environment) as found:
        yield RayExecutor(found, workers)


def check_executor(executor: str, workers: int | None, address: str | None) -> None:
    """Say what is wrong before any work.

    Raises:
        InputError: an unknown executor, too many workers, or an address for none.
    """
    if executor not in EXECUTORS:
        raise InputError(f"executor is '{executor}'; known: {', '.join(EXECUTORS)}")
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise InputError(f"--workers is {workers}; give 1 to {MAX_WORKERS}")
    if address is not None and executor != RAY:
        raise InputError("--ray-address is for --executor ray: give that too")


def _say(talk: console.Reporter, how: Plan, workers: int) -> None:
    talk.say(f"{how.summary()} · {workers} workers")
    for reason in how.reasons:
        talk.detail(f"  {reason}")


def with_voices(speak: Speak, voice: Callable[[str], Voice]) -> Speak:
    """Put a Voice in place of a recording's path, which means nothing on another machine.

    A recording that cannot be used is its request's failure, as in ``Engine.batch``.
    """
    from chatterbox_opt.engine.sequence import REQUEST_ERRORS

    def spoken(requests: Iterable[Request]) -> Iterator[Result]:
        failed: deque[Result] = deque()

        def voiced() -> Iterator[Request]:
            for request in requests:
                try:
                    if isinstance(request.voice, str):
                        request = replace(request, voice=voice(request.voice))
                except REQUEST_ERRORS as error:
                    failed.append(Result(request.id, request.sampling.seed or 0, error=error))
                else:
                    yield request

        for result in speak(voiced()):
            while failed:
                yield failed.popleft()
            yield result
        yield from failed

    return spoken
