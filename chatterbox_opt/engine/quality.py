"""The quality guard: finds speech that went wrong, without a recognizer.

Knows how long a text takes to say and what runaways, cut-offs and repeats look like in tokens and
samples. Knows nothing of engines, files or seeds (retries.py has it spoken again). A false alarm
costs a retry, and of all attempts the best is kept.

The bounds are set by what the built-in model says of everyday.txt and of every fourth line of
lengths.txt (pico/sentences; 225 utterances, six voices). It says 11.5 to 17.0 letters a second from
20 letters on and 6.9 to 11.8 below, is silent for at most 0.8 s, and has no loop above 0.7 s. It
comes within 0.2 s of no bound: no utterance is alarmed at. Planted in each of them, always found:
either half alone, 2 to 8 s of a loop of 1 to 60 tokens, other speech until 40 s. Other speech of
10 s behind it is missed in 3, of 4 s in 99: so much longer a slow speaker may take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from chatterbox_opt.config.model_config import SAMPLE_RATE, TOKEN_RATE
from chatterbox_opt.engine.sequence import Attempt

if TYPE_CHECKING:
    from chatterbox_opt.engine.sequence import AudioOutput
    from chatterbox_opt.request import Wave

FASTEST, SLOWEST = 22.0, 8.0  # letters a second; calm English has 15
LEAST, LEAD = 0.2, 1.3  # seconds on top, whatever the text: breaths, the drawl of a single word
CJK_LETTERS = 3  # letters that a Han, kana or Hangul character counts for
DIGIT_LETTERS = 4  # letters that a digit counts for: "7" is said "seven"
LONGEST_SILENCE = 2.0  # seconds
SILENCE_LEVEL = 0.01  # of the loudest sample: -40 dB
FRAME = SAMPLE_RATE // 50
LOOP_TOKENS = 2 * TOKEN_RATE  # the same tokens over and over for this long
LOOP_ROUNDS = 3  # and at least so often
LONGEST_PERIOD = 3 * TOKEN_RATE


@dataclass(frozen=True, slots=True)
class Guard:
    """Has what went wrong spoken again, at most ``retries`` times, and keeps the best."""

    retries: int = 2

    def best(self, text: str, takes: Sequence[Attempt]) -> Attempt:
        """The attempt with the fewest faults, with the work of all.

        Among equals it is the one whose length is nearest to what the text should take.
        """
        chosen = min(takes, key=lambda take: (len(take.faults), _oddness(text, take.output)))
        stages = chosen.output.seconds
        seconds = {stage: sum(t.output.seconds[stage] for t in takes) for stage in stages}
        return Attempt(replace(chosen.output, seconds=seconds), chosen.faults, len(takes))


def find_faults(text: str, output: AudioOutput) -> tuple[str, ...]:
    """What is wrong with a chunk's sound, in words; empty for good speech."""
    seconds = len(output.wave) / SAMPLE_RATE
    letters = _letters(text)
    found = []
    if output.truncated:
        found.append("no end before the limit of tokens")
    if seconds > letters / SLOWEST + LEAD:
        found.append(f"too slow: {seconds:.1f} s for {letters} letters")
    if seconds < letters / FASTEST + LEAST:
        found.append(f"too fast: {seconds:.1f} s for {letters} letters")
    if (looped := _loop(output.codes)) >= LOOP_TOKENS:
        found.append(f"repeats itself for {looped / TOKEN_RATE:.1f} s")
    if (silent := _longest_silence(output.wave)) > LONGEST_SILENCE:
        found.append(f"silent for {silent:.1f} s")
    return tuple(found)


def _letters(text: str) -> int:
    """Letters that take about the same time to say."""
    return sum(
        DIGIT_LETTERS if c.isdigit() else CJK_LETTERS if "\u3040" <= c <= "\ud7ff" else 1
        for c in text
        if c.isalnum()
    )


def _oddness(text: str, output: AudioOutput) -> float:
    """How far the length is from what the text should take: 0 is right, in both directions."""
    usual = (_letters(text) + 1) / (FASTEST * SLOWEST) ** 0.5
    return abs(float(np.log((len(output.wave) + 1) / SAMPLE_RATE / usual)))


def _loop(codes: tuple[int, ...]) -> int:
    """Length in tokens of the longest stretch that says the same again and again; 0 for none."""
    said = np.asarray(codes, dtype=np.int64)
    longest = 0
    for period in range(1, LONGEST_PERIOD + 1):
        if len(said) < LOOP_ROUNDS * period:
            break
        stretch = _longest_run(said[period:] == said[:-period]) + period
        if stretch >= LOOP_ROUNDS * period:
            longest = max(longest, stretch)
    return longest


def _longest_silence(wave: Wave) -> float:
    """Seconds of the longest stretch far below the loudest sample."""
    frames = len(wave) // FRAME
    if not frames:
        return 0.0
    peaks = np.abs(wave[: frames * FRAME]).reshape(frames, FRAME).max(axis=1)
    return _longest_run(peaks <= SILENCE_LEVEL * peaks.max()) * FRAME / SAMPLE_RATE


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    """How many True stand in a row at most."""
    padded = np.concatenate(([False], flags, [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return int((edges[1::2] - edges[::2]).max(initial=0))
