"""Fused GEMV of a decode step: ``F.linear`` of one to four rows, in Triton.

Responsible for the product of one to four rows with a matrix. Not responsible for more rows
(gemm.py), for choosing between the two (decode_linear.py), or for layers. Imports Triton, so it is
imported only where there is a GPU (or Triton's interpreter).

A decode step multiplies a few rows by every matrix of T3. Each weight is used once per row, so the
step is bound by HBM bandwidth: 1.02 GB in fp16, 0.3 ms at an H100's 3.35 TB/s. cuBLAS does not
get there, for two reasons.

*Launches.* A replayed CUDA graph spends about 2 us on a kernel however little it does, and a T3
step is 870 kernels in PyTorch. So norm, SwiGLU or gelu, dequantization, bias and residual are fused
into the product next to them: five kernels a layer.

*Bytes in flight.* HBM answers after some 700 ns. To keep 3.35 TB/s busy for that long, 2.3 MB, or
18 KiB for each of 132 SMs, must be requested and not yet received at any time; about 40 KiB to
cover the start and the end of programs. A load in flight occupies the registers it will arrive in,
so every register that holds something else costs bandwidth.

    thread        0          1        ...      31         0          1       ...
    row 0    [ vector 0 | vector 1 | ... | vector 31 | vector 32 | vector 33 | ... ]  16 bytes each
    row 1    [ vector 0 | vector 1 | ... ]

1. A program computes ``BLOCK_N`` columns of the result: that many rows of the weight, over all of
   K at once. It issues all of its loads first, before the ``gdc_wait`` for the previous kernel
   (launch.py): weights are not written by any kernel.
2. A vector is what one load instruction brings to a thread, 16 bytes: 8 fp16 or 16 int8 weights.
   x is loaded in vectors of the same length. The thread reduces a vector's products at once, so
   an accumulator is one number per (vector, row, column) and not one per weight, which leaves the
   registers to the loads (benchmarks/gpu/resources.py prints both).
3. One reduction over threads at the end. A program of one warp needs no barrier for it.

*Layout.* Tensors in the kernel are [K / vector, rows, columns, vector], K first. Triton assigns
threads to the contiguous axis first and then to the others in this order, so x and the weight get
the same layout. With K in another position each would have its own, and every tile would be
converted through shared memory.

*Norms.* The statistics of a row are known when all of it has been read. RMSNorm is a factor and
comes after the product. LayerNorm comes before it: K is one tile, so the whole row is in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chatterbox_opt.kernels.cuda.launch import gdc_launch_dependents, gdc_wait

MAX_GEMV_ROWS = 4  # above, CUDA cores no longer keep up with HBM; tensor cores do (gemm.py)
MAX_BLOCK_K = 4096  # of K, that a program of ``gemv`` holds at once
WARP_WEIGHT_BYTES, WARP_X_BYTES = 8192, 4096  # that a warp of ``gemv`` holds, at most
SCHEDULERS = 512  # about as many warp schedulers as a large GPU has: each needs a warp


def gemv_tile(
    rows: int, n: int, k: int, sizes: tuple[int, int], *, gated: bool = False, columns: int = 0
) -> dict[str, int]:
    """Constants of ``gemv``.

    Args:
        rows: of x, at most ``MAX_GEMV_ROWS``.
        n, k: of the product: x [rows, k], result [rows, n].
        sizes: bytes of an element of x and of the weight.
        columns: of the result per program; 0 chooses: four rows of the weight, or two where there
            would be fewer warps than schedulers.
    """
    x_size, weight_size = sizes
    block_k = min(MAX_BLOCK_K, triton.next_power_of_2(k))
    block_m = triton.next_power_of_2(rows)
    load = 16 // x_size
    vector = min(16 // weight_size, 2 * load, block_k)

    def warps(columns: int) -> int:
        weight_bytes = block_k * columns * weight_size * (2 if gated else 1)
        x_bytes = block_m * block_k * x_size
        needed = max(weight_bytes // WARP_WEIGHT_BYTES, x_bytes // WARP_X_BYTES, 1)
        # more warps would have no vector to load; Triton allows 32
        return min(triton.next_power_of_2(needed), max(1, block_k // vector // 32), 16)

    if not columns:
        columns = 2 if gated else 4
        columns //= 1 if n * warps(columns) >= columns * SCHEDULERS else 2
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": columns,
        "BLOCK_K": block_k,
        "VECTOR": vector,
        "LOAD": min(load, vector),
        "num_warps": warps(columns),
    }


@triton.jit
def load_scales(scales, column, n, HAS_SCALES: tl.constexpr, GATED: tl.constexpr):
    """int8 scales of a tile's columns, and of the up projection's: [1, columns], or 1."""
    scale, up_scale = 1.0, 1.0
    if HAS_SCALES:
        scale = tl.load(scales + column, column < n, 0.0)[None, :]
        if GATED:
            up_scale = tl.load(scales + n + column, column < n, 0.0)[None, :]
    return scale, up_scale


@triton.jit
def load_bias(bias, column, n, HAS_BIAS: tl.constexpr):
    """Bias of a tile's columns: [1, columns], or 0."""
    tile = 0.0
    if HAS_BIAS:
        tile = tl.load(bias + column, column < n, 0.0).to(tl.float32)[None, :]
    return tile


