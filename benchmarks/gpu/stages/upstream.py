"""Plain Chatterbox, the same forced tokens."""

from __future__ import annotations

import time

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import LOADED, RUN
from benchmarks.gpu.measuring.clocks import fresh_memory, vram
from chatterbox_opt.bench.backends import UPSTREAM, BenchJob, UpstreamTarget, forced_tokens

RUNS = 2  # each takes seconds


def run(context: Context) -> None:
    """See the module."""
    import transformers  # upstream's dependency

    long, short = (forced_tokens(s) for s in (context.sizes.seconds, context.sizes.short))
    start = time.perf_counter()
    theirs = UpstreamTarget(BenchJob(context.model, context.device, tokens=long), "")
    loaded = {"row": UPSTREAM, "dtype": theirs.dtype, "seconds": time.perf_counter() - start}
    context.put(LOADED, loaded | {"transformers": transformers.__version__} | vram())
    fresh_memory()
    theirs.run(short)
    for _ in range(RUNS):
        row = {"row": UPSTREAM, "dtype": theirs.dtype, "plan": theirs.plan, "warm": False}
        context.put(RUN, row | {"tokens": len(long), "seconds": theirs.run()} | vram())


if __name__ == "__main__":
    main(run)
