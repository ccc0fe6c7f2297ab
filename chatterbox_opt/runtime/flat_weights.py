"""A stage's weights in one contiguous buffer, so that they move in one copy.

Responsible for where a module's tensors are in memory and for rebinding them. Not responsible for
devices or for when a stage moves (offload.py). Unrelated to weight_layout.py, which packs single
matrices for CPU kernels: packed matrices are not strided tensors and are left where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGN = 256  # bytes; the alignment of CUDA's own allocations, which kernels may assume


@dataclass(frozen=True, slots=True)
class TensorView:
    """Position of one tensor of a module in the buffer; tensors that share memory overlap.

    Attributes:
        start, stop: byte offsets.
    """

    owner: nn.Module
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    stop: int

    def view(self, memory: Tensor) -> Tensor:
        """The tensor as a view of uint8 ``memory``."""
        return memory[self.start : self.stop].view(self.dtype).as_strided(self.shape, self.stride)


class FlatBuffer:
    """A contiguous copy of a module's weights, made at construction.

    Attributes:
        home: uint8 [size] in host memory, the original that is copied to the device.
    """

    def __init__(self, module: nn.Module, allocate: Callable[[int], Tensor]) -> None:
        """Copy all tensors of ``module`` from any device, and rebind them to the copy.

        Args:
            allocate: size -> uint8 [size] in host memory.
        """
        tensors = list(module_tensors(module))
        offsets, size = layout([tensor for _, _, tensor in tensors])
        self._views = [
            TensorView(owner, name, t.dtype, tuple(t.shape), t.stride(), start, start + extent(t))
            for (owner, name, t), start in zip(tensors, offsets, strict=True)
        ]
        with torch.inference_mode(mode=False), torch.no_grad():
            self.home = allocate(size)
            for view, (_, _, tensor) in zip(self._views, tensors, strict=True):
                view.view(self.home).copy_(tensor)
        self.rebind(self.home)

    def rebind(self, memory: Tensor) -> None:
        """Make the module's tensors views of ``memory``, which holds a copy of ``home``.

        Their current storage is dropped: a changed precision is undone, and a table that a layer
        moved or cast is replaced by the original.
        """
        with torch.inference_mode(mode=False):
            for view in self._views:
                assign(view.owner, view.name, view.view(memory))

    def is_home(self) -> bool:
        """Whether the module's tensors are still the views of ``home``."""
        base = self.home.data_ptr()
        for view in self._views:
            tensor: Tensor = getattr(view.owner, view.name)
            if tensor.dtype != view.dtype:
                return False
            if tensor.numel() and tensor.data_ptr() != base + view.start:
                return False
        return True


def module_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Owner, name and value of a module's parameters, buffers (persistent or not) and tensors in
    plain attributes (as upstream's layers store their tables of positions).

    Tensors that are not strided (weight_layout.py, linear_onednn.py, linear_int.py) are left out.
    """
    for owner in module.modules():
        for names in (owner._parameters, owner._buffers, vars(owner)):
            for name, value in list(names.items()):
                if isinstance(value, Tensor) and value.layout == torch.strided:
                    yield owner, name, value


def assign(owner: nn.Module, name: str, value: Tensor) -> None:
    """Replace a module's tensor; a parameter stays the same object with other data."""
    if isinstance(parameter := getattr(owner, name), nn.Parameter):
        parameter.data = value
    else:
        setattr(owner, name, value)


def drop_storage(module: nn.Module) -> None:
    """Free the memory of a module's tensors even if the module itself is still referenced."""
    for owner, name, tensor in list(module_tensors(module)):
        assign(owner, name, torch.empty(0, dtype=tensor.dtype))


def extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if not tensor.numel():
        return 0
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.element_size()


def layout(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """A byte offset for each tensor, and the total size; shared memory stays shared.

    Tensors that overlap keep their distance; all others begin at a multiple of ``ALIGN``.
    """
    offsets: dict[int, int] = {}
    base = end = offset = size = 0
    for tensor in sorted(tensors, key=lambda t: t.data_ptr()):
        address = tensor.data_ptr()
        if address >= end:
            base, offset = address, size
        offsets[address] = offset + address - base
        end = max(end, address + extent(tensor))
        size = -(-(offset + end - base) // ALIGN) * ALIGN
    return [offsets[tensor.data_ptr()] for tensor in tensors], size
