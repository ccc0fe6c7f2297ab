"""Masters the joined file of an audiobook: loudness, peaks, and room tone where there is no speech.

Responsible for the targets and for the order of measuring and writing, block by block. Not
responsible for meter and limiter (audio/loudness.py) or for which sound it is (join.py).

Shops such as ACX ask for a loudness, peaks below -3 dBFS, a noise floor below -60 dB, and room tone
at both ends, because digital silence sounds like a fault. The sound is read once to measure it,
again in each round in which the limiter acts, and once to write it. What a lossy encoder changes
shows only in the file: one that misses its targets is written again with corrected ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from chatterbox_opt.audio import containers, loudness
from chatterbox_opt.config.model_config import SAMPLE_RATE

if TYPE_CHECKING:
    from chatterbox_opt.audio.loudness import Meter
    from chatterbox_opt.utils.wave import Wave

    Quiet: TypeAlias = Callable[[int], Wave]  # samples without speech
    Sound: TypeAlias = Callable[[], Iterator[Wave]]  # from the beginning

LOUDNESS = -18.0  # LUFS
PEAK = -3.0  # dBFS
CODING, ROUNDING = 1.0, 0.01  # dB that a lossy encoder, and 16 bits, may add to a peak
ROOM_TONE = -66.0  # dBFS, RMS
HEAD, TAIL = 0.75, 2.5  # seconds of room tone at the beginning and the end
_POLE = 0.9  # of the low pass that makes room tone of white noise: 400 Hz
TOLERANCE = 0.2  # LU
DIGITAL = SAMPLE_RATE // 50  # zeros in a row that are heard as a fault
ROUNDS = 3  # a file that misses its targets is written again
_BLOCK = SAMPLE_RATE  # samples


class Master(str, Enum):
    """What a joined file is mastered for."""

    AUDIOBOOK = "audiobook"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a finished file has.

    Attributes:
        loudness: LUFS; -inf for silence.
        peak: dBFS, of the decoded samples.
    """

    loudness: float
    peak: float

    @property
    def missed(self) -> bool:
        """Whether it is not as loud as it should be, or has higher peaks."""
        return abs(self.loudness - LOUDNESS) > TOLERANCE or self.peak > PEAK


@dataclass(frozen=True, slots=True)
class Aim:
    """What is given to the encoder, so that the decoded file meets the targets.

    Attributes:
        loudness: LUFS.
        peak: dBFS.
    """

    loudness: float
    peak: float

    @classmethod
    def of(cls, extension: str) -> Aim:
        """The first one, for a format."""
        added = CODING if extension in containers.LOSSY else ROUNDING
        return cls(LOUDNESS, PEAK - added)

    def corrected(self, measured: Measured) -> Aim:
        """The next one, by what a file has that was written with this one."""
        louder = LOUDNESS - measured.loudness
        higher = max(measured.peak - PEAK + ROUNDING, 0.0)
        return Aim(self.loudness + louder, self.peak - higher)


def mastered(sound: Sound, aim: Aim, original: Meter) -> Iterator[Wave]:
    """Sound with a loudness and a highest peak, and room tone in place of silence.

    Args:
        original: that has heard the sound.
    """
    ceiling = 10 ** (aim.peak / 20)
    gain, _ = loudness.find_gain(sound, aim.loudness, ceiling, original)
    return loudness.amplified(filled(sound(), _room_tone(ROOM_TONE - gain)), gain, ceiling)


def filled(blocks: Iterable[Wave], quiet: Quiet) -> Iterator[Wave]:
    """Sound with other samples in place of digital silence: of runs of ``DIGITAL`` zeros or more.

    Args:
        blocks: float32 [n], in order; a run may go on in the next one.
    """
    import numpy as np

    held, goes_on = 0, False  # zeros that are not given out yet; the last block ends in a run
    for block in blocks:
        wave = np.concatenate([np.zeros(held, np.float32), block])
        edges = np.flatnonzero(np.diff(wave == 0, prepend=False, append=False)).reshape(-1, 2)
        is_run = np.diff(edges)[:, 0] >= DIGITAL
        if goes_on and len(edges) and edges[0, 0] == 0:
            is_run[0] = True
        for start, stop in edges[is_run]:
            wave[start:stop] = quiet(stop - start)
        ends_quiet = len(edges) > 0 and edges[-1, 1] == len(wave)
        goes_on = bool(ends_quiet and is_run[-1]) if len(wave) else goes_on
        held = int(edges[-1, 1] - edges[-1, 0]) if ends_quiet and not is_run[-1] else 0
        yield wave[: len(wave) - held]
    yield np.zeros(held, np.float32)


def measure(file: Path) -> Measured:
    """Decode a finished file and measure it.

    Raises:
        OutputError: it cannot be read.
    """
    heard = loudness.measured(containers.read_blocks(file, _BLOCK))
    peak = 20 * math.log10(heard.peak) if heard.peak else -math.inf
    return Measured(heard.loudness(), peak)


def _room_tone(level: float) -> Quiet:
    """Dull noise of a level in dBFS, the same in each run."""
    import numpy as np
    from scipy.signal import lfilter

    random = np.random.default_rng(0)
    # the low pass leaves (1 - pole) / (1 + pole) of the power
    scale = 10 ** (level / 20) * math.sqrt((1 + _POLE) / (1 - _POLE))

    def tone(samples: int) -> Wave:
        dull = lfilter([1 - _POLE], [1, -_POLE], random.standard_normal(samples))
        return np.asarray(dull * scale, dtype=np.float32)

    return tone
