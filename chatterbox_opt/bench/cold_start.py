"""Cold starts: wall-clock time from the command to the finished file.

Responsible for starting and timing the two programs that are compared. Not responsible for
stages, tables or files.

Every measurement is a fresh process. ``upstream`` is chatterbox-tts as its own example uses it:
load, generate, write the file. This package's is ``chatterbox-opt synth``, twice: the first start
finds no converted weights (checkpoints/weight_cache.py) and caches them for the second. Rows
alternate. The checkpoint's files are in the page cache by then, so the disk is not measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from chatterbox_opt.bench.backends import ROWS, UPSTREAM, BenchJob
from chatterbox_opt.checkpoints.registry import locate
from chatterbox_opt.checkpoints.weight_cache import VARIABLE
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ChatterboxOptError

# upstream's example, with the job's max_new_tokens instead of 1000: random weights do not stop
EXAMPLE = """
import sys
import soundfile
import torch
from chatterbox.tts import ChatterboxTTS
directory, device, text, max_tokens, output = sys.argv[1:]
model = ChatterboxTTS.from_local(directory, device)
inference = model.t3.inference
model.t3.inference = lambda **args: inference(**args | {"max_new_tokens": int(max_tokens)})
torch.manual_seed(0)
soundfile.write(output, model.generate(text)[0].numpy(), model.sr)
"""
FIGURES = (
    "cold_seconds",
    "cold_first_seconds",
    "cold_spread",
    "cold_audio_seconds",
    "cold_vs_upstream",
)


def measure(
    job: BenchJob, names: Sequence[str], on_progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the rows' cold starts.

    Args:
        on_progress: callback, called with a line of progress.

    Returns:
        For each row, in order, a mapping with the keys of ``FIGURES``.

    Raises:
        ChatterboxOptError: a row's program failed.
    """
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as scratch:
        for run in range(job.runs):
            for name in names:
                on_progress(f"cold start {run + 1} of {job.runs}: {name}")
                with tempfile.TemporaryDirectory(dir=scratch) as caches:
                    laps[name].append(_start(job, name, Path(caches)))
    figures = {name: _figures(row_laps) for name, row_laps in laps.items()}
    reference = figures.get(UPSTREAM, {}).get("cold_seconds")
    for row in figures.values():
        row["cold_vs_upstream"] = reference and reference / row["cold_seconds"]
    return [figures[name] for name in names]


def _start(job: BenchJob, name: str, caches: Path) -> dict[str, float]:
    """Seconds of one start of upstream's example, or of the first and second start of ``synth``."""
    output = caches / "cold.wav"
    if name == UPSTREAM:
        return {"second": _run(name, _upstream_command(job, output), {})} | _length(output)
    command = _synth_command(job, name, output)
    environment = {
        VARIABLE: str(caches / "weights"),
        "CHATTERBOX_VOICE_CACHE": str(caches / "voices"),
    }
    first = _run(name, command, environment)
    return {"first": first, "second": _run(name, command, environment)} | _length(output)


def _upstream_command(job: BenchJob, output: Path) -> list[str]:
    directory = locate(job.model).directory
    device = probe.probe(job.device).device
    text, count = job.sentence, str(len(job.tokens))
    return [sys.executable, "-c", EXAMPLE, str(directory), device, text, count, str(output)]


def _synth_command(job: BenchJob, name: str, output: Path) -> list[str]:
    profile, overrides = ("dev", ROWS[name]) if name in ROWS else (name, {})
    options = {
        "model": job.model,
        "device": job.device,
        "profile": profile,
        "max-tokens": str(len(job.tokens)),
        "seed": "0",
        "output": str(output),
        **overrides,
    }
    args = [arg for key, value in options.items() for arg in (f"--{key}", value)]
    return [sys.executable, "-m", "chatterbox_opt", "synth", job.sentence, "-q", *args]


def _run(name: str, command: Sequence[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | dict(environment), capture_output=True, stdin=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ChatterboxOptError(
            f"row {name}: its cold start failed (exit {done.returncode}): {errors[-1]}"
        )
    return seconds


def _length(output: Path) -> dict[str, float]:
    return {"audio": float(soundfile.info(str(output)).duration)}


def _figures(laps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    median = {key: statistics.median(lap[key] for lap in laps) for key in laps[0]}
    second = [lap["second"] for lap in laps]
    return {
        "cold_seconds": median["second"],
        "cold_first_seconds": median.get("first"),
        "cold_spread": (max(second) - min(second)) / median["second"],
        "cold_audio_seconds": median["audio"],
    }
