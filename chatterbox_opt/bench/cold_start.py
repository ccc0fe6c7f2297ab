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

from chatterbox_opt.bench.backends import ROWS, UPSTREAM, overrides
from chatterbox_opt.bench.timing import BenchJob
from chatterbox_opt.checkpoints.registry import locate
from chatterbox_opt.checkpoints.weight_cache import VARIABLE
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ChatterboxOptError, InputError
from chatterbox_opt.text.languages import DEFAULT

# upstream's example, with the job's number of tokens: random weights do not stop
EXAMPLE = """
import importlib
import sys
import soundfile
import torch
module, name, method, limit, directory, device, text, max_tokens, output, *language = sys.argv[1:]
upstream = getattr(importlib.import_module(module), name)
model = upstream.from_local(directory, device)
inference = getattr(model.t3, method)
setattr(model.t3, method, lambda **args: inference(**args | {limit: int(max_tokens)}))
torch.manual_seed(0)
soundfile.write(output, model.generate(text, *language)[0].numpy(), model.sr)
"""
# kind of model -> what of upstream's the example uses; it can load no other kind by itself
CLASSES = {
    "chatterbox": ("chatterbox.tts", "ChatterboxTTS", "inference", "max_new_tokens"),
    "turbo": ("chatterbox.tts_turbo", "ChatterboxTurboTTS", "inference_turbo", "max_gen_len"),
    "multilingual-v2": (
        *("chatterbox.mtl_tts", "ChatterboxMultilingualTTS", "inference", "max_new_tokens"),
    ),
}
FIGURES = (
    "cold_seconds",
    "cold_first_seconds",
    "cold_spread",
    "cold_audio_seconds",
    "cold_vs_upstream",
)


def check(job: BenchJob, names: Sequence[str]) -> None:
    """Check before anything is measured that there is a program for each row.

    Raises:
        InputError: upstream has none for this kind of model.
    """
    kind = locate(job.model).kind.name
    if UPSTREAM in names and kind not in CLASSES:
        raise InputError(
            f"chatterbox-tts has no program for {kind}: leave out --cold, or the row {UPSTREAM}"
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
    checkpoint, device = locate(job.model), probe.probe(job.device).device
    example = CLASSES[checkpoint.kind.name]
    given = [str(checkpoint.directory), device, job.sentence, str(len(job.tokens)), str(output)]
    if len(checkpoint.kind.languages) > 1:
        given.append(job.language or DEFAULT)
    return [sys.executable, "-c", EXAMPLE, *example, *given]


def _synth_command(job: BenchJob, name: str, output: Path) -> list[str]:
    profile, given = ("dev", overrides(job, name)) if name in ROWS else (name, {})
    options = {
        "model": job.model,
        "device": job.device,
        "profile": profile,
        "max-tokens": str(len(job.tokens)),
        "seed": "0",
        "output": str(output),
        **({"language": job.language} if job.language else {}),
        **{"flow" if key == "flow_model" else key: value for key, value in given.items()},
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
