"""Triton kernels of the flow: attention over all frames, and layer norms fused with a sum or Mish.

Responsible for arithmetic on a GPU's tensors. Not responsible for layers or for when these are
used. Imports Triton, as gemv.py does.

*Attention.* A CUDA graph of the flow has padded inputs, so attention needs each row's length.
PyTorch's fastest SDPA backend takes no mask; this kernel is FlashAttention-2 (Dao 2023) with a loop
that ends at the row's length. One program has a block of queries and reads keys and values block by
block, with an online softmax: scores never go to memory.

                 keys of a row, 64 frames a step
               +-----+-----+-----+--+ - - - - +
    128        | s0  | s1  | s2  |s3| padding      new max -> rescale sum and acc
    queries    +-----+-----+-----+--+ - - - - +    acc += exp2(s - max) @ values
                                    ^ length

Unlike a decode step it does much arithmetic per byte: what limits it are the tensor cores, and the
registers that hold queries and acc.

*Layer norm.* Norms are small: on a GPU they cost their launch, and that of the sum before them or
of Mish after them. So both are fused into the norm's kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chatterbox_opt.kernels.cuda.launch import triton_errors
from chatterbox_opt.runtime import cuda

QUERIES, KEYS = 128, 64  # frames of a program, and of a step of its loop
ROWS = 4  # of a norm's program


@triton.jit
def attention_kernel(
    q, k, v, lengths, out, scale, heads, frames, row_stride, frame_stride, head_stride,
    PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head. PADDED: they attend to the first ``lengths`` frames."""
    # 1. load the queries
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    frame = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    dim = tl.arange(0, HEAD_DIM)[None, :]
    head_start = row.to(tl.int64) * row_stride + head * head_stride
    q_mask = (frame < frames)[:, None]
    query = tl.load(q + head_start + frame[:, None] * frame_stride + dim, q_mask, 0.0)
    maximum = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    length = frames
    if PADDED:
        length = tl.load(lengths + row)
    # 2. online softmax over blocks of keys
    for start in range(0, length, KEYS):
        other = start + tl.arange(0, KEYS)
        in_row = other < length
        offsets = head_start + other[:, None] * frame_stride + dim
        key = tl.load(k + offsets, in_row[:, None], 0.0)
        value = tl.load(v + offsets, in_row[:, None], 0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(in_row[None, :], score, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(score, axis=1))
        weight = tl.exp2(score - new_maximum[:, None])
        rescale = tl.exp2(maximum - new_maximum)
        weight_sum = weight_sum * rescale + tl.sum(weight, axis=1)
        acc = tl.dot(weight.to(value.dtype), value, acc * rescale[:, None], input_precision="ieee")
        maximum = new_maximum
    # 3. normalize and store
    offsets = (row.to(tl.int64) * frames + frame[:, None]) * (heads * HEAD_DIM)
    offsets = offsets + head * HEAD_DIM + dim
    tl.store(out + offsets, acc / weight_sum[:, None], q_mask)


@triton.jit
def layer_norm_kernel(
    x, residual, weight, bias, total, out, rows, width, eps,
    HAS_RESIDUAL: tl.constexpr, MISH: tl.constexpr, ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Layer norm (Ba et al. 2016) of rows of x [rows, width]. HAS_RESIDUAL: of x + residual, which
    is stored too. MISH: Mish after it (Misra 2019)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_WIDTH)
    in_width = column < width
    mask = (row < rows)[:, None] & in_width[None, :]
    offsets = row[:, None].to(tl.int64) * width + column[None, :]
    loaded = tl.load(x + offsets, mask, 0.0)
    if HAS_RESIDUAL:
        loaded = loaded.to(tl.float32) + tl.load(residual + offsets, mask, 0.0).to(tl.float32)
        loaded = loaded.to(x.dtype.element_ty)  # the norm is of what is stored, after rounding
        tl.store(total + offsets, loaded, mask)
    centered = loaded.to(tl.float32)
    centered = tl.where(mask, centered - tl.sum(centered, axis=1)[:, None] / width, 0.0)
    inverse_std = tl.rsqrt(tl.sum(centered * centered, axis=1) / width + eps)
    gain = tl.load(weight + column, in_width, 0.0).to(tl.float32)[None, :]
    result = centered * inverse_std[:, None] * gain
    result += tl.load(bias + column, in_width, 0.0).to(tl.float32)[None, :]
    if MISH:  # x tanh(log(1 + e^x)), from e^x alone
        ratio = tl.exp(tl.minimum(result, 20.0))
        ratio = ratio * (ratio + 2)
        result *= ratio / (ratio + 2)
    tl.store(out + offsets, result, mask)


def attention_warps(generation: int) -> int:
    """Warps of an attention program: on Hopper and the large Blackwells a warpgroup of four
    multiplies together; elsewhere four would not have the registers."""
    return 4 if generation in (9, 10) else 8


@triton_errors()
def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017), with the heads concatenated.

    Args:
        q, k, v: [rows, heads, frames, head_dim] of one dtype and the same strides; head_dim a power
            of two of at least 16, contiguous.
        lengths: int32 [rows], how many frames are attended to, the first ones, at least one; None
            for all.

    Returns:
        [rows, frames, heads * head_dim].
    """
    rows, heads, frames, head_dim = q.shape
    out = q.new_empty(rows, frames, heads * head_dim)
    row_stride, head_stride, frame_stride, _ = q.stride()
    grid = (triton.cdiv(frames, QUERIES), rows * heads)
    scale = head_dim**-0.5 * 1.4426950408889634  # log2(e): exp2 is faster than exp
    sizes = (heads, frames, row_stride, frame_stride, head_stride)
    padded, warps = lengths is not None, attention_warps(cuda.capability_major(q.device))
    constants = {"PADDED": padded, "HEAD_DIM": head_dim, "QUERIES": QUERIES, "KEYS": KEYS}
    tensors = (q, k, v, lengths if padded else q, out)
    attention_kernel[grid](*tensors, scale, *sizes, **constants, num_warps=warps)
    return out


@triton_errors()
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    mish: bool = False,
) -> tuple[Tensor, Tensor]:
    """Layer norm over the last axis, in fp32.

    Args:
        x: [..., width] of any float dtype.
        weight, bias: [width].
        residual: like x, added before.
        mish: Mish after it.

    Returns:
        the sum, or x without a residual; and its norm, in x's dtype.
    """
    x = x.contiguous()
    width, out = x.shape[-1], x.new_empty(x.shape)
    rows = x.numel() // width
    total = x if residual is None else x.new_empty(x.shape)
    added = x if residual is None else residual.contiguous()
    constants = {"HAS_RESIDUAL": residual is not None, "MISH": mish, "ROWS": ROWS}
    constants["BLOCK_WIDTH"] = triton.next_power_of_2(width)
    layer_norm_kernel[(triton.cdiv(rows, ROWS),)](
        x, added, weight, bias, total, out, rows, width, eps, **constants
    )
    return total, out
