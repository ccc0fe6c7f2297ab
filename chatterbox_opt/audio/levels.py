"""Mixes a recording to mono and corrects levels that no microphone gives.

Responsible for channels, range, offset, and for remarks on what sounds wrong. A normal recording is
returned bit for bit as ``librosa.load`` mixes it. Not responsible for files or resampling.

What is corrected: channels that cancel each other out (the mix is 12 dB below what uncorrelated
channels give) are replaced by the loudest; a mean above a tenth of the standard deviation is
subtracted; a peak above 1.25 is scaled to 1 (decoders of mp3 and ogg may exceed 1 a little), or by
the full scale of integers if it is above 128. What is only reported: clipping, and sound of
constant level, such as a tone or noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatterbox_opt.audio.decoders import Samples

CANCELLED = 0.25  # RMS of the mix relative to that of uncorrelated channels of the same levels
OFFSET = 0.1  # mean relative to the standard deviation
MAX_PEAK = 1.25
INTEGER_PEAK = 128.0  # above this, floats are taken for integer samples that were not scaled
INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)
OUTLIER_SHARE = 0.02  # of samples above MAX_PEAK: fewer are of damaged frames
CLIPPED_SHARE = 0.002  # of samples within 1 % of the highest or lowest value; speech has 0.00005
CLIPPED_PEAK = 0.25  # the levels of a quieter recording are too few to tell
STEADY_DB = 1.5  # standard deviation of the level of 50 ms frames; speech has 5 to 10
ACTIVE_DB = 30.0  # frames that are further below the loudest are pauses
FRAMES_PER_SECOND = 20
SILENCE_PEAK = 1e-4  # below this a recording counts as silent (-80 dBFS)


def normalize(samples: Samples, rate: int) -> tuple[Samples, list[str]]:
    """Mix to mono, within +-1 and without offset where the recording is not.

    Args:
        samples: float32 [n, channels], finite, n >= 1.
        rate: in Hz.

    Returns:
        float32 [n], and remarks: what was corrected or is odd, as parts of a sentence. A silent
        recording is returned with a peak below ``SILENCE_PEAK``.
    """
    wave, remarks = _mixed(samples)
    mean, deviation = _moments(wave)
    if abs(mean) > OFFSET * deviation and _peak(wave) >= SILENCE_PEAK:
        wave = wave - wave.dtype.type(mean)
        remarks.append(f"a constant offset of {mean:.3g} was removed")
    peak = _peak(wave)
    if peak < SILENCE_PEAK:
        return wave, remarks
    if peak > MAX_PEAK:
        wave, remark = _in_range(wave, peak)
        remarks.append(remark)
    if _is_steady(wave, rate):
        remarks.append("its level is constant, as of a tone or noise; use a recording of speech")
    elif (share := _clipped(wave)) > CLIPPED_SHARE:
        remarks.append(f"{share:.1%} of its samples are clipped; record at a lower level")
    return wave, remarks


def _mixed(samples: Samples) -> tuple[Samples, list[str]]:
    import numpy as np

    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0], []
    mix = np.mean(samples.T, axis=(0,))  # librosa.to_mono: the order of additions is the same
    levels = [_moments(samples[:, channel])[1] for channel in range(channels)]
    uncorrelated = float(np.sqrt(np.square(levels).sum())) / channels
    if _moments(mix)[1] >= CANCELLED * uncorrelated:
        return mix, []
    loudest = int(np.argmax(levels))
    remark = f"its channels cancel each other out, so only channel {loudest + 1} is used"
    return np.ascontiguousarray(samples[:, loudest]), [remark]


def _moments(wave: Samples) -> tuple[float, float]:
    """Mean and standard deviation, in float64 without a copy in it."""
    import numpy as np

    mean = float(wave.mean(dtype=np.float64))
    power = float(np.einsum("i,i->", wave, wave, dtype=np.float64)) / len(wave)
    return mean, float(np.sqrt(max(power - mean**2, 0.0)))


def _peak(wave: Samples) -> float:
    return max(float(wave.max()), -float(wave.min()))


def _in_range(wave: Samples, peak: float) -> tuple[Samples, str]:
    """Scale the wave, or limit it if all of it but damaged frames is in range."""
    import numpy as np

    scale = peak
    if peak > INTEGER_PEAK:
        if float((np.abs(wave) > MAX_PEAK).mean()) < OUTLIER_SHARE:
            return np.clip(wave, -1, 1), f"a few samples reach {peak:.6g} and were limited to 1"
        scale = next((scale for scale in INTEGER_SCALES if peak <= scale), peak)
    wave = wave / wave.dtype.type(scale)
    return wave, f"its samples reach {peak:.6g}, so they were divided by {scale:.6g}"


def _clipped(wave: Samples) -> float:
    """Share of samples at the highest and lowest values."""
    if _peak(wave) < CLIPPED_PEAK:
        return 0.0
    high, low = float(wave.max()), float(wave.min())
    return float(((wave >= high - 0.01 * abs(high)) | (wave <= low + 0.01 * abs(low))).mean())


def _is_steady(wave: Samples, rate: int) -> bool:
    import numpy as np

    size = rate // FRAMES_PER_SECOND
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    power = np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / size
    active = power[power > power.max() * 10 ** (-ACTIVE_DB / 10)]
    return bool((10 * np.log10(active)).std() < STEADY_DB)
