"""Bandwidth of a decode step's products in CUDA C++: the reference for the Triton kernels.

Responsible for gemv.cu and its variants. Needs ``torch.cuda._compile_kernel`` (torch 2.9 or
newer, NVRTC).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measuring.clocks import event_us
from benchmarks.gpu.measuring.kernel_times import timed, with_bandwidth
from chatterbox_opt.runtime.cuda_graphs import CaptureFn

SOURCE = Path(__file__).with_name("gemv.cu")
# warps of a block, rows of a warp, 16-byte loads of each row in flight
VARIANTS = ((4, 1, 4), (4, 2, 4), (4, 4, 2), (4, 4, 4), (8, 2, 4), (2, 4, 4), (1, 4, 4))
ROWS = 2  # of x
READ_BYTES, READ_THREADS = 1 << 30, 256
Launch = Callable[[Tensor, Tensor, Tensor], None]  # of x, weight, out


def compiler() -> Callable[[str, str], Any] | None:
    """torch's run-time compiler of CUDA C++, or None."""
    compile: Callable[[str, str], Any] | None = getattr(torch.cuda, "_compile_kernel", None)
    return compile


def measure(
    device: torch.device, capture: CaptureFn, sizes: Mapping[str, tuple[int, int]], layers: int
) -> Iterator[dict[str, Any]]:
    """Rows: the rate of reading alone, then each matrix with each variant.

    Args:
        sizes: [out, in] by matrix.
        layers: matrices to cycle through.
    """
    compile = compiler()
    if compile is None:
        yield {
            "by": "cuda",
            "error": f"torch {torch.__version__} has no run-time compiler of CUDA C++",
        }
        return
    yield from _reading(device, compile)
    launchers = {variant: launcher(compile, *variant) for variant in VARIANTS}
    for name, size in sizes.items():
        weights = [
            (torch.randn(size, device=device) / size[1] ** 0.5).bfloat16() for _ in range(layers)
        ]
        for variant in VARIANTS:
            if not fits(size, variant):
                continue
            row = {"matrix": name, "rows": ROWS, "bytes": weights[0].nbytes, "by": "cuda"}
            row |= dict(zip(("warps", "rows of a warp", "loads"), variant, strict=True))
            yield row | _timed(launchers[variant], weights, capture)


def fits(size: tuple[int, int], variant: tuple[int, int, int]) -> bool:
    """Whether a variant divides the rows, and k into loads of eight elements by 32 threads."""
    _, rows, loads = variant
    return size[0] % rows == 0 and size[1] % (8 * 32 * loads) == 0


def defined(source: str, **constants: int) -> str:
    """The source with its constants prepended."""
    lines = [f"#define {name} {value}" for name, value in constants.items()]
    return "\n".join([*lines, source])


def launcher(compile: Callable[[str, str], Any], warps: int, rows: int, loads: int) -> Launch:
    """The product with a variant."""
    constants = {"WARPS": warps, "ROWS": rows, "LOADS": loads}
    kernel = compile(defined(SOURCE.read_text(encoding="utf-8"), **constants), "gemv")

    def launch(x: Tensor, weight: Tensor, out: Tensor) -> None:
        n, k = weight.shape
        blocks = -(-n // (warps * rows))
        kernel((blocks, 1, 1), (32 * warps, 1, 1), [weight, x, out, n, k // 8])

    return launch


def _timed(launch: Launch, weights: list[Tensor], capture: CaptureFn) -> dict[str, Any]:
    """Relative error with the first matrix, microseconds per matrix."""
    n, k = weights[0].shape
    x = torch.randn(ROWS, k, device=weights[0].device, dtype=torch.bfloat16)
    out = torch.zeros(ROWS, n, device=x.device)
    launch(x, weights[0], out)
    expected = x.float() @ weights[0].float().T
    error = ((out - expected).norm() / expected.norm()).item()

    def layers() -> None:
        for weight in weights:
            launch(x, weight, out)

    us = timed(capture, layers, x.device, len(weights))
    return {"relative_error": error} | with_bandwidth(us, weights[0].nbytes)


def _reading(device: torch.device, compile: Callable[[str, str], Any]) -> Iterator[dict[str, Any]]:
    """16-byte loads, eight in flight per thread, by blocks per SM."""
    numbers = torch.empty(READ_BYTES, dtype=torch.uint8, device=device).random_(0, 255)
    out = torch.zeros(1, device=device)
    source = defined(SOURCE.read_text(encoding="utf-8"), WARPS=4, ROWS=1, LOADS=1)
    kernel = compile(source, "read_all")
    sm_count = torch.cuda.get_device_properties(device).multi_processor_count
    for blocks_per_sm in (2, 4, 8):
        grid, block = (sm_count * blocks_per_sm, 1, 1), (READ_THREADS, 1, 1)
        read = functools.partial(kernel, grid, block, [numbers, out, READ_BYTES // 16])
        row = {"matrix": "none, read only", "by": "cuda", "blocks per SM": blocks_per_sm}
        yield row | with_bandwidth(event_us(read, device), READ_BYTES)
