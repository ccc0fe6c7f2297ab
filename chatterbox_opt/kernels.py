"""Kernels of our own for a card, in Triton: products with an int8 matrix, attention of one query.

Knows arithmetic on a card's tensors. Knows nothing of layers, caches or when these are used.
Imports Triton, so it is imported only where there is a card (or Triton's interpreter).

A decode step reads every matrix for a handful of rows: what counts is that each weight crosses the
bus once, as the byte that it is, and is widened in registers. cuBLAS has no such product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

FEW = 4  # rows up to which multiply-and-add keeps up with memory; beyond, the matrix units
COLUMNS, DEPTH = 4, 512  # of the matrix in one program's hands, for few rows
TILE_COLUMNS, TILE_DEPTH, TILE_ROWS = 32, 128, 64  # and for many; tl.dot wants 16 rows or more
SMALLEST_TILE = 16
KEYS = 128  # that attention holds at a time


@triton.jit
def few_rows(
    x, weight, scales, out, rows, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[rows, n] = x[rows, k] times weight[n, k], times scales[n]; one program a few columns."""
    row = tl.arange(0, ROWS)
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
        terms = given.to(tl.float32)[:, None, :] * whole.to(tl.float32)[None, :, :]
        total += tl.sum(terms, axis=2)
    total *= tl.load(scales + column, column < n, 0.0)[None, :]
    place = out + row[:, None] * n + column[None, :]
    tl.store(place, total, (row < rows)[:, None] & (column < n)[None, :])


@triton.jit
def many_rows(
    x, weight, scales, out, rows, n, k,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The same; one program a tile of rows and columns."""
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
            weight + column[None, :] * k + inner[:, None], (column < n)[None, :] & here[:, None], 0
        )
        total = tl.dot(given, whole.to(given.dtype), total, input_precision="ieee")
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
    """Triton's errors, which are no RuntimeErrors as all others of a device are, made such."""
    try:
        yield
    except TritonError as error:
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
    given = (x, weight, scales, out, rows, n, k)
    if rows <= FEW:
        tile = triton.next_power_of_2(rows)
        few_rows[(triton.cdiv(n, COLUMNS),)](*given, ROWS=tile, COLUMNS=COLUMNS, DEPTH=DEPTH)
        return out
    tile = min(TILE_ROWS, max(SMALLEST_TILE, triton.next_power_of_2(rows)))
    grid = (triton.cdiv(n, TILE_COLUMNS), triton.cdiv(rows, tile))
    many_rows[grid](*given, ROWS=tile, COLUMNS=TILE_COLUMNS, DEPTH=TILE_DEPTH)
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
