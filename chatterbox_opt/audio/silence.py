"""Finds the silence before and behind speech.

Responsible for the samples of one recording, a block at a time. Not responsible for files.

The bounds were measured on the built-in model, whose files begin with 50 to 100 ms and end with 180
to 450 ms of silence at 60 to 95 dB below their peak; the quietest first sounds ("six", "hush") are
15 dB above ``LEVEL`` within 10 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from chatterbox_opt.config.model_config import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chatterbox_opt.utils.wave import Wave

FRAME = SAMPLE_RATE // 100  # samples; 10 ms
LEVEL = 10 ** (-50 / 20)  # RMS of a frame that has sound, of the peak
MARGIN = FRAME  # samples that are kept on both sides


def sound_span(blocks: Iterable[Wave]) -> tuple[int, int]:
    """First and last sample of the sound, with ``MARGIN``; all samples if there is none.

    Args:
        blocks: float32 [n], in order; all but the last have a length divisible by ``FRAME``.
    """
    import numpy as np

    levels, peak, length = [], 0.0, 0
    for block in blocks:
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
        length += len(block)
        levels.append(sound_levels(block))
    loud = np.flatnonzero(np.concatenate(levels) > LEVEL * peak) if levels else np.empty(0)
    if not len(loud):
        return 0, length
    start, stop = int(loud[0]) * FRAME - MARGIN, (int(loud[-1]) + 1) * FRAME + MARGIN
    return max(start, 0), min(stop, length)


def sound_levels(wave: Wave) -> npt.NDArray[np.float64]:
    """RMS of each ``FRAME`` of float32 [n]; the last one is filled up with silence."""
    import numpy as np

    frames = np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME)
    return np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
