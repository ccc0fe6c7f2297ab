"""Generates pico's training data: codes for many texts, audio for some.

Responsible for running the teacher over texts. Not responsible for networks.

    python -m training.pico.data codes  --count 120000   DIR/codes.pkl   text, codes: for T3
    python -m training.pico.data sound  --count 6000     DIR/sound.pkl   waves, F0: for the rest
"""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from chatterbox_opt.utils.atomic_file import atomic_write
from training.pico import texts
from training.pico.teacher import Teacher
from training.pico.utterances import WORK, utterance

app = typer.Typer(add_completion=False)


@app.command()
def main(
    kind: Annotated[str, typer.Argument(help="codes or sound")],
    count: Annotated[int, typer.Option(help="Number of texts.")],
    seed: Annotated[int, typer.Option(help="Seed of texts, speakers and noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = WORK,
) -> None:
    """Write DIR/KIND.pkl, a list of utterances."""
    if (out / f"{kind}.pkl").exists():
        print(f"{out / kind}.pkl exists already")
        return
    sound, started = kind == "sound", time.time()
    out.mkdir(parents=True, exist_ok=True)
    rng, teacher_model = np.random.default_rng([seed, sound]), Teacher()
    utterances = []
    for text in texts.training(count, seed + (1 if sound else 0)):
        if sound and len(text) > 160:
            continue
        if (one := utterance(teacher_model, text, rng, sound=sound)) is not None:
            utterances.append(one)
    with atomic_write(out / f"{kind}.pkl") as part:
        part.write_bytes(pickle.dumps(utterances))
    hours = sum(len(u.codes) for u in utterances) / 25 / 3600
    seconds = time.time() - started
    print(f"{len(utterances)} of {count} texts, {hours:.1f} hours, in {seconds:.0f} s")


if __name__ == "__main__":
    app()
