"""How long work takes on a GPU, and how much memory is taken there.

Knows clocks, CUDA events and the allocator. Knows nothing of engines or of what is measured.

Three clocks: ``host_seconds`` is what a person waits for; ``event_us`` is a kernel's time with the
L2 cache emptied before it; ``graph_us`` is that of work in a CUDA graph, by events around many
replays, so that neither a graph's launch nor the host's wait is in it. All give medians.
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
RUNS = 5  # of which the median is taken
REPLAYS = 20  # of a graph between two events
FLUSH = 256 << 20  # bytes, several times the L2 cache of any GPU


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def host_seconds(
    work: Work, device: torch.device, *, runs: int = RUNS, warm: int = 2
) -> dict[str, float]:
    """Seconds of some work by the host's clock, the device's work done: median, min and max."""
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
    """Microseconds that the host takes to ask for some work, however long the device then takes."""
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    taken = time.perf_counter() - start
    synchronize(device)
    return taken / times * 1e6


def event_us(work: Work, device: torch.device, runs: int = 20) -> float:
    """Microseconds of some work on the device, nothing of what it reads being in the L2 cache.

    The cache is emptied right before: while that runs, the host launches what is timed.
    """
    flush = torch.zeros(FLUSH if device.type == "cuda" else 1, dtype=torch.int8, device=device)
    work()
    laps = []
    for _ in range(runs):
        flush.zero_()
        laps.append(between_events(work, device))
    return statistics.median(laps)


def graph_us(record: CaptureFn, work: Work, device: torch.device, *, times: int = 1) -> float:
    """Microseconds of some work in a CUDA graph.

    Args:
        record: a recorder, such as ``card.CudaRecorder``.
        times: how often the work is in the graph; the result is of once.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    for _ in range(2):  # libraries set themselves up, kernels are compiled
        work()
    synchronize(device)

    def often() -> None:
        for _ in range(times):
            work()

    replay = record(often)

    def replayed() -> None:
        for _ in range(REPLAYS):
            replay()

    laps = [between_events(replayed, device) for _ in range(RUNS + 1)][1:]
    return statistics.median(laps) / REPLAYS / times


def between_events(work: Work, device: torch.device) -> float:
    """Microseconds of some work between two events; of the host where there are none."""
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
    """MiB on the GPU: of tensors now and at most, reserved by the allocator, taken in all."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated_mib": mib(torch.cuda.memory_allocated()),
        "peak_mib": mib(torch.cuda.max_memory_allocated()),
        "reserved_mib": mib(torch.cuda.memory_reserved()),
        "taken_mib": mib(total - free),
    }


def fresh_memory() -> None:
    """Free what nobody holds, and have the peak begin anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def triton_compilations() -> Iterator[Mapping[str, Any]]:
    """Count kernels that Triton compiles ("miss"), or finds compiled ("hit"), in the block."""
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
