"""From attention to times: when each word of a chunk is heard.

Responsible for the path through the attention and for the ends of words in the sound. Not
responsible for the attention itself (models/t3/text_attention.py) or for the words' spelling
(written.py).

A speech token is one frame of 40 ms. The attention of T3's alignment heads says for each frame
which text tokens it is made of; those of one word are added up. Words are heard in their order, so
the frames of all words are the monotonic path with the highest product of attention (Viterbi, or
dynamic time warping in which a word takes at least one frame). The silence between two words is
given to one of them by the path, and taken off again by the sound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chatterbox_opt.audio.silence import FRAME, LEVEL, sound_levels
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.utils.wave import Wave

Span = tuple[int, int]
FLOOR = 1e-4  # added to attention, as in pico's training (Tachibana et al. 2018): one bad frame
# must not decide about a path


def word_spans(attention: npt.NDArray[np.float32], words: Sequence[int]) -> list[Span]:
    """First frame and the one behind the last of each word; together they are all frames.

    Args:
        attention: float32 [frames, tokens], from each speech token to the text's tokens.
        words: index of each text token's word: not falling, in steps of at most one, from 0.
    """
    count, frames = words[-1] + 1, len(attention)
    if frames < count:  # the sound was cut off, or is not speech: equal shares
        edges = np.linspace(0, frames, count + 1).astype(int)
        return [(min(int(edge), frames - 1), max(int(edge) + 1, int(end)))
                for edge, end in zip(edges, edges[1:], strict=False)]  # fmt: skip
    of_word = np.asarray(words)[:, None] == np.arange(count)
    starts = _starts(np.log(attention @ of_word.astype(np.float32) + FLOOR))
    return list(zip(starts, [*starts[1:], frames], strict=True))


def _starts(scores: npt.NDArray[np.float32]) -> list[int]:
    """First frame of each word on the best path through float32 [frames, words]."""
    frames, count = scores.shape
    advances = np.zeros((frames, count), dtype=bool)  # whether the best path enters a word here
    total = np.full(count, -np.inf)
    total[0] = scores[0, 0]
    for frame in range(1, frames):
        entered = np.concatenate(([-np.inf], total[:-1]))
        advances[frame] = entered > total
        total = np.maximum(entered, total) + scores[frame]
    starts, frame = [0] * count, frames - 1
    for word in range(count - 1, 0, -1):
        while not advances[frame, word]:
            frame -= 1
        starts[word] = frame
        frame -= 1
    return starts


def heard_spans(spans: Sequence[Span], frames: int, wave: Wave) -> list[tuple[float, float]]:
    """Start and end of each span in seconds, without the silence at its ends.

    A frame is an equal share of the wave, so that the rate of speech does not matter. A span
    without sound stays as it is.

    Args:
        spans: in frames, of at least one.
        frames: of the whole wave.
        wave: float32 [n] at 24 kHz.
    """
    levels, peak = sound_levels(wave), float(np.abs(wave).max(initial=0.0))
    has_sound = levels > LEVEL * peak
    share = len(wave) / frames
    return [_heard(span[0] * share, span[1] * share, has_sound) for span in spans]


def _heard(start: float, end: float, has_sound: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Samples to seconds; only whole frames of sound are moved over."""
    first, last = round(start / FRAME), round(end / FRAME)
    inside = np.flatnonzero(has_sound[first:last])
    if len(inside):
        start = max(start, (first + int(inside[0])) * FRAME)
        end = min(end, (first + int(inside[-1]) + 1) * FRAME)
    return round(start / SAMPLE_RATE, 3), round(end / SAMPLE_RATE, 3)
