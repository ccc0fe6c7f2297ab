"""Synthesize many lines together, each with its own voice; an error ends only its own line.

    python examples/batch.py [DIRECTORY]

For job files, resuming and retries use the command ``chatterbox-opt batch``.
"""

import sys
from pathlib import Path

from chatterbox_opt import Engine, Request, Sampling

LINES = (
    ("ada", "Where have you been?"),
    ("bruno", "At the harbor. The boat came home."),
    ("clara", ""),  # nothing to synthesize: the result is an error
    ("emil", "Then supper is ready."),
)

directory = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
directory.mkdir(parents=True, exist_ok=True)
requests = (
    Request(f"line-{number}", text, voice, Sampling(seed=number))
    for number, (voice, text) in enumerate(LINES, 1)
)
with Engine.load("pico") as engine:
    for result in engine.batch(requests):  # in the order in which they finish
        if result.error:
            print(f"{result.id}: {result.error}")
            continue
        audio = result.audio()
        audio.save(directory / f"{result.id}.wav")
        print(f"{result.id}: {audio.duration:.1f} s")
