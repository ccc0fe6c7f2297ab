"""Fused GEMM of a decode step's batch: ``F.linear`` of more than four rows, on the tensor cores.

Responsible for the product of more rows than gemv.py takes. Not responsible for layers or for
choosing a kernel (decode_linear.py). Imports Triton, as gemv.py does.

*Tiles.* out[rows, n] = x[rows, k] @ weight[n, k].T is cut into tiles of BLOCK_M rows and BLOCK_N
columns, a program each. A program walks along k in steps of BLOCK_K and accumulates in fp32:

                 k ->                          n ->
          +----+----+----+----+             +-----+-----+-----+
     rows | x0 | x1 | x2 | x3 |  BLOCK_M    |     | acc |     |     acc += x0 @ w0.T
          +----+----+----+----+             +-----+-----+-----+     acc += x1 @ w1.T  ...
                                                     ^
          | w0 | w1 | w2 | w3 |  BLOCK_N = 16 rows of the weight

Rows are few (2 per sequence under classifier-free guidance) and the weight is large, so even a
batch is mostly bound by HBM: each weight should be read once, with enough reads in flight. A
weight tile is 16 x 128 fp16 = 4 KiB. With ``num_stages = 4`` Triton prefetches three tiles into
shared memory (cp.async), where they occupy no registers, while the tensor cores work on the
fourth. Before Ampere there is no cp.async: tiles are as deep as registers allow.

*Split-K.* A tile of 16 columns gives n / 16 programs. Two of T3's matrices have n = 1024: 64
programs for an H100's 132 SMs, half of which would idle. ``num_splits`` then cuts k as well:

    n = 1024, k = 1024, BLOCK_K = 128: 64 tiles x 4 splits = 256 programs, two K steps each

    split 0  k    0 ..  255  -> partial[0] -+
    split 1  k  256 ..  511  -> partial[1] -+-- atomic counter of the tile: the program that
    split 2  k  512 ..  767  -> partial[2] -+   arrives last adds the four and runs the epilogue
    split 3  k  768 .. 1023  -> partial[3] -+

The last program always adds the partial sums in the order 0, 1, 2, 3, so results do not depend on
which one is last; atomic adds into the result would. It resets the counter for the next kernel.

*RMSNorm* is x / rms(x) * norm: its weight is multiplied into the matrix tile, its row factor into
the result. The sum of squares is accumulated from the x tiles that are loaded anyway, so x goes
to the tensor cores unchanged. Scaling x instead could overflow fp16 where it has outliers.

*LayerNorm* of a row needs its mean and deviation, which are known after the loop. So two sums of
each column are taken along the way, g and b being the norm's weight and bias:

    sum_k ((x_k - mean) / std g_k + b_k) w_k
        = (sum_k x_k g_k w_k - mean sum_k g_k w_k) / std + sum_k b_k w_k

*Why not cuBLAS.* It would need norm, gate, dequantization and residual as kernels of their own
(launches dominate a decode step, see gemv.py), could not multiply int8 weights with fp16 rows, and
is not launched with programmatic dependent launch. The stage "lab" of benchmarks/gpu times both.
Limits: registers of fp32 products and of large tiles, hence ``gemm_tile``'s exceptions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chatterbox_opt.kernels.cuda.gemv import (
    epilogue,
    load_bias,
    load_residual,
    load_scales,
)
from chatterbox_opt.kernels.cuda.launch import gdc_launch_dependents, gdc_wait

SMALLEST_TILE, LARGEST_TILE = 16, 64  # BLOCK_M; tensor cores need 16 or more
TARGET_PROGRAMS = 256  # about two for each SM of a large GPU


def gemm_tile(
    rows: int, x_size: int, generation: int = 9, *, columns: int = 16, depth: int = 0
) -> dict[str, int]:
    """Constants of ``gemm``: 4 KiB of weights in each of three prefetched tiles. Before Ampere
    nothing is prefetched into shared memory, and tiles are as deep as registers allow.

    Args:
        rows: of x.
        x_size: bytes of an element of x.
        generation: major compute capability.
        columns, depth: BLOCK_N and BLOCK_K; 0 chooses BLOCK_K.
    """
    # fp32 products need registers, and so do tiles where nothing is prefetched into shared memory
    largest = LARGEST_TILE if x_size < 4 and generation >= 8 else SMALLEST_TILE
    if generation == 12:  # it would spill
        largest = min(largest, LARGEST_TILE // 2)
    block_m = min(largest, max(SMALLEST_TILE, triton.next_power_of_2(rows)))
    depth = depth or (256 // x_size if generation >= 8 else 64)
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": columns,
        "BLOCK_K": depth,
        "num_warps": 4,
        "num_stages": 4,
    }


def num_splits(tiles: int, k: int, block_k: int) -> int:
    """Into how many equal parts ``gemm`` splits k so that about ``TARGET_PROGRAMS`` run; a part is
    at least two tiles deep."""
    splits = 1
    while 2 * splits * tiles <= TARGET_PROGRAMS and k % (4 * splits * block_k) == 0:
        splits *= 2
    return splits


@triton.jit
def apply_layer_norm(acc, total, squares, column_total, bias_total, k, eps):
    """LayerNorm (Ba et al. 2016) of the rows whose product with the weight is ``acc``.

    Args:
        acc: [rows, columns], of the rows as they are with the matrix times the norm's weight.
        total, squares: [rows, 1], sums of a row's elements and of their squares.
        column_total, bias_total: [1, columns], sums over k of the matrix times the norm's weight,
            and times its bias.
    """
    mean = total / k
    variance = tl.maximum(squares / k - mean * mean, 0.0)
    return (acc - mean * column_total) * tl.rsqrt(variance + eps) + bias_total


@triton.jit
def sum_vectors(tile):
    """[n, block_k] to [n, block_k / 8]: sums of the eight elements that a thread loads together."""
    return tl.sum(tl.reshape(tile, (tile.shape[0], tile.shape[1] // 8, 8)), axis=2)


@triton.jit
def dot_tile(
    x_tile, pointers, norm_weight, norm_bias, mask, acc, column_totals, bias_totals,
    HAS_NORM: tl.constexpr, LAYER_NORM: tl.constexpr,
):  # fmt: skip
    """acc + x_tile @ tile.T for the weight tile [columns, block_k] at ``pointers``; and with
    LAYER_NORM the tile's sums (``apply_layer_norm``), [columns, block_k / 8] each."""
    tile = tl.load(pointers, mask, 0)
    if LAYER_NORM:
        bias_totals += sum_vectors(tile.to(tl.float32) * norm_bias.to(tl.float32))
    if HAS_NORM:
        tile = tile.to(tl.float32) * norm_weight.to(tl.float32)
    tile = tile.to(x_tile.dtype)
    if LAYER_NORM:  # of what is multiplied: so the mean cancels
        column_totals += sum_vectors(tile.to(tl.float32))
    acc = tl.dot(x_tile, tl.trans(tile), acc, input_precision="ieee")
    return acc, column_totals, bias_totals


