"""GPU kernel of a decode step's attention, in Triton: one query a row over a static KV cache.

Responsible for rotary positions, the write of the new key and value, and attention. Not responsible
for layers or for the cache's memory (kv_cache.py). Imports Triton, as gemv.py does.

One program reads the keys and values of one head of one row, a tile of ``KEYS`` positions at a
time, up to the row's own length. The softmax is an online one (Milakov & Gimelshein 2018), with a
maximum and a sum *for each place in the tile*: place p has positions p, p + KEYS, p + 2 KEYS, ...
So no thread waits for another while tiles come in; the places are merged once, at the end:

    out = sum_p exp(max_p - max) mixed_p / sum_p exp(max_p - max) sum_p

One sentence under guidance has 2 rows of 16 heads, 32 programs for a large GPU's 132 SMs. So
``splits`` programs share a head, tile by tile in turn. Each stores its maximum, sum and mix,
and the last to finish, as an atomic counter tells, merges them by the same formula, in one order
whoever is last.

Keys and values may be int8 with one scale for each position (absmax / 127; KVQuant and others
quantize finer): half of what a batch reads, which at 32 utterances is more than the weights.
The position's own key and value are used as the cache will have them.
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

KEYS, WARPS = 64, 4  # positions of a tile, and threads / 32 that hold it
SMALLER = {7: 32, 10: 32, 12: 32}  # on generations where a larger tile would spill registers
PROGRAMS, MOST_SPLITS = 256, 8  # about two for each SM of a large GPU
FLOOR = tl.constexpr(-1e30)  # below every score; unlike -inf it may be subtracted from itself
LOG2_E = 1.4426950408889634  # powers of two are quicker


def splits(rows: int, heads: int) -> int:
    """Programs that share a head, so that about ``PROGRAMS`` run; a power of two."""
    return max(1, min(MOST_SPLITS, PROGRAMS // triton.next_power_of_2(rows * heads)))


@triton.jit
def load_tile(
    kept, scales, start_of_head, start, last,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, QUANTIZED: tl.constexpr,
):  # fmt: skip
    """Keys or values [keys, width] of positions before ``last``, and their scales [keys]."""
    position = start + tl.arange(0, KEYS)
    place = start_of_head + position[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tile = tl.load(kept + place, (position < last)[:, None], 0)
    by = tl.full((KEYS,), 1.0, tl.float32)
    if QUANTIZED:
        by = tl.load(scales + start_of_head // WIDTH + position, position < last, 0.0)
    return tile, by


@triton.jit
def stored_as(x, kept, QUANTIZED: tl.constexpr):
    """float32 [width] as the cache stores it, and its scale."""
    by = 1.0
    if QUANTIZED:
        by = tl.div_rn(tl.max(tl.abs(x), axis=0), 127.0)
        x = tl.div_rn(x, tl.where(by > 0, by, 1.0))
        x = tl.where(x < 0, x - 0.5, x + 0.5)  # the cast cuts off: halves go away from zero
    return x.to(kept.dtype.element_ty), by


@triton.jit
def merge(parts, lane, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """Attention of one query [width] from its programs' mixes, maxima and sums. Read past L1, which
    may hold what was there before."""
    part = parts + tl.arange(0, SPLITS) * (WIDTH + 2)
    tops = tl.load(part + WIDTH, cache_modifier=".cg")
    share = tl.exp2(tops - tl.max(tops, axis=0))
    sums = tl.load(part + WIDTH + 1, cache_modifier=".cg")
    mixes = tl.load(part[:, None] + lane[None, :], cache_modifier=".cg")
    return tl.sum(mixes * share[:, None], axis=0) / tl.sum(sums * share, axis=0)


@triton.jit
def decode_attention_kernel(
    qkv, cos, sin, keys, values, key_scales, value_scales, places, partial, arrivals, out, scale,
    rows_per_seq, heads, row_stride, head_stride,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, QUANTIZED: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    """See ``decode_attention``; ``scale`` has log2(e) in it."""
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start_of_head = row.to(tl.int64) * row_stride + head * head_stride
    last = tl.load(places + row // rows_per_seq)
    # 1. the first tiles are requested before anything is computed
    first = split * KEYS
    key, key_by = load_tile(keys, key_scales, start_of_head, first, last, WIDTH, KEYS, QUANTIZED)
    value, value_by = load_tile(
        values, value_scales, start_of_head, first, last, WIDTH, KEYS, QUANTIZED
    )
    # 2. rotary positions (Su et al. 2021) of the row's own query and key
    lane = tl.arange(0, WIDTH)
    opposite = (lane + WIDTH // 2) % WIDTH
    given = qkv + (3 * row * heads + head) * WIDTH
    turned = row // rows_per_seq * WIDTH + lane
    along, across = tl.load(cos + turned).to(tl.float32), tl.load(sin + turned).to(tl.float32)
    query = tl.load(given + lane).to(tl.float32) * along
    query += tl.load(given + opposite).to(tl.float32) * across
    query *= scale
    given += heads * WIDTH
    own_key = tl.load(given + lane).to(tl.float32) * along
    own_key += tl.load(given + opposite).to(tl.float32) * across
    own_value = tl.load(given + heads * WIDTH + lane).to(tl.float32)
    own_key, own_key_by = stored_as(own_key, keys, QUANTIZED)
    own_value, own_value_by = stored_as(own_value, values, QUANTIZED)
    # 3. the online softmax; the first place of the first program begins with the row's own position
    own = (tl.arange(0, KEYS) == 0) & (split == 0)
    own_score = tl.sum(query * own_key.to(tl.float32), axis=0) * own_key_by
    highest = tl.where(own, own_score, FLOOR)
    weights = tl.where(own, 1.0, 0.0)
    mixed = weights[:, None] * (own_value.to(tl.float32) * own_value_by)[None, :]
    for start in range(first, last, SPLITS * KEYS):
        seen = start + tl.arange(0, KEYS) < last
        score = tl.sum(key.to(tl.float32) * query[None, :], axis=1) * key_by
        score = tl.where(seen, score, FLOOR)
        higher = tl.maximum(highest, score)
        weight = tl.where(seen, tl.exp2(score - higher), 0.0)
        fade = tl.exp2(highest - higher)
        weights = weights * fade + weight
        mixed = mixed * fade[:, None] + (weight * value_by)[:, None] * value.to(tl.float32)
        highest = higher
        following = start + SPLITS * KEYS
        key, key_by = load_tile(
            keys, key_scales, start_of_head, following, last, WIDTH, KEYS, QUANTIZED
        )
        value, value_by = load_tile(
            values, value_scales, start_of_head, following, last, WIDTH, KEYS, QUANTIZED
        )
    # 4. places are merged, then programs
    top = tl.max(highest, axis=0)
    share = tl.exp2(highest - top)
    summed, mix = tl.sum(weights * share, axis=0), tl.sum(mixed * share[:, None], axis=0)
    target = out + (row * heads + head) * WIDTH + lane
    if SPLITS == 1:
        tl.store(target, mix / summed)
    else:
        room: tl.constexpr = WIDTH + 2
        mine = partial + ((row * heads + head) * SPLITS + split) * room
        tl.store(mine + lane, mix)
        tl.store(mine + WIDTH, top)
        tl.store(mine + WIDTH + 1, summed)
        tl.debug_barrier()  # all threads have stored before one of them says so
        counter = arrivals + row * heads + head
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            merged = merge(partial + (row * heads + head) * SPLITS * room, lane, WIDTH, SPLITS)
            tl.store(target, merged)
            tl.store(counter, 0)  # for the next layer
    # 5. what is written is read by no program of this launch
    if split == 0:
        place = start_of_head + last * WIDTH + lane
        tl.store(keys + place, own_key)
        tl.store(values + place, own_value)
        if QUANTIZED:
            tl.store(key_scales + start_of_head // WIDTH + last, own_key_by)
            tl.store(value_scales + start_of_head // WIDTH + last, own_value_by)


@triton_errors()
def decode_attention(
    qkv: Tensor,
    rope: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
    arrivals: Tensor | None = None,
    tile: int = 0,
) -> Tensor:
    """Attention of one query for each row over a static cache (Vaswani et al. 2017), into which the
    row's key and value are written.

    Args:
        qkv: [rows, 3 * heads * head_dim]: queries, keys and values, before rotary positions;
            head_dim a power of two.
        rope: two of [utterances, head_dim], see ``T3.rope``.
        keys, values: [at least rows, heads, capacity, head_dim], laid out alike, a head in one
            piece; int8 with ``scales``.
        places: int64 [utterances], where each one's rows are written, and up to where they see.
        scales: float32 [at least rows, heads, capacity] each, of int8 keys and values.
        arrivals: int32 [at least rows * heads], zeros, and zeros again afterwards: lets programs
            share a head. None: they do not.
        tile: positions that are read at once, a power of two; 0 chooses.

    Returns:
        [rows, heads * head_dim].
    """
    rows, (_, heads, _, width) = len(qkv), keys.shape
    out = qkv.new_empty(rows, heads * width)
    tile = tile or SMALLER.get(cuda.capability_major(qkv.device), KEYS)
    parts = 1 if arrivals is None else splits(rows, heads)
    room = rows * heads * parts * (width + 2)
    partial = out if parts == 1 else out.new_empty(room, dtype=torch.float32)
    counters = places if arrivals is None else arrivals
    decode_attention_kernel[(rows, heads, parts)](
        qkv.contiguous(),
        *(part.contiguous() for part in rope),
        keys,
        values,
        *(scales or (keys, values)),
        places,
        partial,
        counters,
        out,
        width**-0.5 * LOG2_E,
        rows // len(places),
        heads,
        keys.stride(0),
        keys.stride(1),
        WIDTH=width,
        KEYS=tile,
        SPLITS=parts,
        QUANTIZED=scales is not None,
        **pdl_options(qkv.device),
        num_warps=WARPS,
    )
    return out
