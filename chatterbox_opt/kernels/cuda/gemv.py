"""GPU kernel of a decode step's matrix-vector products, in Triton, fused with what surrounds them.

Responsible for the product of one to four rows with a matrix. Not responsible for more rows
(gemm.py), for choosing between the two (decode_linear.py), or for layers. Imports Triton, so it is
imported only where there is a GPU (or Triton's interpreter).

A decode step multiplies a few rows by every matrix of T3. Each weight is used once for each row, so
what limits the step is how fast weights come from memory: 1.02 GB in fp16, 0.3 ms at an H100's
3.35 TB/s. Two things keep a plain kernel from that.

*Launches.* A replayed CUDA graph spends about 2 us on a kernel however little it does, and T3's
step has 870 of PyTorch's. So RMSNorm, SwiGLU, dequantization and the residual are computed by the
product next to them: five kernels a layer.

*Bytes in flight.* Memory answers after some 700 ns. To keep 3.35 TB/s busy over that time, 2.3 MB,
18 KiB for each of 132 SMs, must be requested and not yet there, always; about 40 KiB with the gaps
at the beginning and the end of programs. Loads in flight need registers to arrive in, so
registers that hold anything else cost bandwidth.

    thread       0         1        ...    31        0         1       ...
    row 0    [ piece 0 | piece 1 | ... | piece 31 | piece 32 | piece 33 | ... ]   16 bytes each
    row 1    [ piece 0 | piece 1 | ... ]

A program has a few rows of the weight (columns of the result), and all of their depth K at once:
every load is issued before anything else happens, even before the kernel waits for the one before
it (kernels/cuda/launch.py). A piece is what a thread loads by one instruction, 16 bytes: 8 fp16 or 16
int8 weights; x is read in the same pieces. A thread sums its own products of a piece at once, so
what it keeps is one number for each piece, row and column and not one for each weight: that leaves
the registers to the loads (benchmarks/gpu/resources.py prints both). Threads are summed up once,
at the end; a program of one warp needs no barrier for that.

Tensors here have the depth as their *first* axis and the piece as their last,
[K / piece, rows, columns, piece]. Triton's compiler gives threads to the contiguous axis first and
then to the others in this order, so x and the weight lie in threads alike. With the depth in
another place each would get a layout of its own, and every tile would be converted through shared
memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chatterbox_opt.kernels.cuda.launch import gdc_launch_dependents, gdc_wait

MAX_GEMV_ROWS = 4  # rows up to which the plain cores keep up with memory
DEEPEST = 4096  # of K, that a program of ``gemv`` has at once
WARP_WEIGHTS, WARP_INPUTS = 8192, 4096  # bytes that a warp of ``gemv`` holds, at most
SCHEDULERS = 512  # about as many as a large GPU has: each wants a warp


def gemv_tile(
    rows: int, n: int, k: int, sizes: tuple[int, int], *, gated: bool = False, columns: int = 0
) -> dict[str, int]:
    """Constants of ``gemv``.

    Args:
        rows: of x, at most ``MAX_GEMV_ROWS``.
        n, k: columns of the result, and the depth.
        sizes: bytes of a number of x and of the weight.
        columns: of a program; 0 chooses: four rows of the weight, or two where there would not
            be a warp for each scheduler.
    """
    x_size, size = sizes
    depth = min(DEEPEST, triton.next_power_of_2(k))
    whole = triton.next_power_of_2(rows)
    width = 16 // x_size
    piece = min(16 // size, 2 * width, depth)

    def warps(columns: int) -> int:
        weights = depth * columns * size * (2 if gated else 1)
        needed = max(weights // WARP_WEIGHTS, whole * depth * x_size // WARP_INPUTS, 1)
        # more would be without a piece; Triton allows 32
        return min(triton.next_power_of_2(needed), max(1, depth // piece // 32), 16)

    if not columns:
        columns = 2 if gated else 4
        columns //= 1 if n * warps(columns) >= columns * SCHEDULERS else 2
    return {
        "ROWS": whole,
        "COLUMNS": columns,
        "DEPTH": depth,
        "PIECE": piece,
        "WIDTH": min(width, piece),
        "num_warps": warps(columns),
    }


@triton.jit
def column_scales(scales, column, n, SCALED: tl.constexpr, GATED: tl.constexpr):
    """The scales of a tile's columns, and of the second half's: [1, columns], or 1."""
    first, second = 1.0, 1.0
    if SCALED:
        first = tl.load(scales + column, column < n, 0.0)[None, :]
        if GATED:
            second = tl.load(scales + n + column, column < n, 0.0)[None, :]
    return first, second


@triton.jit
def finish(total, other, first, second, residual, place, inside, GATED: tl.constexpr):
    """Scale, gate, add the residual, and store a tile [rows, columns]."""
    total *= first
    if GATED:
        total = total * tl.sigmoid(total) * (other * second)
    tl.store(place, total + residual, inside)


@triton.jit
def load_16_bytes(
    pointer, start, there,
    K: tl.constexpr, DEPTH: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """WIDTH numbers of each piece, [depth / piece, rows, columns, width]."""
    inner = tl.arange(0, DEPTH // PIECE)[:, None] * PIECE + tl.arange(0, WIDTH)[None, :]
    inner = tl.expand_dims(tl.expand_dims(start + inner, 1), 1)
    if K % DEPTH != 0:
        there = there & (inner < K)
    return tl.load(pointer + inner, there, 0)


@triton.jit
def load_pieces(
    pointer, start, there,
    K: tl.constexpr, DEPTH: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile [depth / piece, rows, columns, piece], from ``start`` on, zeros beyond ``K``.

    A thread gets whole pieces: where 16 bytes are half of one (fp16 beside int8), it loads twice.

    Args:
        pointer, there: [1, rows, columns, 1], where rows begin, and which of them there are.
    """
    tile = load_16_bytes(pointer, start, there, K, DEPTH, PIECE, WIDTH)
    if PIECE > WIDTH:
        second = load_16_bytes(pointer, start + WIDTH, there, K, DEPTH, PIECE, WIDTH)
        tile = tl.permute(tl.join(tile, second), (0, 1, 2, 4, 3))
        tile = tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], PIECE))
    return tile


