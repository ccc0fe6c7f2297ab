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

from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize
from chatterbox_opt.models.t3.kv_cache import AttendFn

GROWTH = 64  # positions by which a buffer grows: copying and unused capacity cost the same

LayerKV = tuple[Tensor, ...]  # keys and values of one layer, see ``_allocate``


class RaggedKVCache:
    """A ``KVCache`` with separate buffers for each sequence and layer.

    Attributes:
        addresses: int64 [layers, num_seqs, n], of the n buffers of a layer, for compiled code.
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
        shape = self._layers, num_seqs, len(self._empty[0])
        self.addresses = torch.zeros(shape, dtype=torch.long)
        self.capacities = torch.zeros(num_seqs, dtype=torch.long)

    def _allocate(self, positions: int) -> LayerKV:
        """Keys [rows_per_seq * heads, n, head_dim] and values [rows_per_seq * heads, head_dim, n]:
        both attention products then sum along the contiguous axis."""
        rows, width, n = self._rows, self._head_dim, round_up(positions)
        return self._like.new_empty(rows, n, width), self._like.new_empty(rows, width, n)

    @property
    def _rows(self) -> int:
        return self.rows_per_seq * self._heads

    def reserve(self, sequence: int, positions: int) -> None:
        """Reallocate a sequence's buffers if they are shorter than ``positions``."""
        if positions <= self._capacity(sequence):
            return
        self._buffers[sequence] = [
            self._grown(buffers, positions) for buffers in self._buffers[sequence]
        ]
        self._update_addresses(sequence)

    def _capacity(self, sequence: int) -> int:
        return self._buffers[sequence][0][0].shape[1]

    def _grown(self, buffers: LayerKV, positions: int) -> LayerKV:
        keys, values = buffers
        filled, grown = keys.shape[1], self._allocate(positions)
        grown[0][:, :filled] = keys
        grown[1][..., :filled] = values
        # attention weight 0 times uninitialized memory must be 0
        grown[0][:, filled:] = 0
        grown[1][..., filled:] = 0
        return grown

    def _update_addresses(self, sequence: int) -> None:
        self.capacities[sequence] = self._capacity(sequence)
        self.addresses[:, sequence] = torch.tensor(
            [[buffer.data_ptr() for buffer in layer] for layer in self._buffers[sequence]]
        )

    def padded_length(self, length: int) -> int:
        """``length``: prefixes are not padded."""
        return length

    def write_prefix(self, layer: int, sequence: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the prefix of one layer."""
        length, buffers = keys.shape[2], self._buffers[int(sequence)][layer]
        buffers[0][:, :length] = keys.flatten(0, 1)
        buffers[1][..., :length] = values.flatten(0, 1).transpose(1, 2)

    def decode_attention(self, positions: Tensor, kv_len: int) -> AttendFn:  # noqa: ARG002
        """Attend over each sequence's own length; ``kv_len`` is not used."""
        work = list(zip(positions[:: self.rows_per_seq].tolist(), self._buffers, strict=False))
        attend = _attend_row_query if self._like.dtype == torch.bfloat16 else _attend_column_query

        def attend_layer(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            result = torch.empty_like(q, memory_format=torch.contiguous_format)
            flat = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v, result))
            parts = zip(work, *(x.split(self._rows) for x in flat), strict=True)
            for (position, buffers), query, key, value, out in parts:
                keys, values = self._appended(buffers[i], position, key, value)
                attend(keys, values, query, position, out)
            return result

        return attend_layer

    def _appended(
        self, buffers: LayerKV, position: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values as ``_allocate`` returns them, with one more [rows, 1, head_dim]."""
        keys, values = buffers
        keys[:, position] = key[:, 0]
        values[..., position] = value[:, 0]
        return keys, values

    def move(self, source: int, target: int) -> None:
        """Hand the buffers of ``source`` to ``target``, without a copy."""
        self._buffers[target] = self._buffers[source]
        self._update_addresses(target)
        self.clear(source)

    def clear(self, sequence: int) -> None:
        """Free a sequence's buffers."""
        self._buffers[sequence] = self._empty
        self._update_addresses(sequence)


class Int8KVCache(RaggedKVCache):
    """Keys and values in int8, each position of a head with a float32 scale: what a decode step
    over int8 weights reads (kernels/cpu/t3_decode.py).

    Layer buffers: keys, values int8 [rows_per_seq * heads, n, head_dim], and the scales of both
    [rows_per_seq * heads, n].
    """

    def _allocate(self, positions: int) -> LayerKV:
        sizes = [(self._rows, round_up(positions), self._head_dim)] * 2
        scales = [(self._rows, round_up(positions))] * 2
        return (
            *(torch.empty(size, dtype=torch.int8) for size in sizes),
            *(torch.empty(size) for size in scales),
        )

    def _grown(self, buffers: LayerKV, positions: int) -> LayerKV:
        grown = self._allocate(positions)
        for new, old in zip(grown, buffers, strict=True):
            new[:, : old.shape[1]] = old
        return grown

    def write_prefix(self, layer: int, sequence: Tensor, keys: Tensor, values: Tensor) -> None:
        """Quantize and write the prefix of one layer."""
        buffers, positions = self._buffers[int(sequence)][layer], slice(keys.shape[2])
        self._write(buffers, positions, keys.flatten(0, 1), values.flatten(0, 1))

    def _write(self, buffers: LayerKV, positions: slice, keys: Tensor, values: Tensor) -> None:
        for number, new in enumerate((keys, values)):
            buffers[number][:, positions], buffers[number + 2][:, positions] = quantize(new)

    def _appended(
        self, buffers: LayerKV, position: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._write(buffers, slice(position, position + 1), key, value)
        keys, values = (
            dequantize(buffers[number], buffers[number + 2], torch.float32) for number in (0, 1)
        )
        keys[:, position + 1 :] = values[:, position + 1 :] = 0  # uninitialized
        return keys, values.transpose(1, 2).contiguous()


def round_up(positions: int) -> int:
    """The positions of a buffer with room for ``positions``."""
    return -(-positions // GROWTH) * GROWTH


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
