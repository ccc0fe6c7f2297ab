"""Trains pico's vocoder: mel to wave.

Responsible for HiFT, its F0 predictor and the losses. Not responsible for the weights that it
starts with (vocoder_start.py), the discriminators (discriminators.py), codes or text.

    python -m training.pico.train_vocoder --minutes 440

The source is driven by the teacher's F0, and the F0 predictor learns from that F0 over longer
segments, by their distance in cents. The layer that merges the nine harmonics to one signal keeps
the weights that it starts with. They are so high that tanh clips the sum: what is clipped has
harmonics beyond the ninth, which of a low voice is at 1 kHz. Between 2 and 4 kHz the source of 120
Hz has -16 dB of its energy (with weights of 1, which tanh hardly bends, -43 dB, and most of that is
noise).

Losses: distance to the source, filtered to the true wave's envelope (source_filter.py);
multi-resolution STFT (Yamamoto et al. 2020), upstream's mel and mel bands in shorter windows, which
weigh vowels' formants most; log-spectral distance (Gray & Markel 1976), whose squares weigh what is
far off, and peaks above the true ones. At first the filtered source weighs most: without it and the
start, harmonics ended at 2 kHz, however long it was trained. Then it only keeps them. At the end
discriminators are trained with the vocoder, and it against them, and peaks weigh most: otherwise
bursts of plosives were clicks, some of which clipped.

The factors of products that a CPU may have in bfloat16 are rounded, with errors ``COARSER`` times
as large: errors as small as they are then teach nothing.

Batches are small and learning rates high: the same time with twice as many rows at half the rates
is behind by 0.9 dB after six minutes.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.models.vocoder.model import HOP_LENGTH, build_hift
from chatterbox_opt.models.vocoder.source import NUM_HARMONICS, VOICED_THRESHOLD, source
from chatterbox_opt.utils.librosa_import import import_librosa
from training.pico.design import PICO_CONFIG
from training.pico.discriminators import Discriminators
from training.pico.sound import log_spectral_difference, mel_of, spectrum, wave_of
from training.pico.source_filter import filtered_source, wave_distance
from training.pico.training import train
from training.pico.utterances import HELD_OUT, WORK, Utterance, load
from training.pico.vocoder_start import fit_levels, start, trained_gently

WORKERS = 2  # threads with a batch each
FRAMES, ROWS = 40, 2  # of a batch of waves
PITCH_FRAMES, PITCH_ROWS = 120, 2  # of a batch for the F0 predictor
# size, hop and mel bands
WINDOWS = ((240, 60, 20), (512, 128, 40), (1024, 256, 80), (2048, 512, 80))
SILENT = math.log(1e-5)  # upstream's lowest mel
OVERSHOOT = 0.17  # nepers, 1.5 dB
COARSER = 8.0  # than bfloat16: the factors of products that may be
MERGE = 10.0  # weight of a harmonic in the source, all nine of amplitude 0.1
HERTZ, CENTS = 100.0, 100.0  # errors of F0 that count as much as one neper of the spectrum
START_FRAMES, START_ROWS = 60, 48  # that the weights of the start are fitted to


@dataclass(frozen=True, slots=True)
class Stage:
    """What counts in a part of the training.

    Attributes:
        since: share of the training time that has passed.
        band: in Hz, where the distance to the filtered source is taken.
        weights: of losses by name; others have 1. Discriminators are trained if they have any.
    """

    since: float
    band: tuple[int, int]
    weights: dict[str, float]


LATE = {"filtered": 1.5, "distance": 8.0, "bands": 8.0}
STAGES = (
    Stage(0.0, (100, 5000), {"filtered": 10.0, "distance": 2.0}),
    Stage(1 / 12, (100, 5000), {"filtered": 3.0, "distance": 4.0}),
    Stage(3 / 8, (1000, 4500), {"filtered": 2.0, "distance": 6.0}),
    Stage(0.8, (2500, 4500), LATE),
    Stage(0.92, (2500, 4500), {**LATE, "peak": 10.0, "adversarial": 0.2, "features": 0.5}),
)


class Rounded(nn.Module):
    """Adds ``COARSER`` times the error of rounding to bfloat16, which is constant to gradients.

    Its sign is random: weights hardly change in the end, and biases would learn to make up for what
    the sum of their errors is then.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        sign = 1 - 2 * int(torch.randint(2, ()))
        return x + sign * COARSER * (x.bfloat16() - x).detach()


