"""Weights that HiFT starts training with: a plain source-filter vocoder of nine bands.

Responsible for the path of the source and that of the levels through HiFT's layers. Not responsible
for the merge of the harmonics or for training.

HiFT's last layer gives 9 log magnitudes and 9 phases of a short spectrum, 16 samples every 4. A
phase is bounded to one radian, so no part of a spectrum can be negative, and it is not obvious how
a sound comes of it that is. But where all magnitudes are M and all phases 0, the 16 samples are an
impulse at the first, where the window is zero: no sound. Around this point the layer is linear.
With S the source's own spectrum and a small e,

    log magnitude = log M + e Re S,   phase = e Im S

is M (1 + e S) but for terms of e squared: what sounds is M e times the source, and log M is a gain
by band and frame. A mel is logarithmic too, so log M is nearly linear in it; least squares on some
utterances say how. Random weights have to find all that together, and at 2 to 4 kHz, where a
harmonic comes out right only if neighboring bands and frames fit each other exactly, they did not
in hours.

The paths:

- the source through 4 of the last stage's channels: each frame's 4 middle samples, of which the
  last layer's kernel, 7 frames, gets all 16
- levels through 9 channels of each stage, interpolated between frames

An offset keeps both above zero, where a leaky ReLU is linear. The residual blocks start small, and
the two stages before the last without a source: at 400 and 2,000 frames a second harmonics are
aliased, and what is not harmonic any more is noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from training.pico.sound import spectrum

SAMPLES, HOP, BINS = 16, 4, 9  # of HiFT's short spectra
FIRST_TAKEN = SAMPLES // 2 - HOP // 2  # of the 4 middle samples of a frame
PER_FRAME = 120  # short spectra per frame of a mel
GAIN = 0.15  # e above, of the band with the source's middle level
WEAKER = 4.0  # at most, by how much loud bands of the source are passed on less than soft ones
LEVELS = (4.6, 4.0, 1.9, 0.60, 0.37, 0.23, 0.16, 0.14, 0.13)  # RMS of the voiced source's bands
SOURCE_OFFSET, LEVEL_OFFSET = 3.0, 16.0  # the source is between -1 and 1, log M above -16
SMALL = 0.05  # of residual branches and of what else reaches the paths' channels
LENGTH = 4.0  # of directions in weight norm: the longer, the less an optimizer's step turns them
RIDGE = 1e-3  # of the least squares, per frame
SOFTEST = 1e-4  # amplitude below which levels are alike


def fit_levels(mels: Tensor, signals: Tensor, waves: Tensor) -> tuple[Tensor, Tensor]:
    """How log M depends on the mel: weights [9, 80] and bias [9] by least squares.

    Args:
        mels: float32 [rows, 80, F].
        signals: sources, float32 [rows, 480 F].
        waves: float32 [rows, 480 F].
    """
    given = mels.transpose(1, 2).flatten(0, 1).double()
    levels = _band_levels(waves) - _band_levels(signals) - _gains().log()
    # a constant over frequencies is silent only if the first two bands are alike
    levels = torch.cat((levels[:, :2].mean(1, keepdim=True).expand(-1, 2), levels[:, 2:]), dim=1)
    mean_in, mean_out = given.mean(0), levels.mean(0)
    given, levels = given - mean_in, levels - mean_out
    square = given.T @ given / len(given) + RIDGE * torch.eye(given.shape[1]).double()
    weights = torch.linalg.solve(square, given.T @ levels / len(given)).T
    return weights.float(), (mean_out - weights @ mean_in).float()


@torch.no_grad()
def start(hift: Any, weights: Tensor, bias: Tensor) -> None:
    """Set the weights of upstream's HiFT, with weight norm, in place.

    Args:
        weights: float32 [9, 80], of log M; a band that no part of the mel tells has no direction.
        bias: float32 [9].
    """
    for block in (*hift.resblocks, *hift.source_resblocks):
        for convolution in block.convs2:
            _strength(convolution).mul_(SMALL)
            convolution.bias.mul_(SMALL)
    for early in hift.source_downs[:-1]:
        nn.init.zeros_(early.weight)
        nn.init.zeros_(early.bias)
    # 1) levels: from the mel, up to 120 times its frames
    taken = _direction(hift.conv_pre)
    taken[:BINS] = 0
    taken[:BINS, :, taken.shape[2] // 2] = weights
    hift.conv_pre.bias[:BINS] = bias + LEVEL_OFFSET
    _normalize(hift.conv_pre)
    for up in hift.ups:
        _interpolate(up, HOP if up is hift.ups[-1] else 0)
    # 2) the source, and the spectra of both
    _take_samples(hift.source_downs[-1])
    _give_spectra(hift.conv_post)


def trained_gently(hift: Any) -> set[int]:
    """Identities of the parameters whose start Muon would undo: all its updates are as large.

    They are those of the last stage and the layer after it.
    """
    blocks = hift.resblocks[-hift.num_kernels :]
    parts = (hift.ups[-1], hift.source_resblocks[-1], *blocks, hift.conv_post)
    return {id(parameter) for part in parts for parameter in part.parameters()}


def _band_levels(wave: Tensor) -> Tensor:
    """Log RMS of each band, by frame of a mel: [rows, 480 F] to float64 [rows F, 9]."""
    power = (
        spectrum(wave, SAMPLES, HOP)
        .abs()
        .square()
        .double()[..., :-1]
        .unflatten(2, (-1, PER_FRAME))
        .mean(3)
    )
    return 0.5 * (power + SOFTEST**2).log().transpose(1, 2).flatten(0, 1)


def _gains() -> Tensor:
    """e of each band: float64 [9]."""
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    return GAIN * (levels[2] / levels).clamp(1 / WEAKER, WEAKER)


def _strength(convolution: nn.Module) -> Tensor:
    """The norms in a convolution's weight norm."""
    norms: Tensor = convolution.parametrizations.weight.original0  # type: ignore[union-attr]
    return norms