@triton.jit
def load_residual(pointers, mask, HAS_RESIDUAL: tl.constexpr):
    """A tile [rows, columns] of the residual stream, or 0."""
    tile = 0.0
    if HAS_RESIDUAL:
        tile = tl.load(pointers, mask, 0.0).to(tl.float32)
    return tile


@triton.jit
def epilogue(
    acc, up, scale, up_scale, bias, residual, pointers, mask,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Dequantize, add the bias, apply SwiGLU or gelu, add the residual, and store a tile
    [rows, columns]."""
    acc *= scale
    if HAS_BIAS:
        acc += bias
    if GATED:
        acc = acc * tl.sigmoid(acc) * (up * up_scale)
    if GELU:  # its tanh form: (1 + tanh(y)) / 2 = sigmoid(2 y) for y = sqrt(2 / pi) (...)
        acc = acc * tl.sigmoid(1.5957691216057308 * (acc + 0.044715 * acc * acc * acc))
    tl.store(pointers, acc + residual, mask)


@triton.jit
def load_16_bytes(
    pointers, start, mask,
    K: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, LOAD: tl.constexpr,
):  # fmt: skip
    """LOAD elements of each vector, [block_k / vector, rows, columns, load]."""
    offsets = tl.arange(0, BLOCK_K // VECTOR)[:, None] * VECTOR + tl.arange(0, LOAD)[None, :]
    offsets = tl.expand_dims(tl.expand_dims(start + offsets, 1), 1)
    if K % BLOCK_K != 0:
        mask = mask & (offsets < K)
    return tl.load(pointers + offsets, mask, 0)


@triton.jit
def load_vectors(
    pointers, start, mask,
    K: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, LOAD: tl.constexpr,
):  # fmt: skip
    """A tile [block_k / vector, rows, columns, vector], from ``start`` on, zeros beyond ``K``.

    A thread gets whole vectors: where 16 bytes are half of one (fp16 x, int8 weights), it loads
    twice.

    Args:
        pointers, mask: [1, rows, columns, 1], where rows begin, and which of them exist.
    """
    tile = load_16_bytes(pointers, start, mask, K, BLOCK_K, VECTOR, LOAD)
    if VECTOR > LOAD:
        second = load_16_bytes(pointers, start + LOAD, mask, K, BLOCK_K, VECTOR, LOAD)
        tile = tl.permute(tl.join(tile, second), (0, 1, 2, 4, 3))
        tile = tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], VECTOR))
    return tile


@triton.jit
def prefetch(
    weight, norm, norm_bias, start, mask, n,
    K: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, LOAD: tl.constexpr,
    HAS_NORM: tl.constexpr, LAYER_NORM: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Tiles of the weight, of the up projection if GATED, of the norm's weight if HAS_NORM, and of
    its bias if LAYER_NORM."""
    tile = load_vectors(weight, start, mask, K, BLOCK_K, VECTOR, VECTOR)
    up_tile, norm_tile, norm_bias_tile = tile, tile, tile
    if GATED:
        up_tile = load_vectors(weight + n * K, start, mask, K, BLOCK_K, VECTOR, VECTOR)
    if HAS_NORM:
        zero = tl.zeros((1, 1, 1, 1), tl.int32)
        norm_tile = load_vectors(norm + zero, start, zero == 0, K, BLOCK_K, VECTOR, LOAD)
        if LAYER_NORM:
            norm_bias_tile = load_vectors(
                norm_bias + zero, start, zero == 0, K, BLOCK_K, VECTOR, LOAD
            )
    return tile, up_tile, norm_tile, norm_bias_tile


@triton.jit
def layer_norm(
    x, norm, norm_bias, eps, K: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr
):
    """LayerNorm (Ba et al. 2016) of whole rows, fp32 [block_k / vector, rows, 1, vector]."""
    offsets = tl.arange(0, BLOCK_K // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    in_row = tl.expand_dims(tl.expand_dims(offsets < K, 1), 1)
    mean = tl.sum(tl.sum(x, axis=3), axis=0) / K
    x = tl.where(in_row, x - mean[None, :, :, None], 0.0)
    variance = tl.sum(tl.sum(x * x, axis=3), axis=0) / K
    x *= tl.rsqrt(variance + eps)[None, :, :, None]
    return x * norm.to(tl.float32) + norm_bias.to(tl.float32)


@triton.jit
def gemv(
    x, weight, scales, bias, norm, norm_bias, residual, out, rows, n, eps,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr, LOAD: tl.constexpr,
    HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    LAYER_NORM: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """out[rows, n] = x[rows, K] @ weight[n, K].T, accumulated in fp32; one program a tile.

    HAS_SCALES: times scales[n]. HAS_BIAS: plus bias[n]. HAS_NORM: of x / rms(x) * norm[K]; if
    LAYER_NORM too, of (x - mean(x)) / std(x) * norm[K] + norm_bias[K]. GATED: weight has 2 n rows
    (gate and up projection), the result is silu(gate) * up. GELU: of the result. HAS_RESIDUAL: plus
    residual[rows, n]. USE_PDL: see launch.py.
    """
    if USE_PDL:
        gdc_launch_dependents()
    row, column = tl.arange(0, BLOCK_M), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = row[:, None] * n + column[None, :]
    mask = (row < rows)[:, None] & (column < n)[None, :]
    row_axis, column_axis = row[None, :, None, None], column[None, None, :, None]
    pointers, in_weight = weight + column_axis * K, column_axis < n
    # 1. prefetch what no kernel writes
    tile, up_tile, norm_tile, norm_bias_tile = prefetch(
        pointers, norm, norm_bias, 0, in_weight, n, K, BLOCK_K, VECTOR, LOAD,
        HAS_NORM, LAYER_NORM, GATED,
    )  # fmt: skip
    scale, up_scale = load_scales(scales, column, n, HAS_SCALES, GATED)
    shift = load_bias(bias, column, n, HAS_BIAS)
    if USE_PDL:
        gdc_wait()
    added = load_residual(residual + offsets, mask, HAS_RESIDUAL)
    # 2. each thread accumulates; K is one tile unless it exceeds ``MAX_BLOCK_K``
    acc = tl.zeros((BLOCK_K // VECTOR, BLOCK_M, BLOCK_N), tl.float32)
    up_acc, squares = acc, tl.zeros((BLOCK_K // VECTOR, BLOCK_M, 1), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        x_tile = load_vectors(x + row_axis * K, start, row_axis < rows, K, BLOCK_K, VECTOR, LOAD)
        x_tile = x_tile.to(tl.float32)
        if LAYER_NORM:
            tl.static_assert(K <= BLOCK_K)
            x_tile = layer_norm(x_tile, norm_tile, norm_bias_tile, eps, K, BLOCK_K, VECTOR)
        elif HAS_NORM:
            squares += tl.sum(x_tile * x_tile, axis=3)
            x_tile *= norm_tile.to(tl.float32)
        acc += tl.sum(x_tile * tile.to(tl.float32), axis=3)
        if GATED:
            up_acc += tl.sum(x_tile * up_tile.to(tl.float32), axis=3)
        if start + BLOCK_K < K:
            tile, up_tile, norm_tile, norm_bias_tile = prefetch(
                pointers, norm, norm_bias, start + BLOCK_K, in_weight, n, K, BLOCK_K, VECTOR, LOAD,
                HAS_NORM, LAYER_NORM, GATED,
            )  # fmt: skip
    # 3. reduce over threads
    result, up = tl.sum(acc, axis=0), tl.sum(up_acc, axis=0)
    if HAS_NORM and not LAYER_NORM:
        rms_inverse = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        result *= rms_inverse
        up *= rms_inverse
    epilogue(result, up, scale, up_scale, shift, added, out + offsets, mask, HAS_BIAS, GATED, GELU)
