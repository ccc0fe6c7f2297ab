"""Makes what pico learns from: codes for many texts, and sound for some.

Knows the teacher and the texts. Knows nothing of networks.

    python -m training.pico.data codes  --count 120000   DIR/codes.pkl   text, codes: T3's
    python -m training.pico.data sound  --count 6000     DIR/sound.pkl   waves, pitch: others'
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
    count: Annotated[int, typer.Option(help="How many texts.")],
    seed: Annotated[int, typer.Option(help="Of texts, speakers and noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder.")] = WORK,
) -> None:
    """Write DIR/KIND.pkl, a list of utterances."""
    if (out / f"{kind}.pkl").exists():
        print(f"{out / kind}.pkl is there already")
        return
    sound, started = kind == "sound", time.time()
    out.mkdir(parents=True, exist_ok=True)
    rng, master = np.random.default_rng([seed, sound]), Teacher()
    made = []
    for text in texts.training(count, seed + (1 if sound else 0)):
        if sound and len(text) > 160:
            continue
        if (one := utterance(master, text, rng, sound=sound)) is not None:
            made.append(one)
    with atomic_write(out / f"{kind}.pkl") as part:
        part.write_bytes(pickle.dumps(made))
    hours = sum(len(u.codes) for u in made) / 25 / 3600
    spent = time.time() - started
    print(f"{len(made)} of {count} texts, {hours:.1f} hours, in {spent:.0f} s")


if __name__ == "__main__":
    app()
