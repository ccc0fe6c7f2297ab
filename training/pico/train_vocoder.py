"""Trains pico's vocoder: mel to wave.

Responsible for HiFT and spectral losses. Not responsible for codes or text.

    python -m training.pico.train_vocoder --minutes 25

Losses: multi-resolution STFT (Yamamoto et al. 2020), mel, and F0. The source is driven by the
teacher's F0 during training.
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
from training.pico.design import PICO_CONFIG
from training.pico.sound import mel_of
from training.pico.training import train
from training.pico.utterances import HELD_OUT, WORK, Utterance, load

FRAMES, ROWS = 40, 8  # per batch
MARGIN = 2  # frames on either side, whose mel is affected by reflection padding
WINDOWS = ((240, 60), (512, 128), (1024, 256), (2048, 512))


class TrainableHiFT(nn.Module):
    """Upstream's HiFT, with the weight norm that the package folds when loading."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = build_hift(PICO_CONFIG.vocoder)

    def forward(self, mel: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor]:
        """Mel [rows, 80, F] to predicted F0 [rows, F] and (from true F0) wave [rows, 480 F]."""
        signal = source(self.net.m_source.l_linear, pitch, None)
        return self.net.f0_predictor(mel), self.net.decode(x=mel, s=signal[:, None])


def spectral_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Spectral convergence and log magnitude loss, mean over ``WINDOWS``."""
    total = predicted.new_zeros(())
    for size, hop in WINDOWS:
        window = torch.hann_window(size)
        one, two = (
            torch.stft(x, size, hop, size, window, return_complex=True).abs().clamp(min=1e-5)
            for x in (predicted, true)
        )
        total = total + 0.5 * (one - two).norm() / two.norm().clamp(min=1e-3)
        total = total + (one.log() - two.log()).abs().mean()
    return total / len(WINDOWS)


def segment(one: Utterance, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random segment: wave with margins and a random gain, and F0 without margins."""
    assert one.wave is not None and one.f0 is not None
    start = int(rng.integers(MARGIN, len(one.f0) - FRAMES - MARGIN + 1))
    wave = one.wave[(start - MARGIN) * HOP_LENGTH : (start + FRAMES + MARGIN) * HOP_LENGTH]
    gain = 10 ** (rng.uniform(-9, 0) / 20)
    return wave.astype(np.float32) / 32768 * gain, one.f0[start : start + FRAMES]


def main(
    minutes: Annotated[float, typer.Option(help="Total training time, earlier runs included.")],
    out: Annotated[Path, typer.Option(help="Work folder.")] = WORK,
) -> None:
    """Train and save DIR/vocoder.pt."""
    logging.disable(logging.WARNING)  # upstream's mel warns of every sample above 1
    torch.manual_seed(0)
    usable = [u for u in load("sound", out)[HELD_OUT:] if len(u.codes) * 2 > FRAMES + 2 * MARGIN]
    net = TrainableHiFT()
    print(sum(p.numel() for p in net.parameters()), "parameters", len(usable), "utterances")

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        segments = [segment(usable[i], rng) for i in rng.integers(len(usable), size=ROWS)]
        padded = torch.from_numpy(np.stack([wave for wave, _ in segments]))
        pitch = torch.from_numpy(np.stack([f0 for _, f0 in segments])).float()
        mel = mel_of(padded)[..., MARGIN:-MARGIN]
        true = padded[:, MARGIN * HOP_LENGTH : -MARGIN * HOP_LENGTH]
        predicted_f0, wave = net(mel, pitch)
        parts = {
            "stft": spectral_loss(wave, true),
            "mel": (mel_of(wave) - mel_of(true)).abs().mean(),
            "pitch": F.smooth_l1_loss(predicted_f0, pitch, beta=20) / 100,
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
