"""float16: what a person waits for, and what T3 does in each mode. The most valuable stage."""

from __future__ import annotations

import time

from benchmarks import batch
from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import CHECK, FIRST_AUDIO, PREFILL, SOUND, TRITON, VRAM, WHOLE
from benchmarks.gpu.measuring import lengths, parity, steps
from benchmarks.gpu.measuring.clocks import triton_compilations, vram
from benchmarks.gpu.measuring.engines import launched, load, on_device, pipeline_of
from benchmarks.gpu.measuring.modes import measure_row, modes
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.bench.backends import SENTENCE, forced_tokens
from chatterbox_opt.engine.decode import EagerBackend

DTYPE = "float16"
TURNS = 5  # of what a person waits for; the first two meet and record
FIRST_TOKENS = 25  # of the first sentence: one second
FIRST, MORE = "Yes, of course.", 6  # a text of several chunks


def run(context: Context) -> None:
    """See the module."""
    with triton_compilations() as compiled, load(context, {"dtype": DTYPE}) as engine:
        context.put(TRITON, compiled)
        for mode in modes(engine):
            with context.part(mode.name):
                measure_row(context, engine, mode, mode.runs(context.sizes.runs))
        with context.part("parity"):
            parity_of(context, engine)
        with context.part("whole"):
            _whole(context, engine)
        with context.part("first audio"):
            _first_audio(context, engine)
        with context.part("watermark"):
            context.put(CHECK, {"name": "watermark"} | parity.watermark_parity(engine))
        with context.part("early launch"), on_device(engine, "t3") as t3:
            if pipeline_of(engine).backend.fused:
                sizes = context.sizes.requests, context.sizes.tokens
                found = parity.early_parity(engine, t3, *sizes)
                context.put(CHECK, {"name": "early launch"} | found)
        with context.part("lengths"):
            _lengths(context, engine)
        with context.part("host"), on_device(engine, "t3") as t3:
            steps.host_cost(context, engine, t3)
        context.put(TRITON, compiled)


def parity_of(context: Context, engine: Engine) -> None:
    """Few tokens: that figures are of what is right. The whole of it is in checks.py."""
    dtype, way = engine.plan.t3.storage, pipeline_of(engine).backend
    sizes = 2, min(4, context.sizes.requests), context.sizes.tokens
    launched_too = parity.token_parity(engine, way, EagerBackend(fused=way.fused), *sizes)
    context.put(CHECK, {"name": f"tokens, {dtype}, replayed as launched"} | launched_too)
    name = f"tokens, {dtype}, as by PyTorch's operations"
    context.put(CHECK, {"name": name} | parity.pytorch_parity(engine, way, *sizes))


def _whole(context: Context, engine: Engine) -> None:
    """``Engine.synthesize``, all of it."""
    batch.never_stop(engine)
    count = len(forced_tokens(context.sizes.seconds))
    for turn in range(TURNS):
        start = time.perf_counter()
        audio = engine.synthesize(SENTENCE, None, Sampling(seed=0, max_tokens=count))
        taken = time.perf_counter() - start
        told = {"turn": turn, "warm": turn < 2, "seconds": taken, "by_stage": dict(audio.seconds)}
        context.put(WHOLE, told | {"tokens": audio.tokens, "dtype": engine.plan.t3.storage})


def _first_audio(context: Context, engine: Engine) -> None:
    """Seconds until the first second of sound is there, more sentences being behind it."""
    text = " ".join((FIRST, *(SENTENCE for _ in range(MORE))))
    few = min(FIRST_TOKENS, len(forced_tokens(context.sizes.seconds)))
    for turn in range(TURNS):
        start, firsts = time.perf_counter(), []
        for _ in engine.stream(text, None, Sampling(seed=0, max_tokens=few)):
            firsts.append(time.perf_counter() - start)
        if len(firsts) < 2:
            raise RuntimeError("no sentence is behind the first one: this is no first audio")
        told = {"turn": turn, "warm": turn < 2, "seconds": firsts[0], "tokens": few}
        context.put(FIRST_AUDIO, told | {"dtype": engine.plan.t3.storage})


def _lengths(context: Context, engine: Engine) -> None:
    """Flow and vocoder, and the prefill, by length, replayed and launched."""
    sizes = context.sizes
    for row in lengths.sound_by_length(engine, sizes.lengths):
        context.put(SOUND, {"mode": "graph", "dtype": engine.plan.flow.storage} | row)
    with launched(engine):
        for row in lengths.sound_by_length(engine, sizes.launched_lengths):
            context.put(SOUND, {"mode": "launched", "dtype": engine.plan.flow.storage} | row)
    way = pipeline_of(engine).backend
    with on_device(engine, "t3") as t3:
        by_mode = {"launched": EagerBackend(fused=way.fused), "replayed": way}
        for characters in sizes.texts:
            row = lengths.prefill_seconds(engine, t3, by_mode, characters)
            context.put(PREFILL, row)
    context.put(VRAM, {"after": "lengths"} | vram())


if __name__ == "__main__":
    main(run)
