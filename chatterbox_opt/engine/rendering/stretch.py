"""Stretches mel spectrograms in time: speech at another rate and the same pitch.

A mel frame says what is heard in a moment, not for how long. So a mel with more or fewer frames is
slower or faster speech: the vocoder makes the pitch that it finds in each of them. Frame m of the
result is of the middle of its share of the mel, (m + 1/2) rate - 1/2 in the mel's frames, and
linear between the two frames around that position.

A position follows from the number of its frame alone. So nothing adds up over a long mel, and one
that is stretched in parts has the frames of one that is stretched at once.

Responsible for numbers of frames and for their values. Not responsible for which rate (request.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chatterbox_opt.runtime.cuda import to_device

LEAST_FRAMES = 2  # that the vocoder takes


def stretched(mel: Tensor, rate: float) -> Tensor:
    """A whole mel at another rate.

    Args:
        mel: float32 [80, F].
        rate: above 1 is faster; at 1 the mel is returned as it is.

    Returns:
        float32 [80, F / rate], rounded, at least 2 frames.
    """
    if rate == 1:
        return mel
    return stretched_part(mel, 0, rate, 0, num_frames(mel.shape[1], rate, ended=True))


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
    # not every device has float64
    positions = (torch.arange(first, last, dtype=torch.float64) + 0.5) * rate - 0.5 - offset
    positions.clamp_(0, mel.shape[1] - 1)
    before = positions.floor()
    after = (before + 1).clamp_(max=mel.shape[1] - 1)
    weights = to_device((positions - before).float(), mel.device)
    left, right = (to_device(index.long(), mel.device) for index in (before, after))
    return torch.lerp(mel[:, left], mel[:, right], weights)
