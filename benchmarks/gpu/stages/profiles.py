"""Memory of the GPU by profile, what offload costs, and whether anything is recorded anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import PROFILE
from benchmarks.gpu.measuring.clocks import fresh_memory, vram
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.bench.backends import SENTENCE
from chatterbox_opt.runtime.cuda import GraphCapturer

NAMES = ("rtx4090", "rtx3080", "memory-limited", "dev")
TURNS = 5


def run(context: Context) -> None:
    """See the module."""
    with captures() as count:
        for name in NAMES:
            with context.part(name):
                _profile(context, name, count)


def _profile(context: Context, name: str, count: list[int]) -> None:
    fresh_memory()
    sampling = Sampling(seed=0, max_tokens=context.sizes.profile_tokens)
    with Engine.load(context.model, name, device=context.device) as engine:
        told: dict[str, Any] = {"name": name, "plan": engine.plan.summary()}
        laps, recorded = [], []
        for _ in range(TURNS):
            start, before = time.perf_counter(), count[0]
            engine.synthesize(SENTENCE, None, sampling)
            laps.append(time.perf_counter() - start)
            recorded.append(count[0] - before)
        context.put(PROFILE, told | {"seconds": laps, "recorded": recorded} | vram())


@contextmanager
def captures() -> Iterator[list[int]]:
    """Count in the block how often something is recorded: with offload it must be nothing once all
    was met."""
    count, usual = [0], GraphCapturer.__call__

    def counting(self: GraphCapturer, work: Any) -> Any:
        count[0] += 1
        return usual(self, work)

    GraphCapturer.__call__ = counting  # type: ignore[method-assign]
    try:
        yield count
    finally:
        GraphCapturer.__call__ = usual  # type: ignore[method-assign]


if __name__ == "__main__":
    main(run)
