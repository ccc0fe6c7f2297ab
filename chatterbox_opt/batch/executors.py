"""Where a batch runs: in this process, in worker processes of this machine, on a Ray cluster.

Responsible for choosing an executor and for what its workers need. Not responsible for job files,
manifests or printing. Each executor provides one function from requests to results, as
``Engine.batch`` is.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chatterbox_opt.batch import local_workers, ray_workers
from chatterbox_opt.batch.worker_pool import Pool
from chatterbox_opt.config.hardware import Hardware
from chatterbox_opt.config.plan import Plan
from chatterbox_opt.engine import probe
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Request, Result, SynthesizeBatch
from chatterbox_opt.script.cast import Cast, member_of
from chatterbox_opt.script.reader import script_of
from chatterbox_opt.utils.quiet import silence_dependencies

if TYPE_CHECKING:
    from chatterbox_opt.voice import Voice

log = logging.getLogger(__name__)
PROCESS, RAY = "process", "ray"
EXECUTORS = (PROCESS, RAY)
MAX_WORKERS = 256
FORWARDED = ("CHATTERBOX_", "DISABLE_OPTIMIZATION", "HF_HUB_OFFLINE", "HF_ENDPOINT")  # to Ray


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker loads and runs; picklable.

    Attributes:
        engine: the model and its settings.
        plan: resolved once: what is run here, and what all workers start from.
        retries: of the quality guard.
        debug: show what dependencies print.
    """

    engine: EngineSpec
    plan: Plan
    retries: int
    debug: bool = False

    @contextmanager
    def __call__(self) -> Iterator[SynthesizeBatch]:
        """Load the engine in a worker process, by a plan for the worker's own device."""
        if not self.debug:
            silence_dependencies()
        with replace(self, plan=self._local_plan()).open() as synthesize:
            yield synthesize

    def _local_plan(self) -> Plan:
        """The plan with slots, kernels and offload for the device that this worker has.

        GPUs of one machine and nodes of a cluster may differ, and workers may share a GPU.
        """
        pinned = replace(self.engine, profile=self.plan.profile, device=self.plan.device)
        local = pinned.resolve(probe.probe(self.plan.device))
        if local.precision != self.plan.precision:
            log.warning(
                "a worker's device supports %s in place of %s: its files differ from the others'",
                " ".join(filter(None, local.precision)),
                " ".join(filter(None, self.plan.precision)),
            )
        return local

    @contextmanager
    def open(self) -> Iterator[SynthesizeBatch]:
        """Load the engine in this process; yield its function from requests to results."""
        from chatterbox_opt.engine.quality import Guard  # imports numpy

        with self.engine.load(self.plan) as engine:
            yield functools.partial(engine.batch, guard=Guard(self.retries))


class LocalExecutor:
    """Runs in this process, or in several worker processes of this machine."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def probe(self, device: str) -> Hardware:
        """The hardware of this machine."""
        return probe.probe(device)

    @contextmanager
    def open(self, spec: WorkerSpec) -> Iterator[SynthesizeBatch]:
        """Load the engines; a single worker runs in this process."""
        if self.workers == 1:
            with spec.open() as synthesize:
                yield synthesize
            return
        gpus = probe.visible_gpus() if spec.plan.device == "cuda" else []
        environments = local_workers.split_resources(self.workers, gpus, os.environ)
        with Pool(local_workers.ProcessWorkers(spec, environments), self.workers) as pool:
            pool.wait()
            yield pool


class RayExecutor:
    """Runs on a Ray cluster; recordings are read on this machine."""

    def __init__(self, cluster: ray_workers.RayCluster, workers: int | None) -> None:
        self._cluster = cluster
        self.workers = workers or cluster.count()

    def probe(self, device: str) -> Hardware:
        """The hardware of a machine of the cluster."""
        return self._cluster.call(probe.probe, device)

    @contextmanager
    def open(self, spec: WorkerSpec) -> Iterator[SynthesizeBatch]:
        """Load the engines as actors of the cluster."""
        from chatterbox_opt.voices.library import VoiceLibrary

        voices = VoiceLibrary(spec.engine.locate(), spec.engine.store)
        share = self._cluster.share(self.workers, use_gpu=spec.plan.device == "cuda")
        with Pool(ray_workers.RayActors(spec, share), self.workers) as pool:
            pool.wait()
            yield with_voices(pool, voices.voice)


@contextmanager
def open_executor(
    executor: str, workers: int | None, address: str | None
) -> Iterator[LocalExecutor | RayExecutor]:
    """Connect to the executor while the block runs.

    Args:
        workers: None is one on this machine; on Ray, one per GPU, or without GPUs per machine.

    Raises:
        InputError: Ray is not installed, or its cluster not reachable.
    """
    if executor == PROCESS:
        yield LocalExecutor(workers or 1)
        return
    environment = {k: v for k, v in os.environ.items() if k.startswith(FORWARDED)}
    with ray_workers.connected(address, environment) as cluster:
        yield RayExecutor(cluster, workers)


def check_executor(executor: str, workers: int | None, address: str | None) -> None:
    """Check the options before any work.

    Raises:
        InputError: an unknown executor, too many workers, or an address without Ray.
    """
    if executor not in EXECUTORS:
        raise InputError(f"executor is '{executor}'; known: {', '.join(EXECUTORS)}")
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise InputError(f"--workers is {workers}; use 1 to {MAX_WORKERS}")
    if address is not None and executor != RAY:
        raise InputError("--ray-address needs --executor ray")


def _with_cast(request: Request, voice: Callable[[str], Voice]) -> Request:
    """The request with a cast of all voices that its text names."""
    if not request.markup and request.cast is None:
        return request
    members = [member_of(request.cast, name) for name in script_of(request).voices]
    named = tuple(
        replace(one, voice=voice(one.voice)) if isinstance(one.voice, str) else one
        for one in members
    )
    dialogue = request.cast is not None and request.cast.dialogue
    return replace(request, cast=Cast(named, dialogue)) if named else request


def with_voices(synthesize: SynthesizeBatch, voice: Callable[[str], Voice]) -> SynthesizeBatch:
    """Replace the path of a recording, which other machines cannot read, by its Voice.

    A recording that cannot be used fails only its own request, as in ``Engine.batch``.
    """
    from chatterbox_opt.engine.sequence import REQUEST_ERRORS

    def results(requests: Iterable[Request]) -> Iterator[Result]:
        failed: deque[Result] = deque()

        def resolved() -> Iterator[Request]:
            for request in requests:
                try:
                    if isinstance(request.voice, str):
                        request = replace(request, voice=voice(request.voice))
                    request = _with_cast(request, voice)
                except REQUEST_ERRORS as error:
                    failed.append(Result(request.id, request.sampling.seed or 0, error=error))
                else:
                    yield request

        for result in synthesize(resolved()):
            while failed:
                yield failed.popleft()
            yield result
        yield from failed

    return results
