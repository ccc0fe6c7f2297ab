"""What to do when a stage fails for a reason that can be healed: one rung down, and say so.

Knows residency and precision. Knows nothing of text, tokens or files.

    out of device memory      -> offload, then offload more -> DeviceError
    NaN or infinity in half   -> that work again in float32 -> NumericsError

Flow and vocoder may be asked by two threads (overlap.py). They work for one at a time, and stages
are moved only while neither works.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

import torch

from chatterbox_opt.errors import DeviceError, NumericsError
from chatterbox_opt.runtime.offload import ALL_BUT_ACTIVE, NONE, STAGES, StagePlacement

log = logging.getLogger(__name__)
Result = TypeVar("Result")
HAPPENED = {
    STAGES: "stages now take turns on the card",
    ALL_BUT_ACTIVE: "only the stage that works is on the card now",
}


class Castable(Protocol):
    """A stage whose arithmetic can be switched."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        ...

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast for arithmetic in ``dtype``."""
        ...


@contextmanager
def in_float32(module: torch.nn.Module) -> Iterator[None]:
    """Work in float32 inside the block; the stage's own dtype comes back after it.

    The numbers come back as they were, but in other memory: ``StagePlacement.version`` tells.
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
    """Runs work on stages and heals what can be healed, warning once of each kind.

    Attributes:
        alone: held by whoever works on flow or vocoder, or moves stages.
    """

    def __init__(self, placement: StagePlacement) -> None:
        self.placement = placement
        self._warned: set[str] = set()
        self.alone = threading.RLock()

    def warn_once(self, message: str) -> None:
        """Log a warning that this engine has not given yet."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    def run(
        self,
        stage: str,
        work: Callable[[torch.nn.Module], Result],
        generators: Sequence[torch.Generator],
        *,
        wide: bool = False,
    ) -> Result:
        """Run ``work`` with the stage on the device; another try draws the same random numbers.

        Args:
            wide: begin in float32.

        Raises:
            DeviceError: out of memory even with only this stage on the device.
            NumericsError: not finite even in float32.
        """
        with self.alone:
            return self._run(stage, work, generators, wide=wide)

    def try_once(
        self,
        stage: str,
        work: Callable[[torch.nn.Module], Result],
        generators: Sequence[torch.Generator],
    ) -> Result:
        """Run ``work`` and heal nothing: for a thread beside the one that T3 works in.

        Raises:
            DeviceError: stages move; that is not for two threads.
        """
        with self.alone:
            if self.placement.offload != NONE:
                raise DeviceError(f"{stage} has to take turns with the others")
            return self._attempt(stage, work, wide=False)

    def _run(
        self,
        stage: str,
        work: Callable[[torch.nn.Module], Result],
        generators: Sequence[torch.Generator],
        *,
        wide: bool,
    ) -> Result:
        states = [generator.get_state() for generator in generators]
        while True:
            try:
                return self._attempt(stage, work, wide=wide)
            except torch.OutOfMemoryError as error:
                full: torch.OutOfMemoryError | None = error
            except NumericsError as error:
                if wide or not self.is_half(stage):
                    remedy = "the weights may be damaged, get them again"
                    raise NumericsError(f"{error}, in float32: {remedy}") from error
                self.warn_once(f"{stage} gave numbers that are not finite: again in float32")
                wide, full = True, None
            # out here the failure's frames are gone, and with them the memory that they held
            if full is not None:
                self.out_of_memory(stage, full)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def out_of_memory(self, stage: str, error: torch.OutOfMemoryError) -> None:
        """Offload, or offload more, from now on.

        Raises:
            DeviceError: the working stage is alone already.
        """
        error.__traceback__ = None  # it holds the frames, and they hold the memory
        if self.placement.offload == ALL_BUT_ACTIVE:
            raise DeviceError(_no_room(stage)) from error
        with self.alone:
            self.placement.offload_more()
        self.warn_once(f"{stage} ran out of memory: {HAPPENED[self.placement.offload]}")

    def is_half(self, stage: str) -> bool:
        """Whether the stage's arithmetic is narrower than float32."""
        return cast(Castable, self.placement.module(stage)).dtype != torch.float32

    def _attempt(
        self, stage: str, work: Callable[[torch.nn.Module], Result], *, wide: bool
    ) -> Result:
        with self.placement(stage) as module:
            if not wide:
                return work(module)
            with in_float32(module):
                return work(module)


def _no_room(stage: str) -> str:
    return (
        f"the card has too little free memory for {stage} alone: close other programs, "
        "use --profile memory-limited --dtype float16, or --device cpu"
    )
