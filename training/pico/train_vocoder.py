"""Trains pico's vocoder: mel to wave.

Knows HiFT and spectra. Knows nothing of codes or text.

    python -m training.pico.train_vocoder --minutes 25

Distances of short-time spectra in four resolutions (Yamamoto et al. 2020), of the mel, and of the
predicted pitch to the teacher's, which is also the source while training.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from chatterbox_opt.models.vocoder.model import HOP_LENGTH, build_hift, source
from training.pico.design import SHAPES
from training.pico.sound import mel_of
from training.pico.training import train
from training.pico.utterances import HELD_OUT, WORK, Utterance, load

FRAMES, ROWS = 40, 8  # of a batch
MARGIN = 2  # frames on either side, whose mel reflects at the edge
WINDOWS = ((240, 60), (512, 128), (1024, 256), (2048, 512))


class Sounder(nn.Module):
    """Upstream's HiFT, with the weight norm that the package folds when it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = build_hift(SHAPES.vocoder)

    def forward(self, mel: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor]:
        """Mel [rows, 80, F] to F0 [rows, F]; with the true one for a source, wave [rows, 480 F]."""
        hum = source(self.net.m_source.l_linear, pitch, None)
        return self.net.f0_predictor(mel), self.net.decode(x=mel, s=hum[:, None])


def spectral_loss(made: Tensor, true: Tensor) -> Tensor:
    """Spectral convergence and distance of log magnitudes, mean over ``WINDOWS``."""
    total = made.new_zeros(())
    for size, hop in WINDOWS:
        window = torch.hann_window(size)
        one, two = (
            torch.stft(x, size, hop, size, window, return_complex=True).abs().clamp(min=1e-5)
            for x in (made, true)
        )
        total = total + 0.5 * (one - two).norm() / two.norm().clamp(min=1e-3)
        total = total + (one.log() - two.log()).abs().mean()
    return total / len(WINDOWS)


def segment(one: Utterance, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A piece of sound, margins included, at a random loudness, and its pitch without margins."""
    assert one.wave is not None and one.f0 is not None
    start = int(rng.integers(MARGIN, len(one.f0) - FRAMES - MARGIN + 1))
    wave = one.wave[(start - MARGIN) * HOP_LENGTH : (start + FRAMES + MARGIN) * HOP_LENGTH]
    gain = 10 ** (rng.uniform(-9, 0) / 20)
    return wave.astype(np.float32) / 32768 * gain, one.f0[start : start + FRAMES]


def main(
    minutes: Annotated[float, typer.Option(help="Of training in all, earlier runs included.")],
    out: Annotated[Path, typer.Option(help="Folder.")] = WORK,
) -> None:
    """Train and keep DIR/vocoder.pt."""
    logging.disable(logging.WARNING)  # upstream's mel warns of every sample above 1
    torch.manual_seed(0)
    usable = [u for u in load("sound", out)[HELD_OUT:] if len(u.codes) * 2 > FRAMES + 2 * MARGIN]
    net = Sounder()
    print(sum(p.numel() for p in net.parameters()), "parameters", len(usable), "utterances")

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        drawn = [segment(usable[i], rng) for i in rng.integers(len(usable), size=ROWS)]
        padded = torch.from_numpy(np.stack([wave for wave, _ in drawn]))
        pitch = torch.from_numpy(np.stack([f0 for _, f0 in drawn])).float()
        mel = mel_of(padded)[..., MARGIN:-MARGIN]
        true = padded[:, MARGIN * HOP_LENGTH : -MARGIN * HOP_LENGTH]
        guessed, made = net(mel, pitch)
        parts = {
            "stft": spectral_loss(made, true),
            "mel": (mel_of(made) - mel_of(true)).abs().mean(),
            "pitch": F.smooth_l1_loss(guessed, pitch, beta=20) / 100,
        }
        return {"loss": parts["stft"] + parts["mel"] + 0.3 * parts["pitch"], **parts}

    inner = [p for name, p in net.named_parameters() if name.endswith("original1")]
    train(
        "vocoder",
        net,
        loss_of,
        minutes=minutes,
        rate=8e-4,
        out=out,
        betas=(0.8, 0.99),
        inner=inner,
        inner_rate=0.002,
    )


if __name__ == "__main__":
    typer.run(main)
