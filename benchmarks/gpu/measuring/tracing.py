"""What PyTorch's profiler sees of some work: kernels in their order, a table, a small trace.

Knows the profiler. Knows nothing of what kernels are for (traffic.py).
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

GPU_EVENT = "CUDA"  # the profiler's name of a device
TOP = 30  # kernels of a table


def traced(context: Context, name: str, work: Callable[[], Any], times: int) -> list[Kernel]:
    """Profile some warm work: a line with time by kernel, and a trace for a browser.

    Args:
        times: how often it is done; figures are of once.

    Returns:
        the device's kernels and copies, in the order of their beginning.
    """
    device = torch.device(context.device)
    activities = [ProfilerActivity.CPU]
    if not context.simulated:
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with profile(activities=activities) as seen:
        start = time.perf_counter()
        for _ in range(times):
            work()
        synchronize(device)
        whole = time.perf_counter() - start
    kernels = _kernels(seen.events())
    if not kernels and not context.simulated:
        raise RuntimeError("the profiler saw no kernel (CUPTI is missing, or refused)")
    context.put(KERNELS, {"of": name, "host_ms": 1e3 * whole / times} | figures(kernels, times))
    folder = context.scratch / TRACES
    folder.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(folder / f"{name.replace(' ', '-')}.json.gz"))
    return kernels


def figures(kernels: Sequence[Kernel], times: int) -> dict[str, Any]:
    """Milliseconds on the device, launches, and the kernels that take longest; of once."""
    rows = table(kernels, times)
    whole = sum(float(row["us"]) for row in rows) / 1e3
    return {"device_ms": whole, "launches": len(kernels) / times, "top": rows[:TOP]}


def _kernels(events: Any) -> list[Kernel]:
    there = [event for event in events if event.device_type.name == GPU_EVENT]
    found = [Kernel(one.name, one.time_range.start, one.time_range.end) for one in there]
    return sorted(found, key=lambda kernel: kernel.start)


def table(kernels: Sequence[Kernel], times: int) -> list[dict[str, Any]]:
    """Microseconds by name, the longest first; where kernels overlap, both count in full."""
    spent: dict[str, list[float]] = {}
    for kernel in kernels:
        spent.setdefault(kernel.name[:90], []).append(kernel.end - kernel.start)
    rows = [
        {
            "kernel": name,
            "calls": len(rows_per_seq) / times,
            "us_each": round(sum(rows_per_seq) / len(rows_per_seq), 2),
            "us": round(sum(rows_per_seq) / times, 1),
        }
        for name, rows_per_seq in spent.items()
    ]
    return sorted(rows, key=lambda row: -float(row["us"]))
