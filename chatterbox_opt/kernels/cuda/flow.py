"""Kernels of our own for the flow on a card, in Triton: attention over all frames, and layer norms
with what stands around them.

Knows arithmetic on a card's tensors. Knows nothing of layers or of when these are used. Imports
Triton, as gemv.py does.

A recorded flow is padded, and PyTorch's quickest attention takes no mask: ours stops at each row's
length. Norms are small: what they cost on a card is their launch, and that of the sum before them
or of Mish after them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chatterbox_opt.kernels.cuda.launch import triton_errors
from chatterbox_opt.runtime import cuda

QUERIES, KEYS = 128, 64  # frames of a program, and frames that it looks at at once
ROWS = 4  # of a norm's program


@triton.jit
def attention_kernel(
    q, k, v, lengths, out, scale, heads, frames, row_stride, frame_stride, head_stride,
    PADDED: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Some frames of one head: softmax as it goes (Dao 2023, FlashAttention-2). PADDED: over the
    first ``lengths`` frames."""
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    frame = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    lane = tl.arange(0, WIDTH)[None, :]
    start_of_head = row.to(tl.int64) * row_stride + head * head_stride
    here = (frame < frames)[:, None]
    query = tl.load(q + start_of_head + frame[:, None] * frame_stride + lane, here, 0.0)
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    length = frames
    if PADDED:
        length = tl.load(lengths + row)
    for first in range(0, length, KEYS):
        other = first + tl.arange(0, KEYS)
        there = other < length
        place = start_of_head + other[:, None] * frame_stride + lane
        key = tl.load(k + place, there[:, None], 0.0)
        value = tl.load(v + place, there[:, None], 0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        fade = tl.exp2(highest - higher)
        weight_sum = weight_sum * fade + tl.sum(weight, axis=1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
        highest = higher
    place = (row.to(tl.int64) * frames + frame[:, None]) * (heads * WIDTH) + head * WIDTH + lane
    tl.store(out + place, mixed / weight_sum[:, None], here)


@triton.jit
def layer_norm_kernel(
    x, more, weight, bias, total, out, rows, width, eps,
    ADDED: tl.constexpr, MISH: tl.constexpr, ROWS: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """Layer norm (Ba et al. 2016) of rows of x [rows, width]. ADDED: of x + more, which is stored
    too. MISH: Mish after it (Misra 2019)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, ROOM)
    inside = lane < width
    there = (row < rows)[:, None] & inside[None, :]
    place = row[:, None].to(tl.int64) * width + lane[None, :]
    given = tl.load(x + place, there, 0.0)
    if ADDED:
        given = given.to(tl.float32) + tl.load(more + place, there, 0.0).to(tl.float32)
        given = given.to(x.dtype.element_ty)  # of what is stored the norm is taken
        tl.store(total + place, given, there)
    wide = given.to(tl.float32)
    wide = tl.where(there, wide - tl.sum(wide, axis=1)[:, None] / width, 0.0)
    factor = tl.rsqrt(tl.sum(wide * wide, axis=1) / width + eps)
    by = tl.load(weight + lane, inside, 0.0).to(tl.float32)[None, :]
    made = wide * factor[:, None] * by
    made += tl.load(bias + lane, inside, 0.0).to(tl.float32)[None, :]
    if MISH:  # x tanh(log(1 + e^x)), from e^x alone
        grown = tl.exp(tl.minimum(made, 20.0))
        grown = grown * (grown + 2)
        made *= grown / (grown + 2)
    tl.store(out + place, made, there)


def warps_for(generation: int) -> int:
    """Threads / 32 of attention's programs: on Hopper and the large Blackwells four multiply
    together; elsewhere four would not have the registers."""
    return 4 if generation in (9, 10) else 8


@triton_errors()
def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017), heads side by side in the result.

    Args:
        q, k, v: [rows, heads, frames, head_dim] of one dtype and the same strides; head_dim a power
            of two from 16 on, its numbers next to each other.
        lengths: int32 [rows], how many frames may be attended to, the first ones, at least one;
            None for all.

    Returns:
        [rows, frames, heads * head_dim].
    """
    rows, heads, frames, width = q.shape
    out = q.new_empty(rows, frames, heads * width)
    row_stride, head_stride, frame_stride, _ = q.stride()
    grid = (triton.cdiv(frames, QUERIES), rows * heads)
    scale = width**-0.5 * 1.4426950408889634  # log2(e): powers of two are quicker
    sizes = (heads, frames, row_stride, frame_stride, head_stride)
    padded, warps = lengths is not None, warps_for(cuda.capability_major(q.device))
    constants = {"PADDED": padded, "WIDTH": width, "QUERIES": QUERIES, "KEYS": KEYS}
    given = (q, k, v, lengths if padded else q, out)
    attention_kernel[grid](*given, scale, *sizes, **constants, num_warps=warps)
    return out


@triton_errors()
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    more: Tensor | None = None,
    *,
    mish: bool = False,
) -> tuple[Tensor, Tensor]:
    """Layer norm over the last axis, in float32.

    Args:
        x: [..., width] of any float dtype.
        weight, bias: [width].
        more: like x, to be added before.
        mish: Mish after it.

    Returns:
        the sum, or x if there was nothing to add; and its norm, in x's dtype.
    """
    x = x.contiguous()
    width, out = x.shape[-1], x.new_empty(x.shape)
    rows = x.numel() // width
    total = x if more is None else x.new_empty(x.shape)
    given = (x, x if more is None else more.contiguous(), weight, bias, total, out)
    forms = {"ADDED": more is not None, "MISH": mish}
    room = triton.next_power_of_2(width)
    layer_norm_kernel[(triton.cdiv(rows, ROWS),)](
        *given, rows, width, eps, **forms, ROWS=ROWS, ROOM=room
    )
    return total, out
