"""Offload: moves the weights of whole stages between host and device.

    none            all stages are placed once; the context manager does nothing
    stages          stages alternate; the next one is prefetched while one runs: at most two at once
    all-but-active  only the running stage is on the device

Weights do not change, so they are never copied back: each stage's stay in host memory in one buffer
(flat_weights.py), are copied to the device in one transfer (weight_transfer.py), and are dropped
there when the stage is done. On a CPU nothing moves.

Responsible for which stages are on the device, and when. Not responsible for what stages compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatterbox_opt.config.profile import OFFLOAD
from chatterbox_opt.errors import InputError
from chatterbox_opt.runtime.cuda import is_out_of_memory
from chatterbox_opt.runtime.flat_weights import FlatBuffer, drop_storage
from chatterbox_opt.runtime.weight_transfer import PendingCopy, WeightTransfer, transfer_for

NONE, STAGES, ALL_BUT_ACTIVE = OFFLOAD


@dataclass(frozen=True, slots=True)
class _Prefetch:
    """A stage whose copy to the device was started."""

    flat: FlatBuffer
    pending: PendingCopy


def _no_graphs() -> None:
    """Where nothing is captured."""


class StagePlacement:
    """Places stages on a device for as long as they are needed there.

    Attributes:
        offload: one of ``OFFLOAD``; ``offload_more`` changes it.
        release_graphs: drops captured graphs, whose memory pools are not the allocator's to free;
            set where they are captured.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        device: torch.device,
        *,
        offload: str,
        transfer: WeightTransfer | None = None,
    ) -> None:
        """Place the stages; with offload all stay in host memory until they are used.

        Args:
            stages: in the order in which they run, which repeats after the last.
            transfer: None is ``transfer_for(device)``.

        Raises:
            torch.OutOfMemoryError: not all stages fit on the device, and offload is none.
        """
        self._stages = dict(stages)
        self.device = device
        self.offload = offload
        self.release_graphs: Callable[[], None] = _no_graphs
        self._can_move = transfer is not None or device.type != "cpu"  # else host = device memory
        self._transfer = transfer or transfer_for(device)
        self._flats: dict[str, FlatBuffer] = {}
        self._on_device: dict[str, Tensor] = {}
        self._prefetched: _Prefetch | None = None
        self._place_all()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[nn.Module]:
        """Yield the stage's module, on the device until the block ends.

        With offload, changes to the weights inside the block (another precision) are undone at its
        end.

        Raises:
            InputError: closed.
            torch.OutOfMemoryError: the stage does not fit on the device.
        """
        module = self.module(stage)
        if not self._moving or stage in self._on_device:
            yield module
            return
        try:
            self._enter(stage)
            yield module
        finally:
            self._leave(stage)

    @property
    def stages(self) -> list[str]:
        """Their names, in order."""
        return list(self._stages)

    def module(self, stage: str) -> nn.Module:
        """The stage's module, wherever its weights are.

        Raises:
            InputError: closed.
        """
        if not self._stages:
            raise InputError("this engine is closed; load another")
        return self._stages[stage]

    def offload_more(self) -> None:
        """From none to stages, from stages to all-but-active; call it outside of all blocks."""
        self.offload = STAGES if self.offload == NONE else ALL_BUT_ACTIVE
        self._prefetched = None
        self._place_all()
        self.release_memory()

    def release_memory(self) -> None:
        """Drop captured graphs; return cached, unused device memory."""
        self.release_graphs()
        self._transfer.release()

    def close(self) -> None:
        """Drop the stages and free the device's memory, even if a stage is still referenced."""
        if self._can_move:
            for module in self._stages.values():
                drop_storage(module)
        self._prefetched = None
        for mapping in (self._stages, self._flats, self._on_device):
            mapping.clear()
        self.release_memory()
        self.release_graphs = _no_graphs

    @property
    def _moving(self) -> bool:
        return self.offload != NONE and self._can_move

    def _place_all(self) -> None:
        """Place every stage as it should be while it is not running."""
        for stage, module in self._stages.items():
            if self._moving:
                self._flat(stage)
            else:
                module.to(self.device)

    def _flat(self, stage: str) -> FlatBuffer:
        """The stage's weights in host memory; rebuilt if its tensors were replaced there."""
        flat = self._flats.get(stage)
        if flat is None or not flat.is_home():
            flat = self._flats[stage] = FlatBuffer(self._stages[stage], self._transfer.allocate)
        return flat

    def _enter(self, stage: str) -> None:
        with torch.inference_mode(mode=False):
            self._on_device[stage] = self._fetch(stage)
            self._flats[stage].rebind(self._on_device[stage])
            if self.offload == STAGES:
                self._prefetch(self._next_stage(stage))

    def _fetch(self, stage: str) -> Tensor:
        flat = self._flat(stage)
        if self._prefetched is not None and self._prefetched.flat is flat:
            memory = self._prefetched.pending.wait()
            self._prefetched = None
            return memory
        if self._prefetched is not None:
            expected = self._flat(self._next_stage(stage))
            if self._prefetched.flat is not expected:
                self._prefetched = None  # unusual order: it would be a third stage on the device
        return self._transfer.start(flat.home, overlap=False).wait()

    def _prefetch(self, stage: str) -> None:
        if self._prefetched is not None or stage in self._on_device:
            return
        flat = self._flat(stage)
        try:
            self._prefetched = _Prefetch(flat, self._transfer.start(flat.home, overlap=True))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # does not fit next to the running stage: it is copied when it runs

    def _next_stage(self, stage: str) -> str:
        order = list(self._stages)
        return order[(order.index(stage) + 1) % len(order)]

    def _leave(self, stage: str) -> None:
        self._on_device.pop(stage, None)
        if stage in self._flats:  # unless closed inside the block
            self._flats[stage].rebind(self._flats[stage].home)
        if self.offload == ALL_BUT_ACTIVE:
            self._transfer.release()  # otherwise small allocations fragment the cached block