@triton.jit
def norm_tile(
    norm, norm_bias, offsets, mask, x_tile, totals, squares,
    HAS_NORM: tl.constexpr, LAYER_NORM: tl.constexpr,
):  # fmt: skip
    """The norm's weight and bias [1, block_k], and the sums so far of x and of its squares, each
    [rows, block_k / 8]."""
    norm_weight, bias_tile = offsets, offsets
    if HAS_NORM:
        norm_weight = tl.load(norm + offsets, mask, 0.0)
        x_fp32 = x_tile.to(tl.float32)
        squares += sum_vectors(x_fp32 * x_fp32)
        if LAYER_NORM:
            bias_tile = tl.load(norm_bias + offsets, mask, 0.0)
            totals += sum_vectors(x_fp32)
    return norm_weight, bias_tile, totals, squares


@triton.jit
def reduce_splits(partial, stride, mask, acc, SPLIT_K: tl.constexpr):
    """The sum of a tile's partial sums, always in the same order. Bypasses L1 (.cg), which may hold
    stale lines. ``acc`` only gives the shape."""
    acc = tl.zeros_like(acc)
    for split in tl.static_range(SPLIT_K):
        acc += tl.load(partial + split * stride, mask, 0.0, cache_modifier=".cg")
    return acc


@triton.jit
def gemm(
    x, weight, scales, bias, norm, norm_bias, residual, out, partial, arrivals, rows, n, k, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    LAYER_NORM: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """As ``gemv``, on the tensor cores, which multiply fp16 or bf16: the weight times the norm's
    weight is rounded once more.

    SPLIT_K: programs that share a tile's K; more than one only without norm and gate.
    """
    if USE_PDL:
        gdc_launch_dependents()
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_x, in_weight = (row < rows)[:, None], (column < n)[:, None]
    out_offsets, out_mask = row[:, None] * n + column[None, :], in_x & (column < n)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = acc
    squares = tl.zeros((BLOCK_M, BLOCK_K // 8), tl.float32)
    totals, column_totals = squares, tl.zeros((BLOCK_N, BLOCK_K // 8), tl.float32)
    bias_totals = column_totals
    split, split_k = tl.program_id(2), k
    if SPLIT_K > 1:  # see ``num_splits``; the compiler must know it, to copy 16 bytes at once
        split_k = tl.multiple_of(k // SPLIT_K, 2 * BLOCK_K)
    # 1. load what no kernel writes, then wait for the previous kernel
    scale, up_scale = load_scales(scales, column, n, HAS_SCALES, GATED)
    shift = load_bias(bias, column, n, HAS_BIAS)
    if USE_PDL:
        gdc_wait()
    added = load_residual(residual + out_offsets, out_mask, HAS_RESIDUAL)
    # 2. main loop along K; Triton pipelines the loads of x, the weight and the norm's weight
    for start in range(split * split_k, split * split_k + split_k, BLOCK_K):
        offsets = start + tl.arange(0, BLOCK_K)[None, :]
        in_k = offsets < k
        x_tile = tl.load(x + row[:, None] * k + offsets, in_x & in_k, 0.0)
        norm_weight, bias_tile, totals, squares = norm_tile(
            norm, norm_bias, offsets, in_k, x_tile, totals, squares, HAS_NORM, LAYER_NORM
        )
        pointers = weight + column[:, None] * k + offsets
        acc, column_totals, bias_totals = dot_tile(
            x_tile, pointers, norm_weight, bias_tile, in_weight & in_k, acc,
            column_totals, bias_totals, HAS_NORM, LAYER_NORM,
        )  # fmt: skip
        if GATED:
            up, column_totals, bias_totals = dot_tile(
                x_tile, pointers + n * k, norm_weight, bias_tile, in_weight & in_k, up,
                column_totals, bias_totals, HAS_NORM, LAYER_NORM,
            )  # fmt: skip
    if LAYER_NORM:
        acc = apply_layer_norm(
            acc, tl.sum(totals, axis=1)[:, None], tl.sum(squares, axis=1)[:, None],
            tl.sum(column_totals, axis=1)[None, :], tl.sum(bias_totals, axis=1)[None, :], k, eps,
        )  # fmt: skip
    elif HAS_NORM:
        rms_inverse = tl.rsqrt(tl.sum(squares, axis=1) / k + eps)[:, None]
        acc *= rms_inverse
        up *= rms_inverse
    # 3. store, or let the last program to arrive add up the splits
    if SPLIT_K == 1:
        epilogue(
            acc, up, scale, up_scale, shift, added, out + out_offsets, out_mask,
            HAS_BIAS, GATED, GELU,
        )  # fmt: skip
    else:
        counter = arrivals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(partial + split * rows * n + out_offsets, acc, out_mask)
        tl.debug_barrier()  # every thread has stored before one of them increments the counter
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT_K - 1:
            acc = reduce_splits(partial + out_offsets, rows * n, out_mask, acc, SPLIT_K)
            epilogue(
                acc, up, scale, up_scale, shift, added, out + out_offsets, out_mask,
                HAS_BIAS, GATED, GELU,
            )  # fmt: skip
            tl.store(counter, 0)  # for the next kernel
