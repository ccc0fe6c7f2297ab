"""Stretches mel spectrograms in time: speech at another rate and the same pitch.

A mel frame says what is heard in a moment, not for how long. So a mel with more or fewer frames is
slower or faster speech: the vocoder makes the pitch that it finds in each of them.

Fast speakers shorten pauses and long vowels, and keep what a listener needs to tell consonants: the
moments in which the spectrum changes. So does ``stretched``, as Covell, Withgott and Slaney's Mach1
(1998) does for recordings: a frame's share of the time that is left out, or added, is smaller the
more the spectrum changes there.

    change      x_i = |mel_(i+1) - mel_(i-1)|, mean over the bins, smoothed, divided by its mean
    duration    d_i = 1 / rate + SPREAD (1 - 1 / rate) (x_i - 1) + c, within bounds

The constant c makes their sum that of an even stretch. Silence at both ends is stretched evenly.

A part of a stream cannot know what follows, and must go on where the part before it ended. There
frame m of the result is of the middle of its share of the mel, (m + 1/2) rate - 1/2 in the mel's
frames. A position follows from the number of its frame alone: nothing adds up over a long mel, and
one that is stretched in parts has the frames of one that is stretched at once. Both kinds have
equally many frames.

Responsible for numbers of frames, their times and values. Not responsible for which rate
(request.py).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.runtime.cuda import to_device

LEAST_FRAMES = 2  # that the vocoder takes
SPREAD = 1.5  # how much more a frame without change is shortened than the mean
BISECTIONS = 30
QUIET = 5.0  # nepers below the loudest moment: 43 dB
SMOOTHING = (0.25, 0.5, 0.25)  # of the change, over neighbouring frames


def stretched(mel: Tensor, ends: Tensor | None) -> Tensor:
    """A whole mel with other durations of its frames.

    Args:
        mel: float32 [80, F].
        ends: from ``frame_ends``; with None the mel is returned as it is.

    Returns:
        float32 [80, frames up to the last end].
    """
    if ends is None:
        return mel
    middles = torch.arange(round(float(ends[-1])), dtype=torch.float64) + 0.5
    frames = torch.searchsorted(ends, middles, right=True).clamp_(max=len(ends) - 1)
    durations = torch.diff(ends, prepend=ends.new_zeros(1))
    return _between(mel, frames + 0.5 - (ends[frames] - middles) / durations[frames])


def frame_ends(mel: Tensor, rate: float) -> Tensor | None:
    """When each frame of a whole mel ends at another rate; None at 1.

    Args:
        mel: float32 [80, F].
        rate: above 1 is faster.

    Returns:
        float64 [F] on the CPU, in frames of the stretched mel; ascending, the last is F / rate,
        rounded, or at least ``LEAST_FRAMES``.
    """
    if rate == 1:
        return None
    frames, even = mel.cpu().double(), 1 / rate
    durations = torch.full((mel.shape[1],), even, dtype=torch.float64)
    first, last = _sound(frames)
    rest = num_frames(mel.shape[1], rate, ended=True) - even * (mel.shape[1] - (last - first))
    durations[first:last] = _durations(_change(frames[:, first:last]), even, rest)
    return torch.cumsum(durations, 0)


def _sound(mel: Tensor) -> tuple[int, int]:
    """The first frame with sound and the one behind the last; all frames if there is none.

    The silence at both ends is stretched evenly, so that what is between has the length that
    follows from the rate (dubbing relies on it).
    """
    loudest = mel.amax(0)
    sound = (loudest > loudest.max() - QUIET).nonzero()[:, 0]
    return (int(sound[0]), int(sound[-1]) + 1) if len(sound) else (0, mel.shape[1])


def _durations(change: Tensor, even: float, total: float) -> Tensor:
    """Durations of frames, float64 [n], whose sum is ``total``.

    Args:
        change: float64 [n], 1 in the mean.
        even: the duration at an even stretch.
    """
    # a frame with much change keeps its duration; one without any is at the other bound
    low, high = sorted((1.0, max(even - SPREAD * (1 - even), even / 2)))
    wanted = even + SPREAD * (1 - even) * (change - 1)
    # bisection for what is added to all of them
    least, most = low - float(wanted.max()), high - float(wanted.min())
    for _ in range(BISECTIONS):
        offset = (least + most) / 2
        durations = (wanted + offset).clamp_(low, high)
        least, most = (offset, most) if durations.sum() < total else (least, offset)
    return durations * (total / durations.sum())


def _change(mel: Tensor) -> Tensor:
    """How much the spectrum changes around each frame: float64 [n], 1 in the mean.

    Args:
        mel: float64 [80, n].
    """
    if mel.shape[1] < 3:
        return torch.ones(mel.shape[1], dtype=torch.float64)
    change = (mel[:, 2:] - mel[:, :-2]).abs().mean(0)  # of all but the first and the last
    weights = torch.tensor([[SMOOTHING]], dtype=torch.float64)
    smooth = F.conv1d(F.pad(change[None, None], (2, 2), mode="replicate"), weights)[0, 0]
    mean = smooth.mean()
    return smooth / mean if 0 < mean < math.inf else torch.ones_like(smooth)


def num_frames(frames: int, rate: float, *, ended: bool) -> int:
    """Number of stretched frames that follow from the first frames of a mel.

    Args:
        frames: of the mel.
        ended: the mel has no more; otherwise those are counted whose position is not behind them.
    """
    if ended:
        return max(min(LEAST_FRAMES, frames), round(frames / rate))
    return max(0, math.floor((frames - 0.5) / rate + 0.5))


def stretched_part(mel: Tensor, offset: int, rate: float, first: int, last: int) -> Tensor:
    """Frames first to last - 1 of a stretched mel: float32 [80, last - first].

    Args:
        mel: float32 [80, n], frames of which the first has the number ``offset``; those around all
            positions, but for positions before the first or behind the last frame of a whole mel.
    """
    if rate == 1:
        return mel[:, first - offset : last - offset]
    positions = (torch.arange(first, last, dtype=torch.float64) + 0.5) * rate - 0.5 - offset
    return _between(mel, positions)


def _between(mel: Tensor, positions: Tensor) -> Tensor:
    """Values at fractional frames, float64 [n] on the CPU; beyond the ends those at the ends."""
    positions = positions.clamp(0, mel.shape[1] - 1)
    before = positions.floor()
    after = (before + 1).clamp_(max=mel.shape[1] - 1)
    weights = to_device((positions - before).float(), mel.device)  # not every device has float64
    left, right = (to_device(index.long(), mel.device) for index in (before, after))
    return torch.lerp(mel[:, left], mel[:, right], weights)