def round_factors(convolution: nn.Module) -> None:
    """Round a convolution's inputs and, after their weight norm, its weights."""
    rounded = Rounded()
    parametrize.register_parametrization(convolution, "weight", rounded)
    convolution.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))


class TrainableHiFT(nn.Module):
    """Upstream's HiFT, with the weight norm that the package folds when loading.

    Attributes:
        net: HiFT.
        discriminators: tell its waves from true ones; only for training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = build_hift(PICO_CONFIG.vocoder)
        self.discriminators = Discriminators()
        merge = self.net.m_source.l_linear
        nn.init.constant_(merge.weight, MERGE)
        nn.init.zeros_(merge.bias)
        merge.requires_grad_(False)
        assert merge.weight.shape == (1, NUM_HARMONICS)
        # all but the last stage's, as in models/vocoder/packed.py
        blocks = self.net.resblocks[: -self.net.num_kernels]
        for block in (*blocks, *self.net.source_resblocks[:-1]):
            for convolution in (*block.convs1, *block.convs2):
                round_factors(convolution)

    def signal(self, pitch: Tensor) -> Tensor:
        """Source of true F0 [rows, F]: [rows, 480 F]."""
        return source(self.net.m_source.l_linear, pitch, None)

    def forward(self, mel: Tensor, signal: Tensor) -> Tensor:
        """Mel [rows, 80, F] and source [rows, 480 F] to waves [rows, 480 F]."""
        wave: Tensor = self.net.decode(x=mel, s=signal[:, None])
        return wave

    def start(self, segments: Segments) -> None:
        """Set the weights to start with, fitted to random segments."""
        waves, mels, pitches = segments.draw(START_FRAMES, START_ROWS, np.random.default_rng(0))
        start(self.net, *fit_levels(mels, self.signal(pitches), waves))


def spectral_losses(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses, means over ``WINDOWS``.

    Returns:
        spectral convergence and log magnitude; log magnitude of mel bands (Kumar et al. 2023).
    """
    total, bands = predicted.new_zeros(()), predicted.new_zeros(())
    for size, hop, count in WINDOWS:
        one, two = (spectrum(x, size, hop).abs().clamp(min=1e-5) for x in (predicted, true))
        total = total + 0.5 * (one - two).norm() / two.norm().clamp(min=1e-3)
        total = total + log_difference(one, two)
        filters = mel_filters(size, count)
        bands = bands + log_difference(filters @ one, filters @ two)
    return total / len(WINDOWS), bands / len(WINDOWS)


def log_difference(one: Tensor, two: Tensor) -> Tensor:
    """Mean distance of logarithms of magnitudes, none of which is 0."""
    return (one.log() - two.log()).abs().mean()


@functools.cache
def mel_filters(size: int, count: int) -> Tensor:
    """Weights of the bins of a spectrum in mel bands, float32 [count, size / 2 + 1]; sums are 1."""
    filters = import_librosa().filters.mel(sr=SAMPLE_RATE, n_fft=size, n_mels=count)
    return torch.from_numpy(filters / filters.sum(1, keepdims=True))


def spectral_distance(predicted: Tensor, true: Tensor) -> Tensor:
    """Log-spectral distance in nepers: RMS over frequencies, mean over frames."""
    # the root has no gradient at 0, where both are silent
    return (log_spectral_difference(predicted, true).pow(2).mean(-2) + 1e-4).sqrt().mean()


