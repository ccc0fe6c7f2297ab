"""Which stage is on the device, and when. Owns the moving; knows nothing of what stages do.

A stage enters the device when its turn comes and leaves when it ends, if the plan says so.
Where it does not, everything is placed once and the context manager is a formality, so that the
flow of work has no branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from chatterbox_opt.errors import InputError

HOST = "cpu"


class Residency:
    """Places stages on a device for as long as they are needed there.

    Attributes:
        offload: stages return to host memory after their turn.
    """

    def __init__(
        self, stages: Mapping[str, nn.Module], device: torch.device, *, offload: bool
    ) -> None:
        """Place the stages; with ``offload`` all stay in host memory until asked for."""
        self._stages = dict(stages)
        self.device = device
        self.offload = offload
        for module in self._stages.values():
            module.to(HOST if offload else device)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[nn.Module]:
        """Yield the stage's module, on the device until the block ends."""
        module = self.module(stage)
        if not self.offload:
            yield module
            return
        try:
            module.to(self.device)
            yield module
        finally:
            module.to(HOST)
            self._release()

    def module(self, stage: str) -> nn.Module:
        """The stage, wherever it is.

        Raises:
            InputError: closed.
        """
        if not self._stages:
            raise InputError("this engine is closed; load another")
        return self._stages[stage]

    def start_offloading(self) -> None:
        """Move everything off the device and offload from now on (after running out of memory)."""
        self.offload = True
        for module in self._stages.values():
            module.to(HOST)
        self._release()

    def close(self) -> None:
        """Drop the stages and give the device's memory back."""
        self._stages.clear()
        self._release()

    def _release(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
