"""Decode attention in Triton: one query a row over a static KV cache, fused with RoPE and KV write.

Responsible for rotary positions, the write of the new key and value, and attention. Not responsible
for layers or for the cache's memory (kv_cache.py). Imports Triton, as gemv.py does.

*Online softmax.* A program reads the keys and values of one head of one row, a tile of ``KEYS``
positions at a time, up to the row's own length. Softmax needs the maximum of all scores, which is
not known yet, so the program keeps a running maximum, a sum of weights and a weighted sum of
values, and rescales sum and values by exp(old max - new max) whenever the maximum grows (Milakov &
Gimelshein 2018). Usually there is one such state per query. Here there is one *per position in the
tile*: position p of the tile has keys p, p + KEYS, p + 2 KEYS, ... So no thread waits for another
(no reduction over positions) while tiles come in; the states are merged once, at the end:

    out = sum_p exp(max_p - max) acc_p / sum_p exp(max_p - max) sum_p

*Splits.* One sequence under classifier-free guidance has 2 rows of 16 heads: 32 programs for a
large GPU's 132 SMs. So ``num_splits`` programs share a head (as FlashDecoding's split-KV), here 8,
and take its tiles in a round-robin:

    700 cached positions = 11 tiles of 64

    tile      0   1   2   3   4   5   6   7   8   9   10
    split     0   1   2   3   4   5   6   7   0   1   2

    split 0: own position, tiles 0, 8 -> max, sum, acc -+
    split 1: tiles 1, 9               -> max, sum, acc -+-- atomic counter of the head: the program
    ...                                                 |   that arrives last merges all of them by
    split 7: tile 7                   -> max, sum, acc -+   the formula above and writes the output

They are merged in the order of the splits, whichever program is last: the result is deterministic.
A split without a tile contributes max = FLOOR, whose exp is 0. The row's new key and value do not
come from the cache: split 0 computes them from ``qkv``, attends to them as the cache will have
them (rounded), and writes them, so that no program reads what another one writes.

*int8 cache.* Keys and values may be int8 with one scale for each position (absmax / 127; KVQuant
and others quantize finer): half of what a batch reads, which at 32 sequences is more than the
weights. The scale is applied to the score, or to the weight, and not to every element.

*Why not SDPA or FlashAttention.* In a CUDA graph shapes are fixed: SDPA would read the whole bucket
of the cache for every row, under a mask; this kernel stops at each row's length, which it reads
from device memory. And RoPE, the KV write and dequantization would be further kernels, while here
they cost no launch, and with programmatic dependent launch the kernel's start overlaps with
the end of the QKV product. Limits: bytes in flight, that is registers for the tiles (``SMALL_KEYS``
where larger ones would spill), and HBM bandwidth at large batches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatterbox_opt.kernels.cuda.launch import (
    gdc_launch_dependents,
    gdc_wait,
    pdl_options,
    triton_errors,
)
from chatterbox_opt.runtime import cuda

KEYS, WARPS = 64, 4  # positions of a tile, and warps of a program
SMALL_KEYS = {7: 16, 10: 32, 12: 32}  # by major capability, where a larger tile would spill
TARGET_PROGRAMS, MAX_SPLITS = 256, 8  # about two programs for each SM of a large GPU
FLOOR = tl.constexpr(-1e30)  # below every score; unlike -inf, FLOOR - FLOOR is not NaN
LOG2_E = 1.4426950408889634  # scores are in powers of two: exp2 is faster than exp


def num_splits(rows: int, heads: int) -> int:
    """Programs that share a head, so that about ``TARGET_PROGRAMS`` run; a power of two."""
    programs = triton.next_power_of_2(rows * heads)
    return max(1, min(MAX_SPLITS, TARGET_PROGRAMS // programs))


@triton.jit
def load_tile(
    cache, scales, head_start, start, kv_len,
    HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, QUANTIZED: tl.constexpr,
):  # fmt: skip
    """Keys or values [keys, head_dim] of positions before ``kv_len``, and their scales [keys]."""
    position = start + tl.arange(0, KEYS)
    offsets = head_start + position[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tile = tl.load(cache + offsets, (position < kv_len)[:, None], 0)
    scale = tl.full((KEYS,), 1.0, tl.float32)
    if QUANTIZED:
        scale = tl.load(scales + head_start // HEAD_DIM + position, position < kv_len, 0.0)
    return tile, scale


@triton.jit
def round_to_cache(x, cache, QUANTIZED: tl.constexpr):
    """fp32 [head_dim] as the cache stores it, and its scale."""
    scale = 1.0
    if QUANTIZED:
        scale = tl.div_rn(tl.max(tl.abs(x), axis=0), 127.0)
        x = tl.div_rn(x, tl.where(scale > 0, scale, 1.0))
        x = tl.where(x < 0, x - 0.5, x + 0.5)  # the cast truncates: ties round away from zero
    return x.to(cache.dtype.element_ty), scale


@triton.jit
def load_rotated(projection, cos, sin, angle, dim, HEAD_DIM: tl.constexpr, ROPE: tl.constexpr):
    """A head's query or key as fp32 [head_dim], with RoPE (Su et al. 2021) if ROPE."""
    vector = tl.load(projection + dim).to(tl.float32)
    if ROPE:
        rotated = (dim + HEAD_DIM // 2) % HEAD_DIM  # the sign is in sin
        vector *= tl.load(cos + angle).to(tl.float32)
        vector += tl.load(projection + rotated).to(tl.float32) * tl.load(sin + angle).to(tl.float32)
    return vector


@triton.jit
def merge_splits(partial, dim, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr):
    """Attention of one query [head_dim] from its splits' values, maxima and sums. Bypasses L1
    (.cg), which may hold stale lines."""
    split = partial + tl.arange(0, SPLITS) * (HEAD_DIM + 2)
    maxima = tl.load(split + HEAD_DIM, cache_modifier=".cg")
    factor = tl.exp2(maxima - tl.max(maxima, axis=0))
    sums = tl.load(split + HEAD_DIM + 1, cache_modifier=".cg")
    accs = tl.load(split[:, None] + dim[None, :], cache_modifier=".cg")
    return tl.sum(accs * factor[:, None], axis=0) / tl.sum(sums * factor, axis=0)


@triton.jit
def append_to_cache(
    cache, scales, start, vector, scale, HEAD_DIM: tl.constexpr, QUANTIZED: tl.constexpr
):
    """Store a head's new key or value (and its scale) at offset ``start`` of the cache."""
    tl.store(cache + start + tl.arange(0, HEAD_DIM), vector)
    if QUANTIZED:
        tl.store(scales + start // HEAD_DIM, scale)


@triton.jit
def decode_attention_kernel(
    qkv, cos, sin, keys, values, key_scales, value_scales, positions, partial, arrivals, out, scale,
    rows_per_seq, heads, row_stride, head_stride,
    HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, QUANTIZED: tl.constexpr,
    ROPE: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """See ``decode_attention``; ``scale`` includes log2(e)."""
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head_start = row.to(tl.int64) * row_stride + head * head_stride
    kv_len = tl.load(positions + row // rows_per_seq)  # of the cache; the new position comes next
    # 1. prefetch the first tiles before anything is computed
    first = split * KEYS
    key, key_scale = load_tile(
        keys, key_scales, head_start, first, kv_len, HEAD_DIM, KEYS, QUANTIZED
    )
    value, value_scale = load_tile(
        values, value_scales, head_start, first, kv_len, HEAD_DIM, KEYS, QUANTIZED
    )
    # 2. the query and the new key, with rotary positions
    dim = tl.arange(0, HEAD_DIM)
    projections = qkv + (3 * row * heads + head) * HEAD_DIM
    angle = row // rows_per_seq * HEAD_DIM + dim
    query = load_rotated(projections, cos, sin, angle, dim, HEAD_DIM, ROPE) * scale
    projections += heads * HEAD_DIM
    new_key = load_rotated(projections, cos, sin, angle, dim, HEAD_DIM, ROPE)
    new_value = tl.load(projections + heads * HEAD_DIM + dim).to(tl.float32)
    new_key, new_key_scale = round_to_cache(new_key, keys, QUANTIZED)
    new_value, new_value_scale = round_to_cache(new_value, values, QUANTIZED)
    # 3. online softmax; tile position 0 of split 0 starts with the new position, the others empty
    is_new = (tl.arange(0, KEYS) == 0) & (split == 0)
    new_score = tl.sum(query * new_key.to(tl.float32), axis=0) * new_key_scale
    maximum = tl.where(is_new, new_score, FLOOR)
    weight_sum = tl.where(is_new, 1.0, 0.0)
    acc = weight_sum[:, None] * (new_value.to(tl.float32) * new_value_scale)[None, :]
    for start in range(first, kv_len, SPLITS * KEYS):
        # 3a. scores of the tile
        in_cache = start + tl.arange(0, KEYS) < kv_len
        score = tl.sum(key.to(tl.float32) * query[None, :], axis=1) * key_scale
        score = tl.where(in_cache, score, FLOOR)
        # 3b. rescale the state to the new maximum, and add the tile's values
        new_maximum = tl.maximum(maximum, score)
        weight = tl.where(in_cache, tl.exp2(score - new_maximum), 0.0)
        rescale = tl.exp2(maximum - new_maximum)
        weight_sum = weight_sum * rescale + weight
        acc = acc * rescale[:, None] + (weight * value_scale)[:, None] * value.to(tl.float32)
        maximum = new_maximum
        # 3c. load this split's next tile
        following = start + SPLITS * KEYS
        key, key_scale = load_tile(
            keys, key_scales, head_start, following, kv_len, HEAD_DIM, KEYS, QUANTIZED
        )
        value, value_scale = load_tile(
            values, value_scales, head_start, following, kv_len, HEAD_DIM, KEYS, QUANTIZED
        )
    # 4. merge the tile's positions, then the splits
    top = tl.max(maximum, axis=0)
    factor = tl.exp2(maximum - top)
    total, attended = tl.sum(weight_sum * factor, axis=0), tl.sum(acc * factor[:, None], axis=0)
    target = out + (row * heads + head) * HEAD_DIM + dim
    if SPLITS == 1:
        tl.store(target, attended / total)
    else:
        partial_size: tl.constexpr = HEAD_DIM + 2
        own = partial + ((row * heads + head) * SPLITS + split) * partial_size
        tl.store(own + dim, attended)
        tl.store(own + HEAD_DIM, top)
        tl.store(own + HEAD_DIM + 1, total)
        tl.debug_barrier()  # every thread has stored before one of them increments the counter
        counter = arrivals + row * heads + head
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            of_head = partial + (row * heads + head) * SPLITS * partial_size
            tl.store(target, merge_splits(of_head, dim, HEAD_DIM, SPLITS))
            tl.store(counter, 0)  # for the next layer
    # 5. KV write: no program of this launch reads it
    if split == 0:
        at = head_start + kv_len * HEAD_DIM
        append_to_cache(keys, key_scales, at, new_key, new_key_scale, HEAD_DIM, QUANTIZED)
        append_to_cache(values, value_scales, at, new_value, new_value_scale, HEAD_DIM, QUANTIZED)


@triton_errors()
def decode_attention(
    qkv: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
    arrivals: Tensor | None = None,
    tile: int = 0,
) -> Tensor:
    """Attention of one query for each row over a static cache (Vaswani et al. 2017), to which the
    row's key and value are appended.

    Args:
        qkv: [rows, 3 * heads * head_dim]: queries, keys and values, before rotary positions;
            head_dim a power of two.
        rope: two of [sequences, head_dim], see ``T3.rope``; None for queries and keys as they are.
        keys, values: [at least rows, heads, capacity, head_dim], of the same strides, each head
            contiguous; int8 with ``scales``.
        positions: int64 [sequences], where keys and values of a sequence's rows are written; the
            rows attend up to there, inclusive.
        scales: fp32 [at least rows, heads, capacity] each, of int8 keys and values.
        arrivals: int32 counters [at least rows * heads], zeros before and after: allows splits.
            None: every head is computed by one program.
        tile: positions per tile, a power of two; 0 chooses.

    Returns:
        [rows, heads * head_dim].
    """
    rows, (_, heads, _, head_dim) = len(qkv), keys.shape
    out = qkv.new_empty(rows, heads * head_dim)
    tile = tile or SMALL_KEYS.get(cuda.capability_major(qkv.device), KEYS)
    splits = 1 if arrivals is None else num_splits(rows, heads)
    partial_size = rows * heads * splits * (head_dim + 2)
    partial = out if splits == 1 else out.new_empty(partial_size, dtype=torch.float32)
    counters = positions if arrivals is None else arrivals
    decode_attention_kernel[(rows, heads, splits)](
        qkv.contiguous(),
        *(part.contiguous() for part in rope or (qkv, qkv)),  # stand-ins, not touched
        keys,
        values,
        *(scales or (keys, values)),
        positions,
        partial,
        counters,
        out,
        head_dim**-0.5 * LOG2_E,
        rows // len(positions),
        heads,
        keys.stride(0),
        keys.stride(1),
        HEAD_DIM=head_dim,
        KEYS=tile,
        SPLITS=splits,
        QUANTIZED=scales is not None,
        ROPE=rope is not None,
        **pdl_options(qkv.device),
        num_warps=WARPS,
    )
    return out
