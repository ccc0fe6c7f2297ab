"""Word error rates: how much of what was said was understood.

Knows how words are compared and counted. Knows nothing of sound or of recognizers (see whisper.py).
Its libraries come with the extra ``ears``; importing this module needs none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from chatterbox_opt.errors import InputError

REMEDY = 'pip install "chatterbox-opt[ears]"'
RESAMPLINGS = 1000
INTERVAL = (2.5, 97.5)  # percentiles of the resamplings: 95 % lie between


def missing(package: str, error: Exception | None = None) -> InputError:
    """What to say, and what to install, when a library of the extra is not there."""
    reason = f" ({error})" if error else ""
    return InputError(f"{package} is not installed{reason}: {REMEDY}")


# What Whisper's normaliser leaves different though it sounds the same, before and after it.
_BEFORE = (
    (re.compile("[\u2018\u2019]"), "'"),
    (re.compile(r"\bo'clock\b"), "oclock"),  # else "nine o'clock" becomes "90 clock"
    (re.compile(r"\b(\d{1,2}):00\b"), r"\1 oclock"),
    (re.compile(r"\b(\d{1,2}):(\d\d)\b"), r"\1\2"),  # it makes "three thirty" 330
    (re.compile(r"\b([ap])\.m\b\.?"), r"\1m"),
    (re.compile(r"\ba (?=hundred\b|thousand\b)"), "one "),
)
_AFTER = (
    (re.compile(r"\bone\b"), "1"),  # it spells a lone 1 out, and "one" among other numbers not
    (re.compile(r"\bok\b"), "okay"),
    (re.compile(r"(?<=\d) (?=\d)"), ""),  # "six, fifteen" is 615 already, "6 15" is not
    (re.compile(r"\boclock oclock\b"), "oclock"),
)


def words(text: str) -> list[str]:
    """Split into words as they are compared: small letters, no punctuation, numbers in digits.

    The rules are those of the Whisper paper (Radford et al. 2022, appendix C): contractions are
    spelled out, British spellings become American, "hmm" and "uh" go, "twenty-one" becomes 21.
    Numbers said one after another make one word: "one two three", "1, 2, 3" and "123" are equal.

    Raises:
        InputError: whisper-normalizer is not installed.
    """
    text = text.lower()
    for pattern, instead in _BEFORE:
        text = pattern.sub(instead, text)
    text = _normalizer()(text)
    for pattern, instead in _AFTER:
        text = pattern.sub(instead, text)
    # it leaves the point of "…" and a lone "%"
    return [word for word in text.split() if any(c.isalnum() for c in word)]


@cache
def _normalizer() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise missing("whisper-normalizer", error) from error
    normaliser: Callable[[str], str] = EnglishTextNormalizer()
    return normaliser


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """Words replaced, left out and put in, at least; and how many words the reference has.

    Raises:
        InputError: jiwer or whisper-normalizer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise missing("jiwer", error) from error
    expected, given = words(reference), words(heard)
    if not expected:
        return len(given), 0
    found = jiwer.process_words(" ".join(expected), " ".join(given))
    return found.substitutions + found.deletions + found.insertions, len(expected)


@dataclass(frozen=True, slots=True)
class WordErrorRate:
    """Word errors of a set of utterances.

    Attributes:
        errors, words: sums over the utterances.
        low, high: bounds of the rate, 95 %.
    """

    errors: int
    words: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Errors by word of the references; above 1 where more is heard than was to be said."""
        return self.errors / self.words


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> WordErrorRate:
    """Compare (reference, heard) pairs; see ``rate_of``.

    Raises:
        InputError: as ``word_errors``, or no reference has a word.
    """
    return rate_of([word_errors(reference, heard) for reference, heard in pairs])


def rate_of(counts: Iterable[tuple[int, int]], seed: int = 0) -> WordErrorRate:
    """Sum (errors, words) of utterances; the interval is from a bootstrap over them.

    Utterances, not words, are drawn: errors come in clusters (Bisani and Ney 2004). Where no
    utterance has an error the interval is [0, 0], which says that there were too few of them.

    Args:
        seed: of the resamplings; the same counts give the same interval.

    Raises:
        InputError: no utterance has a word.
    """
    import numpy as np

    table = np.array(list(counts), dtype=np.int64).reshape(-1, 2)
    errors, total = (int(n) for n in table.sum(axis=0))
    if not total:
        raise InputError("the references hold no words: give text to compare with")
    rows = np.random.default_rng(seed).integers(len(table), size=(RESAMPLINGS, len(table)))
    drawn = table[rows].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / np.maximum(drawn[:, 1], 1), INTERVAL)
    rate = errors / total
    # of very few utterances no resampling may be like the whole
    return WordErrorRate(errors, total, min(float(low), rate), max(float(high), rate))
