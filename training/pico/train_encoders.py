"""Trains the three readers of a recording: S3 tokenizer, CAMPPlus, voice encoder.

Knows what each shall answer: the code of every moment, and the vectors that stand for the speaker
(teacher.py). Knows nothing of speaking.

    python -m training.pico.train_encoders --minutes 30    a third for each
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from scipy.signal import resample_poly
from torch import Tensor

from chatterbox_opt.models.voice_encoders import ENCODER_RATE, Encoders
from chatterbox_opt.utils.upstream_import import import_upstream
from training.pico import codes, teacher
from training.pico.design import SHAPES
from training.pico.training import train
from training.pico.utterances import HELD_OUT, WORK, Utterance, load

PER_CODE = ENCODER_RATE // 25  # samples at 16 kHz
CODES = 70  # of one row for the tokenizer


class Recordings:
    """Utterances at 16 kHz, cut and dirtied as real recordings are."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self.all = [u for u in utterances if len(u.codes) > CODES]
        self.waves = [_narrow(u) for u in self.all]

    def draw(
        self, rng: np.random.Generator, rows: int, count: int
    ) -> tuple[Tensor, list[Utterance], list[int]]:
        """``rows`` pieces of ``count`` codes: float32 [rows, 640 count], whose, and from where."""
        picked = rng.integers(len(self.all), size=rows)
        starts = [int(rng.integers(len(self.all[i].codes) - count + 1)) for i in picked]
        pieces = []
        for i, start in zip(picked, starts, strict=True):
            wave = self.waves[i][start * PER_CODE : (start + count) * PER_CODE] / 32768
            noise = rng.normal(0, 1, len(wave)) * wave.std() * 10 ** (-rng.uniform(15, 60) / 20)
            pieces.append((wave + noise) * 10 ** (-rng.uniform(0, 12) / 20))
        waves = torch.from_numpy(np.stack(pieces).astype(np.float32)).clamp(-1, 1)
        return waves, [self.all[i] for i in picked], starts


def _narrow(one: Utterance) -> np.ndarray:
    assert one.wave is not None
    wave = resample_poly(one.wave.astype(np.float32), 2, 3)
    return np.clip(wave, -32768, 32767).astype(np.int16)[: PER_CODE * len(one.codes)]


def train_tokenizer(tokenizer: Any, recordings: Recordings, minutes: float, out: Path) -> None:
    """Teach the S3 tokenizer the eight digits of every code, before they are rounded."""

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        waves, whose, starts = recordings.draw(rng, 10, CODES)
        mels = torch.stack([tokenizer.log_mel_spectrogram(wave) for wave in waves])
        lengths = torch.full((len(mels),), mels.shape[-1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden, _ = tokenizer.encoder(mels, lengths)
            given = tokenizer.quantizer._codebook.project_down(hidden).float().tanh()
        cut = zip(whose, starts, strict=True)
        true = np.stack([codes.digits(u.codes[s : s + CODES].astype(int)) - 1 for u, s in cut])
        wanted = torch.from_numpy(true).float()
        right = ((given.detach() * 0.999).round() == wanted).all(-1).float().mean()
        return {"loss": F.mse_loss(given, wanted), "right": right}

    train("tokenizer", tokenizer, loss_of, minutes=minutes, rate=2e-3, out=out)


def train_speaker(camp: Any, recordings: Recordings, minutes: float, out: Path) -> None:
    """Teach CAMPPlus the direction of the speaker's x-vector; the flow looks at nothing else."""
    features = import_upstream("models.s3gen.xvector").extract_feature
    # over eight rows its last batch norm would move every vector by who else is in the batch
    camp.xvector.dense.nonlinear.eval()

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        waves, whose, _ = recordings.draw(rng, 8, int(rng.integers(30, 55)))
        given = camp(features(waves)[0].float())
        wanted = np.stack([teacher.x_vector(u.speaker, SHAPES.flow.xvector) for u in whose])
        return {"loss": 1 - F.cosine_similarity(given, torch.from_numpy(wanted)).mean()}

    train("xvector", camp, loss_of, minutes=minutes, rate=2e-3, out=out)


def train_voice(reader: Any, recordings: Recordings, minutes: float, out: Path) -> None:
    """Teach the voice encoder the vector of the speaker, over windows of 1.6 s."""
    spectrogram = import_upstream("models.voice_encoder.melspec").melspectrogram
    window = reader.hp.ve_partial_frames

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        waves, whose, _ = recordings.draw(rng, 24, 42)
        mels = np.stack([spectrogram(w.numpy(), reader.hp).T[:window] for w in waves])
        given = reader(torch.from_numpy(mels))
        wanted = np.stack([teacher.voice_vector(u.speaker, SHAPES.t3.speaker) for u in whose])
        near = F.cosine_similarity(given, torch.from_numpy(wanted)).mean()
        return {"loss": 1 - near}

    train("voice_encoder", reader, loss_of, minutes=minutes, rate=2e-3, out=out)


def main(
    minutes: Annotated[float, typer.Option(help="Of training in all, earlier runs included.")],
    out: Annotated[Path, typer.Option(help="Folder.")] = WORK,
) -> None:
    """Train and keep DIR/tokenizer.pt, xvector.pt and voice_encoder.pt."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    encoders = Encoders(SHAPES.voice, SHAPES.t3.speaker)
    recordings = Recordings(load("sound", out)[HELD_OUT:])
    train_tokenizer(encoders.tokenizer, recordings, minutes / 3, out)
    train_speaker(encoders.speaker_encoder, recordings, minutes / 3, out)
    train_voice(encoders.voice_encoder, recordings, minutes / 3, out)


if __name__ == "__main__":
    typer.run(main)
