"""Keys and values of past positions, and the attention of one query over them.

Knows shapes. Knows nothing of weights, tokens or sampling.

A growing cache copies itself at every step. ``StaticKVCache`` is one buffer for all utterances,
written in place: its address stays (a replayed graph needs that), and one kernel reads it for all.
ragged_kv_cache.py has the other kind, a buffer for each utterance, which suits a processor better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize

SPAN = 128  # attention reads whole blocks of this many positions: few distinct shapes per run
PREFIX = 64  # so do prefixes, whose every position is computed


def round_up_to_span(positions: int) -> int:
    """Round up to whole blocks."""
    return -(-positions // SPAN) * SPAN


# One step's attention, utterances and positions being settled: of a layer and its q, k, v
# [rows, heads, 1, head_dim] it writes k and v and gives what q reads of all up to there,
# [rows, heads, 1, head_dim].
AttendFn = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class KVCache(Protocol):
    """Keys and values of several utterances.

    Attributes:
        rows_per_seq: rows of one utterance, next to each other: 2 under guidance, else 1.
    """

    rows_per_seq: int

    def reserve(self, utterance: int, positions: int) -> None:
        """Make room for so many positions of an utterance; what is there is kept, but may move."""
        ...

    def prefix(self, length: int) -> int:
        """To what length a prefix is best padded; what is beyond it is never seen."""
        ...

    def fill(self, layer: int, utterance: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the prefix of one layer.

        Args:
            utterance: int64 [1].
            keys, values: [each, heads, length, head_dim], from position 0 on.
        """
        ...

    def at(self, places: Tensor, span: int) -> AttendFn:
        """The attention of a step of the first n utterances.

        Args:
            places: int64 [n * each], where each row's new key goes; the same for an utterance.
            span: a multiple of ``SPAN`` above all of ``places``.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Put utterance ``source`` in the place of ``target``; ``source`` is void then, and must be
        cleared before another one enters there."""
        ...

    def clear(self, utterance: int) -> None:
        """Forget an utterance, numbers that are not finite included."""
        ...


def attend(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Attention of one query for each row over a static cache (Vaswani et al. 2017).

    On a processor, plain products: its fused kernel takes three times as long in bfloat16, where
    one query uses an eighth of the tile that it multiplies.

    Args:
        q: [rows, heads, 1, head_dim].
        keys, values: [rows, heads, span, head_dim].
        visible: bool [rows, 1, 1, span].

    Returns:
        [rows, heads, 1, head_dim].
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
    return products(q, keys, values, visible)


def products(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """``attend`` by plain products, softmax in float32."""
    scores = (keys @ (q * q.shape[-1] ** -0.5).transpose(2, 3)).transpose(2, 3)
    weights = torch.softmax(scores.float().masked_fill(~visible, -torch.inf), dim=-1)
    return weights.to(values.dtype) @ values


class StaticKVCache:
    """Room for ``capacity`` positions of every layer, for several utterances side by side.

    Attributes:
        keys, values: [layers, utterances * each, heads, capacity, head_dim]. No garbage where
            nothing was written: masked positions get weight 0, and 0 times NaN is NaN.
        key_scales, value_scales: float32 [layers, utterances * each, heads, capacity] where keys
            and values are int8; with a capacity of 0 where they are not.
        rows_per_seq: rows of one utterance, next to each other: 2 under guidance, else 1.
    """

    def __init__(
        self,
        *,
        utterances: int,
        rows_per_seq: int,
        shape: tuple[int, int, int],
        like: Tensor,
        room: Callable[[int], int] = round_up_to_span,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate nothing yet; later on the device of ``like``.

        Args:
            shape: layers, heads, head_dim.
            room: positions to allocate when so many are needed.
            dtype: torch.int8, or None for that of ``like``.
        """
        self.rows_per_seq, self._room, self._dtype = rows_per_seq, room, like.dtype
        self.quantized = dtype == torch.int8
        layers, heads, head_dim = shape
        empty = (layers, utterances * rows_per_seq, heads, 0, head_dim)
        self.keys = torch.zeros(empty, dtype=dtype or like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.key_scales = torch.zeros(empty[:-1], device=like.device)
        self.value_scales = torch.zeros_like(self.key_scales)
        self._rows = torch.arange(utterances * rows_per_seq, device=like.device)
        self._places = torch.arange(0, device=like.device)

    @property
    def capacity(self) -> int:
        """Positions of one row."""
        return self.keys.shape[3]

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the buffers are: all move when one grows."""
        return tuple(kept.data_ptr() for kept in self._buffers())

    def scales(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Of an int8 layer's keys and values: [rows, heads, capacity] each; else None."""
        return (self.key_scales[layer], self.value_scales[layer]) if self.quantized else None

    def reserve(self, utterance: int, positions: int) -> None:  # noqa: ARG002 - room for all
        """See ``KVCache``."""
        more = self._room(positions) - self.capacity
        if more <= 0:
            return
        self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
        if self.quantized:
            scales = self.key_scales, self.value_scales
            self.key_scales, self.value_scales = (F.pad(x, (0, more)) for x in scales)
        self._places = torch.arange(self.capacity, device=self.keys.device)

    def prefix(self, length: int) -> int:
        """See ``KVCache``: few distinct shapes, so that a prefill can be recorded."""
        return -(-length // PREFIX) * PREFIX

    def fill(self, layer: int, utterance: Tensor, keys: Tensor, values: Tensor) -> None:
        """See ``KVCache``; tensors only."""
        rows, length = (
            self._rows[: self.rows_per_seq] + utterance * self.rows_per_seq,
            keys.shape[2],
        )
        self._write(layer, (rows, slice(None), slice(length)), keys, values)

    def _write(self, layer: int, where: tuple[Any, ...], keys: Tensor, values: Tensor) -> None:
        if not self.quantized:
            self.keys[layer][where], self.values[layer][where] = keys, values
            return
        for kept, scales, given in (
            (self.keys, self.key_scales, keys),
            (self.values, self.value_scales, values),
        ):
            kept[layer][where], scales[layer][where] = quantize(given)

    def _read(self, layer: int, rows: int, span: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, span, head_dim] in the dtype of the arithmetic."""
        kept = [x[layer][:rows, :, :span] for x in (self.keys, self.values)]
        if not self.quantized:
            return kept[0], kept[1]
        scales = [x[layer][:rows, :, :span] for x in (self.key_scales, self.value_scales)]
        keys, values = (dequantize(*of, self._dtype) for of in zip(kept, scales, strict=True))
        return keys, values

    def at(self, places: Tensor, span: int) -> AttendFn:
        """See ``KVCache``."""
        rows = self._rows[: len(places)]
        visible = (self._places[:span] <= places[:, None])[:, None, None]

        def layer(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # not index_copy_: MPS has none
            self._write(i, (rows, slice(None), places), k[:, :, 0], v[:, :, 0])
            return attend(q, *self._read(i, len(q), span), visible)

        return layer

    def move(self, source: int, target: int) -> None:
        """See ``KVCache``."""
        for kept in self._buffers():
            kept[:, self._rows_of(target)] = kept[:, self._rows_of(source)]

    def clear(self, utterance: int) -> None:
        """See ``KVCache``."""
        for kept in self._buffers():
            kept[:, self._rows_of(utterance)] = 0

    def _buffers(self) -> tuple[Tensor, ...]:
        buffers = (self.keys, self.values)
        return (*buffers, self.key_scales, self.value_scales) if self.quantized else buffers

    def _rows_of(self, utterance: int) -> slice:
        return slice(utterance * self.rows_per_seq, (utterance + 1) * self.rows_per_seq)
