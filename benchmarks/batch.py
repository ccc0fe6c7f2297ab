"""Throughput of a batch: the same requests one by one, batched, and with chatterbox-tts.

    python benchmarks/batch.py --model DIR --lines 16 --slots 8 --json NAME-batch.json

The requests have a forced length of 5 to 12 s (the stop token is disabled) and are the same for
every batch size: all of them run through T3 alone, the first ``--whole`` also through all stages,
the first ``--upstream`` through chatterbox-tts. With ``--runs`` the batch sizes alternate.
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

NO_TOKEN = -5  # matches no token


def requests(count: int) -> list[Request]:
    rng = np.random.default_rng(0)
    lengths = rng.uniform(5, 12, count) * TOKEN_RATE
    return [
        Request(str(i), SENTENCE, None, Sampling(seed=i, max_tokens=round(n)))
        for i, n in enumerate(lengths)
    ]


def all_stages(engine: Engine, batch: list[Request], slots: int) -> dict[str, float]:
    """Tokens and seconds of all stages."""
    engine.plan = replace(engine.plan, slots=slots)
    start, tokens, stages = time.perf_counter(), 0, {}  # type: tuple[float, int, dict[str, float]]
    for result in engine.batch(batch):
        audio = result.audio()
        tokens += audio.tokens
        for stage, seconds in audio.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    seconds_total = time.perf_counter() - start
    return figures(tokens, seconds_total, stages) | {"slots": slots}


def never_stop(engine: Engine) -> None:
    """Disable the stop token: every sequence reaches its forced length, whatever the weights."""
    with engine.pipeline.placement("t3") as t3:  # type: ignore[union-attr]
        t3.shape = replace(t3.shape, stop_speech=NO_TOKEN)  # type: ignore[type-var]


def t3_alone(engine: Engine, batch: list[Request], slots: int) -> dict[str, float]:
    """Tokens per second of T3, prefill included."""
    pipeline = cast(Pipeline, engine.pipeline)
    begun = [engine._begin(None, request, request.sampling.seed or 0) for request in batch]
    pending = iter([attempts.next_request() for chunks in begun for attempts in chunks])
    start, tokens = time.perf_counter(), 0
    for ended in pipeline.read(lambda: next(pending, None), slots, 1, guided=True):
        tokens += sum(len(output.tokens) for output in ended if isinstance(output, TokenOutput))
    seconds = time.perf_counter() - start
    return {"tokens": tokens, "seconds": seconds, "t3_tokens_per_second": tokens / seconds}


def figures(tokens: int, seconds: float, stages: dict[str, float]) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "t3_tokens_per_second": tokens / stages["t3"],
        "seconds": seconds,
        "seconds_by_stage": stages,
        "realtime_x": tokens / TOKEN_RATE / seconds,
    }


def upstream(model: str, batch: list[Request], device: str = AUTO) -> dict[str, Any]:
    tokens, stages = 0, {}  # type: tuple[int, dict[str, float]]
    target = UpstreamTarget(BenchJob(model, device), "")
    for request in batch:
        count = request.sampling.max_tokens
        seconds = target.run(forced_tokens(count / TOKEN_RATE))
        seconds["t3"] = seconds.pop("prefill") + seconds.pop("decode")
        stages = {stage: stages.get(stage, 0.0) + s for stage, s in seconds.items()}
        tokens += count
    return figures(tokens, sum(stages.values()), stages)


def main(
    model: Annotated[str, typer.Option(help="Checkpoint; random weights will do.")],
    lines: Annotated[int, typer.Option(help="Number of requests.")] = 64,
    slots: Annotated[list[int] | None, typer.Option(help="Batch sizes.")] = None,
    whole: Annotated[int, typer.Option(help="Requests through all stages.")] = 8,
    dtype: Annotated[str, typer.Option(help="Dtype, as for synth.")] = "bfloat16",
    runs: Annotated[int, typer.Option(help="Runs of every batch size.")] = 1,
    upstream_lines: Annotated[
        int, typer.Option("--upstream", help="Requests for chatterbox-tts.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="Output file.")] = None,
) -> None:
    """Measure and print."""
    batch = requests(lines)
    rows: dict[str, list[dict[str, Any]]] = {}
    with Engine.load(model, "dev", overrides={"dtype": dtype}) as engine:
        never_stop(engine)
        batch_sizes = slots or [1, engine.plan.slots]
        all_stages(engine, batch[:2], 2)  # warm up
        measures = (("t3", t3_alone, lines), ("whole", all_stages, whole))
        for _, (name, measure, count), size in product(range(runs), measures, batch_sizes):
            row = measure(engine, batch[:count], size)
            rows.setdefault(f"{name}, {size} at once", []).append(row)
            typer.echo(f"{name}, {size} at once: {json.dumps(row)}", err=True)
    if upstream_lines:
        rows["upstream"] = [upstream(model, batch[:upstream_lines])]
        typer.echo(f"upstream: {json.dumps(rows['upstream'][0])}", err=True)
    machine = facts(BenchJob(model), locate(model))
    report = {"card": machine, "dtype": dtype, "lines": lines, "rows": rows}
    text = json.dumps(report, indent=1)
    typer.echo(text) if output is None else output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
