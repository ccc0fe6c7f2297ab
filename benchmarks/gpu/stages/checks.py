"""Whether it is right, in the order of what is most likely to be wrong; a line a check."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import CHECK
from benchmarks.gpu.measuring import parity
from benchmarks.gpu.measuring.clocks import allocated
from benchmarks.gpu.measuring.engines import pipeline_of, recorded, recording
from chatterbox_opt import Engine
from chatterbox_opt.engine.decode import EagerBackend

DTYPES = ("float32", "int8", "float16")


def run(context: Context) -> None:
    """See the module."""
    before = allocated()
    with context.part("beside, drift"):  # what no other stage looks at
        _with_engine(context, "float16", _long)
    for dtype in DTYPES:
        with context.part(dtype):
            _with_engine(context, dtype, _dtype)
    context.put(CHECK, {"name": "closed"} | parity.closed(before))


def _with_engine(context: Context, dtype: str, work: Callable[[Context, Engine], None]) -> None:
    """Nothing is left of the engine when this returns: what is, has leaked."""
    with recording(context.model, context.device, dtype=dtype) as engine:
        work(context, engine)


def _dtype(context: Context, engine: Engine) -> None:
    dtype, way = engine.plan.t3.storage, pipeline_of(engine).backend
    sizes = context.sizes.requests, context.sizes.tokens
    for slots in (1, 4):
        found = parity.token_parity(engine, way, EagerBackend(fused=way.fused), slots, *sizes)
        context.put(CHECK, {"name": f"tokens, {dtype}, {slots} at once"} | found)
    by = parity.pytorch_parity(engine, way, 2, *sizes)
    context.put(CHECK, {"name": f"tokens, {dtype}, by PyTorch"} | by)
    with context.part(f"{dtype}, sound"):
        found = parity.sound_parity(engine, min(parity.SOUND_SECONDS, context.sizes.seconds))
        context.put(CHECK, {"name": f"sound, {dtype}"} | found)
    still = recorded(engine, way)
    context.put(CHECK, {"name": f"recorded, {dtype}", **still, "good": all(still.values())})


def _long(context: Context, engine: Engine) -> None:
    sizes = context.sizes
    with context.part("sound beside T3"):
        found = parity.beside_parity(engine, sizes.beside)
        context.put(CHECK, {"name": "sound beside T3"} | found)
    with context.part("drift"):
        found = parity.drift(engine, sizes.drifting, sizes.drifted)
        context.put(CHECK, {"name": "drift"} | found)


if __name__ == "__main__":
    main(run)
