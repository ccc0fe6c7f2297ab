"""GPU memory by profile, the cost of offloading, and whether graphs are captured repeatedly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import PROFILE
from benchmarks.gpu.measuring.clocks import reset_memory, vram
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.bench.timing import SENTENCE
from chatterbox_opt.runtime.cuda import GraphCapturer

NAMES = ("rtx4090", "rtx3080", "memory-limited", "dev")
RUNS = 5


def run(context: Context) -> None:
    """Run the stage."""
    with count_captures() as count:
        for name in NAMES:
            with context.part(name):
                _profile(context, name, count)


def _profile(context: Context, name: str, count: list[int]) -> None:
    reset_memory()
    sampling = Sampling(seed=0, max_tokens=context.sizes.profile_tokens)
    with Engine.load(context.model, name, device=context.device) as engine:
        labels: dict[str, Any] = {"name": name, "plan": engine.plan.summary()}
        seconds, captures = [], []
        for _ in range(RUNS):
            start, before = time.perf_counter(), count[0]
            engine.synthesize(SENTENCE, None, sampling)
            seconds.append(time.perf_counter() - start)
            captures.append(count[0] - before)
        context.put(PROFILE, labels | {"seconds": seconds, "captures": captures} | vram())


@contextmanager
def count_captures() -> Iterator[list[int]]:
    """Count graph captures in the block: with offloading there must be none after every shape was
    captured."""
    count, original = [0], GraphCapturer.__call__

    def counting(self: GraphCapturer, work: Any) -> Any:
        count[0] += 1
        return original(self, work)

    GraphCapturer.__call__ = counting  # type: ignore[method-assign]
    try:
        yield count
    finally:
        GraphCapturer.__call__ = original  # type: ignore[method-assign]


if __name__ == "__main__":
    main(run)
