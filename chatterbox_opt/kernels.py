"""Kernels of our own for a card, in Triton: a decode step's products and attention, all in one.

Knows arithmetic on a card's tensors. Knows nothing of layers, caches or when these are used.
Imports Triton, so it is imported only where there is a card (or Triton's interpreter).

A decode step reads every matrix for a handful of rows: what counts is that each weight crosses the
bus once, as the byte that it is if it is one, and that little else is launched. A kernel of a
replayed graph takes two microseconds however little it does, and T3's step has nine hundred of
PyTorch's; with what stands before and behind each product done by the product it has five a layer.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chatterbox_opt import card
from chatterbox_opt.kernel_launch import (
    beginning,
    launching,
    next_may_begin,
    wait_for_those_before,
)

FEW = 4  # rows up to which multiplying and adding keeps up with memory
SMALLEST_TILE, LARGEST_TILE = 16, 64  # rows at once in the matrix units, which want 16 or more
ROOM_ABOVE = tl.constexpr(16.0)  # times the largest half, for x * norm in float16
PIECE = tl.constexpr(8)  # numbers next to each other that a thread loads at once
KEYS, WARPS = 256, 8  # positions that attention holds at a time, and threads / 32 that hold them


def tiles(rows: int, wide: int, generation: int = 9, *, gated: bool = False) -> dict[str, int]:
    """The constants of ``few`` or ``many`` for so many rows of numbers of ``wide`` bytes.

    What covers a memory's latency is what all programs that a card holds have on their way at once.
    Few rows: 8 KiB of halves each; of T3's matrices most are 1,024 deep, one turn. With more than
    two rows half of that, twice, or the sums would not fit into registers. Many: 4 KiB in each of
    three turns ahead, as there may be no more than 64 programs for 132 processors; before Ampere
    nothing waits in shared memory, and turns are as long as registers allow.
    """
    whole = triton.next_power_of_2(rows)
    if rows <= FEW:
        part = 1 if rows <= 2 else 2
        return tile_of_few(whole, columns=(2 if gated else 4) // part, depth=1024 // part)
    whole = min(LARGEST_TILE, max(SMALLEST_TILE, whole))
    return tile_of_many(whole, columns=16, depth=256 // wide if generation >= 8 else 64)


def tile_of_few(rows: int, *, columns: int, depth: int) -> dict[str, int]:
    """As many warps as have one piece of the depth each, so that none has another row or column."""
    warps = max(1, depth // (32 * PIECE.value))
    return {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth, "num_warps": warps}


def tile_of_many(rows: int, *, columns: int, depth: int) -> dict[str, int]:
    """By the matrix units; turns ahead wait in shared memory."""
    sizes = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    return {**sizes, "num_warps": 4, "num_stages": 4}


@triton.jit
def scaling(scales, column, n, SCALED: tl.constexpr, GATED: tl.constexpr):
    """The scales of a tile's columns, and of the second half's."""
    first, second = 1.0, 1.0
    if SCALED:
        first = tl.load(scales + column, column < n, 0.0)[None, :]
        if GATED:
            second = tl.load(scales + n + column, column < n, 0.0)[None, :]
    return first, second


@triton.jit
def finish(total, other, first, second, before, place, inside, GATED: tl.constexpr):
    """Scale, gate, add and store a tile; ``before`` is the residual."""
    total *= first
    if GATED:
        total = total * tl.sigmoid(total) * (other * second)
    tl.store(place, total + before, inside)


@triton.jit
def sent_for(
    weight, norm, column, start, n, k,
    DEPTH: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """A turn's tiles [1, columns, depth] of the weight and, if GATED, of its second half, and the
    norm's [1, 1, depth] if NORMED."""
    # bytes in such pieces too, so that threads hold them as they hold the halves of x
    inner = start + tl.max_contiguous(tl.arange(0, DEPTH), [PIECE])[None, :]
    place = tl.expand_dims(weight + column[:, None] * k + inner, 0)
    inside = tl.expand_dims((column < n)[:, None] & (inner < k), 0)
    tile = tl.load(place, inside, 0)
    second, by = tile, inner
    if GATED:
        second = tl.load(place + n * k, inside, 0)
    if NORMED:
        by = tl.load(tl.expand_dims(norm + inner, 0), tl.expand_dims(inner < k, 0), 0.0)
    return tile, second, by


