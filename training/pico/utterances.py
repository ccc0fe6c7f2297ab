"""Training utterances: a text, its codes and audio from the teacher.

Responsible for running the teacher on one text. Not responsible for text sources (texts.py) or
networks.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatterbox_opt.text.normalizers import normalize
from training.pico import codes, teacher
from training.pico.teacher import Speaker, Teacher

WORK = Path("build/pico")
HELD_OUT = 100  # utterances at the start of sound.pkl that are not trained on


@dataclass(frozen=True, slots=True)
class Utterance:
    """One text as synthesized by the teacher.

    Attributes:
        text: normalized.
        emotion: the speaking rate, see ``speed_of``.
        codes: int16 [T], in the speaker's rhythm; the teacher's without a speaker.
        words: uint8 [T], index of the word that each code belongs to.
        frames: uint8 [2, n], symbol and word of each of the teacher's frames of 12.5 ms, from which
            ``in_rhythm`` makes the codes of any speaker; None with a speaker.
        wave: int16 [960 T] at 24 kHz, or None.
        f0: float16 [2 T] in Hz, or None.
        speaker: the pseudo-speaker, or None.
    """

    text: str
    emotion: float
    codes: np.ndarray
    words: np.ndarray
    frames: np.ndarray | None = None
    wave: np.ndarray | None = None
    f0: np.ndarray | None = None
    speaker: Speaker | None = None


def speed_of(emotion: float) -> float:
    """Speaking rate for pico's ``exaggeration``: 0.5 is the teacher's, 1 is 30 % faster."""
    return 1.0 + 0.6 * (emotion - 0.5)


def in_rhythm(frames: np.ndarray, speaker: Speaker) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [T] and words uint8 [T] of an utterance's ``frames`` in a speaker's rhythm."""
    order = teacher.rhythm(frames[0].astype(np.int64), speaker)
    symbols, words = frames[:, order].astype(np.int64)
    tokens = codes.codes_of(symbols)
    return tokens, codes.sample_frames(words, len(tokens)).astype(np.uint8)


def utterance(
    teacher_model: Teacher,
    text: str,
    rng: np.random.Generator,
    *,
    sound: bool,
    speaker: Speaker | None = None,
) -> Utterance | None:
    """Synthesize a text; None if it is not plain English.

    Without ``speaker`` one is drawn, and in half of the cases another speaking rate.
    """
    text = normalize(text)
    emotion = 0.5 if speaker or rng.random() < 0.5 else float(rng.uniform(0, 1))
    if sound and speaker is None:
        speaker = teacher.draw_speaker(rng)
    output = teacher_model.synthesize(text, speed_of(emotion), speaker, rng)
    if output is None:
        return None
    tokens = codes.codes_of(output.symbols)
    words = codes.sample_frames(output.words, len(tokens)).astype(np.uint8)
    tokens_int16 = tokens.astype(np.int16)
    if output.wave is None or output.f0 is None:
        frames = np.stack((output.symbols, output.words)).astype(np.uint8)
        return Utterance(text, emotion, tokens_int16, words, frames)
    wave = output.wave[: 960 * len(tokens)]
    wave = np.pad(wave, (0, 960 * len(tokens) - len(wave)))
    frames = ((np.arange(2 * len(tokens)) + 0.5) * 1.6 - 0.5).round().astype(int)
    f0 = output.f0[np.clip(frames, 0, len(output.f0) - 1)]
    f0 = np.where(f0 < 35, 0, f0)
    pcm = (np.clip(wave, -1, 1) * 32767).astype(np.int16)
    f0 = f0.astype(np.float16)
    return Utterance(text, emotion, tokens_int16, words, wave=pcm, f0=f0, speaker=speaker)


def load(kind: str, folder: Path = WORK) -> list[Utterance]:
    """Read a file of ``training.pico.data``."""
    with (folder / f"{kind}.pkl").open("rb") as file:
        utterances: list[Utterance] = pickle.load(file)
    return utterances
