"""What pico learns from: a text as the teacher says it.

Knows the teacher. Knows nothing of where texts come from (texts.py) or of networks.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatterbox_opt.text.chunking import normalize
from training.pico import codes, teacher
from training.pico.teacher import Speaker, Teacher

WORK = Path("build/pico")
HELD_OUT = 100  # utterances at the head of sound.pkl that training leaves alone


@dataclass(frozen=True, slots=True)
class Utterance:
    """One text as the teacher says it.

    Attributes:
        text: normalised.
        emotion: what stands for the pace, see ``speed_of``.
        codes: int16 [T].
        words: uint8 [T], the word that each code belongs to.
        wave: int16 [960 T] at 24 kHz, or None.
        f0: float16 [2 T] in Hz, or None.
        speaker: whose voice, or None.
    """

    text: str
    emotion: float
    codes: np.ndarray
    words: np.ndarray
    wave: np.ndarray | None = None
    f0: np.ndarray | None = None
    speaker: Speaker | None = None


def speed_of(emotion: float) -> float:
    """Pico's meaning of ``exaggeration``: 0.5 is the teacher's pace, 1 is a third faster."""
    return 1.0 + 0.6 * (emotion - 0.5)


def utterance(
    master: Teacher,
    text: str,
    rng: np.random.Generator,
    *,
    sound: bool,
    speaker: Speaker | None = None,
) -> Utterance | None:
    """Have a text spoken; None if it is not plain English.

    Without ``speaker`` one is drawn, and half of the time another pace than the teacher's.
    """
    text = normalize(text)
    emotion = 0.5 if speaker or rng.random() < 0.5 else float(rng.uniform(0, 1))
    if sound and speaker is None:
        speaker = teacher.draw_speaker(rng)
    spoken = master.say(text, speed_of(emotion), speaker, rng)
    if spoken is None:
        return None
    said = codes.codes_of(spoken.symbols)
    words = codes.sample_frames(spoken.words, len(said)).astype(np.uint8)
    small = said.astype(np.int16)
    if spoken.wave is None or spoken.f0 is None:
        return Utterance(text, emotion, small, words)
    wave = spoken.wave[: 960 * len(said)]
    wave = np.pad(wave, (0, 960 * len(said) - len(wave)))
    places = ((np.arange(2 * len(said)) + 0.5) * 1.6 - 0.5).round().astype(int)
    f0 = spoken.f0[np.clip(places, 0, len(spoken.f0) - 1)]
    f0 = np.where(f0 < 35, 0, f0)
    pcm = (np.clip(wave, -1, 1) * 32767).astype(np.int16)
    return Utterance(text, emotion, small, words, pcm, f0.astype(np.float16), speaker)


def load(kind: str, folder: Path = WORK) -> list[Utterance]:
    """Read what ``training.pico.data`` wrote."""
    with (folder / f"{kind}.pkl").open("rb") as file:
        made: list[Utterance] = pickle.load(file)
    return made
