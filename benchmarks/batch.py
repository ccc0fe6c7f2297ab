"""Throughput of a batch: the same lines one by one, side by side, and by plain Chatterbox.

    python benchmarks/batch.py --model DIR --lines 16 --slots 8 --json NAME-batch.json

Lines of 5 to 12 s of forced length (the model never stops by itself), the same ones in every way:
all of them through T3 alone, the first ``--whole`` through all stages too; plain Chatterbox says
``--upstream`` of them. Ways take turns.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.bench.backends import SENTENCE, BenchJob, UpstreamTarget, forced_tokens
from chatterbox_opt.bench.roofline import facts
from chatterbox_opt.checkpoints.registry import locate
from chatterbox_opt.config.hardware import AUTO
from chatterbox_opt.config.model_config import TOKEN_RATE
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.sequence import TokenOutput

NEVER = -5  # no token


def requests(lines: int) -> list[Request]:
    rng = np.random.default_rng(0)
    lengths = rng.uniform(5, 12, lines) * TOKEN_RATE
    return [
        Request(str(i), SENTENCE, None, Sampling(seed=i, max_tokens=round(n)))
        for i, n in enumerate(lengths)
    ]


def ours(engine: Engine, lines: list[Request], slots: int) -> dict[str, float]:
    """Seconds by stage and in all, and what was said."""
    engine.plan = replace(engine.plan, slots=slots)
    start, tokens, stages = time.perf_counter(), 0, {}  # type: tuple[float, int, dict[str, float]]
    for result in engine.batch(lines):
        audio = result.audio()
        tokens += audio.tokens
        for stage, seconds in audio.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    whole = time.perf_counter() - start
    return figures(tokens, whole, stages) | {"slots": slots}


def never_stop(engine: Engine) -> None:
    """Let every utterance come to its bound, whatever the weights."""
    with engine.pipeline.placement("t3") as t3:  # type: ignore[union-attr]
        t3.config = replace(t3.config, stop_speech=NEVER)  # type: ignore[type-var]


def t3_alone(engine: Engine, lines: list[Request], slots: int) -> dict[str, float]:
    """Tokens per second of T3, prefill included."""
    pipeline = cast(Pipeline, engine.pipeline)
    begun = [engine._begin(None, line, line.sampling.seed or 0) for line in lines]
    left = iter([attempts.next_request() for chunks in begun for attempts in chunks])
    start, tokens = time.perf_counter(), 0
    for ended in pipeline.read(lambda: next(left, None), slots, 1, guided=True):
        tokens += sum(len(read.tokens) for read in ended if isinstance(read, TokenOutput))
    seconds = time.perf_counter() - start
    return {"tokens": tokens, "seconds": seconds, "t3_tokens_per_second": tokens / seconds}


def figures(tokens: int, whole: float, stages: dict[str, float]) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "t3_tokens_per_second": tokens / stages["t3"],
        "seconds": whole,
        "seconds_by_stage": stages,
        "realtime_x": tokens / TOKEN_RATE / whole,
    }


def upstream(model: str, lines: list[Request], device: str = AUTO) -> dict[str, Any]:
    tokens, stages = 0, {}  # type: tuple[int, dict[str, float]]
    theirs = UpstreamTarget(BenchJob(model, device), "")
    for line in lines:
        count = line.sampling.max_tokens
        seconds = theirs.run(forced_tokens(count / TOKEN_RATE))
        seconds["t3"] = seconds.pop("prefill") + seconds.pop("decode")
        stages = {stage: stages.get(stage, 0.0) + s for stage, s in seconds.items()}
        tokens += count
    return figures(tokens, sum(stages.values()), stages)


def main(
    model: Annotated[str, typer.Option(help="A checkpoint of random values will do.")],
    lines: Annotated[int, typer.Option(help="How many.")] = 64,
    slots: Annotated[list[int] | None, typer.Option(help="Ways to batch.")] = None,
    whole: Annotated[int, typer.Option(help="Lines through all stages.")] = 8,
    dtype: Annotated[str, typer.Option(help="As for synth.")] = "bfloat16",
    runs: Annotated[int, typer.Option(help="Turns of every way.")] = 1,
    upstream_lines: Annotated[
        int, typer.Option("--upstream", help="Lines for plain Chatterbox.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="Where figures go.")] = None,
) -> None:
    """Measure and print."""
    asked = requests(lines)
    rows: dict[str, list[dict[str, Any]]] = {}
    with Engine.load(model, "dev", overrides={"dtype": dtype}) as engine:
        never_stop(engine)
        ways_to_go = slots or [1, engine.plan.slots]
        ours(engine, asked[:2], 2)  # warm
        for _, (name, measure, count), ways in product(
            range(runs), (("t3", t3_alone, lines), ("whole", ours, whole)), ways_to_go
        ):
            row = measure(engine, asked[:count], ways)
            rows.setdefault(f"{name}, {ways} at once", []).append(row)
            typer.echo(f"{name}, {ways} at once: {json.dumps(row)}", err=True)
    if upstream_lines:
        rows["upstream"] = [upstream(model, asked[:upstream_lines])]
        typer.echo(f"upstream: {json.dumps(rows['upstream'][0])}", err=True)
    card = facts(BenchJob(model), locate(model))
    report = {"card": card, "dtype": dtype, "lines": lines, "rows": rows}
    text = json.dumps(report, indent=1)
    typer.echo(text) if output is None else output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
