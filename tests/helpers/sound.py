"""Sound of tests: what is encoded, and how near another one is."""

from __future__ import annotations

from typing import Any

import numpy as np

from chatterbox_opt.config.model_config import SAMPLE_RATE

TONE = 440


def tone(samples: int) -> np.ndarray:
    """Silence and a sine of ``TONE`` Hz, float32."""
    wave = 0.3 * np.sin(2 * np.pi * TONE * np.arange(samples) / SAMPLE_RATE)
    wave[:1200] = 0  # speech begins with silence too
    return wave.astype(np.float32)


def snr(found: Any, expected: Any) -> float:
    """In dB; of arrays or tensors."""
    found, expected = (np.asarray(wave, np.float64) for wave in (found, expected))
    noise = np.square(found - expected).sum()
    return float(10 * np.log10(np.square(expected).sum() / max(noise, 1e-30)))
