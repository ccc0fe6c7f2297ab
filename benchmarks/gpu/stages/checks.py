"""Correctness checks, the likeliest failures first; a line per check."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import CHECK
from benchmarks.gpu.measuring import parity
from benchmarks.gpu.measuring.clocks import allocated
from benchmarks.gpu.measuring.engines import graphs_intact, load_with_graphs, pipeline_of
from chatterbox_opt import Engine
from chatterbox_opt.engine.decoding.decode import EagerBackend

DTYPES = ("float32", "int8", "float16")


def run(context: Context) -> None:
    """Run the stage."""
    before = allocated()
    with context.part("overlap, drift"):  # which no other stage checks
        _with_engine(context, "float16", _long)
    for dtype in DTYPES:
        with context.part(dtype):
            _with_engine(context, dtype, _dtype)
    context.put(CHECK, {"name": "closed"} | parity.memory_after_close(before))


def _with_engine(context: Context, dtype: str, work: Callable[[Context, Engine], None]) -> None:
    """Drops all references to the engine: what is still allocated has leaked."""
    with load_with_graphs(context.model, context.device, dtype=dtype) as engine:
        work(context, engine)


def _dtype(context: Context, engine: Engine) -> None:
    dtype, backend = engine.plan.t3.storage, pipeline_of(engine).decoder.backend
    sizes = context.sizes.requests, context.sizes.tokens
    for slots in (1, 4):
        eager = EagerBackend(fused=backend.fused)
        result = parity.token_parity(engine, backend, eager, slots, *sizes)
        context.put(CHECK, {"name": f"tokens, {dtype}, {slots} at once"} | result)
    result = parity.pytorch_parity(engine, backend, 2, *sizes)
    context.put(CHECK, {"name": f"tokens, {dtype}, as PyTorch ops"} | result)
    with context.part(f"{dtype}, rendering"):
        seconds = min(parity.AUDIO_SECONDS, context.sizes.seconds)
        result = parity.rendering_parity(engine, seconds)
        context.put(CHECK, {"name": f"rendering, {dtype}"} | result)
    intact = graphs_intact(engine, backend)
    context.put(CHECK, {"name": f"CUDA graphs, {dtype}", **intact, "good": all(intact.values())})


def _long(context: Context, engine: Engine) -> None:
    sizes = context.sizes
    with context.part("overlapped rendering"):
        result = parity.overlap_parity(engine, sizes.overlap_requests)
        context.put(CHECK, {"name": "overlapped rendering"} | result)
    with context.part("drift"):
        result = parity.drift(engine, sizes.drift_requests, sizes.drift_tokens)
        context.put(CHECK, {"name": "drift"} | result)


if __name__ == "__main__":
    main(run)
