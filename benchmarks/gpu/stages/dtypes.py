"""The other precisions: the table's rows, their correctness, and a step's memory traffic."""

from __future__ import annotations

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import CHECK, TRITON
from benchmarks.gpu.measuring import parity, steps
from benchmarks.gpu.measuring.clocks import triton_compilations
from benchmarks.gpu.measuring.engines import load, on_device, pipeline_of
from benchmarks.gpu.measuring.modes import measure_row, modes
from benchmarks.gpu.stages.core import parity_of
from chatterbox_opt import Engine

DTYPES = ("int8", "bfloat16", "float32")


def run(context: Context) -> None:
    """Run the stage."""
    with triton_compilations() as compiled:
        for dtype in DTYPES:
            with context.part(dtype), load(context, {"dtype": dtype}) as engine:
                _dtype(context, engine)
        context.put(TRITON, compiled)


def _dtype(context: Context, engine: Engine) -> None:
    dtype = engine.plan.t3.storage
    for mode in modes(engine):
        with context.part(f"{dtype}, {mode.name}"):
            measure_row(context, engine, mode, mode.runs(context.sizes.runs))
    with context.part(f"{dtype}, parity"):
        parity_of(context, engine)
    with context.part(f"{dtype}, rendering"):
        seconds = min(parity.AUDIO_SECONDS, context.sizes.seconds)
        result = parity.rendering_parity(engine, seconds)
        context.put(CHECK, {"name": f"rendering, {dtype}, CUDA graph as eager"} | result)
    if dtype == "int8":
        with context.part("int8, step"), on_device(engine, "t3") as t3:
            backend = pipeline_of(engine).decoder.backend
            step = steps.prefilled_step(engine, t3, backend, 1, "step int8")
            steps.time_step(context, step)
            steps.trace_step(context, engine, t3, step)


if __name__ == "__main__":
    main(run)
