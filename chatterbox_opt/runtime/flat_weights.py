"""A stage's weights side by side in one piece of memory, so that they move in one copy.

Knows tensors' places in memory, and how a module is given others. Knows nothing of devices, or of
when a stage moves (offload.py). Not to be mistaken for weight_layout.py, which lays single matrices out
for the processor: what is laid out there is no plain tensor, and is left where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGN = 256  # bytes; what the card's own allocator gives, and what its kernels hope for


@dataclass(frozen=True, slots=True)
class TensorView:
    """Where one tensor of a module lies; several may share theirs.

    Attributes:
        start, stop: bytes from the beginning.
    """

    owner: nn.Module
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    stop: int

    def view(self, memory: Tensor) -> Tensor:
        """The tensor's part of uint8 ``memory``, as the tensor."""
        return memory[self.start : self.stop].view(self.dtype).as_strided(self.shape, self.stride)


class FlatBuffer:
    """The weights of a module, as they were when this was made.

    Attributes:
        home: uint8 [size], the only copy that stays.
    """

    def __init__(self, module: nn.Module, allocate: Callable[[int], Tensor]) -> None:
        """Copy all tensors of ``module``, wherever they are, and make them views of the copy.

        Args:
            allocate: gives uint8 [size] in host memory.
        """
        found = list(module_tensors(module))
        offsets, size = layout([tensor for _, _, tensor in found])
        self._places = [
            TensorView(owner, name, t.dtype, tuple(t.shape), t.stride(), start, start + extent(t))
            for (owner, name, t), start in zip(found, offsets, strict=True)
        ]
        with torch.inference_mode(mode=False), torch.no_grad():
            self.home = allocate(size)
            for place, (_, _, tensor) in zip(self._places, found, strict=True):
                place.view(self.home).copy_(tensor)
        self.put(self.home)

    def put(self, memory: Tensor) -> None:
        """Make the module's tensors views of ``memory``, which holds what ``home`` holds.

        Whatever they were before is let go: a precision that was changed is as it was, and a
        table that a layer moved or cast for itself is the original one.
        """
        with torch.inference_mode(mode=False):
            for place in self._places:
                assign(place.owner, place.name, place.view(memory))

    def is_home(self) -> bool:
        """Whether the module's tensors are those at home; not so after they were replaced there."""
        base = self.home.data_ptr()
        for place in self._places:
            tensor: Tensor = getattr(place.owner, place.name)
            if tensor.dtype != place.dtype:
                return False
            if tensor.numel() and tensor.data_ptr() != base + place.start:
                return False
        return True


def module_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Owner, name and value of a module's parameters, its buffers, persistent or not, and plain
    attributes that are tensors: upstream's layers keep tables of positions so.

    What is not strided memory (weight_layout.py, linear_onednn.py, linear_int.py) is left out.
    """
    for owner in module.modules():
        for names in (owner._parameters, owner._buffers, vars(owner)):
            for name, value in list(names.items()):
                if isinstance(value, Tensor) and value.layout == torch.strided:
                    yield owner, name, value


def assign(owner: nn.Module, name: str, value: Tensor) -> None:
    """Give a module another tensor; a parameter stays the same object with other data."""
    if isinstance(parameter := getattr(owner, name), nn.Parameter):
        parameter.data = value
    else:
        setattr(owner, name, value)


def drop_storage(module: nn.Module) -> None:
    """Take a module's tensors away from it: their memory is free, whoever holds the module."""
    for owner, name, tensor in list(module_tensors(module)):
        assign(owner, name, torch.empty(0, dtype=tensor.dtype))


def extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if not tensor.numel():
        return 0
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.element_size()


def layout(found: Sequence[Tensor]) -> tuple[list[int], int]:
    """A place for each tensor, in bytes, and the size of all; what shares memory goes on sharing.

    Tensors that overlap keep their distance; all others begin at a multiple of ``ALIGN``.
    """
    offsets: dict[int, int] = {}
    base = end = offset = size = 0
    for tensor in sorted(found, key=lambda t: t.data_ptr()):
        address = tensor.data_ptr()
        if address >= end:
            base, offset = address, size
        offsets[address] = offset + address - base
        end = max(end, address + extent(tensor))
        size = -(-(offset + end - base) // ALIGN) * ALIGN
    return [offsets[tensor.data_ptr()] for tensor in found], size
