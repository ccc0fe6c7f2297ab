"""Profiles by kernel: a decode step, a flow evaluation, the vocoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import FLOW
from benchmarks.gpu.measuring import steps
from benchmarks.gpu.measuring.clocks import host_seconds
from benchmarks.gpu.measuring.engines import generator_on, load, on_device, pipeline_of
from benchmarks.gpu.measuring.modes import modes
from benchmarks.gpu.measuring.tracing import traced
from chatterbox_opt import Engine
from chatterbox_opt.bench.timing import forced_tokens


def run(context: Context) -> None:
    """Run the stage."""
    batch = max(rows // 2 for rows in context.sizes.rows)
    with load(context, {"dtype": "float16"}) as engine, on_device(engine, "t3") as t3:
        for mode in modes(engine):
            with context.part(f"step, {mode.name}"):
                step = steps.prefilled_step(engine, t3, mode.steps, 1, f"step {mode.name}")
                steps.time_step(context, step)
                steps.trace_step(context, engine, t3, step)
        if batch > 1:
            with context.part(f"step of {batch}"):
                backend = pipeline_of(engine).decoder.backend
                name = f"step of {batch} requests"
                step = steps.prefilled_step(engine, t3, backend, batch, name)
                steps.time_step(context, step)
                steps.trace_step(context, engine, t3, step)
        with context.part("flow and vocoder"):
            _rendering(context, engine)


def _rendering(context: Context, engine: Engine) -> None:
    """One Euler step of the flow and all ten, and the vocoder."""
    pipeline = pipeline_of(engine)
    device, voice = pipeline.device, engine.voice().to(pipeline.device)
    tokens = torch.tensor(forced_tokens(context.sizes.seconds), device=device)

    def flow(count: int) -> Any:
        with on_device(engine, "flow") as stage:
            return stage([tokens], [voice], [generator_on(device)], count)

    for count in (1, 10):
        work = _bind(flow, count)
        laps = host_seconds(work, device, warm=3)
        context.put(FLOW, {"steps": count, "seconds": laps, "tokens": len(tokens)})
    traced(context, "flow evaluation", lambda: flow(1), 1)
    mel = flow(10)

    def vocoder() -> Any:
        with on_device(engine, "vocoder") as stage:
            return stage(mel, [generator_on(device)])

    for _ in range(3):
        vocoder()
    traced(context, "vocoder", vocoder, 1)


def _bind(work: Callable[[int], Any], count: int) -> Callable[[], Any]:
    return lambda: work(count)


if __name__ == "__main__":
    main(run)
