"""Seconds of prefill, flow and vocoder by length, after warm-up: medians.

Responsible for running each stage alone. Not responsible for files.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from benchmarks.gpu.measuring.clocks import RUNS
from benchmarks.gpu.measuring.engines import (
    TEXTS,
    generator_on,
    on_device,
    pipeline_of,
    request,
)
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.bench.timing import SENTENCE, StageTimer, forced_tokens
from chatterbox_opt.engine.decoding.decode import DecodeBackend
from chatterbox_opt.models.t3.model import T3

WARM = 2  # the first run is eager, the second captures; later ones replay


def prefill_seconds(
    engine: Engine, t3: T3, modes: Mapping[str, DecodeBackend], characters: int
) -> dict[str, float]:
    """Seconds of the prefill of a prompt with a text of some length, by mode.

    Args:
        modes: backends by name.
    """
    text = (TEXTS[1] * 20)[:characters]
    row: dict[str, float] = {"characters": characters}
    return row | {name: _prefill(engine, t3, backend, text) for name, backend in modes.items()}


def _prefill(engine: Engine, t3: T3, backend: DecodeBackend, text: str) -> float:
    slots, laps = backend.slots(t3, 1, t3.config.rows_per_seq), []
    sequence = request(engine, 0, text, 2)
    assert sequence.prompt is not None
    with torch.inference_mode():
        for _ in range(WARM + RUNS):
            clock = StageTimer(pipeline_of(engine).device)
            prefill, ahead = backend.prefill(t3), backend.steps_per_sync
            slots.prefill(0, sequence.prompt, sequence.sampling, t3, prefill, ahead)
            clock.lap("prefill")
            laps.append(clock.seconds["prefill"])
    return statistics.median(laps[WARM:])


def rendering_by_length(engine: Engine, lengths: tuple[float, ...]) -> list[dict[str, float]]:
    """Seconds of flow and vocoder by seconds of audio."""
    rows = []
    for seconds in lengths:
        laps = [_render(engine, seconds) for _ in range(WARM + RUNS)][WARM:]
        medians = {name: statistics.median(lap[name] for lap in laps) for name in laps[0]}
        rows.append({"audio_seconds": seconds} | medians)
    return rows


def _render(engine: Engine, seconds: float) -> dict[str, float]:
    pipeline = pipeline_of(engine)
    device, voice = pipeline.device, engine.voice().to(pipeline.device)
    tokens = torch.tensor(forced_tokens(seconds), device=device)
    generator, clock = generator_on(device), StageTimer(device)
    with on_device(engine, "flow") as flow:
        mels = flow([tokens], [voice], [generator])
    clock.lap("flow")
    with on_device(engine, "vocoder") as vocoder:
        vocoder(mels, [generator])
    clock.lap("vocoder")
    return clock.seconds


def warm_up_seconds(engine: Engine) -> dict[str, float]:
    """Seconds of the first synthesis, the second (which captures graphs) and the third."""
    times = {}
    for name in ("first", "second", "third"):
        start = time.perf_counter()
        engine.synthesize(SENTENCE, None, Sampling(seed=0, max_tokens=250))
        times[name] = time.perf_counter() - start
    return times
