"""Time of work on a GPU, and memory in use there.

Responsible for clocks, CUDA events and the allocator. Not responsible for engines or for what is
measured.

Three clocks: ``host_seconds`` is latency on the host; ``event_us`` is a kernel's time with the L2
cache flushed before it; ``graph_us`` is that of work in a CUDA graph, with events around many
replays, which exclude the graph's launch and the host's synchronization. All return medians.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from chatterbox_opt.bench.roofline import event_seconds
from chatterbox_opt.runtime.cuda_graphs import CaptureFn

Work = Callable[[], Any]
RUNS = 5  # for a median
REPLAYS = 20  # of a graph between two events
FLUSH = 256 << 20  # bytes, several times the L2 cache of any GPU


def synchronize(device: torch.device) -> None:
    """Wait for all work launched on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def host_seconds(
    work: Work, device: torch.device, *, runs: int = RUNS, warm: int = 2
) -> dict[str, float]:
    """Seconds of some work on the host's clock, synchronized: median, min and max."""
    for _ in range(warm):
        work()
    laps = []
    for _ in range(runs):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        laps.append(time.perf_counter() - start)
    return spread(laps)


def host_us(work: Work, device: torch.device, times: int = 200) -> float:
    """Microseconds in which the host launches some work, without waiting for the device."""
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    seconds = time.perf_counter() - start
    synchronize(device)
    return seconds / times * 1e6


def event_us(work: Work, device: torch.device, runs: int = 20) -> float:
    """Microseconds of some work on the device with a flushed L2 cache.

    While the flush runs, the host launches the timed work.
    """
    flush = torch.zeros(FLUSH if device.type == "cuda" else 1, dtype=torch.int8, device=device)
    work()
    laps = []
    for _ in range(runs):
        flush.zero_()
        laps.append(between_events(work, device))
    return statistics.median(laps)


def graph_us(capture: CaptureFn, work: Work, device: torch.device, *, times: int = 1) -> float:
    """Microseconds of some work in a CUDA graph.

    Args:
        capture: such as ``cuda.GraphCapturer``.
        times: repetitions of the work in the graph; the result is per repetition.

    Raises:
        RuntimeError: it cannot be captured.
    """
    for _ in range(2):  # libraries initialize, kernels are compiled
        work()
    synchronize(device)

    def repeated() -> None:
        for _ in range(times):
            work()

    replay = capture(repeated)

    def replayed() -> None:
        for _ in range(REPLAYS):
            replay()

    laps = [between_events(replayed, device) for _ in range(RUNS + 1)][1:]
    return statistics.median(laps) / REPLAYS / times


def between_events(work: Work, device: torch.device) -> float:
    """Microseconds of some work between two events; on the host's clock without a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e6
    return 1e6 * event_seconds(work)


def spread(values: list[float]) -> dict[str, float]:
    """Median, min and max."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def mib(count: float) -> float:
    """Bytes in MiB."""
    return round(count / 2**20, 1)


def allocated() -> int:
    """Bytes of tensors on the GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def vram() -> dict[str, float]:
    """MiB on the GPU: of tensors now and at peak, reserved by the allocator, used in all."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated_mib": mib(torch.cuda.memory_allocated()),
        "peak_mib": mib(torch.cuda.max_memory_allocated()),
        "reserved_mib": mib(torch.cuda.memory_reserved()),
        "used_mib": mib(total - free),
    }


def reset_memory() -> None:
    """Free unreferenced memory, and reset the peak statistics."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def triton_compilations() -> Iterator[Mapping[str, Any]]:
    """Count kernels that Triton compiles ("miss") or takes from its cache ("hit") in the block."""
    count: dict[str, Any] = {"hit": 0, "miss": 0, "missed": []}
    try:
        from triton import knobs  # from Triton 3.4 on
    except ImportError:
        yield {"counted": False}
        return

    def listener(*, src: Any, metadata: Any, cache_hit: bool, **_: Any) -> None:
        count["hit" if cache_hit else "miss"] += 1
        if not cache_hit:
            count["missed"].append(f"{metadata['name']} {[*src.constants.values()]}")

    before, knobs.compilation.listener = knobs.compilation.listener, listener
    try:
        yield count
    finally:
        knobs.compilation.listener = before
