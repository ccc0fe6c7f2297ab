"""Measures how far the harmonics of a voice stand out above what is between them.

Responsible for the contrast in bands of 1 kHz: of noise it is 0 dB, whatever its level; a
log-spectral distance or a spectrogram in mel bands does not tell noise from harmonics. Not
responsible for F0.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.models.vocoder.model import HOP_LENGTH
from chatterbox_opt.models.vocoder.source import VOICED_THRESHOLD

BANDS = 6  # of BAND Hz each, from 0
BAND = 1000
WINDOW = 2048  # samples: harmonics 60 Hz apart are told apart
BINS = 8 * WINDOW  # of the transform, padded with zeros: a bin is 1.5 Hz
REACH = 0.15  # of F0, on both sides of a harmonic, in which its peak is searched
NEIGHBORS = 2  # frames on both sides, within which F0 must be steady
STEADY = 1.02  # highest to lowest of them

Array = npt.NDArray[np.float32]


def contrast(waves: Iterable[tuple[Array, Array]]) -> list[float]:
    """Mean difference in dB of the peaks at k F0 and at (k + 1/2) F0, by band.

    Args:
        waves: float32 [n] at 24 kHz, and its F0 in Hz every 480 samples. Only frames with a steady
            F0 count, where a window of 85 ms resolves harmonics.

    Returns:
        one for each of the ``BANDS``; NaN where no harmonic was found.
    """
    found: list[list[float]] = [[] for _ in range(BANDS)]
    window = np.hanning(WINDOW)
    for wave, f0 in waves:
        for frame in range(NEIGHBORS, len(f0) - NEIGHBORS):
            near = f0[frame - NEIGHBORS : frame + NEIGHBORS + 1]
            start = frame * HOP_LENGTH + HOP_LENGTH // 2 - WINDOW // 2
            if near.min() <= VOICED_THRESHOLD or near.max() > STEADY * near.min() or start < 0:
                continue
            part = wave[start : start + WINDOW]
            if len(part) == WINDOW:
                for hertz, value in _harmonics(part * window, float(near.mean())):
                    found[int(hertz // BAND)].append(value)
    return [float(np.mean(values)) if values else float("nan") for values in found]


def _harmonics(part: npt.NDArray[np.float64], f0: float) -> Iterable[tuple[float, float]]:
    """Each harmonic's frequency in Hz, and how far it is above the middle to the next, in dB."""
    levels = 20 * np.log10(np.abs(np.fft.rfft(part, BINS)) + 1e-7)
    width = SAMPLE_RATE / BINS
    reach = int(REACH * f0 / width)

    def peak(hertz: float) -> float:
        middle = round(hertz / width)
        return float(levels[max(0, middle - reach) : middle + reach + 1].max())

    for number in range(1, int(BANDS * BAND / f0)):
        yield number * f0, peak(number * f0) - peak((number + 0.5) * f0)
