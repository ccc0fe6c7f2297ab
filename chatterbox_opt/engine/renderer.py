"""Runs flow and vocoder for finished T3 sequences, inline or on a worker thread overlapped with T3.

    inline      T3 waits while flow and vocoder run
    overlapped  T3 decodes the next sequences meanwhile; at most one group is on the worker thread,
                and its results are collected when the next group is complete, or when T3 has no
                sequences left

When results are collected does not depend on the threads' speed. So retried chunks enter T3 at the
same step in every run, and the same seed gives the same file.

The worker tries a job once, without recovery: it moves no weights, changes no precision and logs no
warning. A job that fails is run again from the start by T3's thread while the worker is idle, so
recovery (recovery.py) never runs in parallel with other work. Out of memory while overlapping has
its own fallback: inline from then on.

Responsible for threads and for failures of overlapped work. Not responsible for stages or audio.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from chatterbox_opt.engine.sequence import REQUEST_ERRORS, ChunkResult

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RenderJob:
    """Token sequences that are rendered together.

    Attributes:
        try_run: renders them or raises one of ``REQUEST_ERRORS``; changes nothing but the
            sequences' generators, so it may overlap with T3.
        run_with_recovery: renders them from the start, with recovery; a request's failure is
            returned as its result.
    """

    try_run: Callable[[], list[ChunkResult]]
    run_with_recovery: Callable[[], Iterable[ChunkResult]]


class Renderer(Protocol):
    """Runs render jobs inline or overlapped."""

    def run(self, can_overlap: Callable[[], bool]) -> AbstractContextManager[RenderSession]:
        """Start a run over requests; when the block ends, for any reason, no thread is left.

        Args:
            can_overlap: called before jobs are submitted to another thread; returns whether all
                stages stay on the device.
        """
        ...


class RenderSession(Protocol):
    """One run."""

    @property
    def busy(self) -> bool:
        """Whether jobs were submitted whose results are not collected yet."""
        ...

    def submit(self, jobs: Sequence[RenderJob]) -> Iterator[ChunkResult]:
        """Submit a group of jobs, or none; yield the results that are ready.

        The caller must exhaust the iterator.
        """
        ...

    def release_memory(self) -> bool:
        """Free memory for T3: wait for overlapped work, and run inline from now on.

        Returns:
            whether there was overlapped work.
        """
        ...


class InlineRenderer:
    """Runs jobs on T3's thread, while T3 waits."""

    busy = False

    @contextmanager
    def run(self, can_overlap: Callable[[], bool]) -> Iterator[RenderSession]:
        yield self

    def submit(self, jobs: Sequence[RenderJob]) -> Iterator[ChunkResult]:
        for job in jobs:
            yield from job.run_with_recovery()

    def release_memory(self) -> bool:
        return False


class StreamContext(Protocol):
    """The stream on which another thread's work runs (``cuda.SideStream``)."""

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Wrap ``work`` for another thread.

        It runs after everything that this thread has launched, and is complete on the device when
        the wrapper returns.
        """
        ...


def no_stream(work: Callable[[], Result]) -> Callable[[], Result]:
    """The ``StreamContext`` of a device without streams, such as a CPU."""
    return work


class OverlappedRenderer:
    """Runs jobs on a worker thread, one for each run.

    Attributes:
        disabled: memory was too small to overlap; jobs run inline.
    """

    def __init__(self, stream: StreamContext = no_stream) -> None:
        self._stream = stream
        self.disabled = False

    @contextmanager
    def run(self, can_overlap: Callable[[], bool]) -> Iterator[RenderSession]:
        with ThreadPoolExecutor(1, "render") as thread:
            try:
                yield _OverlappedSession(self, thread, can_overlap)
            finally:
                thread.shutdown(cancel_futures=True)  # waits for the running job

    def disable(self) -> None:
        """Run inline from now on, with a warning."""
        if not self.disabled:
            self.disabled = True
            log.warning(
                "out of GPU memory while overlapping T3 with vocoding; "
                "running them one after the other from now on"
            )

    def start(self, job: RenderJob, thread: ThreadPoolExecutor) -> Future[list[ChunkResult] | None]:
        """Try a job on ``thread``; the future's result is None if it failed."""
        inference = torch.is_inference_mode_enabled()  # a per-thread setting

        def try_run() -> list[ChunkResult]:
            with torch.inference_mode(inference):
                return job.try_run()

        work = self._stream(try_run)

        def run() -> list[ChunkResult] | None:
            if self.disabled:  # after this job was submitted
                return None
            try:
                return work()
            except REQUEST_ERRORS as error:
                # the error is not stored: its frames hold memory that the next try needs
                if isinstance(error, torch.OutOfMemoryError):
                    self.disable()
                return None

        return thread.submit(run)


class _OverlappedSession:
    """One run of ``OverlappedRenderer``."""

    def __init__(
        self,
        renderer: OverlappedRenderer,
        thread: ThreadPoolExecutor,
        can_overlap: Callable[[], bool],
    ) -> None:
        self._renderer, self._thread, self._can_overlap = renderer, thread, can_overlap
        self._pending: list[tuple[RenderJob, Future[list[ChunkResult] | None]]] = []
        self._released = False

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def submit(self, jobs: Sequence[RenderJob]) -> Iterator[ChunkResult]:
        results = self._collect()
        if not self._renderer.disabled and self._can_overlap():
            # before the collected results are yielded, because their consumer may take long
            self._pending = [(job, self._renderer.start(job, self._thread)) for job in jobs]
            jobs = ()
        yield from results
        for job in jobs:
            yield from job.run_with_recovery()

    def release_memory(self) -> bool:
        if self._released or not self._pending:
            return False
        self._released = True
        self._wait()
        self._renderer.disable()
        return True

    def _wait(self) -> None:
        wait([future for _, future in self._pending])

    def _collect(self) -> list[ChunkResult]:
        self._wait()  # for all jobs: nothing else may use the stages during recovery
        pending, self._pending = self._pending, []
        results: list[ChunkResult] = []
        for job, future in pending:
            result = future.result()
            results.extend(job.run_with_recovery() if result is None else result)
        return results
