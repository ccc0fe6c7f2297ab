"""Runs flow and vocoder for sequences that T3 has finished, inline or overlapped with T3.

    inline      T3 waits while flow and vocoder run
    overlapped  T3 decodes the next sequences meanwhile; at most one group is on the worker thread,
                and it is collected before the next one starts

The worker tries a group once, without recovery: it moves no weights, changes no precision and logs
no warning. What fails is rendered again from the start by the stepping thread while the worker is
idle, so recovery never runs in parallel with other work:

    error                              action                                        then
    out of device memory, overlapped   inline from now on                            again
    out of device memory               offload, then offload more (recovery.py)      again
      nothing left to offload          fail with DeviceError
    NaN/Inf of an fp16/bf16 flow, or
      of the vocoder after such a flow flow in float32                               again
    NaN/Inf in float32                 fail with NumericsError
    failure of a group of several      each alone                                    again
    failure of one                     fail this sequence

"Again" is from the same state of the sequences' generators: the same audio.

Responsible for the order of flow and vocoder, threads, and the table above. Not responsible for
which sequences are rendered together (pipeline.py) or for what the stages compute (work.py,
hops.py).
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from chatterbox_opt.engine.rendering.work import RenderGroup
from chatterbox_opt.engine.sequence import REQUEST_ERRORS, Sequence
from chatterbox_opt.errors import NumericsError
from chatterbox_opt.runtime.cuda import is_out_of_memory
from chatterbox_opt.runtime.offload import NONE
from chatterbox_opt.runtime.recovery import RecoveryPolicy
from chatterbox_opt.utils.steps import announce

log = logging.getLogger(__name__)
Result = TypeVar("Result")
RENDER_THREAD = "render"


class RunStage(Protocol):
    """How a stage is called: ``RecoveryPolicy.run`` or ``RecoveryPolicy.try_once``."""

    def __call__(
        self,
        stage: str,
        work: Callable[[nn.Module], Result],
        generators: list[torch.Generator],
    ) -> Result:
        """Run ``work`` with the stage's module."""
        ...


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


@dataclass(frozen=True, slots=True)
class Pending:
    """A group on the worker thread; ``done`` is False if it has to be rendered again."""

    group: RenderGroup
    done: Future[bool]


class Renderer:
    """Flow and vocoder.

    Attributes:
        overlaps: groups may run on the worker thread; False after out of memory, for good.
    """

    def __init__(self, recovery: RecoveryPolicy, stream: StreamContext | None = None) -> None:
        """Start without a thread.

        Args:
            stream: of the worker thread; None renders inline.
        """
        self.overlaps = stream is not None
        self._recovery, self._stream = recovery, stream or no_stream
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Pending] = []
        self._released = False  # memory for T3, since the last submission

    @property
    def busy(self) -> bool:
        """Whether groups were submitted that are not collected yet."""
        return bool(self._pending)

    @property
    def ready(self) -> bool:
        """Whether ``collect`` would not wait."""
        return all(pending.done.done() for pending in self._pending)

    def submit(self, groups: Iterable[RenderGroup], *, overlap: bool) -> list[Sequence]:
        """Render groups; return the sequences that are finished, with audio or an error.

        Args:
            overlap: on the worker thread, if that is possible; ``collect`` returns them later.
        """
        finished = self.collect()
        if overlap and self.overlaps and self._recovery.placement.offload == NONE:
            self._released = False
            self._pending = [Pending(group, self._start(group)) for group in groups]
            return finished
        announce("tokens to audio")
        for group in groups:
            self._render(group)
            finished += group.sequences
        return finished

    def collect(self) -> list[Sequence]:
        """Wait for the worker; return what it has rendered."""
        self._wait()  # for all groups: nothing else may use the stages during recovery
        pending, self._pending = self._pending, []
        for one in pending:
            if not one.done.result():
                one.group.rewind()
                self._render(one.group)
        return [sequence for one in pending for sequence in one.group.sequences]

    def release_memory(self) -> bool:
        """Free memory for T3: wait for the worker, and render inline from now on.

        Returns:
            whether anything was overlapped; once for each submission.
        """
        if self._released or not self._pending:
            return False
        self._released = True
        self._wait()
        self.disable_overlap()
        return True

    def disable_overlap(self) -> None:
        """Render inline from now on, with a warning."""
        if self.overlaps:
            self.overlaps = False
            log.warning(
                "out of GPU memory while overlapping T3 with vocoding; "
                "running them one after the other from now on"
            )

    def release(self) -> None:
        """Drop what was submitted; end the thread when its running group is done."""
        self._pending = []
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)

    def _wait(self) -> None:
        wait([pending.done for pending in self._pending])

    def _start(self, group: RenderGroup) -> Future[bool]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, RENDER_THREAD)
        work = self._stream(functools.partial(self._run_stages, group, self._recovery.try_once))
        return self._thread.submit(self._try_render, work)

    def _try_render(self, work: Callable[[], None]) -> bool:
        """Run a group on the worker thread; False if it failed."""
        if not self.overlaps:  # since this group was submitted
            return False
        try:
            with torch.inference_mode():  # a per-thread setting
                work()
        except REQUEST_ERRORS as error:
            # the error is not stored: its frames hold memory that the next try needs
            if is_out_of_memory(error):
                self.disable_overlap()
            return False
        return True

    def _render(self, group: RenderGroup) -> None:
        """Render a group with recovery; if its sequences fail together, one by one."""
        try:
            self._run_with_recovery(group)
        except REQUEST_ERRORS as error:
            if len(group.sequences) == 1:
                group.sequences[0].fail(error)
                return
        else:
            return
        group.rewind()  # outside of the handler, so that the failed frames are freed
        for one in group.split():
            self._render(one)

    def _run_with_recovery(self, group: RenderGroup) -> None:
        run = self._recovery.run
        try:
            self._run_stages(group, run)
        except NumericsError:
            # the vocoder has float32's range: the cause is the mel spectrogram of an fp16/bf16 flow
            if not self._recovery.reduced_precision("flow"):
                raise
            self._recovery.warn_once(
                "vocoder produced NaN or Inf from the flow's output: flow again in float32"
            )
            group.rewind()
            self._run_stages(group, run, functools.partial(run, float32=True))

    def _run_stages(
        self, group: RenderGroup, run: RunStage, run_flow: RunStage | None = None
    ) -> None:
        """Flow, then vocoder; sets the results and seconds of the group's sequences."""
        device = self._recovery.placement.device
        start = time.perf_counter()
        mels: list[Tensor] = (run_flow or run)(
            "flow", lambda flow: group.flow(flow, device), group.generators
        )
        middle = time.perf_counter()
        finish = run("vocoder", lambda vocoder: group.vocode(vocoder, mels), group.generators)
        finish()
        seconds = {"flow": middle - start, "vocoder": time.perf_counter() - middle}
        for sequence in group.sequences:
            for stage, spent in seconds.items():
                sequence.add_seconds(stage, spent / len(group.sequences))
