"""Ceilings of the GPU: read and copy bandwidth, GEMM, launches. Needs only torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import COPY, GEMM, GPU, GRAPH, HOST_COPY, LAUNCH, READ
from benchmarks.gpu.measuring.clocks import between_events, event_us, graph_us, host_us, vram
from chatterbox_opt.runtime.cuda import GraphCapturer

SMALL = (2, 6, 16, 64, 256)  # MiB; T3's matrices are 2 to 16
GRAPHS = (1, 32, 153)  # kernels; a decode step has 153


def run(context: Context) -> None:
    """Run the stage."""
    device = torch.device(context.device)
    context.put(GPU, _gpu() | vram())
    with context.part("memory"):
        _memory(context, device)
    with context.part("GEMM"):
        _gemm(context, device)
    with context.part("launches"):
        _launches(context, device)


def _gpu() -> dict[str, object]:
    return {
        "name": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "sm_count": torch.cuda.get_device_properties(0).multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _memory(context: Context, device: torch.device) -> None:
    """With random numbers: zeros are read faster."""
    numbers = torch.empty(context.sizes.read_bytes // 4, device=device).uniform_(-1, 1)
    other = torch.empty_like(numbers)
    context.put(READ, _rate(numbers.nbytes, lambda: torch.sum(numbers), device))
    copy_rate = _rate(2 * numbers.nbytes, lambda: other.copy_(numbers), device)
    context.put(COPY, copy_rate)
    for mebibytes in SMALL:
        part = numbers[: mebibytes << 18]
        if part.nbytes == mebibytes << 20:
            context.put(READ, _rate(part.nbytes, _sum_of(part), device))


def _sum_of(numbers: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.sum(numbers)


def _rate(nbytes: int, work: Callable[[], object], device: torch.device) -> dict[str, float]:
    us = event_us(work, device)
    return {"bytes": nbytes, "us": us, "gb_per_second": nbytes / us / 1e3}


def _gemm(context: Context, device: torch.device) -> None:
    size = context.sizes.gemm_size
    matmul = torch.backends.cuda.matmul
    kinds = (("float16", size, False), ("bfloat16", size, False))
    for name, rows, tf32 in (*kinds, ("float32", size // 2, False), ("tf32", size // 2, True)):
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
        before, matmul.allow_tf32 = matmul.allow_tf32, tf32
        try:
            us = event_us(_matmul(a, b), device)
        finally:
            matmul.allow_tf32 = before
        context.put(GEMM, {"dtype": name, "size": rows, "tflops": 2 * rows**3 / us / 1e6})


def _matmul(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b


def _launches(context: Context, device: torch.device) -> None:
    small, capture = torch.zeros(64, device=device), GraphCapturer(device)

    def add() -> None:
        small.add_(1)

    for count in GRAPHS:
        us = graph_us(capture, add, device, times=count)
        context.put(GRAPH, {"kernels": count, "us_each": us})
    context.put(LAUNCH, {"us": host_us(add, device, 1000)})
    host = torch.empty(context.sizes.kv_cache_bytes, dtype=torch.uint8, pin_memory=True)
    on_gpu = torch.empty(host.shape, dtype=host.dtype, device=device)

    def copy() -> None:
        on_gpu.copy_(host, non_blocking=True)

    copy()
    us = between_events(copy, device)
    context.put(HOST_COPY, {"bytes": host.nbytes, "gb_per_second": host.nbytes / us / 1e3})


if __name__ == "__main__":
    main(run)
