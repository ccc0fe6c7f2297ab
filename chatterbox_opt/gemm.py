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

from chatterbox_opt.gemv import column_scales, finish
from chatterbox_opt.kernel_launch import next_may_begin, wait_for_those_before

SMALLEST_TILE, LARGEST_TILE = 16, 64  # rows at once on the tensor cores, which want 16 or more
PROGRAMS = 256  # about two for each SM of a large GPU
HEADROOM = tl.constexpr(16.0)  # times the largest fp16, for x * norm


def gemm_tile(
    rows: int, k: int, x_size: int, generation: int = 9, *, columns: int = 16, depth: int = 0
) -> dict[str, int]:
    """Constants of ``gemm``: 4 KiB of weights in each of three tiles ahead. Before Ampere nothing
    is prefetched into shared memory, and tiles are as deep as registers allow.

    Args:
        rows: of x.
        k: the depth.
        x_size: bytes of a number of x.
        columns, depth: of a program; 0 chooses the depth.
    """
    largest = LARGEST_TILE if x_size < 4 else SMALLEST_TILE  # fp32 products need registers
    whole = min(largest, max(SMALLEST_TILE, triton.next_power_of_2(rows)))
    depth = depth or (256 // x_size if generation >= 8 else 64)
    return {
        "K": k,
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
def multiplied(given, place, inside, total):
    """total plus given times the tile [columns, depth] at ``place``."""
    tile = tl.load(place, inside, 0).to(given.dtype)
    return tl.dot(given, tl.trans(tile), total, input_precision="ieee")


@triton.jit
def scaled_by(given, by, squares):
    """x * norm / ``HEADROOM`` in x's dtype, and the sums of squares so far, [rows, depth] both."""
    wide = given.to(tl.float32)
    return (wide * (by.to(tl.float32) / HEADROOM)).to(given.dtype), squares + wide * wide


@triton.jit
def start_of_tile(scales, norm, column, n, K: tl.constexpr, DEPTH: tl.constexpr,
    SCALED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What no kernel writes: the columns' scales and the norm's first tile [1, depth]."""
    inner = tl.arange(0, DEPTH)[None, :]
    by = inner
    if NORMED:
        by = tl.load(norm + inner, inner < K, 0.0)
    first, second = column_scales(scales, column, n, SCALED, GATED)
    return first, second, by


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
    x, weight, scales, norm, residual, out, partial, arrivals, rows, n, eps,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """As ``gemv``, on the tensor cores. They multiply fp16 or bf16: x * norm is rounded before,
    once (T3's own norm rounds twice), with headroom for outliers; beyond that it becomes Inf.

    SPLITS: programs that share a tile's depth; more than one only where nothing is normed or gated.
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
    split, part = tl.program_id(2), K // SPLITS
    first, second, by = start_of_tile(scales, norm, column, n, K, DEPTH, SCALED, NORMED, GATED)
    if EARLY:
        wait_for_those_before()
    if ADDED:
        before = tl.load(residual + place, inside, 0.0).to(tl.float32)
    # the compiler prefetches the tiles of x and the weight; the norm's is prefetched here
    for start in range(split * part, split * part + part, DEPTH):
        inner = start + tl.arange(0, DEPTH)[None, :]
        here = inner < K
        given = tl.load(x + row[:, None] * K + inner, there & here, 0.0)
        if NORMED:
            given, squares = scaled_by(given, by, squares)
            by = tl.load(norm + inner + DEPTH, inner + DEPTH < K, 0.0)
        matrix = weight + column[:, None] * K + inner
        total = multiplied(given, matrix, wanted & here, total)
        if GATED:
            other = multiplied(given, matrix + n * K, wanted & here, other)
    if NORMED:
        factor = HEADROOM * tl.rsqrt(tl.sum(squares, axis=1) / K + eps)[:, None]
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
