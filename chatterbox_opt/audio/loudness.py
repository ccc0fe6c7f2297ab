"""Brings speech to a loudness in LUFS (ITU-R BS.1770-4, measured by pyloudnorm).

Responsible for the gain of one recording. Not responsible for files.
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


def check_target(target: float) -> None:
    """Raise InputError if a loudness is out of range, or not a number."""
    if not QUIETEST <= target <= LOUDEST:
        raise InputError(
            f"--loudness is {target:g}; give LUFS from {QUIETEST:g} to {LOUDEST:g}, "
            "such as -18 (audiobooks) or -16 (podcasts)"
        )


def gain_to(wave: Wave, target: float) -> tuple[float, bool]:
    """The factor that brings ``wave`` to a loudness.

    Args:
        wave: float32 [n] at 24 kHz.
        target: LUFS.

    Returns:
        the factor, and whether it is smaller than asked for because the peak would exceed
        ``MAX_PEAK``. Silence has the factor 1.
    """
    import numpy as np

    measured = loudness(wave)
    if not math.isfinite(measured):
        return 1.0, False
    wanted = 10 ** ((target - measured) / 20)
    allowed = MAX_PEAK / float(np.abs(wave).max())
    return min(wanted, allowed), allowed < wanted


def loudness(wave: Wave) -> float:
    """Integrated loudness in LUFS; -inf for silence. Less than 0.4 s are measured as one block."""
    import numpy as np
    import pyloudnorm

    if not len(wave):
        return -math.inf
    block = min(BLOCK, len(wave) / SAMPLE_RATE)
    meter = pyloudnorm.Meter(SAMPLE_RATE, block_size=block)
    return float(meter.integrated_loudness(np.asarray(wave, dtype=np.float64)))
