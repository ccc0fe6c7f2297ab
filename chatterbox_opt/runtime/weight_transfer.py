"""How bytes get from host memory to a device, beside the work that goes on there if it can.

Knows streams, events and pinned memory. Knows nothing of modules, or of whose bytes they are.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class PendingCopy(Protocol):
    """Bytes on their way to the device."""

    def wait(self) -> Tensor:
        """Have all work that is given to the device from now on come after the copy.

        Returns:
            uint8 [size] on the device; free when nobody refers to it any more.
        """
        ...


class WeightTransfer(Protocol):
    """Copies to one device."""

    def allocate(self, size: int) -> Tensor:
        """Host memory to copy from, uint8 [size]."""
        ...

    def start(self, source: Tensor, *, aside: bool) -> PendingCopy:
        """Begin to copy uint8 ``source`` to new memory on the device.

        Args:
            aside: while the device works; else at once, before what it is given next.

        Raises:
            torch.OutOfMemoryError: the device has no room for it.
        """
        ...

    def release(self) -> None:
        """Give memory that nobody refers to back to other programs."""
        ...


@dataclass(frozen=True, slots=True)
class DoneCopy:
    """Bytes that need not be waited for."""

    memory: Tensor

    def wait(self) -> Tensor:
        """See ``PendingCopy``."""
        return self.memory


class PlainTransfer:
    """Copies and waits, on any device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size: int) -> Tensor:
        """See ``WeightTransfer``."""
        return torch.empty(size, dtype=torch.uint8)

    def start(self, source: Tensor, *, aside: bool) -> PendingCopy:
        """See ``WeightTransfer``."""
        return DoneCopy(source.to(self._device, copy=True))

    def release(self) -> None:
        """See ``WeightTransfer``."""


class StreamCopy:
    """Bytes that another stream copies to memory of the current one."""

    def __init__(self, memory: Tensor, side: torch.cuda.Stream) -> None:
        self._memory, self._side, self._awaited = memory, side, False
        self._done = side.record_event()

    def wait(self) -> Tensor:
        """See ``PendingCopy``; the processor does not wait, the current stream does."""
        current = torch.cuda.current_stream(self._memory.device)
        current.wait_event(self._done)
        self._awaited = True
        return self._memory

    def __del__(self) -> None:
        """Memory that is let go before the copy was waited for must not be given away under it.

        Not said of all memory: what two streams use is free only some time after it was let go,
        and the next stage would be given other memory in vain.
        """
        if not self._awaited:
            self._memory.record_stream(self._side)


class StreamTransfer:
    """Copies to a CUDA card from pinned memory, on a stream of its own if it shall be aside."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def allocate(self, size: int) -> Tensor:
        """See ``WeightTransfer``; pinned, or slower where the system gives no memory that is."""
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            log.warning("no pinned memory (%s): stages are slower to enter the card", error)
            return torch.empty(size, dtype=torch.uint8)

    def start(self, source: Tensor, *, aside: bool) -> PendingCopy:
        """See ``WeightTransfer``."""
        memory = torch.empty(source.shape, dtype=torch.uint8, device=self._device)
        if not aside:
            memory.copy_(source, non_blocking=True)
            return DoneCopy(memory)
        # the memory may be what work that still runs has let go: after that work, which is little,
        # because a stage's turn has only begun
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            memory.copy_(source, non_blocking=True)
        return StreamCopy(memory, self._side)

    def release(self) -> None:
        """See ``WeightTransfer``."""
        torch.cuda.empty_cache()


def transfer_for(device: torch.device) -> WeightTransfer:
    """What copies to a device best."""
    return StreamTransfer(device) if device.type == "cuda" else PlainTransfer(device)
