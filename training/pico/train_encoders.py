"""Trains pico's three encoders: S3 tokenizer, CAMPPlus, voice encoder.

Responsible for their targets: the code at each time, and the speaker's target vectors (teacher.py).
Not responsible for synthesis.

    python -m training.pico.train_encoders --minutes 48

CAMPPlus, whose steps take the longest, has half of the time.
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
from training.pico.design import PICO_CONFIG
from training.pico.training import train
from training.pico.utterances import HELD_OUT, WORK, Utterance, load

PER_CODE = ENCODER_RATE // 25  # samples at 16 kHz
CODES = 70  # per row, for the tokenizer
# of the voice encoder's first layer. It gets power, not its logarithm: from 1e-7 to 20, half of it
# below 2e-5. With weights so large, gates open at all levels; with PyTorch's, only at the loudest.
INPUT_SCALE = 2000


class AugmentedAudio:
    """Utterances at 16 kHz, cropped and augmented with noise and gain."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self.all = [u for u in utterances if len(u.codes) > CODES]
        self.waves = [_resample(u) for u in self.all]

    def draw(
        self, rng: np.random.Generator, rows: int, count: int
    ) -> tuple[Tensor, list[Utterance], list[int]]:
        """Random crops of ``count`` codes: float32 [rows, 640 count], utterances, start codes."""
        picked = rng.integers(len(self.all), size=rows)
        starts = [int(rng.integers(len(self.all[i].codes) - count + 1)) for i in picked]
        crops = []
        for i, start in zip(picked, starts, strict=True):
            wave = self.waves[i][start * PER_CODE : (start + count) * PER_CODE] / 32768
            noise = rng.normal(0, 1, len(wave)) * wave.std() * 10 ** (-rng.uniform(15, 60) / 20)
            crops.append((wave + noise) * 10 ** (-rng.uniform(0, 12) / 20))
        waves = torch.from_numpy(np.stack(crops).astype(np.float32)).clamp(-1, 1)
        return waves, [self.all[i] for i in picked], starts


def _resample(one: Utterance) -> np.ndarray:
    assert one.wave is not None
    wave = resample_poly(one.wave.astype(np.float32), 2, 3)
    return np.clip(wave, -32768, 32767).astype(np.int16)[: PER_CODE * len(one.codes)]


def train_tokenizer(tokenizer: Any, audio: AugmentedAudio, minutes: float, out: Path) -> None:
    """Train the S3 tokenizer on the eight FSQ digits of every code, before rounding."""

    def loss_of(rng: np.random.Generator, _: float) -> dict[str, Tensor]:
        waves, utterances, starts = audio.draw(rng, 10, CODES)
        mels = torch.stack([tokenizer.log_mel_spectrogram(wave) for wave in waves])
        lengths = torch.full((len(mels),), mels.shape[-1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden, _ = tokenizer.encoder(mels, lengths)
            predicted = tokenizer.quantizer._codebook.project_down(hidden).float().tanh()
        cut = zip(utterances, starts, strict=True)
        true = np.stack([codes.digits(u.codes[s : s + CODES].astype(int)) - 1 for u, s in cut])
        target = torch.from_numpy(true).float()
        right = ((predicted.detach() * 0.999).round() == target).all(-1).float().mean()
        return {"loss": F.mse_loss(predicted, target), "right": right}

    train("tokenizer", tokenizer, loss_of, minutes=minutes, rate=2e-3, out=out)


def train_speaker(camp: Any, audio: AugmentedAudio, minutes: float, out: Path) -> None:
    """Train CAMPPlus on the direction of the speaker's x-vector; the flow normalizes its length."""
    features = import_upstream("models.s3gen.xvector").extract_feature
    # with eight rows, the last batch norm would make every vector depend on the batch
    camp.xvector.dense.nonlinear.eval()

    def loss_of(rng: np.random.Generator, _: float) -> dict[str, Tensor]:
        waves, utterances, _ = audio.draw(rng, 8, int(rng.integers(30, 55)))
        predicted = camp(features(waves)[0].float())
        target = np.stack(
            [teacher.x_vector(u.speaker, PICO_CONFIG.flow.xvector) for u in utterances]
        )
        return {"loss": 1 - F.cosine_similarity(predicted, torch.from_numpy(target)).mean()}

    train("xvector", camp, loss_of, minutes=minutes, rate=2e-3, out=out)


def train_voice(encoder: Any, audio: AugmentedAudio, minutes: float, out: Path) -> None:
    """Train the voice encoder on the speaker's vector, over windows of 1.6 s."""
    spectrogram = import_upstream("models.voice_encoder.melspec").melspectrogram
    window = encoder.hp.ve_partial_frames
    with torch.no_grad():
        encoder.lstm.weight_ih_l0.mul_(INPUT_SCALE)

    def loss_of(rng: np.random.Generator, _: float) -> dict[str, Tensor]:
        waves, utterances, _ = audio.draw(rng, 24, 42)
        mels = np.stack([spectrogram(w.numpy(), encoder.hp).T[:window] for w in waves])
        predicted = encoder(torch.from_numpy(mels))
        target = np.stack(
            [teacher.voice_vector(u.speaker, PICO_CONFIG.t3.speaker) for u in utterances]
        )
        similarity = F.cosine_similarity(predicted, torch.from_numpy(target)).mean()
        return {"loss": 1 - similarity}

    train("voice_encoder", encoder, loss_of, minutes=minutes, rate=2e-3, out=out)


def main(
    minutes: Annotated[
        float, typer.Option(help="Total training time of one core, earlier runs included.")
    ],
    out: Annotated[Path, typer.Option(help="Work folder.")] = WORK,
) -> None:
    """Train and save DIR/tokenizer.pt, xvector.pt and voice_encoder.pt."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    encoders = Encoders(PICO_CONFIG.voice, PICO_CONFIG.t3.speaker)
    audio = AugmentedAudio(load("sound", out)[HELD_OUT:])
    train_tokenizer(encoders.tokenizer, audio, minutes / 4, out)
    train_speaker(encoders.speaker_encoder, audio, minutes / 2, out)
    train_voice(encoders.voice_encoder, audio, minutes / 4, out)


if __name__ == "__main__":
    typer.run(main)
