"""Windows of a long recording's tokens, and how their sound becomes one.

Responsible for where windows begin and end and for the seams between them. Not responsible for
tokens (models/speech_tokenizer.py) or for rendering: a window is a sequence like any other.

Up to ``WINDOW`` tokens (30 s) are one window, rendered as upstream renders them. More are cut into
windows of equal length, because the flow's memory grows with the square of it:

    window 1   |===================|
    window 2                  |===================|
                              <-> OVERLAP tokens that both render

Both windows have the same tokens and the same voice in the overlap, but not the same noise, so
their waveforms have other phases there. They are joined where both together are quietest (between
two words as a rule), by a fade of 20 ms whose weights add up to 1. The start of a window, which
fades in and is the least like its surroundings, and its last tokens are never used. No sample is
moved: sample n of the result is of the same moment as sample n of the recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from chatterbox_opt.config.model_config import SAMPLE_RATE, TOKEN_RATE
from chatterbox_opt.request import Piece
from chatterbox_opt.utils.wave import Wave

WINDOW = 750  # tokens at most
OVERLAP = 50  # tokens, 2 s
SAMPLES_PER_TOKEN = SAMPLE_RATE // TOKEN_RATE
FADE = SAMPLE_RATE // 50  # samples of a seam
UNUSED_START, UNUSED_END = 12, 6  # tokens of an overlap in which there is no seam
# samples around a piece that its watermark is computed with: 200 ms and 40 ms
BEFORE, AFTER = SAMPLE_RATE // 5, SAMPLE_RATE // 25


def spans(tokens: int, window: int = WINDOW, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """First and last (exclusive) token of each window.

    Args:
        tokens: their number.
        window, overlap: of tokens; a window is longer than an overlap.
    """
    count = 1 if tokens <= window else -(-(tokens - overlap) // (window - overlap))
    stride = (tokens - overlap) / count
    starts = [round(number * stride) for number in range(count)]
    return [
        (start, min(tokens, starts[i + 1] + overlap) if i + 1 < count else tokens)
        for i, start in enumerate(starts)
    ]


class Joined(NamedTuple):
    """A part of the result.

    Attributes:
        window: number of the window that it is of.
        piece: its samples, without watermark.
        before, after: sound around it, float32; None: there is none before it. Behind the last
            part it is silence.
    """

    window: int
    piece: Piece
    before: Wave | None
    after: Wave


@dataclass(slots=True, eq=False)
class Seams:
    """Joins the windows of one recording, in whatever order they are rendered.

    Attributes:
        spans: of the windows, in tokens.
        length: samples of the result; it is cut, or followed by silence, to have them.
    """

    spans: list[tuple[int, int]]
    length: int
    _waiting: dict[int, Piece] = field(default_factory=dict)
    _current: int = 0  # the window whose piece comes next
    _start: int = 0  # sample of the result at which that piece begins
    _before: Wave | None = None

    def add(self, window: int, piece: Piece) -> Iterator[Joined]:
        """Take a window's sound; yield the pieces that are complete with it, in order."""
        self._waiting[window] = piece
        last = len(self.spans) - 1
        while self._current in self._waiting:
            if self._current < last:
                if self._current + 1 not in self._waiting:
                    return
                yield self._up_to_the_next()
            else:
                yield self._rest()

    def _up_to_the_next(self) -> Joined:
        """The current window up to its seam with the next one, which begins with the fade."""
        number = self._current
        own, following = self._waiting.pop(number), self._waiting[number + 1]
        offset, begin = self._start_of(number), self._start_of(number + 1)
        seam = begin + quietest(own.samples[begin - offset :], following.samples)
        fade = np.linspace(0, 1, FADE + 2, dtype=np.float32)[1:-1]
        old = own.samples[seam - offset :][:FADE]
        new = following.samples.copy()
        faded = new[seam - begin :][:FADE]
        faded[:] = (1 - fade) * old + fade * faded
        self._waiting[number + 1] = replace(following, samples=new)
        samples = own.samples[self._start - offset : seam - offset]
        after = new[seam - begin :][:AFTER]
        tokens = self.spans[number + 1][0] - self.spans[number][0]
        return self._next(replace(own, samples=samples, tokens=tokens), after)

    def _rest(self) -> Joined:
        """What is left of the last window."""
        number = self._current
        own = self._waiting.pop(number)
        samples = own.samples[self._start - self._start_of(number) :]
        missing = self.length - self._start - len(samples)
        samples = (
            np.pad(samples, (0, missing)) if missing > 0 else samples[: len(samples) + missing]
        )
        # silence behind it, as a watermark ends up to 10 ms before what it is given
        return self._next(replace(own, samples=samples), np.zeros(AFTER, np.float32))

    def _next(self, piece: Piece, after: Wave) -> Joined:
        joined = Joined(self._current, piece, self._before, after)
        self._current += 1
        self._start += len(piece.samples)
        self._before = piece.samples[-BEFORE:]
        return joined

    def _start_of(self, window: int) -> int:
        return self.spans[window][0] * SAMPLES_PER_TOKEN


def quietest(one: Wave, other: Wave) -> int:
    """The sample of an overlap at which the seam begins.

    Args:
        one: float32 [n], the end of a window from the overlap's first sample on.
        other: float32 [m], the next window from the same sample on, m at least n.
    """
    first, last = UNUSED_START * SAMPLES_PER_TOKEN, len(one) - UNUSED_END * SAMPLES_PER_TOKEN
    power = np.square(one[first:last], dtype=np.float64)
    power += np.square(other[first:last], dtype=np.float64)
    sums = np.concatenate(([0.0], np.cumsum(power)))
    return first + int(np.argmin(sums[FADE:] - sums[:-FADE]))
