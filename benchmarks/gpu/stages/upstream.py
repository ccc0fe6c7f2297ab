"""chatterbox-tts with the same forced tokens."""

from __future__ import annotations

import time

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import LOADED, RUN
from benchmarks.gpu.measuring.clocks import reset_memory, vram
from chatterbox_opt.bench.backends import UPSTREAM
from chatterbox_opt.bench.timing import BenchJob, forced_tokens
from chatterbox_opt.bench.upstream import UpstreamTarget

RUNS = 2  # each takes seconds


def run(context: Context) -> None:
    """Run the stage."""
    import transformers  # upstream's dependency

    long, short = (forced_tokens(s) for s in (context.sizes.seconds, context.sizes.short))
    start = time.perf_counter()
    target = UpstreamTarget(BenchJob(context.model, context.device, tokens=long), "")
    loaded = {"row": UPSTREAM, "dtype": target.dtype, "seconds": time.perf_counter() - start}
    context.put(LOADED, loaded | {"transformers": transformers.__version__} | vram())
    reset_memory()
    target.run(short)
    for _ in range(RUNS):
        row = {"row": UPSTREAM, "dtype": target.dtype, "plan": target.plan, "warm": False}
        context.put(RUN, row | {"tokens": len(long), "seconds": target.run()} | vram())


if __name__ == "__main__":
    main(run)
