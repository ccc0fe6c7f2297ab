"""Finds the silence before and behind speech.

Responsible for the samples of one recording, a block at a time. Not responsible for files.

The bounds were measured on the built-in model's first edition, whose silence is 60 to 95 dB below
the peak; the quietest first sounds ("six", "hush") are 15 dB above ``LEVEL`` within 10 ms. Files of
its second edition begin with 30 to 130 ms and end with 410 to 650 ms of silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from chatterbox_opt.config.model_config import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

    from chatterbox_opt.utils.wave import Wave

FRAME = SAMPLE_RATE // 100  # samples; 10 ms
LEVEL = 10 ** (-50 / 20)  # RMS of a frame that has sound, of the peak
MARGIN = FRAME  # samples
TRIM_FRAME = SAMPLE_RATE // 200  # samples; 5 ms: by less a trimmed end is known
LEAST_PEAK = 0.05  # of speech: what is only quieter than that has no sound yet


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
        levels.append(sound_levels(block, FRAME))
    loud = np.flatnonzero(np.concatenate(levels) > LEVEL * peak) if levels else np.empty(0)
    if not len(loud):
        return 0, length
    start, stop = int(loud[0]) * FRAME - margin, (int(loud[-1]) + 1) * FRAME + margin
    return max(start, 0), min(stop, length)


class Trimmer:
    """Leaves out the silence at the ends of one sound that comes in parts.

    Silence is given out when sound follows it, so a part may come out empty, and the next longer.

    Attributes:
        skipped: samples that were left out at the beginning.
    """

    def __init__(self, *, start: bool, end: bool) -> None:
        """Trim at the start, at the end, or both."""
        self.skipped = 0
        self._start, self._end = start, end
        self._heard = False
        self._peak = LEAST_PEAK
        self._held: list[Wave] = []  # silence so far

    def push(self, wave: Wave, *, is_last: bool) -> Wave:
        """Take float32 [n]; return what is certain. A sound without any but silence is given out
        whole."""
        import numpy as np

        wave = np.concatenate([*self._held, wave])
        self._held = []
        self._peak = max(self._peak, float(np.abs(wave).max(initial=0.0)))
        loud = np.flatnonzero(sound_levels(wave, TRIM_FRAME) > LEVEL * self._peak)
        start, stop = 0, len(wave)
        if len(loud):
            self._heard = True
            if self._start:
                start = self.skipped = int(loud[0]) * TRIM_FRAME
                self._start = False
            if self._end:
                stop = min(stop, (int(loud[-1]) + 1) * TRIM_FRAME)
        elif (self._end and self._heard) or (not is_last and (self._start or self._end)):
            stop = 0
        if not is_last and stop < len(wave):
            self._held = [wave[stop:]]
        return wave[start:stop]


def sound_levels(wave: Wave, frame: int = FRAME) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The RMS of each frame; the last one is filled up with zeros."""
    import numpy as np

    padded = np.pad(wave, (0, -len(wave) % frame)).reshape(-1, frame)
    return np.sqrt(np.square(padded, dtype=np.float64).mean(axis=1))
