"""PerTh, Resemble AI's inaudible watermark, as upstream puts it on everything it says.

Knows the perth package and its traps. Knows nothing of how the sound was made.
"""

from __future__ import annotations

import contextlib
import io
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from chatterbox_opt.errors import ChatterboxOptError
from chatterbox_opt.shapes import SAMPLE_RATE

Wave = npt.NDArray[np.float32]
QUIETLY = threading.Lock()  # redirecting standard output is global: one at a time
REMEDY = "pip install 'setuptools<81' resemble-perth, or speak without it (--no-watermark)"


class Watermark:
    """Marks waves and finds the mark again. The network is loaded at birth (about 3 s)."""

    def __init__(self) -> None:
        """Load PerTh.

        Raises:
            ChatterboxOptError: not installed, or without the setuptools that it needs.
        """
        try:
            import perth
        except ImportError as error:
            raise ChatterboxOptError(
                f"the watermarker cannot be loaded ({error}): {REMEDY}"
            ) from error
        # perth hides a missing pkg_resources (setuptools 81 dropped it) behind None
        if perth.PerthImplicitWatermarker is None:
            raise ChatterboxOptError(f"the watermarker lacks pkg_resources: {REMEDY}")
        with (
            QUIETLY,
            contextlib.redirect_stdout(io.StringIO()),
        ):  # it announces itself where a wav may go
            self._net: Any = perth.PerthImplicitWatermarker()

    def apply(self, wave: Wave) -> Wave:
        """Mark float32 [n] at 24 kHz; the result is as long or a few samples shorter."""
        marked: Wave = self._net.apply_watermark(wave, sample_rate=SAMPLE_RATE)
        return np.clip(marked, -1.0, 1.0)  # marking may overshoot by a hair; files clip anyway

    def strength(self, wave: Wave) -> float:
        """How much of the mark is found, 0 to 1; marked speech is near 1, other sound near 0."""
        return float(np.mean(self._net.get_watermark(wave, sample_rate=SAMPLE_RATE, round=False)))
