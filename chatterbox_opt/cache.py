"""Keys and values of past positions. Knows shapes; knows nothing of layers, tokens or sampling.

A growing cache copies itself at every step; this one is allocated once and written in place, so
its address never changes (a replayed graph needs that) and a step costs no allocation.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPAN = 128  # attention reads whole blocks of this many positions: few distinct shapes per run


class StaticCache:
    """Room for ``capacity`` positions of every layer.

    Attributes:
        keys, values: [layers, rows, heads, capacity, head_dim]. Zeros where nothing was
            written: masked positions are multiplied by weight 0, and 0 times garbage may be NaN.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        head_dim: int,
        capacity: int,
        like: Tensor,
    ) -> None:
        """Allocate on the device and in the dtype of ``like``; capacity rounds up to ``SPAN``."""
        self.capacity = -(-capacity // SPAN) * SPAN
        shape = (layers, rows, heads, self.capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)

    def span(self, used: int) -> int:
        """Return the number of positions to read when ``used`` are filled: whole blocks."""
        return min(-(-used // SPAN) * SPAN, self.capacity)

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write the prefix of one layer: [rows, heads, length, head_dim] at positions 0…length."""
        length = keys.shape[2]
        self.keys[layer, :, :, :length] = keys
        self.values[layer, :, :, :length] = values

    def put(self, layer: int, position: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write one position of one layer: [rows, heads, 1, head_dim] at ``position`` [1]."""
        self.keys[layer][:, :, position] = keys  # not index_copy_: MPS has none
        self.values[layer][:, :, position] = values
