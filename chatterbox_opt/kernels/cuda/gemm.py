"""GPU kernel of a decode step's products of many rows (a batch), in Triton, fused as gemv.py's.

Responsible for the product of more rows than gemv.py takes. Not responsible for layers or for
choosing a kernel (decode_linear.py). Imports Triton, as gemv.py does.

Products are those of the tensor cores; tiles of x and of the weight are prefetched into shared
memory by the compiler. Where a matrix has too few columns to give every SM a program (two of T3's
have 64 tiles for an H100's 132 SMs), the depth is split: several programs sum a part each and
store it, and the last to finish, as an atomic counter tells, adds the parts up, always in the
same order, and resets the counter for the next kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chatterbox_opt.kernels.cuda.gemv import column_scales, finish
from chatterbox_opt.kernels.cuda.launch import gdc_launch_dependents, gdc_wait

SMALLEST_TILE, LARGEST_TILE = 16, 64  # rows at once on the tensor cores, which want 16 or more
PROGRAMS = 256  # about two for each SM of a large GPU


def gemm_tile(
    rows: int, x_size: int, generation: int = 9, *, columns: int = 16, depth: int = 0
) -> dict[str, int]:
    """Constants of ``gemm``: 4 KiB of weights in each of three tiles ahead. Before Ampere nothing
    is prefetched into shared memory, and tiles are as deep as registers allow.

    Args:
        rows: of x.
        x_size: bytes of a number of x.
        columns, depth: of a program; 0 chooses the depth.
    """
    # fp32 products need registers, and so do tiles where nothing is prefetched into shared memory
    largest = LARGEST_TILE if x_size < 4 and generation >= 8 else SMALLEST_TILE
    if generation == 12:  # it would spill
        largest = min(largest, LARGEST_TILE // 2)
    whole = min(largest, max(SMALLEST_TILE, triton.next_power_of_2(rows)))
    depth = depth or (256 // x_size if generation >= 8 else 64)
    return {
        "ROWS": whole,
        "COLUMNS": columns,
        "DEPTH": depth,
        "num_warps": 4,
        "num_stages": 4,
    }


def splits(programs: int, k: int, depth: int) -> int:
    """Into how many parts ``gemm`` cuts a depth so that about ``PROGRAMS`` run: each at least two
    tiles deep, all alike."""
    parts = 1
    while 2 * parts * programs <= PROGRAMS and k % (4 * parts * depth) == 0:
        parts *= 2
    return parts


@triton.jit
def multiplied(given, place, by, inside, total, NORMED: tl.constexpr):
    """total plus given times the tile [columns, depth] at ``place``, scaled by ``by`` if NORMED."""
    tile = tl.load(place, inside, 0)
    if NORMED:
        tile = tile.to(tl.float32) * by.to(tl.float32)
    return tl.dot(given, tl.trans(tile.to(given.dtype)), total, input_precision="ieee")


@triton.jit
def norm_tile(norm, inner, here, given, squares, NORMED: tl.constexpr):
    """The norm's weight [1, depth], and the sums of squares so far [rows, depth / 8], each of the
    eight numbers that a thread loads together."""
    by = inner
    if NORMED:
        by = tl.load(norm + inner, here, 0.0)
        wide = given.to(tl.float32)
        pieces = tl.reshape(wide * wide, (squares.shape[0], squares.shape[1], 8))
        squares += tl.sum(pieces, axis=2)
    return by, squares


@triton.jit
def summed(part, step, inside, total, SPLITS: tl.constexpr):
    """The parts of a tile, always in the same order. Read past L1, which may hold what was there
    before. ``total`` has the tile's shape."""
    total = tl.zeros_like(total)
    for each in tl.static_range(SPLITS):
        total += tl.load(part + each * step, inside, 0.0, cache_modifier=".cg")
    return total


@triton.jit
def gemm(
    x, weight, scales, norm, residual, out, partial, arrivals, rows, n, k, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    """As ``gemv``, on the tensor cores. They multiply fp16 or bf16, so the norm's weight is
    multiplied into the matrix, which is rounded once more: x, which may have outliers, goes to
    them as it lies in memory, without a detour through registers.

    SPLITS: programs that share a tile's depth; more than one only where nothing is normed or gated.
    """
    if USE_PDL:
        gdc_launch_dependents()
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there, wanted = (row < rows)[:, None], (column < n)[:, None]
    place, inside = row[:, None] * n + column[None, :], there & (column < n)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    other, before = total, 0.0
    squares = tl.zeros((ROWS, DEPTH // 8), tl.float32)
    split, part = tl.program_id(2), k
    if SPLITS > 1:  # see ``splits``; the compiler must know, to copy 16 bytes at once
        part = tl.multiple_of(k // SPLITS, 2 * DEPTH)
    first, second = column_scales(scales, column, n, SCALED, GATED)
    if USE_PDL:
        gdc_wait()
    if ADDED:
        before = tl.load(residual + place, inside, 0.0).to(tl.float32)
    # the compiler prefetches the tiles of x, of the weight and of the norm
    for start in range(split * part, split * part + part, DEPTH):
        inner = start + tl.arange(0, DEPTH)[None, :]
        here = inner < k
        given = tl.load(x + row[:, None] * k + inner, there & here, 0.0)
        by, squares = norm_tile(norm, inner, here, given, squares, NORMED)
        matrix = weight + column[:, None] * k + inner
        total = multiplied(given, matrix, by, wanted & here, total, NORMED)
        if GATED:
            other = multiplied(given, matrix + n * k, by, wanted & here, other, NORMED)
    if NORMED:
        factor = tl.rsqrt(tl.sum(squares, axis=1) / k + eps)[:, None]
        total *= factor
        other *= factor
    if SPLITS == 1:
        finish(total, other, first, second, before, out + place, inside, GATED)
    else:
        counter = arrivals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(partial + split * rows * n + place, total, inside)
        tl.debug_barrier()  # all threads have stored before one of them says so
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            total = summed(partial + place, rows * n, inside, total, SPLITS)
            finish(total, other, first, second, before, out + place, inside, GATED)
            tl.store(counter, 0)  # for the next kernel
