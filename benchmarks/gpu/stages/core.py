"""float16: latency, and T3's speed in each mode. The most valuable stage."""

from __future__ import annotations

import time

from benchmarks import batch
from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import (
    CHECK,
    FIRST_AUDIO,
    LATENCY,
    PREFILL,
    RENDERING,
    STREAM,
    TRITON,
    VRAM,
)
from benchmarks.gpu.measuring import lengths, parity, steps
from benchmarks.gpu.measuring.clocks import triton_compilations, vram
from benchmarks.gpu.measuring.engines import eager_rendering, load, on_device, pipeline_of
from benchmarks.gpu.measuring.modes import measure_row, modes
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.bench.timing import SENTENCE, forced_tokens
from chatterbox_opt.engine.decoding.decode import EagerBackend
from chatterbox_opt.request import LOW

DTYPE = "float16"
RUNS = 5  # of latency; the first two run eagerly and capture
FIRST_TOKENS = 25  # of the first sentence: one second
FIRST, MORE = "Yes, of course.", 6  # a text of several chunks


def run(context: Context) -> None:
    """Run the stage."""
    with triton_compilations() as compiled, load(context, {"dtype": DTYPE}) as engine:
        context.put(TRITON, compiled)
        for mode in modes(engine):
            with context.part(mode.name):
                measure_row(context, engine, mode, mode.runs(context.sizes.runs))
        with context.part("parity"):
            parity_of(context, engine)
        with context.part("latency"):
            _latency(context, engine)
        with context.part("first audio"):
            _first_audio(context, engine)
        with context.part("low latency"):
            _low_latency(context, engine)
        with context.part("watermark"):
            context.put(CHECK, {"name": "watermark"} | parity.watermark_parity(engine))
        with context.part("PDL"), on_device(engine, "t3") as t3:
            if pipeline_of(engine).decoder.backend.fused:
                sizes = context.sizes.requests, context.sizes.tokens
                result = parity.pdl_parity(engine, t3, *sizes)
                context.put(CHECK, {"name": "PDL"} | result)
        with context.part("lengths"):
            _lengths(context, engine)
        with context.part("host"), on_device(engine, "t3") as t3:
            steps.host_cost(context, engine, t3)
        context.put(TRITON, compiled)


def parity_of(context: Context, engine: Engine) -> None:
    """Compare few tokens, so that figures are of correct output. checks.py compares more."""
    dtype, backend = engine.plan.t3.storage, pipeline_of(engine).decoder.backend
    sizes = 2, min(4, context.sizes.requests), context.sizes.tokens
    result = parity.token_parity(engine, backend, EagerBackend(fused=backend.fused), *sizes)
    context.put(CHECK, {"name": f"tokens, {dtype}, CUDA graph as eager"} | result)
    name = f"tokens, {dtype}, as PyTorch ops"
    context.put(CHECK, {"name": name} | parity.pytorch_parity(engine, backend, *sizes))


def _latency(context: Context, engine: Engine) -> None:
    """Seconds of ``Engine.synthesize``."""
    batch.never_stop(engine)
    count = len(forced_tokens(context.sizes.seconds))
    for i in range(RUNS):
        start = time.perf_counter()
        audio = engine.synthesize(SENTENCE, None, Sampling(seed=0, max_tokens=count))
        seconds = time.perf_counter() - start
        line = {"run": i, "warm": i < 2, "seconds": seconds, "by_stage": dict(audio.seconds)}
        context.put(LATENCY, line | {"tokens": audio.tokens, "dtype": engine.plan.t3.storage})


def _first_audio(context: Context, engine: Engine) -> None:
    """Seconds until the first second of audio of a text with more sentences."""
    text = " ".join((FIRST, *(SENTENCE for _ in range(MORE))))
    max_tokens = min(FIRST_TOKENS, len(forced_tokens(context.sizes.seconds)))
    for i in range(RUNS):
        start, firsts = time.perf_counter(), []
        for _ in engine.stream(text, None, Sampling(seed=0, max_tokens=max_tokens)):
            firsts.append(time.perf_counter() - start)
        if len(firsts) < 2:
            raise RuntimeError("the text was not split into chunks")
        line = {"run": i, "warm": i < 2, "seconds": firsts[0], "tokens": max_tokens}
        context.put(FIRST_AUDIO, line | {"dtype": engine.plan.t3.storage})


def _low_latency(context: Context, engine: Engine) -> None:
    """Seconds until the first part of a sentence, and until the last one."""
    count = len(forced_tokens(context.sizes.seconds))
    sampling = Sampling(seed=0, max_tokens=count)
    for i in range(RUNS):
        start, parts = time.perf_counter(), []
        for piece in engine.pieces(SENTENCE, None, sampling, latency=LOW):
            parts.append((time.perf_counter() - start, piece.tokens))
        line = {"run": i, "warm": i < 2, "seconds": parts[0][0], "tokens": parts[0][1]}
        line |= {"parts": parts, "dtype": engine.plan.t3.storage}
        context.put(STREAM, line)


def _lengths(context: Context, engine: Engine) -> None:
    """Flow and vocoder, and the prefill, by length, in CUDA graphs and eager."""
    sizes = context.sizes
    for row in lengths.rendering_by_length(engine, sizes.lengths):
        context.put(RENDERING, {"mode": "graph", "dtype": engine.plan.flow.storage} | row)
    with eager_rendering(engine):
        for row in lengths.rendering_by_length(engine, sizes.eager_lengths):
            context.put(RENDERING, {"mode": "eager", "dtype": engine.plan.flow.storage} | row)
    backend = pipeline_of(engine).decoder.backend
    with on_device(engine, "t3") as t3:
        by_mode = {"eager": EagerBackend(fused=backend.fused), "graph": backend}
        for characters in sizes.texts:
            row = lengths.prefill_seconds(engine, t3, by_mode, characters)
            context.put(PREFILL, row)
    context.put(VRAM, {"after": "lengths"} | vram())


if __name__ == "__main__":
    main(run)
