"""Roofline of the machine: memory bandwidth and GEMM throughput, and what a decode step needs.

Responsible for measuring bandwidth and throughput. Not responsible for rows or reports
(bench/runner.py).

On a GPU: CUDA events, which exclude launch and synchronization, sizes that fill the GPU, random
data (zeros draw less power and measure 10 % too fast), and the median, as for the runs. On a CPU:
the host's clock, and the minimum.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from chatterbox_opt.bench.timing import BenchJob, StageTimer
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.config.model_config import GPT2, T3Config
from chatterbox_opt.engine import probe

REPEATS = 7
READ_SIZES = {"cuda": 1 << 29}  # float32 elements, 2 GiB: larger than any cache
GEMM_SIZES = {"cuda": 8192}  # rows of square matrices
SMALL_READ, SMALL_GEMM = 1 << 27, 2048  # on other devices
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}


def machine_facts(job: BenchJob, checkpoint: Checkpoint) -> dict[str, Any]:
    """The machine's specification and roofline, and the weights a decode step reads."""
    machine = probe.probe(job.device)
    device = torch.device(machine.device)
    read = read_gb_s(device)
    facts = {
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
    return facts | {"ceiling_tokens_per_second": steps_per_second(facts, [read])}


def weights_per_step(shape: T3Config) -> int:
    """Weights that a decode step multiplies by: every layer's matrices and the head."""
    matrices = 2 if shape.backbone == GPT2 else 3  # of the MLP; Llama's has a gate
    layer = 4 * shape.width**2 + matrices * shape.width * shape.ffn
    return shape.layers * layer + shape.speech_vocab * shape.width


def steps_per_second(facts: Mapping[str, Any], reads: Sequence[float]) -> dict[str, float]:
    """Maximum decode steps per second by dtype, at a bandwidth of the median of ``reads`` GB/s."""
    rate, weights = statistics.median(reads) * 1e9, facts["t3_weights_per_step"]
    return {dtype: rate / (weights * size) for dtype, size in BYTES_PER_WEIGHT.items()}


def read_gb_s(device: torch.device) -> float:
    """Bandwidth of reading memory outside all caches, by a sum. Not by a matrix product: MKL reads
    at a fifth of the bandwidth on CPUs not made by Intel."""
    tensor = _test_data(device, READ_SIZES.get(device.type, SMALL_READ))
    return tensor.numel() * 4 / seconds(tensor.sum, device) / 1e9


def gemm_gflops(device: torch.device, dtype: str) -> float:
    """Throughput of a large matrix product."""
    size = GEMM_SIZES.get(device.type, SMALL_GEMM)
    matrix = _test_data(device, size, size).to(getattr(torch, dtype))
    return 2 * size**3 / seconds(lambda: matrix @ matrix, device) / 1e9


def _test_data(device: torch.device, *sizes: int) -> torch.Tensor:
    """Random values on a GPU, zeros elsewhere: a CPU's rates do not depend on them."""
    tensor = torch.zeros(sizes, device=device)
    return tensor.uniform_(-1, 1) if device.type == "cuda" else tensor


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``work`` after a warm-up call; see the module for how."""
    work()
    if device.type == "cuda":
        return statistics.median(event_seconds(work) for _ in range(REPEATS))
    clock = StageTimer(device)
    for i in range(REPEATS):
        work()
        clock.lap(str(i))
    return min(clock.seconds.values())


def event_seconds(work: Callable[[], object]) -> float:
    """Seconds of ``work`` on a GPU, between two CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