@triton.jit
def prefetch(
    matrix, norm, start, wanted, n,
    K: tl.constexpr, DEPTH: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr,
    NORMED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Tiles of the weight, of its second half if GATED, and of the norm if NORMED."""
    tile = load_pieces(matrix, start, wanted, K, DEPTH, PIECE, PIECE)
    gate, by = tile, tile
    if GATED:
        gate = load_pieces(matrix + n * K, start, wanted, K, DEPTH, PIECE, PIECE)
    if NORMED:
        one = tl.zeros((1, 1, 1, 1), tl.int32)
        by = load_pieces(norm + one, start, one == 0, K, DEPTH, PIECE, WIDTH)
    return tile, gate, by


@triton.jit
def gemv(
    x, weight, scales, norm, residual, out, rows, n, eps,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PIECE: tl.constexpr, WIDTH: tl.constexpr,
    SCALED: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    """out[rows, n] = x[rows, K] times weight[n, K], summed in fp32; one program a tile.

    SCALED: times scales[n]. NORMED: of x / rms(x) * norm[K]. GATED: weight has 2 n rows, the result
    is silu(first half) * second half. ADDED: plus residual[rows, n]. EARLY: see kernels/cuda/launch.py.
    """
    if USE_PDL:
        gdc_launch_dependents()
    row, column = tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    place = row[:, None] * n + column[None, :]
    inside = (row < rows)[:, None] & (column < n)[None, :]
    row_axis, column_axis = row[None, :, None, None], column[None, None, :, None]
    matrix, wanted = weight + column_axis * K, column_axis < n
    # 1. prefetch what no kernel writes
    tile, gate, by = prefetch(matrix, norm, 0, wanted, n, K, DEPTH, PIECE, WIDTH, NORMED, GATED)
    first, second = column_scales(scales, column, n, SCALED, GATED)
    if USE_PDL:
        gdc_wait()
    before = 0.0
    if ADDED:
        before = tl.load(residual + place, inside, 0.0).to(tl.float32)
    # 2. each thread sums its own products; K is one tile deep unless it is above ``DEEPEST``
    total = tl.zeros((DEPTH // PIECE, ROWS, COLUMNS), tl.float32)
    other, squares = total, tl.zeros((DEPTH // PIECE, ROWS, 1), tl.float32)
    for start in tl.static_range(0, K, DEPTH):
        given = load_pieces(x + row_axis * K, start, row_axis < rows, K, DEPTH, PIECE, WIDTH)
        given = given.to(tl.float32)
        if NORMED:
            squares += tl.sum(given * given, axis=3)
            given *= by.to(tl.float32)
        total += tl.sum(given * tile.to(tl.float32), axis=3)
        if GATED:
            other += tl.sum(given * gate.to(tl.float32), axis=3)
        if start + DEPTH < K:
            tile, gate, by = prefetch(
                matrix, norm, start + DEPTH, wanted, n, K, DEPTH, PIECE, WIDTH, NORMED, GATED
            )
    # 3. threads are summed up
    summed, gates = tl.sum(total, axis=0), tl.sum(other, axis=0)
    if NORMED:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        summed *= factor
        gates *= factor
    finish(summed, gates, first, second, before, out + place, inside, GATED)