def peak_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """By how many nepers peaks of 40 ms are above true ones, beyond ``OVERSHOOT``; mean.

    A mel frame, of 80 ms, does not tell a burst from a click of the same energy, which may clip.
    """
    one, two = (F.max_pool1d(x.abs()[:, None], 2 * HOP_LENGTH, HOP_LENGTH // 2)
                for x in (predicted, true))  # fmt: skip
    return ((one + 0.01).log() - (two + 0.01).log() - OVERSHOOT).relu().mean()


def pitch_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Of F0 in Hz [rows, F]: distance in Hz, and in cents where both are voiced.

    Hz lead a predictor that begins at zero to the voice; cents then count alike for all voices.
    """
    far = (predicted - true).abs() / HERTZ
    both = (true > VOICED_THRESHOLD) & (predicted > VOICED_THRESHOLD)
    cents = 1200 * (predicted.clamp(min=1).log2() - true.clamp(min=1).log2()).abs()
    return (far + both * cents / CENTS).mean()


@dataclass(frozen=True, slots=True)
class Sound:
    """What HiFT learns from.

    Attributes:
        wave: at evened levels, [480 F].
        mel: [80, F].
        f0: in Hz, [F].
    """

    wave: Tensor
    mel: Tensor
    f0: Tensor

    @staticmethod
    def of(one: Utterance) -> Sound:
        """A whole utterance, float16."""
        assert one.f0 is not None
        wave = wave_of(one)
        return Sound(wave.half(), mel_of(wave[None])[0].half(), torch.from_numpy(one.f0))

    def segment(self, frames: int, rng: np.random.Generator) -> Sound:
        """A random part with a random gain, float32."""
        start = int(rng.integers(len(self.f0) - frames + 1))
        gain = 10 ** (rng.uniform(-9, 0) / 20)
        wave = self.wave[start * HOP_LENGTH : (start + frames) * HOP_LENGTH].float() * gain
        mel = self.mel[:, start : start + frames].float() + math.log(gain)
        return Sound(wave, mel.clamp(min=SILENT), self.f0[start : start + frames].float())


class Segments:
    """Random segments of utterances, whose levels are evened when they are first drawn."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self._utterances = utterances
        self._sound = functools.cache(lambda i: Sound.of(utterances[i]))

    def draw(
        self, frames: int, rows: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Waves [rows, 480 frames], mel [rows, 80, frames] and F0 in Hz [rows, frames]."""
        found: list[Sound] = []
        while len(found) < rows:
            sound = self._sound(int(rng.integers(len(self._utterances))))
            if len(sound.f0) >= frames:
                found.append(sound.segment(frames, rng))
        return (
            torch.stack([one.wave for one in found]),
            torch.stack([one.mel for one in found]),
            torch.stack([one.f0 for one in found]),
        )


def losses_of(
    net: TrainableHiFT, segments: Segments, rng: np.random.Generator, progress: float
) -> dict[str, Tensor]:
    """Losses of a batch; "loss" is of the vocoder and, separately, of its discriminators.

    Args:
        progress: share of the training time that has passed.
    """
    # 1) the F0 predictor
    _, mel, pitch = segments.draw(PITCH_FRAMES, PITCH_ROWS, rng)
    parts = {"pitch": pitch_loss(net.net.f0_predictor(mel), pitch)}
    # 2) waves
    true, mel, pitch = segments.draw(FRAMES, ROWS, rng)
    signal = net.signal(pitch)
    wave = net(mel, signal)
    stage = next(one for one in reversed(STAGES) if one.since <= progress)
    stft, bands = spectral_losses(wave, true)
    parts |= {
        "filtered": wave_distance(wave, filtered_source(signal, true, pitch), stage.band),
        "stft": stft,
        "bands": bands,
        "mel": (mel_of(wave) - mel_of(true)).abs().mean(),
        "distance": spectral_distance(wave, true),
        "peak": peak_loss(wave, true),
    }
    # 3) against the discriminators
    if "adversarial" in stage.weights:
        adversarial, features, own = net.discriminators.losses(true, wave)
        parts |= {"adversarial": adversarial, "features": features, "discriminators": own}
    weighted = [stage.weights.get(name, 1.0) * value for name, value in parts.items()]
    loss = torch.stack(weighted).sum()
    return {"loss": loss, **parts}


def main(
    minutes: Annotated[
        float, typer.Option(help="Total training time of one core, earlier runs included.")
    ],
    out: Annotated[Path, typer.Option(help="Work folder.")] = WORK,
) -> None:
    """Train and save DIR/vocoder.pt."""
    logging.disable(logging.WARNING)  # upstream's mel warns of every sample above 1
    torch.manual_seed(0)
    usable = load("sound", out)[HELD_OUT:]
    net, segments = TrainableHiFT(), Segments(usable)
    net.start(segments)
    print(sum(p.numel() for p in net.net.parameters()), "parameters", len(usable), "utterances")
    gently = trained_gently(net.net)
    train(
        "vocoder",
        net,
        functools.partial(losses_of, net, segments),
        minutes=minutes,
        rate=1.2e-3,
        out=out,
        betas=(0.8, 0.99),
        inner=[
            parameter
            for name, parameter in net.net.named_parameters()
            if name.endswith("original1") and id(parameter) not in gently
        ],
        inner_rate=0.008,
        workers=WORKERS,
    )


if __name__ == "__main__":
    typer.run(main)
