"""What to do when a stage fails for a reason that can be healed: one rung down, and say so.

Knows residency and precision. Knows nothing of text, tokens or files.

    out of device memory      -> offload stages, again      -> DeviceError
    NaN or infinity in half   -> that work again in float32 -> NumericsError
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import torch

from chatterbox_opt.errors import DeviceError, NumericsError
from chatterbox_opt.offload import Residency

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Castable(Protocol):
    """A stage whose arithmetic can be switched."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        ...

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast for arithmetic in ``dtype``."""
        ...


class Ladder:
    """Runs work on stages and heals what can be healed."""

    def __init__(self, residency: Residency) -> None:
        self.residency = residency

    def run(
        self, stage: str, work: Callable[[torch.nn.Module], Result], generator: torch.Generator
    ) -> Result:
        """Run ``work`` with the stage on the device; a second try draws the same random numbers.

        Raises:
            DeviceError: out of memory even with only this stage on the device.
            NumericsError: not finite even in float32.
        """
        state = generator.get_state()
        try:
            return self._run(stage, work)
        except torch.OutOfMemoryError as error:
            if self.residency.offload:
                raise DeviceError(_no_room(stage)) from error
            log.warning("%s ran out of memory: stages now take turns on the card", stage)
        except NumericsError as error:
            return self._in_float32(stage, work, generator, state, error)
        self.residency.start_offloading()
        generator.set_state(state)
        try:
            return self._run(stage, work)
        except torch.OutOfMemoryError as error:
            raise DeviceError(_no_room(stage)) from error

    def _run(self, stage: str, work: Callable[[torch.nn.Module], Result]) -> Result:
        with self.residency(stage) as module:
            return work(module)

    def _in_float32(
        self,
        stage: str,
        work: Callable[[torch.nn.Module], Result],
        generator: torch.Generator,
        state: torch.Tensor,
        error: NumericsError,
    ) -> Result:
        with self.residency(stage) as module:
            half = cast(Castable, module).dtype
            if half == torch.float32:
                raise NumericsError(
                    f"{error}, in float32: the weights may be damaged, get them again"
                )
            log.warning("%s: this chunk again in float32", error)
            generator.set_state(state)
            castable = cast(Castable, module)
            castable.set_precision(torch.float32)
            try:
                return work(module)
            finally:
                castable.set_precision(half)


def _no_room(stage: str) -> str:
    return (
        f"the card has too little free memory for {stage} alone: close other programs, "
        "use --profile memory-limited --dtype float16, or --device cpu"
    )
