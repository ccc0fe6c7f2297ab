"""A target wave that the vocoder can reach sample by sample: its own source, filtered.

Responsible for filtering a source signal to the spectral envelope of a true wave, and for the
distance of a wave to that target. Not responsible for the source or for losses on the true wave.

A vocoder does not know the phases of the true wave: they are not in the mel. So its losses compare
magnitudes, and their gradients are only of use once the output has harmonics: before, they point
each time elsewhere, and noise of the right level is found first. But the phases of the source are
known. What has them, and the envelope of the true wave, is a wave of the right spectrum too, and
the distance to it is a regression: its gradient says from the first step on which part of the
source has to come through, and how strong.

The envelope is that of CheapTrick (Morise 2015), without its lifter: a power spectrum averaged over
a width of F0, in which there is always one harmonic. Both signals are averaged alike, so that the
root of their quotient is the filter's gain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.models.vocoder.model import HOP_LENGTH
from chatterbox_opt.models.vocoder.source import VOICED_THRESHOLD
from training.pico.sound import spectrum

WINDOW, HOP = 1024, 240  # samples, of the filter
UNVOICED = 300.0  # Hz that are averaged where there is no F0
MIRRORED = 64  # bins beyond both ends of a spectrum, more than half of any average
WINDOWS = ((256, 64), (512, 128), (1024, 256))  # of the distance
FLOOR = 5e-4  # amplitude of noise below which an error is not heard
TINY = 1e-12


def filtered_source(signal: Tensor, true: Tensor, pitch: Tensor) -> Tensor:
    """The source with the spectral envelope of the true wave.

    Args:
        signal: source, float32 [rows, 480 F].
        true: float32 [rows, 480 F].
        pitch: F0 of both in Hz, float32 [rows, F]; 0 where unvoiced.

    Returns:
        float32 [rows, 480 F]; its phases are those of ``signal``.
    """
    one, two = (spectrum(x, WINDOW, HOP) for x in (signal, true))
    every = pitch.repeat_interleave(HOP_LENGTH // HOP, dim=1)
    every = torch.cat((every, every[:, -1:]), dim=1)  # a frame is centered at its first sample
    hertz = torch.where(every > VOICED_THRESHOLD, every, UNVOICED)
    width = hertz * WINDOW / SAMPLE_RATE
    gain = (averaged(two.abs().square(), width) / averaged(one.abs().square(), width)).sqrt()
    window = torch.hann_window(WINDOW)
    return torch.istft(one * gain, WINDOW, HOP, WINDOW, window, length=true.shape[1])


def averaged(power: Tensor, width: Tensor) -> Tensor:
    """Mean over frequency around each bin; spectra are mirrored at both ends.

    Args:
        power: float32 [rows, bins, frames].
        width: number of bins of a mean, a fraction too: float32 [rows, frames].
    """
    low, high = power[:, 1 : MIRRORED + 1].flip(1), power[:, -MIRRORED - 1 : -1].flip(1)
    # sums over many bins in float64: the difference of two of them can be small
    sums = torch.cat((low, power, high), dim=1).double().cumsum(1)
    sums = F.pad(sums, (0, 0, 1, 0))
    middle = torch.arange(power.shape[1])[None, :, None] + MIRRORED + 0.5

    def up_to(place: Tensor) -> Tensor:
        below = place.floor().long()
        share = place - below
        return sums.gather(1, below) * (1 - share) + sums.gather(1, below + 1) * share

    half = width[:, None] / 2
    mean = (up_to(middle + half) - up_to(middle - half)) / width[:, None]
    return mean.float().clamp(min=TINY)


def wave_distance(wave: Tensor, target: Tensor, band: tuple[int, int]) -> Tensor:
    """Distance of complex spectra, relative to the target's level nearby.

    The mean of log(1 + distance / level), so that what is soft counts like what is loud, and what
    is much too loud does not count above all.

    Args:
        wave: float32 [rows, n].
        target: the same.
        band: lowest and highest frequency in Hz. Not 0: a clipped source has a constant.
    """
    total = wave.new_zeros(())
    for size, hop in WINDOWS:
        low, high = (hertz * size // SAMPLE_RATE for hertz in band)
        one, two = (spectrum(x, size, hop)[:, low + 1 : high] for x in (wave, target))
        near = size // 64  # bins on either side: 375 Hz
        level = F.avg_pool2d(two.abs(), (2 * near + 1, 3), 1, (near, 1), count_include_pad=False)
        total = total + ((one - two).abs() / (level + FLOOR * size**0.5)).log1p().mean()
    return total / len(WINDOWS)
