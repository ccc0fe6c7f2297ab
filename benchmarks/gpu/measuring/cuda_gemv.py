"""What plain CUDA gets of the memory in a decode step's products: the mark for our kernels.

Knows gemv.cu and its forms. Needs ``torch.cuda._compile_kernel`` (torch 2.9 or newer, NVRTC).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measuring.clocks import event_us
from benchmarks.gpu.measuring.kernel_times import rated, timed
from chatterbox_opt.runtime.cuda_graphs import CaptureFn

SOURCE = Path(__file__).with_name("gemv.cu")
# warps of a block, rows of a warp, loads of 16 bytes ahead
FORMS = ((4, 1, 4), (4, 2, 4), (4, 4, 2), (4, 4, 4), (8, 2, 4), (2, 4, 4), (1, 4, 4))
ROWS = 2  # of x
READ_BYTES, READ_THREADS = 1 << 30, 256
Launch = Callable[[Tensor, Tensor, Tensor], None]  # of x, weight, out


def compiler() -> Callable[[str, str], Any] | None:
    """What compiles CUDA's source at run time, or None."""
    found: Callable[[str, str], Any] | None = getattr(torch.cuda, "_compile_kernel", None)
    return found


def measure(
    device: torch.device, record: CaptureFn, sizes: Mapping[str, tuple[int, int]], layers: int
) -> Iterator[dict[str, Any]]:
    """Rows: the rate of reading alone, then each matrix by each form.

    Args:
        sizes: [out, in] by matrix.
        layers: matrices that are gone through.
    """
    compile = compiler()
    if compile is None:
        yield {"by": "cuda", "error": f"torch {torch.__version__} has no run-time compiler of CUDA"}
        return
    yield from _reading(device, compile)
    launchers = {form: launcher(compile, *form) for form in FORMS}
    for name, size in sizes.items():
        weights = [
            (torch.randn(size, device=device) / size[1] ** 0.5).bfloat16() for _ in range(layers)
        ]
        for form in FORMS:
            if not fits(size, form):
                continue
            row = {"matrix": name, "rows": ROWS, "bytes": weights[0].nbytes, "by": "cuda"}
            row |= dict(zip(("warps", "rows of a warp", "ahead"), form, strict=True))
            yield row | _timed(launchers[form], weights, record)


def fits(size: tuple[int, int], form: tuple[int, int, int]) -> bool:
    """Whether a form has no remainder of rows, and of loads of eight numbers by 32 lanes."""
    _, rows, ahead = form
    return size[0] % rows == 0 and size[1] % (8 * 32 * ahead) == 0


def defined(source: str, **constants: int) -> str:
    """The source with its constants."""
    lines = [f"#define {name} {value}" for name, value in constants.items()]
    return "\n".join([*lines, source])


def launcher(compile: Callable[[str, str], Any], warps: int, rows: int, ahead: int) -> Launch:
    """The product in a form."""
    constants = {"WARPS": warps, "ROWS": rows, "PDL_ON": ahead}
    kernel = compile(defined(SOURCE.read_text(encoding="utf-8"), **constants), "gemv")

    def launch(x: Tensor, weight: Tensor, out: Tensor) -> None:
        n, k = weight.shape
        blocks = -(-n // (warps * rows))
        kernel((blocks, 1, 1), (32 * warps, 1, 1), [weight, x, out, n, k // 8])

    return launch


def _timed(launch: Launch, weights: list[Tensor], record: CaptureFn) -> dict[str, Any]:
    """Relative error of the first, microseconds of all."""
    n, k = weights[0].shape
    x = torch.randn(ROWS, k, device=weights[0].device, dtype=torch.bfloat16)
    out = torch.zeros(ROWS, n, device=x.device)
    launch(x, weights[0], out)
    expected = x.float() @ weights[0].float().T
    error = ((out - expected).norm() / expected.norm()).item()

    def layers() -> None:
        for weight in weights:
            launch(x, weight, out)

    us = timed(record, layers, x.device, len(weights))
    return {"relative_error": error} | rated(us, weights[0].nbytes)


def _reading(device: torch.device, compile: Callable[[str, str], Any]) -> Iterator[dict[str, Any]]:
    """Loads of 16 bytes, eight on their way for each thread, by blocks of a processor."""
    numbers = torch.empty(READ_BYTES, dtype=torch.uint8, device=device).random_(0, 255)
    out = torch.zeros(1, device=device)
    source = defined(SOURCE.read_text(encoding="utf-8"), WARPS=4, ROWS=1, PDL_ON=1)
    kernel = compile(source, "read_all")
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    for rows_per_seq in (2, 4, 8):
        grid, block = (processors * rows_per_seq, 1, 1), (READ_THREADS, 1, 1)
        read = functools.partial(kernel, grid, block, [numbers, out, READ_BYTES // 16])
        row = {"matrix": "none, read only", "by": "cuda", "blocks of a processor": rows_per_seq}
        yield row | rated(event_us(read, device), READ_BYTES)
