"""Many requests at once: tokens a second of T3 alone, and whole batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks import batch
from benchmarks.gpu.context import Context, main
from benchmarks.gpu.engines import load, sound_made_by, sounds
from benchmarks.gpu.measure import vram
from chatterbox_opt import Engine, Request

# of the plain profile "dev" with CUDA graphs; another KV cache, or dtype, is another line here
ROWS: tuple[Mapping[str, str], ...] = ({"dtype": "float16"},)
TURNS = 2  # the first records
T3_ALONE, WHOLE = "batch, T3 alone", "batch, whole"  # kinds of lines


def run(context: Context) -> None:
    """See the module."""
    for overrides in ROWS:
        with context.part(str(dict(overrides))), load(context, overrides) as engine:
            batch.never_stop(engine)
            engine.synthesize("Hello there.", None, None)
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
        context.put(T3_ALONE, told | found | vram())


def _cut(line: Request, most: int) -> Request:
    tokens = min(line.sampling.max_tokens, most)
    return replace(line, sampling=replace(line.sampling, max_tokens=tokens))


def _whole(context: Context, engine: Engine, overrides: Mapping[str, str]) -> None:
    """Lines of 5 to 12 s through all stages, their sound made in turn with T3 and beside it."""
    asked, many = batch.requests(context.sizes.lines), engine.plan.slots
    for who, sound in sounds(engine).items():
        with sound_made_by(engine, sound):
            for turn in range(TURNS):
                found = batch.ours(engine, asked, many)
                told = {"overrides": dict(overrides), "requests": many, "sound": who, "turn": turn}
                context.put(WHOLE, told | found | vram())


if __name__ == "__main__":
    main(run)
