"""Which stage is on the device, and when. Owns the moving; knows nothing of what stages do.

    none            all stages are placed once, and the context manager is a formality
    stages          they take turns; the next one is fetched while one works: at most two are there
    all-but-active  only the working one is there

Weights do not change: each stage's stay in host memory in one piece (flat_weights.py), enter the device in
one copy (weight_transfer.py), and are dropped there when the turn ends. On the processor nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatterbox_opt.config.profile import OFFLOAD
from chatterbox_opt.errors import InputError
from chatterbox_opt.runtime.flat_weights import FlatBuffer, drop_storage
from chatterbox_opt.runtime.weight_transfer import PendingCopy, WeightTransfer, transfer_for

NONE, STAGES, ALL_BUT_ACTIVE = OFFLOAD


@dataclass(frozen=True, slots=True)
class _Prefetch:
    """The stage that is fetched ahead."""

    flat: FlatBuffer
    pending: PendingCopy


class StagePlacement:
    """Places stages on a device for as long as they are needed there.

    Attributes:
        offload: one of ``OFFLOAD``; ``offload_more`` changes it.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        device: torch.device,
        *,
        offload: str,
        copier: WeightTransfer | None = None,
    ) -> None:
        """Place the stages; with offload all stay in host memory until asked for.

        Args:
            stages: in the order of work, which begins again after the last.
            copier: another than the device's own.

        Raises:
            torch.OutOfMemoryError: the device has no room for all, and offload is none.
        """
        self._stages = dict(stages)
        self.device = device
        self.offload = offload
        self._elsewhere = copier is not None or device.type != "cpu"  # else there is no way to go
        self._copier = copier or transfer_for(device)
        self._flats: dict[str, FlatBuffer] = {}
        self._there: dict[str, Tensor] = {}
        self._coming: _Prefetch | None = None
        self._settle()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[nn.Module]:
        """Yield the stage's module, on the device until the block ends.

        What the block does to the weights (another precision) ends with it where stages move.

        Raises:
            InputError: closed.
            torch.OutOfMemoryError: the device has no room for the stage.
        """
        module = self.module(stage)
        if not self._moving or stage in self._there:
            yield module
            return
        try:
            self._enter(stage)
            yield module
        finally:
            self._leave(stage)

    def module(self, stage: str) -> nn.Module:
        """The stage, wherever it is.

        Raises:
            InputError: closed.
        """
        if not self._stages:
            raise InputError("this engine is closed; load another")
        return self._stages[stage]

    def offload_more(self) -> None:
        """From none to stages, from stages to all-but-active; outside of all blocks."""
        self.offload = STAGES if self.offload == NONE else ALL_BUT_ACTIVE
        self._coming = None
        self._settle()
        self._copier.release()

    def close(self) -> None:
        """Drop the stages and give the device's memory back, whoever still holds a stage."""
        if self._elsewhere:
            for module in self._stages.values():
                drop_storage(module)
        self._coming = None
        for kept in (self._stages, self._flats, self._there):
            kept.clear()
        self._copier.release()

    @property
    def _moving(self) -> bool:
        return self.offload != NONE and self._elsewhere

    def _settle(self) -> None:
        """Bring every stage to where it is when it does not work."""
        for stage, module in self._stages.items():
            if self._moving:
                self._flat(stage)
            else:
                module.to(self.device)

    def _flat(self, stage: str) -> FlatBuffer:
        """The stage's weights in host memory; made again if the stage was given others there."""
        flat = self._flats.get(stage)
        if flat is None or not flat.is_home():
            flat = self._flats[stage] = FlatBuffer(self._stages[stage], self._copier.allocate)
        return flat

    def _enter(self, stage: str) -> None:
        with torch.inference_mode(mode=False):
            self._there[stage] = self._fetched(stage)
            self._flats[stage].put(self._there[stage])
            if self.offload == STAGES:
                self._fetch_ahead(self._following(stage))

    def _fetched(self, stage: str) -> Tensor:
        flat = self._flat(stage)
        if self._coming is not None and self._coming.flat is flat:
            memory = self._coming.pending.wait()
            self._coming = None
            return memory
        if self._coming is not None and self._coming.flat is not self._flat(self._following(stage)):
            self._coming = None  # the work took another way: it would be a third stage there
        return self._copier.start(flat.home, aside=False).wait()

    def _fetch_ahead(self, stage: str) -> None:
        if self._coming is not None or stage in self._there:
            return
        flat = self._flat(stage)
        try:
            self._coming = _Prefetch(flat, self._copier.start(flat.home, aside=True))
        except torch.OutOfMemoryError:
            return  # there is no room beside this one: it comes when its turn does

    def _following(self, stage: str) -> str:
        order = list(self._stages)
        return order[(order.index(stage) + 1) % len(order)]

    def _leave(self, stage: str) -> None:
        self._there.pop(stage, None)
        if stage in self._flats:  # it was not closed meanwhile
            self._flats[stage].put(self._flats[stage].home)
        if self.offload == ALL_BUT_ACTIVE:
            self._copier.release()  # what lies unused would be cut up for small things
