"""What a machine can do at best, measured on the spot, and what a decode step needs of it.

Knows reading and multiplying. Knows nothing of rows or reports (bench/runner.py).

On a GPU by CUDA events, so that neither a launch nor the host's wait is in it, at a size that fills
it, of random numbers: zeros are read and multiplied with less current, a tenth too fast; the
median, which a run gets too. On a processor by the host's clock, the best of some.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from chatterbox_opt.bench.backends import BenchJob, StageTimer
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.engine import probe

TRIES = 7
READ = {"cuda": 1 << 29}  # float32 numbers, no cache holds them: 2 GiB
SIDE = {"cuda": 8192}  # rows of square matrices
SMALL_READ, SMALL_SIDE = 1 << 27, 2048  # elsewhere
WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes


def facts(job: BenchJob, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the machine can do at best, and what a step needs of it."""
    machine = probe.probe(job.device)
    device = torch.device(machine.device)
    read = read_gb_s(device)
    card = {
        "device": machine.name,
        "cores": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "read_gb_s": read,
        "gemm_gflops": {name: gemm_gflops(device, name) for name in ("float32", "bfloat16")},
        "t3_weights_per_step": weights_per_step(checkpoint.config.t3),
        "made_weights": checkpoint.config.random_weights,
    }
    return card | {"ceiling_tokens_per_second": steps_per_second(card, [read])}


def weights_per_step(shape: T3Config) -> int:
    """Numbers that a decode step multiplies by: every layer's matrices and the head."""
    layer = 4 * shape.width**2 + 3 * shape.width * shape.ffn
    return shape.layers * layer + shape.speech_vocab * shape.width


def steps_per_second(card: Mapping[str, Any], reads: Sequence[float]) -> dict[str, float]:
    """Steps a second that reading the weights allows, by dtype, at the median of ``reads`` GB/s."""
    rate, weights = statistics.median(reads) * 1e9, card["t3_weights_per_step"]
    return {dtype: rate / (weights * width) for dtype, width in WIDTHS.items()}


def read_gb_s(device: torch.device) -> float:
    """Read rate of numbers that no cache holds; a sum does nothing else. Not a product of matrices:
    MKL reads a fifth as fast on processors not made by Intel."""
    numbers = _numbers(device, READ.get(device.type, SMALL_READ))
    return numbers.numel() * 4 / seconds(numbers.sum, device) / 1e9


def gemm_gflops(device: torch.device, dtype: str) -> float:
    """Rate of a large product of matrices."""
    side = SIDE.get(device.type, SMALL_SIDE)
    matrix = _numbers(device, side, side).to(getattr(torch, dtype))
    return 2 * side**3 / seconds(lambda: matrix @ matrix, device) / 1e9


def _numbers(device: torch.device, *sizes: int) -> torch.Tensor:
    """Random ones on a GPU, drawn in place; a processor's figures do not depend on them."""
    made = torch.zeros(sizes, device=device)
    return made.uniform_(-1, 1) if device.type == "cuda" else made


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of some work, once it is warm: see the module."""
    work()
    if device.type == "cuda":
        return statistics.median(event_seconds(work) for _ in range(TRIES))
    clock = StageTimer(device)
    for i in range(TRIES):
        work()
        clock.lap(str(i))
    return min(clock.seconds.values())


def event_seconds(work: Callable[[], object]) -> float:
    """Seconds of some work on a GPU, between two events."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    work()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3