@triton.jit
def few(
    x, weight, scales, norm, residual, out, rows, n, k, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SCALED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """out[rows, n] = x[rows, k] times weight[n, k] in float32, by multiplying and adding; one
    program a tile.

    SCALED: times scales[n]. NORMED: of x / rms(x) * norm[k]. GATED: weight has 2 n rows, the result
    is silu(first half) * second half. ADDED: plus residual[rows, n]. EARLY: see kernel_launch.py.

    Each thread adds up its own terms [rows, columns, depth] as long as it can: to add across
    threads at every turn would take longer than the turn. All tiles have these three axes when they
    are loaded, so that all lie in threads alike: another layout would go through shared memory at
    every turn.
    """
    if EARLY:
        next_may_begin()
    row, column = tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None]
    place, inside = row[:, None] * n + column[None, :], there & (column < n)[None, :]
    total = tl.zeros((ROWS, COLUMNS, DEPTH), tl.float32)
    other, before = total, 0.0
    squares = tl.zeros((ROWS, 1, DEPTH), tl.float32)
    first, second = scaling(scales, column, n, SCALED, GATED)
    tile, gate, by = sent_for(weight, norm, column, 0, n, k, DEPTH, NORMED, GATED)
    if EARLY:
        wait_for_those_before()
    if ADDED:
        before = tl.load(residual + place, inside, 0.0).to(tl.float32)
    for start in range(0, k, DEPTH):
        inner = start + tl.arange(0, DEPTH)[None, :]
        given = tl.expand_dims(x + row[:, None] * k + inner, 1)
        given = tl.load(given, tl.expand_dims(there & (inner < k), 1), 0.0).to(tl.float32)
        if NORMED:
            squares += given * given
            given *= by.to(tl.float32)
        total += given * tile.to(tl.float32)
        if GATED:
            other += given * gate.to(tl.float32)
        tile, gate, by = sent_for(weight, norm, column, start + DEPTH, n, k, DEPTH, NORMED, GATED)
    summed, gates = tl.sum(total, axis=2), tl.sum(other, axis=2)
    if NORMED:
        factor = tl.rsqrt(tl.sum(squares, axis=2) / k + eps)
        summed *= factor
        gates *= factor
    finish(summed, gates, first, second, before, out + place, inside, GATED)


@triton.jit
def times(given, place, inside, total):
    """total plus given times the tile [columns, depth] at ``place``."""
    tile = tl.load(place, inside, 0).to(given.dtype)
    return tl.dot(given, tl.trans(tile), total, input_precision="ieee")


