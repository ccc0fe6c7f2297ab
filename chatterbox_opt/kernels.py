"""Kernels of our own for a card, in Triton: products with an int8 matrix, attention of one query.

Knows arithmetic on a card's tensors. Knows nothing of layers, caches or when these are used.
Imports Triton, so it is imported only where there is a card (or Triton's interpreter).

A decode step reads every matrix for a handful of rows: what counts is that each weight crosses the
bus once, as the byte that it is, and is widened in registers. cuBLAS has no such product.
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
KEYS = 128  # that attention holds at a time


def tiles(rows: int) -> dict[str, int]:
    """The constants of ``product`` for so many rows."""
    whole = triton.next_power_of_2(rows)
    if rows <= FEW:
        return {"ROWS": whole, "COLUMNS": 4, "DEPTH": 512, "UNITS": False}
    whole = min(LARGEST_TILE, max(SMALLEST_TILE, whole))
    return {"ROWS": whole, "COLUMNS": 32, "DEPTH": 128, "UNITS": True}


@triton.jit
def product(
    x, weight, scales, out, rows, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """out[rows, n] = x[rows, k] times weight[n, k], times scales[n]; one program a tile of both.

    UNITS: by the matrix units, else by multiplying and adding.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, k, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        here = inner < k
        given = tl.load(
            x + row[:, None] * k + inner[None, :], (row < rows)[:, None] & here[None, :], 0.0
        )
        whole = tl.load(
            weight + column[:, None] * k + inner[None, :], (column < n)[:, None] & here[None, :], 0
        )
        if UNITS:
            other = tl.trans(whole.to(given.dtype))
            total = tl.dot(given, other, total, input_precision="ieee")
        else:
            terms = given.to(tl.float32)[:, None, :] * whole.to(tl.float32)[None, :, :]
            total += tl.sum(terms, axis=2)
    total *= tl.load(scales + column, column < n, 0.0)[None, :]
    place = out + row[:, None] * n + column[None, :]
    tl.store(place, total, (row < rows)[:, None] & (column < n)[None, :])


@triton.jit
def one_query(
    q, keys, values, places, out, scale, heads, row_stride, head_stride,
    WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Attention of a row's only query, one program a head: softmax as it goes (Milakov &
    Gimelshein 2018), up to the row's own position and no further."""
    row, head = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, WIDTH)
    query = tl.load(q + (row * heads + head) * WIDTH + lane).to(tl.float32) * scale
    start_of_head = row.to(tl.int64) * row_stride + head * head_stride
    last = tl.load(places + row)
    # one more than the highest score so far would give the same: any finite number is a start
    highest, weight_sum = -1e30, 0.0
    mixed = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, last + 1, KEYS):
        position = start + tl.arange(0, KEYS)
        seen = position <= last
        place = start_of_head + position[:, None] * WIDTH + lane[None, :]
        key = tl.load(keys + place, seen[:, None], 0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(key * query[None, :], axis=1), float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=0))
        weight = tl.exp(score - higher)
        fade = tl.exp(highest - higher)
        value = tl.load(values + place, seen[:, None], 0.0).to(tl.float32)
        mixed = mixed * fade + tl.sum(weight[:, None] * value, axis=0)
        weight_sum = weight_sum * fade + tl.sum(weight, axis=0)
        highest = higher
    tl.store(out + (row * heads + head) * WIDTH + lane, mixed / weight_sum)


@contextmanager
def _launching() -> Iterator[None]:
    """Errors of Triton, and of the C compiler that it calls, made RuntimeErrors as all others of a
    device are."""
    try:
        yield
    except (TritonError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"Triton: {str(error).strip() or type(error).__name__}") from error


@_launching()
def int8_product(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """``F.linear`` over an int8 matrix, summed in float32.

    Args:
        x: [rows, in] of any float dtype.
        weight: int8 [out, in].
        scales: float32 [out].

    Returns:
        [rows, out] in x's dtype.
    """
    (rows, k), n = x.shape, weight.shape[0]
    x, out = x.contiguous(), x.new_empty(rows, n)
    tile = tiles(rows)
    grid = (triton.cdiv(n, tile["COLUMNS"]), triton.cdiv(rows, tile["ROWS"]))
    product[grid](x, weight, scales, out, rows, n, k, **tile)
    return out


@_launching()
def attend(q: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """Attention of one query for each row over a static cache (Vaswani et al. 2017).

    Args:
        q: [rows, heads, 1, head_dim]; head_dim a power of two.
        keys, values: [at least rows, heads, capacity, head_dim], laid out alike, a head in one
            piece.
        places: int64 [rows], the last position that each row may see.

    Returns:
        [rows, heads, 1, head_dim].
    """
    rows, heads, _, width = q.shape
    q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    strides = (keys.stride(0), keys.stride(1))
    one_query[(rows, heads)](
        q, keys, values, places, out, width**-0.5, heads, *strides, WIDTH=width, KEYS=KEYS
    )
    return out


def right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether every kernel gives here what is known beforehand; small whole numbers, so exactly."""
    weight = torch.ones(8, 64, dtype=torch.int8, device=device)
    scales = torch.full((8,), 0.5, device=device)
    for rows in (FEW, SMALLEST_TILE):
        x = torch.ones(rows, 64, dtype=dtype, device=device)
        if not torch.equal(int8_product(x, weight, scales), torch.full_like(x[:, :8], 32.0)):
            return False
    values = torch.full((1, 1, 2 * KEYS, 64), torch.nan, dtype=dtype, device=device)
    values[..., : KEYS + 1, :] = 3.0
    q, places = torch.ones_like(values[:, :, :1]), torch.tensor([KEYS], device=device)
    found = attend(q, torch.zeros_like(values), values, places)
    return bool(torch.equal(found, torch.full_like(q, 3.0)))
