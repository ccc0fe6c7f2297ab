"""Throughput of a batch: the same requests one by one, batched, and by chatterbox-tts.

    python benchmarks/batch.py --model DIR --lines 16 --slots 8 --json NAME-batch.json

Requests of 5 to 12 s of forced length (the stop token is disabled), the same ones for every number
of slots: all of them through T3 alone, the first ``--whole`` through all stages too, and
``--upstream`` of them through chatterbox-tts. Numbers of slots alternate.
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
from chatterbox_opt.bench.roofline import machine_facts
from chatterbox_opt.bench.timing import SENTENCE, BenchJob, forced_tokens
from chatterbox_opt.bench.upstream import UpstreamTarget
from chatterbox_opt.checkpoints.registry import locate
from chatterbox_opt.config.hardware import AUTO
from chatterbox_opt.config.model_config import TOKEN_RATE
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.scheduler import Scheduler
from chatterbox_opt.engine.sequence import Capacity, RequestState
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.text import chunking

NO_TOKEN = -5


def requests(lines: int) -> list[Request]:
    rng = np.random.default_rng(0)
    lengths = rng.uniform(5, 12, lines) * TOKEN_RATE
    return [
        Request(str(i), SENTENCE, None, Sampling(seed=i, max_tokens=round(n)))
        for i, n in enumerate(lengths)
    ]


def all_stages(engine: Engine, lines: list[Request], slots: int) -> dict[str, float]:
    """All stages: seconds by stage and in total, and tokens."""
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
    """Disable the stop token: every sequence reaches its token limit, whatever the weights."""
    with cast(Pipeline, engine.pipeline).placement("t3") as module:
        t3 = cast(T3, module)
        t3.config = replace(t3.config, stop_speech=NO_TOKEN)


def t3_alone(engine: Engine, lines: list[Request], slots: int) -> dict[str, float]:
    """Tokens per second of T3, prefill included."""
    chunks, voice = chunking.split(SENTENCE), engine.voice()
    scheduler, states = Scheduler(engine.pipeline, None, overlap=False), []
    start = time.perf_counter()
    for line in lines:
        seed = line.sampling.seed or 0
        state = RequestState(line.id, seed, Capacity(slots), tokens_only=True)
        state.add_chunks(chunks, voice, line.sampling)
        scheduler.add(state)
        states.append(state)
    while not scheduler.idle:
        scheduler.step()
    scheduler.release()
    seconds = time.perf_counter() - start
    tokens = sum(len(sequence.tokens) for state in states for sequence in state.sequences)
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
    target = UpstreamTarget(BenchJob(model, device), "")
    target.run(forced_tokens(1.0))  # warm-up
    for line in lines:
        count = line.sampling.max_tokens
        seconds = target.run(forced_tokens(count / TOKEN_RATE))
        seconds["t3"] = seconds.pop("prefill") + seconds.pop("decode")
        stages = {stage: stages.get(stage, 0.0) + s for stage, s in seconds.items()}
        tokens += count
    return figures(tokens, sum(stages.values()), stages)


def main(
    model: Annotated[str, typer.Option(help="A checkpoint of random values will do.")],
    lines: Annotated[int, typer.Option(help="Number of requests.")] = 64,
    slots: Annotated[list[int] | None, typer.Option(help="Sequences decoded at once.")] = None,
    whole: Annotated[int, typer.Option(help="Requests through all stages.")] = 8,
    dtype: Annotated[str, typer.Option(help="As for synth.")] = "bfloat16",
    runs: Annotated[int, typer.Option(help="Runs of every number of slots.")] = 1,
    upstream_lines: Annotated[
        int, typer.Option("--upstream", help="Requests for chatterbox-tts.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="Write the report.")] = None,
) -> None:
    """Measure and print."""
    if slots and max(slots) > whole:
        raise typer.BadParameter(f"--whole {whole} requests do not fill {max(slots)} slots")
    all_requests = requests(lines)
    rows: dict[str, list[dict[str, Any]]] = {}
    with Engine.load(model, "dev", overrides={"dtype": dtype}) as engine:
        never_stop(engine)
        slot_counts = slots or [1, engine.plan.slots]
        all_stages(engine, all_requests[:2], 2)  # warm-up
        for _, (name, measure, count), slot_count in product(
            range(runs), (("t3", t3_alone, lines), ("whole", all_stages, whole)), slot_counts
        ):
            row = measure(engine, all_requests[:count], slot_count) | {"requests": count}
            rows.setdefault(f"{name}, {slot_count} at once", []).append(row)
            typer.echo(f"{name}, {slot_count} at once: {json.dumps(row)}", err=True)
    if upstream_lines:
        row = upstream(model, all_requests[:upstream_lines]) | {"requests": upstream_lines}
        rows["upstream"] = [row]
        typer.echo(f"upstream: {json.dumps(rows['upstream'][0])}", err=True)
    facts = machine_facts(BenchJob(model), locate(model))
    report = {"card": facts, "dtype": dtype, "lines": lines, "rows": rows}
    text = json.dumps(report, indent=1)
    typer.echo(text) if output is None else output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
