"""Generates pico's training data: codes for many texts, audio for some.

Responsible for running the teacher over texts. Not responsible for networks.

    python -m training.pico.data codes  --count 150000   DIR/codes.pkl   text, codes: for T3
    python -m training.pico.data sound  --count 6500     DIR/sound.pkl   waves, F0: for the rest
"""

from __future__ import annotations

import pickle
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from chatterbox_opt.utils.atomic_file import atomic_write
from training.pico import texts
from training.pico.teacher import Teacher
from training.pico.utterances import WORK, utterance

app = typer.Typer(add_completion=False)
LONGEST = 160  # characters of a text with sound


class Kind(str, Enum):
    """What is generated. Each kind has its own texts: its position is part of the seed."""

    CODES = "codes"
    SOUND = "sound"


@app.command()
def main(
    kind: Annotated[Kind, typer.Argument(help="What to generate.")],
    count: Annotated[int, typer.Option(help="Number of texts.")],
    seed: Annotated[int, typer.Option(help="Seed of texts, speakers and noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = WORK,
) -> None:
    """Write DIR/KIND.pkl, a list of utterances."""
    path = out / f"{kind.value}.pkl"
    if path.exists():
        print(f"{path} exists already")
        return
    sound, number, started = kind is Kind.SOUND, list(Kind).index(kind), time.time()
    out.mkdir(parents=True, exist_ok=True)
    rng, teacher_model = np.random.default_rng([seed, number]), Teacher()
    utterances = []
    for text in texts.training(count, seed + number):
        if sound and len(text) > LONGEST:
            continue
        one = utterance(teacher_model, text, rng, sound=sound)
        if one is not None:
            utterances.append(one)
    with atomic_write(path) as part:
        part.write_bytes(pickle.dumps(utterances))
    hours = sum(len(u.codes) for u in utterances) / 25 / 3600
    seconds = time.time() - started
    print(f"{len(utterances)} of {count} texts, {hours:.1f} hours, in {seconds:.0f} s")


if __name__ == "__main__":
    app()
