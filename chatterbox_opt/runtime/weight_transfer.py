"""Host-to-device copies of weights, overlapped with compute on a side stream where possible.

Responsible for streams, events and pinned memory. Not responsible for modules (flat_weights.py) or
for when a stage moves (offload.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class PendingCopy(Protocol):
    """A copy to the device in progress."""

    def wait(self) -> Tensor:
        """Make work launched from now on wait for the copy (stream-wait on its event).

        Returns:
            uint8 [size] on the device, freed with its last reference.
        """
        ...


class WeightTransfer(Protocol):
    """Copies to one device."""

    def allocate(self, size: int) -> Tensor:
        """Host memory to copy from, uint8 [size]."""
        ...

    def start(self, source: Tensor, *, overlap: bool) -> PendingCopy:
        """Start copying uint8 ``source`` to new memory on the device.

        Args:
            overlap: copy in parallel with the device's work; else in order, before work that is
                launched later.

        Raises:
            torch.OutOfMemoryError: the device has not enough free memory.
        """
        ...

    def release(self) -> None:
        """Return cached, unused device memory to other programs."""
        ...


@dataclass(frozen=True, slots=True)
class DoneCopy:
    """A copy that is complete, or was issued on the current stream."""

    memory: Tensor

    def wait(self) -> Tensor:
        return self.memory


class PlainTransfer:
    """Synchronous copies, for any device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def start(self, source: Tensor, *, overlap: bool) -> PendingCopy:
        return DoneCopy(source.to(self._device, copy=True))

    def release(self) -> None:
        pass


class StreamCopy:
    """A copy on a side stream, into memory allocated on the current stream."""

    def __init__(self, memory: Tensor, side: torch.cuda.Stream) -> None:
        self._memory, self._side, self._awaited = memory, side, False
        self._done = side.record_event()

    def wait(self) -> Tensor:
        """The current stream waits, the host does not."""
        current = torch.cuda.current_stream(self._memory.device)
        current.wait_event(self._done)
        self._awaited = True
        return self._memory

    def __del__(self) -> None:
        """If freed before ``wait``: the memory must not be reused while the copy writes to it.

        Not after ``wait``, because ``record_stream`` delays the reuse of released memory, and the
        next stage would have to allocate more.
        """
        if not self._awaited:
            self._memory.record_stream(self._side)


class StreamTransfer:
    """Copies to a CUDA GPU from pinned memory, on a side stream if they are to overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def allocate(self, size: int) -> Tensor:
        """Pinned memory, or pageable memory (slower to copy from) if none can be pinned."""
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            log.warning("no pinned memory (%s): copying stages to the GPU is slower", error)
            return torch.empty(size, dtype=torch.uint8)

    def start(self, source: Tensor, *, overlap: bool) -> PendingCopy:
        memory = torch.empty(source.shape, dtype=torch.uint8, device=self._device)
        if not overlap:
            memory.copy_(source, non_blocking=True)
            return DoneCopy(memory)
        # the allocator may have reused memory that running work still accesses: copy after that
        # work, which is little because the active stage has only just started
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            memory.copy_(source, non_blocking=True)
        return StreamCopy(memory, self._side)

    def release(self) -> None:
        torch.cuda.empty_cache()


def transfer_for(device: torch.device) -> WeightTransfer:
    """The fastest transfer for a device."""
    return StreamTransfer(device) if device.type == "cuda" else PlainTransfer(device)
