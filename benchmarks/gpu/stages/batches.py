"""Many requests at once: tokens a second of T3 alone, and whole batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks import batch
from benchmarks.gpu.context import Context, main
from benchmarks.gpu.kinds import BATCH, BATCH_T3
from benchmarks.gpu.measuring.clocks import vram
from benchmarks.gpu.measuring.engines import load, sound_made_by, sounds
from chatterbox_opt import Engine, Request, Sampling

# of the plain profile "dev" with CUDA graphs; another KV cache, or dtype, is another line here
ROWS: tuple[Mapping[str, str], ...] = (
    {"dtype": "float16"},
    {"dtype": "float16", "kv_cache": "int8"},
)
TURNS = 2  # the first records


def run(context: Context) -> None:
    """See the module."""
    for overrides in ROWS:
        with context.part(str(dict(overrides))), load(context, overrides) as engine:
            batch.never_stop(engine)
            few = Sampling(seed=0, max_tokens=context.sizes.batch_tokens)
            engine.synthesize("Hello there.", None, few)
            for count in context.sizes.batches:
                with context.part(f"{count} at once"):
                    _t3(context, engine, count, overrides)
            with context.part("whole"):
                _whole(context, engine, overrides)


def _t3(context: Context, engine: Engine, count: int, overrides: Mapping[str, str]) -> None:
    asked = [_cut(line, context.sizes.batch_tokens) for line in batch.requests(count + count // 2)]
    for turn in range(TURNS):
        found = batch.t3_alone(engine, asked, count)
        told = {"overrides": dict(overrides), "requests": count, "turn": turn}
        context.put(BATCH_T3, told | found | vram())


def _cut(line: Request, most: int) -> Request:
    tokens = min(line.sampling.max_tokens, most)
    return replace(line, sampling=replace(line.sampling, max_tokens=tokens))


def _whole(context: Context, engine: Engine, overrides: Mapping[str, str]) -> None:
    """Lines of 5 to 12 s through all stages, their sound made in turn with T3 and beside it."""
    sizes, many = context.sizes, engine.plan.slots
    asked = [_cut(line, sizes.line_tokens) for line in batch.requests(sizes.lines)]
    for who, sound in sounds(engine).items():
        with sound_made_by(engine, sound):
            for turn in range(TURNS):
                found = batch.ours(engine, asked, many)
                told = {"overrides": dict(overrides), "requests": many, "sound": who, "turn": turn}
                context.put(BATCH, told | found | vram())


if __name__ == "__main__":
    main(run)
