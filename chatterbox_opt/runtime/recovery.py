"""Recovery of flow and vocoder from out of memory and NaN/Inf.

    out of device memory   -> offload, then offload more -> DeviceError
    NaN/Inf in fp16/bf16   -> the same work again in float32 -> NumericsError

Responsible for the fallbacks above, and for which errors of a step are set-up errors. Not
responsible for T3's fallbacks (engine/decoding/decoder.py), text or files. Flow and vocoder may be
called from two threads (engine/rendering/renderer.py): a lock serializes them, and stages are moved
only while neither runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

import torch

from chatterbox_opt.errors import DeviceError, NumericsError
from chatterbox_opt.runtime import cuda
from chatterbox_opt.runtime.cuda import SetupError
from chatterbox_opt.runtime.offload import ALL_BUT_ACTIVE, NONE, STAGES, StagePlacement

log = logging.getLogger(__name__)
Result = TypeVar("Result")
OFFLOADED = {
    STAGES: "stages now alternate on the GPU",
    ALL_BUT_ACTIVE: "only the running stage is on the GPU now",
}
COMPILERS = ("torch._dynamo", "torch._inductor", "triton")  # modules that define set-up errors


class Castable(Protocol):
    """A stage whose arithmetic can change its precision."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        ...

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast for arithmetic in ``dtype``."""
        ...


def is_setup_error(error: Exception) -> bool:
    """Whether a step failed in compilation or launch set-up, as it would with any inputs.

    These are errors of torch.compile and Triton, a missing compiler or library, and ``SetupError``
    (raised by ``kernels.cuda.launch``). Other errors may be caused by these requests only.
    """
    modules = (kind.__module__ for kind in type(error).__mro__)
    return isinstance(error, (SetupError, ImportError, OSError)) or any(
        module == name or module.startswith(f"{name}.") for module in modules for name in COMPILERS
    )


@contextmanager
def in_float32(module: torch.nn.Module) -> Iterator[None]:
    """Run the stage in float32 inside the block, and restore its own dtype afterwards.

    The weights get their former values back, but at other addresses: captured graphs are stale.
    """
    stage = cast(Castable, module)
    before = stage.dtype
    if before == torch.float32:
        yield
        return
    try:
        stage.set_precision(torch.float32)
        yield
    finally:
        stage.set_precision(before)


class RecoveryPolicy:
    """Runs work on stages with the fallbacks above; logs each warning once.

    Attributes:
        lock: held while flow or vocoder run, or stages are moved.
    """

    def __init__(self, placement: StagePlacement) -> None:
        self.placement = placement
        self.lock = threading.RLock()
        self._warned: set[str] = set()

    def warn_once(self, message: str) -> None:
        """Log a warning unless this engine has logged it already."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    def run(
        self,
        stage: str,
        work: Callable[[torch.nn.Module], Result],
        generators: Sequence[torch.Generator],
        *,
        float32: bool = False,
    ) -> Result:
        """Run ``work`` with the stage on the device; a retry draws the same random numbers.

        Args:
            float32: start in float32.

        Raises:
            DeviceError: out of memory even with only this stage on the device.
            NumericsError: NaN/Inf even in float32.
        """
        with self.lock:
            return self._run(stage, work, generators, float32=float32)

    def try_once(
        self,
        stage: str,
        work: Callable[[torch.nn.Module], Result],
        generators: Sequence[torch.Generator],
    ) -> Result:
        """Run ``work`` without recovery: for a thread that overlaps with T3.

        Raises:
            DeviceError: stages are offloaded; moving them must not happen in parallel with T3.
        """
        with self.lock:
            if self.placement.offload != NONE:
                raise DeviceError(f"{stage} cannot overlap with T3 while stages are offloaded")
            return self._try(stage, work, float32=False)

    def _run(
        self,
        stage: str,
        work: Callable[[torch.nn.Module], Result],
        generators: Sequence[torch.Generator],
        *,
        float32: bool,
    ) -> Result:
        states = [generator.get_state() for generator in generators]
        while True:
            oom: RuntimeError | None = None
            try:
                return self._try(stage, work, float32=float32)
            except NumericsError as error:
                if float32 or not self.reduced_precision(stage):
                    remedy = "the weights may be damaged, get them again"
                    raise NumericsError(f"{error}, in float32: {remedy}") from error
                self.warn_once(f"{stage} produced NaN or Inf: running it again in float32")
                float32 = True
            except RuntimeError as error:
                if not cuda.is_out_of_memory(error):
                    raise
                oom = error
            # outside of the handlers, so that the failed frames and their memory are freed
            if oom is not None:
                self.out_of_memory(stage, oom)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def release_memory(self) -> None:
        """Free what can be computed or captured again, while no stage runs."""
        with self.lock:
            self.placement.release_memory()

    def out_of_memory(self, stage: str, error: Exception) -> None:
        """Offload, or offload more, from now on.

        Raises:
            DeviceError: only the running stage is on the device already.
        """
        error.__traceback__ = None  # its frames hold references to tensors
        if self.placement.offload == ALL_BUT_ACTIVE:
            raise DeviceError(_stage_does_not_fit(stage)) from error
        with self.lock:
            self.placement.offload_more()
        self.warn_once(f"{stage} ran out of memory: {OFFLOADED[self.placement.offload]}")

    def reduced_precision(self, stage: str) -> bool:
        """Whether the stage's arithmetic is fp16 or bf16."""
        return cast(Castable, self.placement.module(stage)).dtype != torch.float32

    def _try(
        self, stage: str, work: Callable[[torch.nn.Module], Result], *, float32: bool
    ) -> Result:
        with self.placement(stage) as module:
            if not float32:
                return work(module)
            with in_float32(module):
                return work(module)


def _stage_does_not_fit(stage: str) -> str:
    return (
        f"the GPU has too little free memory for {stage} alone: close other programs, "
        "use --profile memory-limited --dtype float16, or --device cpu"
    )
