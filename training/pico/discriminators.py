"""Discriminators of the vocoder's adversarial training, and their losses.

Responsible for networks that tell the teacher's waves from generated ones. Not responsible for the
vocoder, its other losses or the training loop.

Two kinds, as in HiFi-GAN (Kong et al. 2020) and UnivNet (Jang et al. 2021), a tenth of their width,
so that they take about as long as the vocoder itself: of the wave folded by a period, where each
pitch period looks alike; and of magnitude spectrograms of several resolutions, where harmonics are
lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from training.pico.sound import spectrum

PERIODS = (2, 3, 5, 7, 11)
WINDOWS = ((512, 120), (1024, 240), (2048, 480))  # samples of a window, and between two
SLOPE = 0.1  # of leaky ReLU


class _Discriminator(nn.Module):
    """Convolutions with leaky ReLU; the last one's output is the score, place by place."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of all layers."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
            x = F.leaky_relu(x, SLOPE)
        return found


class PeriodDiscriminator(_Discriminator):
    """Of samples that are a period apart."""

    def __init__(self, period: int) -> None:
        channels = (1, 8, 24, 64, 96)
        super().__init__(
            [
                nn.Conv2d(one, two, (5, 1), (3, 1), (2, 0))
                for one, two in zip(channels[:-1], channels[1:], strict=True)
            ]
            + [nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))]
        )
        self.period = period

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Float32 [rows, n] to features."""
        padded = F.pad(wave, (0, -wave.shape[1] % self.period))
        return self.features(padded.unflatten(1, (-1, self.period))[:, None])


class SpectrumDiscriminator(_Discriminator):
    """Of log magnitudes."""

    def __init__(self, size: int, hop: int) -> None:
        channels = 12
        super().__init__(
            [nn.Conv2d(1, channels, (9, 3), (2, 1), (4, 1))]
            + [nn.Conv2d(channels, channels, (9, 3), (2, 2), (4, 1)) for _ in range(2)]
            + [nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))]
            + [nn.Conv2d(channels, 1, (3, 3), padding=(1, 1))]
        )
        self.size, self.hop = size, hop

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Float32 [rows, n] to features."""
        magnitudes = spectrum(wave, self.size, self.hop).abs()
        return self.features(magnitudes.clamp(min=1e-4).log()[:, None] / 4)


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ModuleList(
            [PeriodDiscriminator(period) for period in PERIODS]
            + [SpectrumDiscriminator(*window) for window in WINDOWS]
        )

    def forward(self, wave: Tensor) -> list[list[Tensor]]:
        """Float32 [rows, n] to the features of each."""
        return [one(wave) for one in self.all]

    def losses(self, true: Tensor, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of both sides, by least squares (Mao et al. 2017): 1 for true waves, 0 for others.

        Returns:
            of the vocoder, which do not change the discriminators: how far its waves are from 1,
            and their features from the true ones'; and of the discriminators, which does not
            change the vocoder.
        """
        wanted = self(true)
        fixed = {name: value.detach() for name, value in self.named_parameters()}
        found = functional_call(self, fixed, (made,))
        adversarial = features = own = made.new_zeros(())
        for one, other, detached in zip(wanted, found, self(made.detach()), strict=True):
            adversarial = adversarial + (1 - other[-1]).square().mean()
            distances = [
                (a.detach() - b).abs().mean() / a.detach().abs().mean().clamp(min=1e-3)
                for a, b in zip(one[:-1], other[:-1], strict=True)
            ]
            features = features + torch.stack(distances).mean()
            own = own + (1 - one[-1]).square().mean() + detached[-1].square().mean()
        count = len(self.all)
        return adversarial / count, features / count, own / count
