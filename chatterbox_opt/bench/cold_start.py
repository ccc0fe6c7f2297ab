"""Cold starts: what a person waits for, from the command to the finished file.

Knows the two programs that are compared, and a clock. Knows nothing of stages, tables or files.

Every measurement is a fresh process. ``upstream`` is chatterbox-tts as its own example uses it:
load, generate, write the file. Ours is ``chatterbox-opt synth``, twice: the first start finds no
converted weights (see weight_cache.py) and leaves them for the second. Rows take turns. The files
of the checkpoint are in the system's memory by then: this is not a measurement of the disk.
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

# upstream's example; its bound of 1000 tokens is the job's here, because random weights do not stop
EXAMPLE = """
import sys
import soundfile
import torch
from chatterbox.tts import ChatterboxTTS
directory, device, text, bound, output = sys.argv[1:]
model = ChatterboxTTS.from_local(directory, device)
speak = model.t3.inference
model.t3.inference = lambda **given: speak(**given | {"max_new_tokens": int(bound)})
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
    job: BenchJob, names: Sequence[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the rows' cold starts; figures by row, in order, under the keys of ``FIGURES``.

    Raises:
        ChatterboxOptError: a row's program failed; says how.
    """
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as scratch:
        for turn in range(job.runs):
            for name in names:
                say(f"cold start {turn + 1} of {job.runs}: {name}")
                with tempfile.TemporaryDirectory(dir=scratch) as kept:
                    laps[name].append(_starts(job, name, Path(kept)))
    figures = {name: _figures(found) for name, found in laps.items()}
    reference = figures.get(UPSTREAM, {}).get("cold_seconds")
    for found in figures.values():
        found["cold_vs_upstream"] = reference and reference / found["cold_seconds"]
    return [figures[name] for name in names]


def _starts(job: BenchJob, name: str, kept: Path) -> dict[str, float]:
    """One start of upstream's program, or the first and the second of ours, in seconds."""
    output = kept / "cold.wav"
    if name == UPSTREAM:
        return {"second": _run(name, _theirs(job, output), {})} | _length(output)
    command = _ours(job, name, output)
    home = {VARIABLE: str(kept / "weights"), "CHATTERBOX_VOICE_CACHE": str(kept / "voices")}
    first = _run(name, command, home)
    return {"first": first, "second": _run(name, command, home)} | _length(output)


def _theirs(job: BenchJob, output: Path) -> list[str]:
    directory = locate(job.model).directory
    device = probe.probe(job.device).device
    text, bound = job.sentence, str(len(job.tokens))
    return [sys.executable, "-c", EXAMPLE, str(directory), device, text, bound, str(output)]


def _ours(job: BenchJob, name: str, output: Path) -> list[str]:
    profile, wishes = ("dev", ROWS[name]) if name in ROWS else (name, {})
    options = {
        "model": job.model,
        "device": job.device,
        "profile": profile,
        "max-tokens": str(len(job.tokens)),
        "seed": "0",
        "output": str(output),
        **wishes,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "chatterbox_opt", "synth", job.sentence, "-q", *words]


def _run(name: str, command: Sequence[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | dict(environment), capture_output=True, stdin=subprocess.DEVNULL
    )
    spent = time.perf_counter() - start
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise ChatterboxOptError(
            f"row {name}: its cold start failed (exit {done.returncode}): {told[-1]}"
        )
    return spent


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
