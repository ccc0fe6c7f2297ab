"""Quality checks of synthesized audio without a recognizer: runaways, cut-offs, loops, silence.

Responsible for how long a text should take and for detecting these faults in tokens and samples.
Not responsible for engines, files or retries (retries.py). A false positive costs a retry, and the
best of all attempts is used.

The bounds were measured on the built-in model's first edition over everyday.txt and every fourth
line of lengths.txt (training/pico/sentences; 225 chunks, six voices). Its output has 11.5 to 17.0
letters per second in texts of 20 letters or more and 6.9 to 11.8 in shorter ones, at most 0.8 s of
silence, and no loop above 0.7 s: at least 0.2 s within every bound, so no false positive. Faults
inserted into each chunk and always detected: either half alone, 2 to 8 s of a loop of 1 to 60
tokens, other speech up to 40 s. Other speech of 10 s appended is missed in 3 chunks, of 4 s in 99:
slow speech may take that long. Of the second edition's 150 evaluation sentences, with 7.9 to 16.8
letters per second, none is within 0.38 s of a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chatterbox_opt.config.model_config import SAMPLE_RATE, TOKEN_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Piece
from chatterbox_opt.utils.arguments import whole_number
from chatterbox_opt.utils.wave import Wave

FASTEST, SLOWEST = 22.0, 8.0  # letters per second; calm English has 15
# seconds added to the lower and the upper bound of any text: breaths, a single word spoken slowly
LEAST, LEAD = 0.2, 1.3
CJK_LETTERS = 3  # letters that a Han, kana or Hangul character counts as
DIGIT_LETTERS = 4  # letters that a digit counts as: "7" is spoken "seven"
LONGEST_SILENCE = 2.0  # seconds
SILENCE_LEVEL = 0.01  # of the loudest sample: -40 dB
FRAME = SAMPLE_RATE // 50
LOOP_TOKENS = 2 * TOKEN_RATE  # the same tokens repeated for this long
LOOP_ROUNDS = 3  # and at least this often
LONGEST_PERIOD = 3 * TOKEN_RATE


@dataclass(frozen=True, slots=True)
class Guard:
    """Retries a chunk with faults, at most ``retries`` times, and selects the best attempt.

    Raises:
        InputError: ``retries`` is no whole number from 0.
    """

    retries: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "retries", whole_number("retries", self.retries))
        if self.retries < 0:
            raise InputError(f"retries is {self.retries}; give 0 or more")


def find_faults(
    text: str, wave: Wave, codes: Sequence[int], *, truncated: bool = False, rate: float = 1.0
) -> tuple[str, ...]:
    """The faults of a chunk's audio, in words; empty for good speech.

    Args:
        wave: float32 [n] at 24 kHz.
        codes: its speech tokens; empty if they are not known.
        truncated: T3 reached its limit without a stop token.
        rate: of the wave; the bounds are those of speech at 1.
    """
    seconds = len(wave) / SAMPLE_RATE * rate
    letters = _letters(text)
    faults = []
    if truncated:
        faults.append("no end before the limit of tokens")
    if seconds > letters / SLOWEST + LEAD:
        faults.append(f"too slow: {seconds:.1f} s for {letters} letters")
    if seconds < letters / FASTEST + LEAST:
        faults.append(f"too fast: {seconds:.1f} s for {letters} letters")
    if (looped := _loop(codes)) >= LOOP_TOKENS:
        faults.append(f"repeats itself for {looped / TOKEN_RATE:.1f} s")
    if (silent := _longest_silence(wave) * rate) > LONGEST_SILENCE:
        faults.append(f"silent for {silent:.1f} s")
    return tuple(faults)


def _letters(text: str) -> int:
    """The number of letters, weighted by the time they take to speak."""
    return sum(
        DIGIT_LETTERS if c.isdigit() else CJK_LETTERS if "\u3040" <= c <= "\ud7ff" else 1
        for c in text
        if c.isalnum()
    )


def rank(piece: Piece, rate: float = 1.0) -> tuple[int, float]:
    """Sorts attempts at a text at one rate, best first: by the number of faults, then by the
    distance of the duration from what is expected, as |log ratio|."""
    expected = (_letters(piece.text) + 1) / (FASTEST * SLOWEST) ** 0.5
    distance = abs(float(np.log((len(piece.samples) + 1) / SAMPLE_RATE * rate / expected)))
    return len(piece.faults), distance


def _loop(codes: Sequence[int]) -> int:
    """Length in tokens of the longest periodic run; 0 for none."""
    tokens = np.asarray(codes, dtype=np.int64)
    longest = 0
    for period in range(1, LONGEST_PERIOD + 1):
        if len(tokens) < LOOP_ROUNDS * period:
            break
        run = _longest_run(tokens[period:] == tokens[:-period]) + period
        if run >= LOOP_ROUNDS * period:
            longest = max(longest, run)
    return longest


def _longest_silence(wave: Wave) -> float:
    """Seconds of the longest run of frames far below the loudest sample."""
    frames = len(wave) // FRAME
    if not frames:
        return 0.0
    peaks = np.abs(wave[: frames * FRAME]).reshape(frames, FRAME).max(axis=1)
    return _longest_run(peaks <= SILENCE_LEVEL * peaks.max()) * FRAME / SAMPLE_RATE


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    """The length of the longest run of True."""
    padded = np.concatenate(([False], flags, [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return int((edges[1::2] - edges[::2]).max(initial=0))
