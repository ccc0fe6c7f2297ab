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
    from chatterbox_opt.utils.wave import Wave

FRAME = SAMPLE_RATE // 100  # samples; 10 ms
LEVEL = 10 ** (-50 / 20)  # RMS of a frame that has sound, of the peak
MARGIN = FRAME  # samples


def sound_span(blocks: Iterable[Wave], margin: int = MARGIN) -> tuple[int, int]:
    """First and last sample of the sound with a margin; all samples if there is none.

    Args:
        blocks: float32 [n], in order; all but the last have a length divisible by ``FRAME``.
        margin: samples that are kept on both sides, where they are there.
    """
    import numpy as np

    levels, peak, length = [], 0.0, 0
    for block in blocks:
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
        length += len(block)
        padded = np.pad(block, (0, -len(block) % FRAME)).reshape(-1, FRAME)
        levels.append(np.sqrt(np.square(padded, dtype=np.float64).mean(axis=1)))
    loud = np.flatnonzero(np.concatenate(levels) > LEVEL * peak) if levels else np.empty(0)
    if not len(loud):
        return 0, length
    start, stop = int(loud[0]) * FRAME - margin, (int(loud[-1]) + 1) * FRAME + margin
    return max(start, 0), min(stop, length)
