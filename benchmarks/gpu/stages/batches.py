"""Batches: tokens per second of T3 alone, and of all stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks import batch
from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import BATCH, BATCH_T3
from benchmarks.gpu.measuring.clocks import vram
from benchmarks.gpu.measuring.engines import load, rendered_by, renderers
from chatterbox_opt import Engine, Request, Sampling

# overrides of the profile "dev" with CUDA graphs
ROWS: tuple[Mapping[str, str], ...] = (
    {"dtype": "float16"},
    {"dtype": "float16", "kv_cache": "int8"},
)
RUNS = 2  # the first one captures CUDA graphs


def run(context: Context) -> None:
    """Run the stage."""
    for overrides in ROWS:
        with context.part(str(dict(overrides))), load(context, overrides) as engine:
            batch.never_stop(engine)
            warm_up = Sampling(seed=0, max_tokens=context.sizes.t3_batch_tokens)
            engine.synthesize("Hello there.", None, warm_up)
            for count in context.sizes.batch_sizes:
                with context.part(f"{count} at once"):
                    _t3(context, engine, count, overrides)
            with context.part("all stages"):
                _all_stages(context, engine, overrides)


def _t3(context: Context, engine: Engine, count: int, overrides: Mapping[str, str]) -> None:
    most = context.sizes.t3_batch_tokens
    requests = [_shortened(one, most) for one in batch.requests(count + count // 2)]
    for i in range(RUNS):
        figures = batch.t3_alone(engine, requests, count)
        labels = {"overrides": dict(overrides), "requests": count, "run": i}
        context.put(BATCH_T3, labels | figures | vram())


def _shortened(request: Request, max_tokens: int) -> Request:
    tokens = min(request.sampling.max_tokens, max_tokens)
    return replace(request, sampling=replace(request.sampling, max_tokens=tokens))


def _all_stages(context: Context, engine: Engine, overrides: Mapping[str, str]) -> None:
    """Requests of 5 to 12 s through all stages, rendered inline and overlapped with T3."""
    sizes, slots = context.sizes, engine.plan.slots
    most = sizes.batch_request_tokens
    requests = [_shortened(one, most) for one in batch.requests(sizes.batch_requests)]
    for name, renderer in renderers(engine).items():
        with rendered_by(engine, renderer):
            for i in range(RUNS):
                figures = batch.all_stages(engine, requests, slots)
                labels = {"overrides": dict(overrides), "requests": slots}
                labels |= {"rendering": name, "run": i}
                context.put(BATCH, labels | figures | vram())


if __name__ == "__main__":
    main(run)
