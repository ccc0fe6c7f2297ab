"""What tiles and kernels would be better: products beside cuBLAS and plain CUDA, attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import ATTENTION, FLOW_ATTENTION, PRODUCT
from benchmarks.gpu.measuring import cuda_gemv
from benchmarks.gpu.measuring.kernel_times import (
    MATRICES,
    Queries,
    decode_attention,
    flow_attention,
    products_by_tile,
)
from benchmarks.gpu.measuring.traffic import matrix_sizes
from chatterbox_opt.checkpoints.registry import locate
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.kernels.cuda import selftest
from chatterbox_opt.runtime import cuda
from chatterbox_opt.runtime.cuda_graphs import CaptureFn


def run(context: Context) -> None:
    """See the module."""
    device = torch.device(context.device)
    record, shapes = cuda.GraphCapturer(device), locate(context.model).config
    with context.part("plain CUDA"):
        for row in cuda_gemv.measure(device, record, matrix_sizes(shapes.t3), context.sizes.layers):
            context.put(PRODUCT, row)
    fused = not selftest.unsupported_reason("t3", torch.float16)
    for rows in context.sizes.rows if fused else ():
        for dtype in (torch.float16, torch.int8):
            with context.part(f"products of {rows} rows, {dtype}"):
                _products(context, record, device, shapes, rows, dtype)
    with context.part("attention"):
        _attention(context, record, device, shapes, fused=fused)
    with context.part("flow attention"):
        own = not selftest.unsupported_reason("flow", torch.float16)
        for frames in context.sizes.frames:
            row = flow_attention(shapes.flow, record, device, frames, fused=own)
            context.put(FLOW_ATTENTION, row)


def _products(
    context: Context,
    record: CaptureFn,
    device: torch.device,
    shapes: ModelConfig,
    rows: int,
    dtype: torch.dtype,
) -> None:
    for name, around in MATRICES.items():
        size = matrix_sizes(shapes.t3)[name]
        matrices = list(made(size, dtype, device, context.sizes.layers))
        sweep = name != "head"  # its output's width would have every tile compiled anew
        half = torch.float16
        for row in products_by_tile(name, matrices, rows, around, half, record, sweep=sweep):
            context.put(PRODUCT, row)


def made(
    size: tuple[int, int], dtype: torch.dtype, device: torch.device, count: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Random matrices [out, in], int8 ones with scales."""
    for _ in range(count):
        drawn = torch.randn(size, device=device)
        if dtype == torch.int8:
            whole = (drawn * 30).clamp(-127, 127).to(dtype)
            yield whole, torch.full((size[0],), 0.001, device=device)
        else:
            yield (drawn / size[1] ** 0.5).to(dtype), None


def _attention(
    context: Context, record: CaptureFn, device: torch.device, shapes: ModelConfig, *, fused: bool
) -> None:
    t3 = shapes.t3
    for rows in context.sizes.rows:
        for span in context.sizes.spans:
            for int8 in (False, True) if fused else (False,):
                asked = Queries(t3.heads, t3.head_dim, rows, span, device, torch.float16, int8)
                row = decode_attention(asked, record, fused=fused, cold=context.sizes.cold)
                context.put(ATTENTION, row)


if __name__ == "__main__":
    main(run)
