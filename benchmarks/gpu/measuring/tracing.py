"""Profiles work with PyTorch's profiler: kernels in order, a table, a small trace.

Responsible for the profiler. Not responsible for the purpose of kernels (traffic.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.context import TRACES, Context
from benchmarks.gpu.kinds import KERNELS
from benchmarks.gpu.measuring.clocks import synchronize
from benchmarks.gpu.measuring.traffic import Kernel

GPU_EVENT = "CUDA"  # the profiler's name of the device type
TOP = 30  # kernels of a table


def traced(context: Context, name: str, work: Callable[[], Any], times: int) -> list[Kernel]:
    """Profile some warmed-up work: writes a line with time by kernel, and a Chrome trace.

    Args:
        times: repetitions; figures are per repetition.

    Returns:
        the device's kernels and copies, by start time.
    """
    device = torch.device(context.device)
    activities = [ProfilerActivity.CPU]
    if not context.simulated:
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(times):
            work()
        synchronize(device)
        seconds = time.perf_counter() - start
    kernels = _kernels(profiler.events())
    if not kernels and not context.simulated:
        raise RuntimeError("the profiler recorded no kernel (CUPTI is missing or not permitted)")
    context.put(KERNELS, {"of": name, "host_ms": 1e3 * seconds / times} | figures(kernels, times))
    folder = context.scratch / TRACES
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"{name.replace(' ', '-')}.json.gz"))
    return kernels


def figures(kernels: Sequence[Kernel], times: int) -> dict[str, Any]:
    """Milliseconds on the device, launches, and the longest kernels; per repetition."""
    rows = table(kernels, times)
    device_ms = sum(float(row["us"]) for row in rows) / 1e3
    return {"device_ms": device_ms, "launches": len(kernels) / times, "top": rows[:TOP]}


def _kernels(events: Any) -> list[Kernel]:
    on_gpu = [event for event in events if event.device_type.name == GPU_EVENT]
    kernels = [Kernel(e.name, e.time_range.start, e.time_range.end) for e in on_gpu]
    return sorted(kernels, key=lambda kernel: kernel.start)


def table(kernels: Sequence[Kernel], times: int) -> list[dict[str, Any]]:
    """Microseconds by name, the longest first; overlapping kernels both count in full."""
    durations: dict[str, list[float]] = {}
    for kernel in kernels:
        durations.setdefault(kernel.name[:90], []).append(kernel.end - kernel.start)
    rows = [
        {
            "kernel": name,
            "calls": len(us) / times,
            "us_each": round(sum(us) / len(us), 2),
            "us": round(sum(us) / times, 1),
        }
        for name, us in durations.items()
    ]
    return sorted(rows, key=lambda row: -float(row["us"]))
