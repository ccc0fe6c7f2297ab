"""The KV cache: its protocol, the static implementation, and decode attention over it.

Responsible for layout and attention. Not responsible for weights, tokens or sampling.

A cache that grows by one position copies itself at every step. ``StaticKVCache`` is one buffer for
all sequences, written in place: its address is stable (CUDA graph replay needs that), and one
kernel reads it for all rows. ragged_kv_cache.py holds a buffer per sequence, which suits a CPU
better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize

KV_BLOCK = 128  # attention reads whole blocks of positions: few distinct shapes per run
PREFIX_BLOCK = 64  # the same for prefixes, whose every position is computed


def round_up_kv_len(positions: int) -> int:
    """Round up to a multiple of ``KV_BLOCK``."""
    return -(-positions // KV_BLOCK) * KV_BLOCK


# Decode attention of one step: (layer, q, k, v) -> output, each [rows, heads, 1, head_dim].
# Appends k and v to the cache and attends over all cached positions.
AttendFn = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class KVCache(Protocol):
    """Keys and values of several sequences.

    Attributes:
        rows_per_seq: rows of one sequence, adjacent: 2 with classifier-free guidance, else 1.
    """

    rows_per_seq: int

    def reserve(self, sequence: int, positions: int) -> None:
        """Grow a sequence's capacity to ``positions``; contents are kept, addresses may change."""
        ...

    def padded_length(self, length: int) -> int:
        """The length to pad a prefix to; padded positions are never attended to."""
        ...

    def write_prefix(self, layer: int, sequence: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the prefix of one layer.

        Args:
            sequence: int64 [1].
            keys, values: [rows_per_seq, heads, length, head_dim], from position 0 on.
        """
        ...

    def decode_attention(self, positions: Tensor, kv_len: int) -> AttendFn:
        """The attention of one decode step of the first n sequences.

        Args:
            positions: int64 [n * rows_per_seq], where each row's new key goes; equal for the rows
                of a sequence.
            kv_len: a multiple of ``KV_BLOCK`` above all of ``positions``.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Move sequence ``source`` to index ``target``; ``source`` must be cleared before reuse."""
        ...

    def clear(self, sequence: int) -> None:
        """Drop a sequence's contents, NaN and Inf included."""
        ...


def attend(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Attention of one query per row over a static cache (Vaswani et al. 2017).

    On a CPU, plain matrix products: PyTorch's fused kernel takes three times as long in bfloat16,
    where one query uses an eighth of the tile that it multiplies.

    Args:
        q: [rows, heads, 1, head_dim].
        keys, values: [rows, heads, kv_len, head_dim].
        visible: bool [rows, 1, 1, kv_len], the attention mask.

    Returns:
        [rows, heads, 1, head_dim].
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
    return attend_matmul(q, keys, values, visible)


def attend_matmul(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """``attend`` by plain matrix products, softmax in float32."""
    scores = (keys @ (q * q.shape[-1] ** -0.5).transpose(2, 3)).transpose(2, 3)
    weights = torch.softmax(scores.float().masked_fill(~visible, -torch.inf), dim=-1)
    return weights.to(values.dtype) @ values


class StaticKVCache:
    """One buffer per layer with ``capacity`` positions for each of several sequences.

    Attributes:
        keys, values: [layers, num_seqs * rows_per_seq, heads, capacity, head_dim]. Zero where
            nothing was written: masked positions get weight 0, and 0 times NaN is NaN.
        key_scales, value_scales: float32 [layers, num_seqs * rows_per_seq, heads, capacity] where
            keys and values are int8; otherwise with a capacity of 0.
        rows_per_seq: see ``KVCache``.
        quantized: whether keys and values are int8.
    """

    def __init__(
        self,
        *,
        num_seqs: int,
        rows_per_seq: int,
        shape: tuple[int, int, int],
        like: Tensor,
        capacity_for: Callable[[int], int] = round_up_kv_len,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate nothing yet; later on the device of ``like``.

        Args:
            shape: layers, heads, head_dim.
            capacity_for: required positions -> positions to allocate.
            dtype: torch.int8, or None for that of ``like``.
        """
        self.rows_per_seq, self._capacity_for, self._dtype = rows_per_seq, capacity_for, like.dtype
        self.quantized = dtype == torch.int8
        layers, heads, head_dim = shape
        empty = (layers, num_seqs * rows_per_seq, heads, 0, head_dim)
        self.keys = torch.zeros(empty, dtype=dtype or like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.key_scales = torch.zeros(empty[:-1], device=like.device)
        self.value_scales = torch.zeros_like(self.key_scales)
        self._rows = torch.arange(num_seqs * rows_per_seq, device=like.device)
        self._positions = torch.arange(0, device=like.device)

    @property
    def capacity(self) -> int:
        """Positions of one row."""
        return self.keys.shape[3]

    @property
    def addresses(self) -> tuple[int, ...]:
        """Addresses of the buffers: all change when the capacity grows."""
        return tuple(buffer.data_ptr() for buffer in self._buffers())

    def scales(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Scales of an int8 layer's keys and values: [rows, heads, capacity] each; else None."""
        return (self.key_scales[layer], self.value_scales[layer]) if self.quantized else None

    def reserve(self, sequence: int, positions: int) -> None:  # noqa: ARG002 - capacity is shared
        """Grow the capacity of all sequences, since they share one buffer.

        One buffer after the other, so that the old keys are freed before the values grow: at its
        peak it holds new keys and values, and the old values.
        """
        extra = self._capacity_for(positions) - self.capacity
        if extra <= 0:
            return
        self.keys = F.pad(self.keys, (0, 0, 0, extra))
        self.values = F.pad(self.values, (0, 0, 0, extra))
        if self.quantized:
            self.key_scales = F.pad(self.key_scales, (0, extra))
            self.value_scales = F.pad(self.value_scales, (0, extra))
        self._positions = torch.arange(self.capacity, device=self.keys.device)

    def padded_length(self, length: int) -> int:
        """Round up to ``PREFIX_BLOCK``: few distinct shapes, so a prefill can be captured."""
        return -(-length // PREFIX_BLOCK) * PREFIX_BLOCK

    def write_prefix(self, layer: int, sequence: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the prefix of one layer; tensor operations only, so it can be captured."""
        rows, length = (
            self._rows[: self.rows_per_seq] + sequence * self.rows_per_seq,
            keys.shape[2],
        )
        self._write(layer, (rows, slice(None), slice(length)), keys, values)

    def _write(self, layer: int, index: tuple[Any, ...], keys: Tensor, values: Tensor) -> None:
        if not self.quantized:
            self.keys[layer][index], self.values[layer][index] = keys, values
            return
        for buffer, scales, new in (
            (self.keys, self.key_scales, keys),
            (self.values, self.value_scales, values),
        ):
            buffer[layer][index], scales[layer][index] = quantize(new)

    def _read(self, layer: int, rows: int, kv_len: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, kv_len, head_dim] in the compute dtype."""
        stored = [x[layer][:rows, :, :kv_len] for x in (self.keys, self.values)]
        if not self.quantized:
            return stored[0], stored[1]
        scales = [x[layer][:rows, :, :kv_len] for x in (self.key_scales, self.value_scales)]
        keys, values = (dequantize(*pair, self._dtype) for pair in zip(stored, scales, strict=True))
        return keys, values

    def decode_attention(self, positions: Tensor, kv_len: int) -> AttendFn:
        """Write at ``positions`` and attend over the first ``kv_len`` positions, masked."""
        rows = self._rows[: len(positions)]
        visible = (self._positions[:kv_len] <= positions[:, None])[:, None, None]

        def attend_layer(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # not index_copy_: MPS has none
            self._write(i, (rows, slice(None), positions), k[:, :, 0], v[:, :, 0])
            return attend(q, *self._read(i, len(q), kv_len), visible)

        return attend_layer

    def move(self, source: int, target: int) -> None:
        """Copy sequence ``source`` over sequence ``target``."""
        for buffer in self._buffers():
            buffer[:, self._rows_of(target)] = buffer[:, self._rows_of(source)]

    def clear(self, sequence: int) -> None:
        """Zero a sequence's rows."""
        for buffer in self._buffers():
            buffer[:, self._rows_of(sequence)] = 0

    def _buffers(self) -> tuple[Tensor, ...]:
        buffers = (self.keys, self.values)
        return (*buffers, self.key_scales, self.value_scales) if self.quantized else buffers

    def _rows_of(self, sequence: int) -> slice:
        return slice(sequence * self.rows_per_seq, (sequence + 1) * self.rows_per_seq)
