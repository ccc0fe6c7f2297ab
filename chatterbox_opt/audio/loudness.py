"""Brings speech to a loudness in LUFS (ITU-R BS.1770-4, with pyloudnorm's filters).

Responsible for measuring, gain and limiter, of one recording in memory or of sound that is read
again for each round, block by block: of an output, and of a reference as upstream does it. Not
responsible for files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from chatterbox_opt.utils.wave import Wave

QUIETEST, LOUDEST = -40.0, -9.0  # LUFS that can be asked for
MAX_PEAK = 10 ** (-1 / 20)  # -1 dBFS: what a lossy encoder adds must not clip
LIMITER = SAMPLE_RATE // 200  # samples, 5 ms: how fast the limiter's gain falls and rises
ROUNDS = 8  # a limiter makes sound quieter, so the gain is found in rounds
TOLERANCE = 0.05  # LU
ACCEPTED = 0.5  # LU; a sound that the limiter keeps further away is reported

HOP = SAMPLE_RATE // 10  # samples between the blocks that BS.1770 measures
HOPS = 4  # of a block, 0.4 s
_OFFSET = -0.691  # dB: BS.1770-4, equation 2
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU


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

    gain, reached = find_gain(lambda: (wave,), target, MAX_PEAK)
    if not math.isfinite(reached):
        return wave, reached
    return np.concatenate([*amplified((wave,), gain, MAX_PEAK)]), reached


def find_gain(
    sound: Callable[[], Iterable[Wave]],
    target: float,
    ceiling: float,
    original: Meter | None = None,
) -> tuple[float, float]:
    """The gain that brings sound to a loudness when its peaks are limited.

    Args:
        sound: gives its blocks from the beginning, float32 [n] at 24 kHz; it is called once, and
            again for each round in which the limiter acts, most often one or two.
        target: LUFS.
        ceiling: highest sample.
        original: that has heard the sound already, which saves the first call.

    Returns:
        dB, and the LUFS that ``amplified`` sound has then; 0 and -inf for silence.
    """
    original = original or measured(sound())
    reached = original.loudness()
    if not math.isfinite(reached):
        return 0.0, reached
    gain = 0.0
    for _ in range(ROUNDS):
        gain += target - reached
        if original.peak * 10 ** (gain / 20) <= ceiling:
            return gain, original.loudness() + gain
        reached = measured(amplified(sound(), gain, ceiling)).loudness()
        if abs(target - reached) <= TOLERANCE:
            break
    return gain, reached


def amplified(blocks: Iterable[Wave], gain: float, ceiling: float) -> Iterator[Wave]:
    """Sound with a gain in dB, its peaks limited to ``ceiling``; as many samples, float32."""
    import numpy as np

    factor = np.float32(10 ** (gain / 20))
    return _limited((block * factor for block in blocks), ceiling)


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

    before = float(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(wave))
    if not math.isfinite(before):
        return wave
    return wave * np.float32(10.0 ** ((target - before) / 20.0))


def _limited(blocks: Iterable[Wave], ceiling: float) -> Iterator[Wave]:
    """A limiter with look-ahead, block by block; the same for any division into blocks.

    A sample's gain depends on ``LIMITER`` samples on each side of it.
    """
    import numpy as np

    edge = np.zeros(LIMITER, np.float32)
    held = edge  # samples that only lend their peaks, then those without what follows them
    for block in chain(blocks, (edge,)):
        held = np.concatenate([held, block])
        if len(held) > 2 * LIMITER:
            yield _with_lower_peaks(held, ceiling)[LIMITER:-LIMITER]
            held = held[-2 * LIMITER :]


def _with_lower_peaks(wave: Wave, ceiling: float) -> Wave:
    """The gain falls before a peak and rises behind it, linearly.

    The smallest gain within a window is averaged over windows of the same length, so that no
    average is above the gain that its sample needs.
    """
    import numpy as np
    from scipy.ndimage import minimum_filter1d, uniform_filter1d

    peaks = np.abs(wave)
    if peaks.max() <= ceiling:
        return wave
    needed = ceiling / np.maximum(peaks, ceiling).astype(np.float64)
    gain = uniform_filter1d(minimum_filter1d(needed, LIMITER), LIMITER)
    return (wave * np.minimum(gain, needed)).astype(np.float32)


def measured(blocks: Iterable[Wave]) -> Meter:
    """A meter that has heard sound: float32 [n] each, at 24 kHz."""
    meter = Meter()
    for block in blocks:
        meter.write(block)
    return meter


class Meter:
    """Measures sound that comes in blocks; it keeps 80 bytes of each second.

    Attributes:
        peak: highest sample so far, without its sign.
    """

    def __init__(self) -> None:
        import numpy as np
        import pyloudnorm

        # K-weighting, as pyloudnorm.Meter sets it up
        shelf = pyloudnorm.IIRfilter(4.0, 1 / math.sqrt(2), 1500.0, SAMPLE_RATE, "high_shelf")
        high_pass = pyloudnorm.IIRfilter(0.0, 0.5, 38.0, SAMPLE_RATE, "high_pass")
        self._filters = [(one.b, one.a) for one in (shelf, high_pass)]
        self._states = [np.zeros(2) for _ in self._filters]
        self._rest = np.empty(0)  # squares of the samples behind the last whole hop
        self._hops: list[NDArray[np.float64]] = []  # sums of the squares of a hop each
        self.peak = 0.0

    def write(self, wave: Wave) -> None:
        """Hear float32 [n] at 24 kHz."""
        import numpy as np
        from scipy.signal import lfilter

        self.peak = max(self.peak, float(np.abs(wave).max(initial=0.0)))
        weighted = np.asarray(wave, dtype=np.float64)
        for i, (b, a) in enumerate(self._filters):
            weighted, self._states[i] = lfilter(b, a, weighted, zi=self._states[i])
        squares = np.concatenate([self._rest, np.square(weighted)])
        whole = len(squares) // HOP * HOP
        self._hops.append(squares[:whole].reshape(-1, HOP).sum(axis=1))
        self._rest = squares[whole:]

    def loudness(self) -> float:
        """Integrated loudness of all that was heard, in LUFS (BS.1770-4, section 5.1); -inf for
        silence. Less than 0.4 s are measured as one block."""
        import numpy as np

        hops = np.concatenate([np.empty(0), *self._hops])
        if len(hops) >= HOPS:
            powers = np.convolve(hops, np.ones(HOPS), "valid") / (HOPS * HOP)
        else:
            samples = len(hops) * HOP + len(self._rest)
            powers = np.array([(hops.sum() + self._rest.sum()) / max(samples, 1)])
        powers = powers[powers > 10 ** ((_ABSOLUTE_GATE - _OFFSET) / 10)]
        if not len(powers):
            return -math.inf
        powers = powers[powers > powers.mean() * 10 ** (_RELATIVE_GATE / 10)]
        return float(_OFFSET + 10 * np.log10(powers.mean()))