@triton.jit
def many(
    x, weight, scales, norm, residual, out, rows, n, k, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SCALED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """As ``few``, by the matrix units. They multiply halves: x * norm is rounded before, once
    (T3's own norm rounds twice), with room for great numbers; what is beyond is found infinite.

    The compiler sends for turns ahead of x and the weight; the norm is sent for here.
    """
    if EARLY:
        next_may_begin()
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there, wanted = (row < rows)[:, None], (column < n)[:, None]
    place, inside = row[:, None] * n + column[None, :], there & (column < n)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    other, before = total, 0.0
    squares = tl.zeros((ROWS, DEPTH), tl.float32)
    inner = tl.arange(0, DEPTH)[None, :]
    by = inner
    if NORMED:
        by = tl.load(norm + inner, inner < k, 0.0)
    first, second = scaling(scales, column, n, SCALED, GATED)
    if EARLY:
        wait_for_those_before()
    if ADDED:
        before = tl.load(residual + place, inside, 0.0).to(tl.float32)
    for start in range(0, k, DEPTH):
        inner = start + tl.arange(0, DEPTH)[None, :]
        here = inner < k
        given = tl.load(x + row[:, None] * k + inner, there & here, 0.0)
        if NORMED:
            wide = given.to(tl.float32)
            squares += wide * wide
            given = (wide * (by.to(tl.float32) / ROOM_ABOVE)).to(given.dtype)
            by = tl.load(norm + inner + DEPTH, inner + DEPTH < k, 0.0)
        matrix = weight + column[:, None] * k + inner
        total = times(given, matrix, wanted & here, total)
        if GATED:
            other = times(given, matrix + n * k, wanted & here, other)
    if NORMED:
        factor = ROOM_ABOVE * tl.rsqrt(tl.sum(squares, axis=1) / k + eps)[:, None]
        total *= factor
        other *= factor
    finish(total, other, first, second, before, out + place, inside, GATED)


@triton.jit
def past(
    keys, values, start_of_head, start, last,
    WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Keys and values of a turn's positions before ``last``; all on their way at once."""
    position = start + tl.arange(0, KEYS)
    place = start_of_head + position[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    seen = (position < last)[:, None]
    return tl.load(keys + place, seen, 0.0), tl.load(values + place, seen, 0.0)


@triton.jit
def one_query(
    qkv, cos, sin, keys, values, places, out, scale, each, heads, row_stride, head_stride,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A row's position turned (Su et al. 2021), kept, and its attention, one program a head:
    softmax as it goes (Milakov & Gimelshein 2018), over the row's own past and no further."""
    if EARLY:
        next_may_begin()
        wait_for_those_before()
    row, head = tl.program_id(0), tl.program_id(1)
    start_of_head = row.to(tl.int64) * row_stride + head * head_stride
    last = tl.load(places + row // each)
    told, meant = past(keys, values, start_of_head, 0, last, WIDTH, KEYS)
    lane = tl.arange(0, WIDTH)
    opposite = (lane + WIDTH // 2) % WIDTH
    given = qkv + (3 * row * heads + head) * WIDTH
    turned = row // each * WIDTH + lane
    along, across = tl.load(cos + turned).to(tl.float32), tl.load(sin + turned).to(tl.float32)
    query = tl.load(given + lane).to(tl.float32) * along
    query += tl.load(given + opposite).to(tl.float32) * across
    query *= scale
    given += heads * WIDTH
    key = tl.load(given + lane).to(tl.float32) * along
    key += tl.load(given + opposite).to(tl.float32) * across
    key = key.to(keys.dtype.element_ty)
    value = tl.load(given + heads * WIDTH + lane)
    # its own key and value are at hand, and kept last: what is written is not read here
    highest = tl.sum(query * key.to(tl.float32), axis=0)
    mixed, weight_sum = value.to(tl.float32), 1.0
    for start in range(0, last, KEYS):
        seen = start + tl.arange(0, KEYS) < last
        score = tl.sum(told.to(tl.float32) * query[None, :], axis=1)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=0))
        weight = tl.exp(score - higher)
        fade = tl.exp(highest - higher)
        mixed = mixed * fade + tl.sum(weight[:, None] * meant.to(tl.float32), axis=0)
        weight_sum = weight_sum * fade + tl.sum(weight, axis=0)
        highest = higher
        told, meant = past(keys, values, start_of_head, start + KEYS, last, WIDTH, KEYS)
    tl.store(out + (row * heads + head) * WIDTH + lane, mixed / weight_sum)
    tl.store(keys + start_of_head + last * WIDTH + lane, key)
    tl.store(values + start_of_head + last * WIDTH + lane, value)


@launching()
def linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``F.linear`` and what stands around it, summed in float32.

    Args:
        x: [rows, in] of any float dtype.
        weight: [out, in], or [2 out, in] if ``gated``: x's dtype, or int8.
        scales: float32, one for each row of an int8 weight.
        norm: [in] in x's dtype, and epsilon: RMSNorm of x (Zhang & Sennrich 2019) comes first.
        gated: SwiGLU (Shazeer 2020): silu of the first half times the second.
        residual: [rows, out] to be added.
        out: [rows, out] to be written, in one piece; None makes one.

    Returns:
        ``out``, in x's dtype.
    """
    (rows, k), n = x.shape, weight.shape[0] // (2 if gated else 1)
    x, out = x.contiguous(), x.new_empty(rows, n) if out is None else out
    by, eps = norm or (x, 0.0)
    tile = tiles(rows, x.element_size(), card.generation(x.device), gated=gated)
    grid = (triton.cdiv(n, tile["COLUMNS"]), triton.cdiv(rows, tile["ROWS"]))
    (few if rows <= FEW else many)[grid](
        x,
        weight,
        x if scales is None else scales,
        by,
        x if residual is None else residual.contiguous(),
        out,
        rows,
        n,
        k,
        eps,
        **tile,
        SCALED=scales is not None,
        NORMED=norm is not None,
        GATED=gated,
        ADDED=residual is not None,
        **beginning(x.device),
    )
    return out


@launching()
def attend(
    qkv: Tensor,
    rope: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    turn: int = KEYS,
) -> Tensor:
    """Attention of one query for each row over a static cache (Vaswani et al. 2017), which gets
    the row's key and value.

    Args:
        qkv: [rows, 3 * heads * head_dim]: queries, keys and values, not yet turned to their
            positions; head_dim a power of two.
        rope: two of [utterances, head_dim], see ``T3.rope``.
        keys, values: [at least rows, heads, capacity, head_dim], laid out alike, a head in one
            piece.
        places: int64 [utterances], where each one's rows go, and up to where they see.
        turn: positions that are looked at at once; a power of two.

    Returns:
        [rows, heads * head_dim].
    """
    rows, (_, heads, _, width) = len(qkv), keys.shape
    out = qkv.new_empty(rows, heads * width)
    given = (qkv.contiguous(), *(part.contiguous() for part in rope), keys, values, places, out)
    sizes = (rows // len(places), heads, keys.stride(0), keys.stride(1))
    constants = {"WIDTH": width, "KEYS": turn, **beginning(qkv.device)}
    one_query[(rows, heads)](*given, width**-0.5, *sizes, **constants, num_warps=WARPS)
    return out
