"""The KV cache for a CPU: one buffer per sequence, hardly longer than its contents.

Responsible for layout and attention. Not responsible for weights, tokens or sampling.

A decode step on a CPU is memory-bound. In one buffer for all sequences (kv_cache.py) each is read
up to the length of the longest, and the keys of one head are followed by unused capacity; here
each is read up to its own length, contiguously. Positions are host values, so nothing of this can
be captured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox_opt.models.t3.kv_cache import AttendFn

GROWTH = 64  # positions by which a buffer grows: copying and unused capacity cost the same

FLOAT16_MAX = 65504.0

LayerKV = tuple[Tensor, Tensor]  # keys and values of one layer, see ``RaggedKVCache._allocate``


class RaggedKVCache:
    """A ``KVCache`` with separate buffers for each sequence and layer.

    Attributes:
        addresses: int64 [layers, num_seqs, 2], of keys and values, for compiled code.
        capacities: int64 [num_seqs], positions in each sequence's buffers.
    """

    def __init__(
        self, *, num_seqs: int, rows_per_seq: int, shape: tuple[int, int, int], like: Tensor
    ):
        """Allocate nothing yet.

        Args:
            shape: layers, heads, head_dim.
            like: has the device and dtype.
        """
        self.rows_per_seq, self._like = rows_per_seq, like
        self._layers, self._heads, self._head_dim = shape
        self._empty = [self._allocate(0)] * self._layers
        # a buffer for each layer: small enough for malloc to serve it from freed memory, not mmap
        self._buffers: list[list[LayerKV]] = [self._empty] * num_seqs
        self.addresses = torch.zeros(self._layers, num_seqs, 2, dtype=torch.long)
        self.capacities = torch.zeros(num_seqs, dtype=torch.long)

    def _allocate(self, positions: int) -> LayerKV:
        """Keys [rows_per_seq * heads, n, head_dim] and values [rows_per_seq * heads, head_dim, n]:
        both attention products then sum along the contiguous axis."""
        n = -(-positions // GROWTH) * GROWTH
        rows, width = self.rows_per_seq * self._heads, self._head_dim
        return self._like.new_empty(rows, n, width), self._like.new_empty(rows, width, n)

    def reserve(self, sequence: int, positions: int) -> None:
        """Reallocate a sequence's buffers if they are shorter than ``positions``."""
        if positions <= self._buffers[sequence][0][0].shape[1]:
            return
        self._buffers[sequence] = buffers = list(self._buffers[sequence])
        for layer, (keys, values) in enumerate(buffers):
            filled, grown = keys.shape[1], self._allocate(positions)
            grown[0][:, :filled] = keys
            grown[1][..., :filled] = values
            # attention weight 0 times uninitialized memory must be 0
            grown[0][:, filled:] = 0
            grown[1][..., filled:] = 0
            buffers[layer] = grown
        self._update_addresses(sequence)

    def _update_addresses(self, sequence: int) -> None:
        buffers = self._buffers[sequence]
        self.capacities[sequence] = buffers[0][0].shape[1]
        self.addresses[:, sequence] = torch.tensor(
            [(keys.data_ptr(), values.data_ptr()) for keys, values in buffers]
        )

    def padded_length(self, length: int) -> int:
        """``length``: prefixes are not padded."""
        return length

    def write_prefix(self, layer: int, sequence: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the prefix of one layer; float16 saturates at its range."""
        length, buffers = keys.shape[2], self._buffers[int(sequence)][layer]
        if self._like.dtype == torch.float16:  # Inf would turn the sequence into NaN
            keys, values = (x.clamp(-FLOAT16_MAX, FLOAT16_MAX) for x in (keys, values))
        buffers[0][:, :length] = keys.flatten(0, 1)
        buffers[1][..., :length] = values.flatten(0, 1).transpose(1, 2)

    def decode_attention(self, positions: Tensor, kv_len: int) -> AttendFn:  # noqa: ARG002
        """Attend over each sequence's own length; ``kv_len`` is not used."""
        work = list(zip(positions[:: self.rows_per_seq].tolist(), self._buffers, strict=False))
        attend = _attend_row_query if self._like.dtype == torch.bfloat16 else _attend_column_query
        rows_per_part = self.rows_per_seq * self._heads

        def attend_layer(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            result = torch.empty_like(q, memory_format=torch.contiguous_format)
            flat = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v, result))
            parts = zip(work, *(x.split(rows_per_part) for x in flat), strict=True)
            for (position, buffers), query, key, value, out in parts:
                keys, values = buffers[i]
                keys[:, position] = key[:, 0]
                values[..., position] = value[:, 0]
                attend(keys, values, query, position, out)
            return result

        return attend_layer

    def move(self, source: int, target: int) -> None:
        """Hand the buffers of ``source`` to ``target``, without a copy."""
        self._buffers[target] = self._buffers[source]
        self._update_addresses(target)
        self.clear(source)

    def clear(self, sequence: int) -> None:
        """Free a sequence's buffers."""
        self._buffers[sequence] = self._empty
        self._update_addresses(sequence)


# MKL is fastest with a float32 matrix as the left operand, oneDNN with a bfloat16 one as the right.


def _attend_column_query(
    keys: Tensor, values: Tensor, query: Tensor, last: int, out: Tensor
) -> None:
    """Attention over positions up to ``last``: keys [h, n, d], values [h, d, n], query and ``out``
    [h, 1, d]."""
    # the column must be a transposed row: with other strides the product takes five times as long
    scores = torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2)
    scores[..., last + 1 :] = -torch.inf
    weights = torch.softmax(scores, dim=2)
    torch.bmm(values, weights.transpose(1, 2), out=out.transpose(1, 2))


def _attend_row_query(keys: Tensor, values: Tensor, query: Tensor, last: int, out: Tensor) -> None:
    """The same in bfloat16, softmax in float32."""
    scores = torch.bmm(query, keys.transpose(1, 2)).float()
    scores[..., last + 1 :] = -torch.inf
    weights = torch.softmax(scores, dim=2).to(query.dtype)
    torch.bmm(weights, values.transpose(1, 2), out=out)
