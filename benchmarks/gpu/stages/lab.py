"""Kernel tuning: linear layers by tile against cuBLAS and CUDA C++, attention against SDPA."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import ATTENTION, FLOW_ATTENTION, LINEAR
from benchmarks.gpu.measuring import cuda_gemv
from benchmarks.gpu.measuring.kernel_times import (
    FUSIONS,
    AttentionShape,
    decode_attention,
    flow_attention,
    linear_by_tile,
)
from benchmarks.gpu.measuring.traffic import matrix_sizes
from chatterbox_opt.checkpoints.registry import locate
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.kernels.cuda import support
from chatterbox_opt.runtime import cuda
from chatterbox_opt.runtime.cuda_graphs import CaptureFn


def run(context: Context) -> None:
    """Run the stage."""
    device = torch.device(context.device)
    capture, shapes = cuda.GraphCapturer(device), locate(context.model).config
    with context.part("CUDA C++"):
        sizes = matrix_sizes(shapes.t3)
        for row in cuda_gemv.measure(device, capture, sizes, context.sizes.layers):
            context.put(LINEAR, row)
    fused = not support.unsupported_reason("t3", torch.float16)
    for rows in context.sizes.rows if fused else ():
        for dtype in (torch.float16, torch.int8):
            with context.part(f"linear layers of {rows} rows, {dtype}"):
                _linear(context, capture, device, shapes, rows, dtype)
    with context.part("attention"):
        _attention(context, capture, device, shapes, fused=fused)
    with context.part("flow attention"):
        flow_fused = not support.unsupported_reason("flow", torch.float16)
        for frames in context.sizes.frames:
            row = flow_attention(shapes.flow, capture, device, frames, fused=flow_fused)
            context.put(FLOW_ATTENTION, row)


def _linear(
    context: Context,
    capture: CaptureFn,
    device: torch.device,
    shapes: ModelConfig,
    rows: int,
    dtype: torch.dtype,
) -> None:
    for name, fusion in FUSIONS[shapes.t3.backbone].items():
        size = matrix_sizes(shapes.t3)[name]
        matrices = list(random_matrices(size, dtype, device, context.sizes.layers))
        sweep = name != "head"  # its output width would require compiling every tile again
        half = torch.float16
        for row in linear_by_tile(name, matrices, rows, fusion, half, capture, sweep=sweep):
            context.put(LINEAR, row)


def random_matrices(
    size: tuple[int, int], dtype: torch.dtype, device: torch.device, count: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Random matrices [out, in], int8 ones with scales."""
    for _ in range(count):
        values = torch.randn(size, device=device)
        if dtype == torch.int8:
            ints = (values * 30).clamp(-127, 127).to(dtype)
            yield ints, torch.full((size[0],), 0.001, device=device)
        else:
            yield (values / size[1] ** 0.5).to(dtype), None


def _attention(
    context: Context, capture: CaptureFn, device: torch.device, shapes: ModelConfig, *, fused: bool
) -> None:
    t3 = shapes.t3
    for rows in context.sizes.rows:
        for kv_len in context.sizes.kv_lens:
            for int8 in (False, True) if fused else (False,):
                sizes = t3.heads, t3.head_dim, rows, kv_len
                shape = AttentionShape(*sizes, device, torch.float16, int8)
                cache_bytes = context.sizes.kv_cache_bytes
                row = decode_attention(shape, capture, fused=fused, cache_bytes=cache_bytes)
                context.put(ATTENTION, row)


if __name__ == "__main__":
    main(run)