def _direction(convolution: nn.Module) -> Tensor:
    """The weights in a convolution's weight norm, before they are normalized."""
    weights: Tensor = convolution.parametrizations.weight.original1  # type: ignore[union-attr]
    return weights


def _normalize(convolution: nn.Module) -> None:
    """Make the weight norm's result what its directions are, and these ``LENGTH`` long."""
    direction = _direction(convolution)
    norms = direction.norm(dim=(1, 2), keepdim=True)
    _strength(convolution).copy_(norms)
    direction.mul_(LENGTH / norms.clamp(min=1e-6))


def _interpolate(up: Any, first: int) -> None:
    """Levels from channels 0 to 8 to channels ``first`` and on, linear between frames."""
    direction = _direction(up)  # [in, out, kernel]
    kept = slice(0, first + BINS)
    direction[:, kept] *= SMALL
    direction[:BINS] = 0
    size, stride = up.kernel_size[0], up.stride[0]
    middle = up.padding[0] + (stride - 1) / 2
    triangle = (1 - (torch.arange(size) - middle).abs() / stride).clamp(min=0)
    for band in range(BINS):
        direction[band, first + band] = triangle
    up.bias[kept] = 0
    _normalize(up)


def _take_samples(convolution: nn.Conv1d) -> None:
    """Channels 0 to 3 are the middle samples of a frame: an inverse transform, unwindowed."""
    scale = torch.full((BINS,), 2 / SAMPLES, dtype=torch.float64)
    scale[[0, -1]] /= 2
    convolution.weight *= SMALL
    convolution.bias *= SMALL
    for channel in range(HOP):
        wave, window = _transform(FIRST_TAKEN + channel)
        convolution.weight[channel, :, 0] = (scale.repeat(2) * wave / window).float()
    convolution.bias[:HOP] = SOURCE_OFFSET


def _give_spectra(convolution: Any) -> None:
    """Log magnitudes and phases from samples and levels."""
    weights = _direction(convolution)
    weights *= SMALL
    weights[:, : HOP + BINS] = 0
    middle, gains = weights.shape[2] // 2, _gains().repeat(2)
    for place in range(SAMPLES):
        frames, channel = divmod(place - FIRST_TAKEN, HOP)  # that take this sample
        wave, window = _transform(place)
        weights[:, channel, middle + frames] = (gains * window * wave).float()
    convolution.bias.copy_(-SOURCE_OFFSET * weights[:, :HOP].sum((1, 2)))
    for band in range(BINS):
        weights[band, HOP + band, middle] = 1
    convolution.bias[:BINS] -= LEVEL_OFFSET
    _normalize(convolution)


def _transform(place: int) -> tuple[Tensor, float]:
    """What a sample adds to a frame's real and imaginary parts, float64 [18], and its window."""
    angle = 2 * math.pi * place / SAMPLES * torch.arange(BINS, dtype=torch.float64)
    window = torch.hann_window(SAMPLES, dtype=torch.float64)[place].item()
    return torch.cat((angle.cos(), -angle.sin())), window
