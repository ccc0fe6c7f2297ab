"""What the GPU can do at best: read, copy, multiply, launch. Needs torch alone."""

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
    """See the module."""
    device = torch.device(context.device)
    context.put(GPU, _gpu() | vram())
    with context.part("memory"):
        _memory(context, device)
    with context.part("products"):
        _products(context, device)
    with context.part("launches"):
        _launches(context, device)


def _gpu() -> dict[str, object]:
    return {
        "name": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "processors": torch.cuda.get_device_properties(0).multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _memory(context: Context, device: torch.device) -> None:
    """Random numbers: zeros are read faster."""
    numbers = torch.empty(context.sizes.read // 4, device=device).uniform_(-1, 1)
    other = torch.empty_like(numbers)
    context.put(READ, _rate(numbers.nbytes, lambda: torch.sum(numbers), device))
    copied = _rate(2 * numbers.nbytes, lambda: other.copy_(numbers), device)
    context.put(COPY, copied)
    for mebibytes in SMALL:
        part = numbers[: mebibytes << 18]
        if part.nbytes == mebibytes << 20:
            context.put(READ, _rate(part.nbytes, _sum_of(part), device))


def _sum_of(numbers: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.sum(numbers)


def _rate(nbytes: int, work: Callable[[], object], device: torch.device) -> dict[str, float]:
    us = event_us(work, device)
    return {"bytes": nbytes, "us": us, "gb_per_second": nbytes / us / 1e3}


def _products(context: Context, device: torch.device) -> None:
    side = context.sizes.side
    matmul = torch.backends.cuda.matmul
    kinds = (("float16", side, False), ("bfloat16", side, False))
    for name, rows, tf32 in (*kinds, ("float32", side // 2, False), ("tf32", side // 2, True)):
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
        before, matmul.allow_tf32 = matmul.allow_tf32, tf32
        try:
            us = event_us(_product_of(a, b), device)
        finally:
            matmul.allow_tf32 = before
        context.put(GEMM, {"dtype": name, "side": rows, "tflops": 2 * rows**3 / us / 1e6})


def _product_of(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b


def _launches(context: Context, device: torch.device) -> None:
    small, record = torch.zeros(64, device=device), GraphCapturer(device)

    def add() -> None:
        small.add_(1)

    for count in GRAPHS:
        us = graph_us(record, add, device, times=count)
        context.put(GRAPH, {"kernels": count, "us_each": us})
    context.put(LAUNCH, {"us": host_us(add, device, 1000)})
    host = torch.empty(context.sizes.cold, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(host.shape, dtype=host.dtype, device=device)

    def copy() -> None:
        there.copy_(host, non_blocking=True)

    copy()
    us = between_events(copy, device)
    context.put(HOST_COPY, {"bytes": host.nbytes, "gb_per_second": host.nbytes / us / 1e3})


if __name__ == "__main__":
    main(run)
