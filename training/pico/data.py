"""Generates pico's training data: codes for many texts, audio for some.

Responsible for running the teacher over texts. Not responsible for networks.

    python -m training.pico.data codes  --count 120000   DIR/codes.pkl   text, codes: for T3
    python -m training.pico.data sound  --count 6000     DIR/sound.pkl   waves, F0: for the rest
    python -m training.pico.data rates  --count 3000     DIR/rates.pkl   waves, F0, stretched mels,
                                                         for the vocoder at other rates
"""

from __future__ import annotations

import logging
import pickle
import time
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from chatterbox_opt.engine.rendering.stretch import stretched
from chatterbox_opt.utils.atomic_file import atomic_write
from training.pico import texts
from training.pico.sound import mel_of, wave_of
from training.pico.teacher import Teacher, draw_speaker
from training.pico.utterances import WORK, Utterance, utterance

app = typer.Typer(add_completion=False)
RATES = (0.7, 1.6)
LONGEST = 160  # characters of a text with sound


class Kind(str, Enum):
    """What is generated. Each kind has its own texts: its position is part of the seed."""

    CODES = "codes"
    SOUND = "sound"
    RATES = "rates"


def at_another_rate(teacher: Teacher, text: str, rng: np.random.Generator) -> Utterance | None:
    """The teacher's speech at one of ``RATES``, with the mel of that at 1, stretched.

    What the vocoder gets for such a rate: a mel of slower or faster speech has other blurs.
    """
    speaker, rate = draw_speaker(rng), float(np.exp(rng.uniform(*np.log(RATES))))
    plain = utterance(teacher, text, rng, sound=True, speaker=speaker)
    other = utterance(teacher, text, rng, sound=True, speaker=speaker, rate=rate)
    if plain is None or other is None:
        return None
    mel = stretched(mel_of(wave_of(plain)[None])[0], rate)
    return replace(other, mel=mel.numpy().astype(np.float16))


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
    logging.disable(logging.WARNING)  # upstream's mel warns of every sample above 1
    number, started = list(Kind).index(kind), time.time()
    out.mkdir(parents=True, exist_ok=True)
    rng, teacher_model = np.random.default_rng([seed, number]), Teacher()
    utterances = []
    for text in texts.training(count, seed + number):
        if kind is not Kind.CODES and len(text) > LONGEST:
            continue
        if kind is Kind.RATES:
            one = at_another_rate(teacher_model, text, rng)
        else:
            one = utterance(teacher_model, text, rng, sound=kind is Kind.SOUND)
        if one is not None:
            utterances.append(one)
    with atomic_write(path) as part:
        part.write_bytes(pickle.dumps(utterances))
    hours = sum(len(u.codes) for u in utterances) / 25 / 3600
    seconds = time.time() - started
    print(f"{len(utterances)} of {count} texts, {hours:.1f} hours, in {seconds:.0f} s")


if __name__ == "__main__":
    app()
