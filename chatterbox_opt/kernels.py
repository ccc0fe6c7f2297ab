"""Kernels of our own for a card, in Triton: a decode step's products and attention, all in one.

Knows arithmetic on a card's tensors. Knows nothing of layers, caches or when these are used.
Imports Triton, so it is imported only where there is a card (or Triton's interpreter).

A decode step reads every matrix for a handful of rows: what counts is that each weight crosses the
bus once, as the byte that it is if it is one, and that little else is launched. A kernel of a
replayed graph takes two microseconds however little it does, and T3's step has nine hundred of
PyTorch's; with what stands before and behind each product done by the product it has five a layer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

FEW = 4  # rows up to which multiplying and adding keeps up with memory
SMALLEST_TILE, LARGEST_TILE = 16, 64  # rows at once in the matrix units, which want 16 or more
KEYS, WARPS = 256, 8  # positions that attention holds at a time, and threads / 32 that hold them
WIDE_WARPS = 16  # threads / 32 that hold a vocabulary


def tiles(rows: int, *, gated: bool = False) -> dict[str, int]:
    """The constants of ``product`` for so many rows.

    Few rows: a program has 8 KiB of halves on their way at once, which times the programs that a
    card holds is what covers its memory's latency; of T3's matrices most are 1,024 deep, one turn.
    """
    whole = triton.next_power_of_2(rows)
    if rows <= FEW:
        columns, depth = (2 if gated else 4), (1024 if rows <= 2 else 512)
        return {"ROWS": whole, "COLUMNS": columns, "DEPTH": depth, "UNITS": False}
    whole = min(LARGEST_TILE, max(SMALLEST_TILE, whole))
    return {"ROWS": whole, "COLUMNS": 16, "DEPTH": 64, "UNITS": True}


@triton.jit
def factors(x, row, there, k, eps, DEPTH: tl.constexpr):
    """1 / rms of rows of x [rows, k]."""
    squares = tl.zeros(row.shape, tl.float32)
    for start in range(0, k, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        place = x + row[:, None] * k + inner[None, :]
        given = tl.load(place, there & (inner < k)[None, :], 0.0).to(tl.float32)
        squares += tl.sum(given * given, axis=1)
    return tl.rsqrt(squares / k + eps)


@triton.jit
def normed(given, squares, factor, norm, UNITS: tl.constexpr):
    """A tile of x on its way through RMSNorm, and the squares so far.

    The matrix units multiply halves, so for them the tile is divided, and rounded, as T3's own norm
    does. Else all is float32 and the division comes last.
    """
    if UNITS:
        made = (given.to(tl.float32) * factor[:, None]).to(given.dtype) * norm[None, :]
    else:
        wide = given.to(tl.float32)
        squares += wide * wide
        made = wide * norm.to(tl.float32)[None, :]
    return made, squares


@triton.jit
def nothing(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, UNITS: tl.constexpr):
    """A sum's beginning. Without the matrix units each thread adds up its own terms as long as it
    can: to add across threads at every turn would take longer than the turn."""
    if UNITS:
        made = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        made = tl.zeros((ROWS, COLUMNS, DEPTH), tl.float32)
    return made


@triton.jit
def more(total, given, tile, UNITS: tl.constexpr):
    """total plus given [rows, k] times tile [n, k]."""
    if UNITS:
        made = tl.dot(given, tl.trans(tile.to(given.dtype)), total, input_precision="ieee")
    else:
        made = total + given.to(tl.float32)[:, None, :] * tile.to(tl.float32)[None, :, :]
    return made


@triton.jit
def settled(total, UNITS: tl.constexpr):
    """The sum [rows, n]."""
    return total if UNITS else tl.sum(total, axis=2)


@triton.jit
def product(
    x, weight, scales, norm, residual, out, rows, n, k, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, UNITS: tl.constexpr,
    SCALED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """out[rows, n] = x[rows, k] times weight[n, k], one program a tile of both.

    UNITS: by the matrix units, else by multiplying and adding, all of it in float32.
    SCALED: times scales[n]. NORMED: of x / rms(x) * norm[k]. GATED: weight has 2 n rows, the result
    is silu(first half) * second half. ADDED: plus residual[rows, n].
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there, wanted = (row < rows)[:, None], column < n
    total = nothing(ROWS, COLUMNS, DEPTH, UNITS)
    second = total
    squares = tl.zeros((ROWS, DEPTH), tl.float32)
    factor = tl.zeros((ROWS,), tl.float32)
    if NORMED and UNITS:
        factor = factors(x, row, there, k, eps, DEPTH)
    for start in range(0, k, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        here = inner < k
        given = tl.load(x + row[:, None] * k + inner[None, :], there & here[None, :], 0.0)
        if NORMED:
            by = tl.load(norm + inner, here, 0.0)
            given, squares = normed(given, squares, factor, by, UNITS)
        place = weight + column[:, None] * k + inner[None, :]
        inside = wanted[:, None] & here[None, :]
        total = more(total, given, tl.load(place, inside, 0), UNITS)
        if GATED:
            second = more(second, given, tl.load(place + n * k, inside, 0), UNITS)
    total, second = settled(total, UNITS), settled(second, UNITS)
    if NORMED and not UNITS:
        factor = tl.rsqrt(tl.sum(squares, axis=1) / k + eps)
        total *= factor[:, None]
        second *= factor[:, None]
    if SCALED:
        total *= tl.load(scales + column, wanted, 0.0)[None, :]
    if GATED:
        if SCALED:
            second *= tl.load(scales + n + column, wanted, 0.0)[None, :]
        total = total * tl.sigmoid(total) * second
    inside = there & wanted[None, :]
    place = row[:, None] * n + column[None, :]
    if ADDED:
        total += tl.load(residual + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, total, inside)


@triton.jit
def one_query(
    qkv, cos, sin, keys, values, places, out, scale, each, heads, row_stride, head_stride,
    WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A row's position turned (Su et al. 2021), kept, and its attention, one program a head:
    softmax as it goes (Milakov & Gimelshein 2018), over the row's own past and no further."""
    row, head = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    opposite = (lane + WIDTH // 2) % WIDTH
    given = qkv + (3 * row * heads + head) * WIDTH
    turned = row // each * WIDTH + lane
    along, across = tl.load(cos + turned).to(tl.float32), tl.load(sin + turned).to(tl.float32)
    query = tl.load(given + lane).to(tl.float32) * along
    query += tl.load(given + opposite).to(tl.float32) * across
    given += heads * WIDTH
    key = tl.load(given + lane).to(tl.float32) * along
    key += tl.load(given + opposite).to(tl.float32) * across
    key = key.to(keys.dtype.element_ty)
    value = tl.load(given + heads * WIDTH + lane)
    start_of_head = row.to(tl.int64) * row_stride + head * head_stride
    last = tl.load(places + row // each)
    tl.store(keys + start_of_head + last * WIDTH + lane, key)
    tl.store(values + start_of_head + last * WIDTH + lane, value)
    # its own key and value are at hand: what was just written is not read back
    query *= scale
    highest = tl.sum(query * key.to(tl.float32), axis=0)
    mixed, weight_sum = value.to(tl.float32), 1.0
    for start in range(0, last, KEYS):
        position = start + tl.arange(0, KEYS)
        seen = position < last
        place = start_of_head + position[:, None] * WIDTH + lane[None, :]
        past = tl.load(keys + place, seen[:, None], 0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(past * query[None, :], axis=1), float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=0))
        weight = tl.exp(score - higher)
        fade = tl.exp(highest - higher)
        past = tl.load(values + place, seen[:, None], 0.0).to(tl.float32)
        mixed = mixed * fade + tl.sum(weight[:, None] * past, axis=0)
        weight_sum = weight_sum * fade + tl.sum(weight, axis=0)
        highest = higher
    tl.store(out + (row * heads + head) * WIDTH + lane, mixed / weight_sum)


# a slot's rows begin anywhere: one kernel for all of them
@triton.jit(do_not_specialize_on_alignment=("logits", "seen", "knobs", "noise", "token"))
def chosen(
    logits, seen, knobs, noise, token, words, not_finite,
    EACH: tl.constexpr, COLUMNS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """An utterance's token, one program: ``sampler.sample`` without a ranking, in its order."""
    row = tl.program_id(0)
    word = tl.arange(0, WORDS)
    there = word < words
    asked = knobs + row * COLUMNS
    given = tl.load(logits + row * EACH * words + word, there, 0.0).to(tl.float32)
    if EACH == 2:
        uncond = tl.load(logits + (2 * row + 1) * words + word, there, 0.0).to(tl.float32)
        given += tl.load(asked) * (given - uncond)
    odd = tl.sum(tl.where(tl.abs(given) < float("inf"), 0, 1), axis=0)
    penalty = tl.load(asked + 1)
    said = tl.load(seen + row * words + word, there, 0) != 0
    given = tl.where(said, tl.where(given < 0, given * penalty, given / penalty), given)
    given = tl.where(there, given, float("-inf"))
    temperature, min_p = tl.load(asked + 2), tl.load(asked + 3)
    greedy = tl.argmax(given, axis=0)
    given /= tl.where(temperature == 0, 1.0, temperature)
    likely = tl.exp(given - tl.max(given, axis=0))
    probability = likely / tl.sum(likely, axis=0)
    kept = tl.where(probability < min_p * tl.max(probability, axis=0), 0.0, likely)
    lots = tl.load(noise + row * words + word, there, 1.0)
    drawn = tl.argmax(kept / tl.sum(kept, axis=0) / lots, axis=0)
    made = tl.where(temperature == 0, greedy, drawn)
    tl.store(token + row, tl.where(odd == 0, made, not_finite).to(tl.int64))


@contextmanager
def _launching() -> Iterator[None]:
    """Errors of Triton, and of the C compiler that it calls, made RuntimeErrors as all others of a
    device are."""
    try:
        yield
    except (TritonError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"Triton: {str(error).strip() or type(error).__name__}") from error


@_launching()
def linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """``F.linear`` and what stands around it, summed in float32.

    Args:
        x: [rows, in] of any float dtype.
        weight: [out, in], or [2 out, in] if ``gated``: x's dtype, or int8.
        scales: float32, one for each row of an int8 weight.
        norm: [in] in x's dtype, and epsilon: RMSNorm of x (Zhang & Sennrich 2019) comes first.
        gated: SwiGLU (Shazeer 2020): silu of the first half times the second.
        residual: [rows, out] to be added.

    Returns:
        [rows, out] in x's dtype.
    """
    (rows, k), n = x.shape, weight.shape[0] // (2 if gated else 1)
    x, out = x.contiguous(), x.new_empty(rows, n)
    by, eps = norm or (x, 0.0)
    tile = tiles(rows, gated=gated)
    grid = (triton.cdiv(n, tile["COLUMNS"]), triton.cdiv(rows, tile["ROWS"]))
    product[grid](
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
    )
    return out


@_launching()
def attend(
    qkv: Tensor, rope: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, places: Tensor
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

    Returns:
        [rows, heads * head_dim].
    """
    rows, (_, heads, _, width) = len(qkv), keys.shape
    out = qkv.new_empty(rows, heads * width)
    given = (qkv.contiguous(), *(part.contiguous() for part in rope), keys, values, places, out)
    sizes = (rows // len(places), heads, keys.stride(0), keys.stride(1))
    one_query[(rows, heads)](*given, width**-0.5, *sizes, WIDTH=width, KEYS=KEYS, num_warps=WARPS)
    return out


@_launching()
def sample(logits: Tensor, seen: Tensor, knobs: Tensor, noise: Tensor, not_finite: int) -> Tensor:
    """``sampler.sample`` without a ranking.

    Args:
        logits: [rows or 2 rows, V] of any float dtype.
        seen: bool [rows, V].
        knobs: float32 [rows, 6], see ``sampler.Knobs``.
        noise: float32 [rows, V].
        not_finite: in place of a token.

    Returns:
        int64 [rows].
    """
    rows, words = seen.shape
    token = torch.empty(rows, dtype=torch.long, device=logits.device)
    sizes = {"EACH": len(logits) // rows, "COLUMNS": knobs.shape[1]}
    given = (logits, seen.view(torch.uint8), knobs, noise, token)
    room = triton.next_power_of_2(words)
    chosen[(rows,)](*given, words, not_finite, **sizes, WORDS=room, num_warps=WIDE_WARPS)
    return token
