"""Brings speech to a loudness in LUFS (ITU-R BS.1770-4, measured by pyloudnorm).

Responsible for gain and limiter of one recording: of an output, and of a reference as upstream
does it. Not responsible for files.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

QUIETEST, LOUDEST = -40.0, -9.0  # LUFS that can be asked for
BLOCK = 0.4  # seconds of sound that BS.1770 measures at once
MAX_PEAK = 10 ** (-1 / 20)  # -1 dBFS: what a lossy encoder adds must not clip
LIMITER = SAMPLE_RATE // 200  # samples, 5 ms: how fast the limiter's gain falls and rises
ROUNDS = 8  # a limiter makes sound quieter, so the gain is found in rounds
TOLERANCE = 0.05  # LU
ACCEPTED = 0.5  # LU; a sound that the limiter keeps further away is reported


def check_target(target: float) -> None:
    """Raise InputError if a loudness is out of range, or not a number."""
    if not QUIETEST <= target <= LOUDEST:
        raise InputError(
            f"--loudness is {target:g}; give LUFS from {QUIETEST:g} to {LOUDEST:g}, "
            "such as -18 (audiobooks) or -16 (podcasts)"
        )


def at_loudness(wave: Wave, target: float) -> tuple[Wave, float]:
    """Bring speech to a loudness, with its peaks limited to ``MAX_PEAK``.

    Args:
        wave: float32 [n] at 24 kHz.
        target: LUFS.

    Returns:
        float32 [n], and the loudness it has: within ``TOLERANCE`` of ``target``, or lower if the
        limiter would have to change more than single peaks. Silence is returned as it is.
    """
    import numpy as np

    measured = loudness(wave)
    if not math.isfinite(measured):
        return wave, measured
    gain, result = 0.0, wave  # dB
    for _ in range(ROUNDS):
        gain += target - measured
        result = _limit(wave * np.float32(10 ** (gain / 20)))
        measured = loudness(result)
        if abs(target - measured) <= TOLERANCE:
            break
    return result, measured


def with_gain_to(wave: Wave, target: float) -> Wave:
    """Bring a reference recording to a loudness by gain alone (upstream tts_turbo.py,
    norm_loudness): measured in float32, and peaks may be above 1.

    Args:
        wave: float32 [n] at 24 kHz, of 0.4 s or more.
        target: LUFS.

    Returns:
        float32 [n]; one that is too quiet to be measured is returned as it is.
    """
    import numpy as np
    import pyloudnorm

    measured = float(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(wave))
    if not math.isfinite(measured):
        return wave
    return wave * np.float32(10.0 ** ((target - measured) / 20.0))


def _limit(wave: Wave) -> Wave:
    """A limiter with look-ahead: the gain falls before a peak and rises behind it, linearly.

    The smallest gain within a window is averaged over windows of the same length, so that no
    average is above the gain that its sample needs.
    """
    import numpy as np
    from scipy.ndimage import minimum_filter1d, uniform_filter1d

    peaks = np.abs(wave)
    if not len(wave) or peaks.max() <= MAX_PEAK:
        return wave
    needed = MAX_PEAK / np.maximum(peaks, MAX_PEAK).astype(np.float64)
    gain = uniform_filter1d(minimum_filter1d(needed, LIMITER), LIMITER)
    return (wave * np.minimum(gain, needed)).astype(np.float32)


def loudness(wave: Wave) -> float:
    """Integrated loudness in LUFS; -inf for silence. Less than 0.4 s are measured as one block."""
    import numpy as np
    import pyloudnorm

    if not len(wave):
        return -math.inf
    block = min(BLOCK, len(wave) / SAMPLE_RATE)
    meter = pyloudnorm.Meter(SAMPLE_RATE, block_size=block)
    return float(meter.integrated_loudness(np.asarray(wave, dtype=np.float64)))
