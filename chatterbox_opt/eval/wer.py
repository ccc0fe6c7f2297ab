"""Word error rates of transcripts against reference texts.

Responsible for normalizing English words, and for comparing and counting words. Not responsible for
words of other languages (other_languages.py), audio or recognizers (whisper.py). Counting needs
jiwer; English spellings are compared as in the Whisper paper if whisper-normalizer is installed
(extra ``ears``), else as they are. Importing this module needs neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.eval import other_languages
from chatterbox_opt.text.languages import DEFAULT
from chatterbox_opt.text.tags import without_sounds

REMEDY = 'pip install "chatterbox-opt[ears]"'
BOOTSTRAP_SAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap: a 95 % confidence interval


def missing(package: str, error: Exception | None = None, remedy: str = REMEDY) -> InputError:
    """The error for a missing library, with what to install."""
    reason = f" ({error})" if error else ""
    return InputError(f"{package} is not installed{reason}: {remedy}")


_OKAY = re.compile(r"\bok\b", re.IGNORECASE)  # otherwise two letters are spelled out
# Replacements before and after Whisper's normalizer, for what sounds the same but which it leaves
# different.
_BEFORE = (
    # it deletes what is in brackets, which is read aloud
    (re.compile(r"(?<=[a-z])\(([a-z]{1,2})\)"), r"\1"),  # "word(s)"
    (re.compile(r"[()\[\]{}<>]"), " "),
    (re.compile("[\u2018\u2019]"), "'"),
    (re.compile(r"\bo'clock\b"), "oclock"),  # otherwise "nine o'clock" becomes "90 clock"
    (re.compile(r"\b(\d{1,2}):00\b"), r"\1 oclock"),
    (re.compile(r"\b(\d{1,2}):(\d\d)\b"), r"\1\2"),  # as it turns "three thirty" into 330
    (re.compile(r"\b([ap])\.m\b\.?"), r"\1m"),
    (re.compile(r"\ba (?=hundred\b|thousand\b)"), "one "),
)
_AFTER = (
    (re.compile(r"\bone\b"), "1"),  # it writes "one" alone, but digits among other numbers
    (re.compile(r"(?<=\d) (?=\d)"), ""),  # it joins "six, fifteen" to 615, but not "6 15"
    (re.compile(r"\boclock oclock\b"), "oclock"),
    (re.compile(r"\b([a-z]) (?=[a-z]\b)"), r"\1"),  # "F B I", which is what is said, and "FBI"
)
_NO_WORD = re.compile(r"[^\w\s']|_")
_REMARK = re.compile(r"\[[^\[\]]*\]|\([^()]*\)")


def words(text: str, language: str | None = None) -> list[str]:
    """Split into normalized words: lower case, no punctuation.

    English numbers are in digits. What is written in figures and abbreviations is spelled out
    first, as it is said: "60 mph", "sixty miles per hour" and "60 miles per hour" are equal. A
    recognizer writes any of them; of 50 sentences with numbers and names, all heard right, a sixth
    of the words would be wrong. Other languages are for other_languages.py.

    The other rules of English are those of the Whisper paper (Radford et al. 2022, appendix C):
    contractions are expanded, British spellings become American, "hmm" and "uh" are dropped,
    "twenty-one" becomes 21. Consecutive numbers are one word: "one two three", "1, 2, 3" and "123"
    are equal. Without whisper-normalizer they do not apply: good enough to find faulty audio, but
    not for published figures.

    Args:
        language: a code of text/languages.py; None: English, unless most letters are of another
            script than the Latin one.
    """
    if language is None and not other_languages.is_latin(text):
        return other_languages.words(text)
    if language not in (None, DEFAULT):
        return other_languages.words(text, language)
    text = _spelled_out(_OKAY.sub("okay", text)).lower()
    for pattern, replacement in _BEFORE:
        text = pattern.sub(replacement, text)
    text = _normalizer()(text)
    for pattern, replacement in _AFTER:
        text = pattern.sub(replacement, text)
    # it keeps the point of "…" and a lone "%"
    return [word for word in text.split() if any(c.isalnum() for c in word)]


@cache
def _normalizer() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        return lambda text: _NO_WORD.sub(" ", text)
    normalizer: Callable[[str], str] = EnglishTextNormalizer()
    return normalizer


def _spelled_out(text: str) -> str:
    from chatterbox_opt.text.english.normalizer import read_english  # imports num2words

    try:
        return read_english(text).text
    except TextError:  # no English word: compared as it is
        return text


def word_errors(reference: str, transcript: str, language: str | None = None) -> tuple[int, int]:
    """Minimum number of substitutions, deletions and insertions, and the reference's word count.

    Words in brackets count as others do, unless there are fewer errors without a reference's tags
    of sounds, which some models make and others read, or without a transcript's remarks such as
    "[Music]".

    Args:
        language: as of ``words``.

    Raises:
        InputError: jiwer is not installed.
    """
    references = dict.fromkeys((reference, without_sounds(reference)))
    transcripts = dict.fromkeys((transcript, _REMARK.sub(" ", transcript)))
    pairs = product(
        [words(text, language) for text in references],
        [words(text, language) for text in transcripts],
    )
    return min((_errors(*pair) for pair in pairs), key=rate)


def rate(counts: tuple[int, int]) -> float:
    """Errors per reference word of (errors, words); of a text without words their number."""
    errors, count = counts
    return errors / max(count, 1)


def _errors(expected: list[str], actual: list[str]) -> tuple[int, int]:
    try:
        import jiwer
    except ImportError as error:
        raise missing("jiwer", error, "pip install jiwer") from error
    if not expected:
        return len(actual), 0
    counts = jiwer.process_words(" ".join(expected), " ".join(actual))
    return counts.substitutions + counts.deletions + counts.insertions, len(expected)


@dataclass(frozen=True, slots=True)
class WordErrorRate:
    """Word errors of a set of texts.

    Attributes:
        errors, words: sums over the texts.
        low, high: 95 % confidence interval of the rate.
    """

    errors: int
    words: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Errors per reference word; above 1 if the transcripts are longer."""
        return self.errors / self.words


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> WordErrorRate:
    """Compare (reference, transcript) pairs; see ``rate_of``.

    Raises:
        InputError: as ``word_errors``, or no reference has a word.
    """
    return rate_of([word_errors(reference, transcript) for reference, transcript in pairs])


def rate_of(counts: Iterable[tuple[int, int]], seed: int = 0) -> WordErrorRate:
    """Sum (errors, words) of texts; the interval is from a bootstrap over the texts.

    Texts, not words, are resampled, because errors come in clusters (Bisani and Ney 2004). If no
    text has an error the interval is [0, 0], which means that there were too few texts.

    Args:
        seed: of the bootstrap; the same counts give the same interval.

    Raises:
        InputError: no text has a word.
    """
    import numpy as np

    table = np.array(list(counts), dtype=np.int64).reshape(-1, 2)
    errors, total = (int(n) for n in table.sum(axis=0))
    if not total:
        raise InputError("the references have no words: pass text to compare with")
    rows = np.random.default_rng(seed).integers(len(table), size=(BOOTSTRAP_SAMPLES, len(table)))
    drawn = table[rows].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / np.maximum(drawn[:, 1], 1), INTERVAL)
    rate = errors / total
    # with very few texts the interval may not include the rate itself
    return WordErrorRate(errors, total, min(float(low), rate), max(float(high), rate))
