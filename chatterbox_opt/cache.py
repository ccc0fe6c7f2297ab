"""Keys and values of past positions. Knows shapes; knows nothing of layers, tokens or sampling.

A growing cache copies itself at every step; this one is allocated once and written in place, so
its address never changes (a replayed graph needs that) and a step costs no allocation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SPAN = 128  # attention reads whole blocks of this many positions: few distinct shapes per run


def blocks(positions: int) -> int:
    """Round up to whole blocks."""
    return -(-positions // SPAN) * SPAN


class StaticCache:
    """Room for ``capacity`` positions of every layer, for several utterances side by side.

    Attributes:
        keys, values: [layers, utterances * each, heads, capacity, head_dim]. No garbage where
            nothing was written: masked positions get weight 0, and 0 times NaN is NaN.
        each: rows of one utterance, next to each other: 2 under guidance, else 1.
    """

    def __init__(
        self,
        *,
        layers: int,
        utterances: int,
        each: int,
        heads: int,
        head_dim: int,
        capacity: int,
        like: Tensor,
    ) -> None:
        """Allocate on the device and in the dtype of ``like``; capacity rounds up to ``SPAN``."""
        self.each = each
        shape = (layers, utterances * each, heads, blocks(capacity), head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self._rows = torch.arange(shape[1], device=like.device)
        self._places = torch.arange(shape[3], device=like.device)

    @property
    def capacity(self) -> int:
        """Positions of one row."""
        return self.keys.shape[3]

    def fill(self, layer: int, row: int, keys: Tensor, values: Tensor) -> None:
        """Write the prefix of one layer: [n, heads, length, head_dim] at rows ``row`` to row + n,
        positions 0 to length."""
        rows, _, length, _ = keys.shape
        self.keys[layer, row : row + rows, :, :length] = keys
        self.values[layer, row : row + rows, :, :length] = values

    def put(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write one position of one layer in each of the first n rows: [n, heads, head_dim] at
        ``positions`` [n]."""
        rows = self._rows[: len(positions)]
        self.keys[layer][rows, :, positions] = keys  # not index_copy_: MPS has none
        self.values[layer][rows, :, positions] = values

    def read(self, layer: int, rows: int, span: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first ``rows`` rows and ``span`` positions, without copying."""
        return self.keys[layer, :rows, :, :span], self.values[layer, :rows, :, :span]

    def visible(self, positions: Tensor, span: int) -> Tensor:
        """Which positions each of n rows may see: bool [n, 1, 1, span], up to its own."""
        return (self._places[:span] <= positions[:, None])[:, None, None]

    def move(self, source: int, target: int) -> None:
        """Copy the rows of utterance ``source`` to those of ``target``."""
        here, there = (slice(i * self.each, (i + 1) * self.each) for i in (source, target))
        for kept in (self.keys, self.values):
            kept[:, there] = kept[:, here]

    def clear(self, utterance: int) -> None:
        """Write zeros in an utterance's rows (after numbers that were not finite)."""
        for kept in (self.keys, self.values):
            kept[:, utterance * self.each : (utterance + 1) * self.each] = 0

    def reserve(self, capacity: int) -> None:
        """Make room for so many positions; what is there is kept, but moves if it grows."""
        more = blocks(capacity) - self.capacity
        if more > 0:
            self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
            self._places = torch.arange(self.capacity, device=self.keys.device)
