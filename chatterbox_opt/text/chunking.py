"""Splits text into chunks: cleans, splits at sentences, normalizes as upstream does.

Responsible for characters and lengths. Not responsible for punctuation (normalizers.py), for what
differs between models and languages (rules.py), tokens, voices or tensors; imports no torch.

T3 was trained on single sentences, and upstream limits one run to 1,000 tokens (40 s): the audio
of a longer text is truncated or unintelligible. So a long text becomes several chunks, and no word
is lost between them. A paragraph that fits is one chunk, with exactly upstream's normalization.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import sentencex

from chatterbox_opt.errors import TextError
from chatterbox_opt.text.normalizers import MAX_ADDED
from chatterbox_opt.text.rules import ENGLISH_RULES, LIMIT, TextRules

SENTENCE_PAUSE = 0.2  # seconds of silence between two chunks of one paragraph
PARAGRAPH_PAUSE = 0.5  # seconds of silence between paragraphs
SCENE_PAUSE = 1.5  # seconds of silence for a paragraph without a word, such as "* * *"
INNER_PAUSE = 0.1  # seconds of silence where the voice or the rate changes within a sentence
SCENE_BREAK = "---"  # a paragraph that is one, in the markup of this package

_CLAUSE = re.compile(r".+?(?:[,;:)\]—–،؛](?:\s+|$)|[，、；：]|$)", re.DOTALL)
_WINDOW = 5000  # characters: sentencex takes quadratic time, outside of ASCII
_CLUSTER = 16  # characters: a letter with its marks; no script's letters have more
_SENTENCE_ENDS = ".!?…;:。！？；：؟۔।"
_LINE_END = r"(?:\n|\r(?!\n)|\x85|\u2028)"
_PARAGRAPH = re.compile(rf"{_LINE_END}\s*{_LINE_END}|\u2029")
# parts that are, joined, the text
Splitter = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The text of one T3 run, and the silence after it.

    Attributes:
        text: normalized text, at most ``LIMIT`` characters unless another limit was passed.
        pause: seconds of silence after it; 0 for the last chunk.
        source: the text before normalization, which is not idempotent.
        language: a code of languages.py; None: not known, or of no importance to the model.
        rate: how fast it is spoken; from a text's markup, in proportion to its request's rate.
        voice: a name of the request's cast or of a voice; None: the request's own.
        lead: seconds of silence before its sound, in place of its own silence there; None: its own.
        is_exact: ``pause`` is from the end of its sound on: its own silence there is left out.
    """

    text: str
    pause: float = 0.0
    source: str = ""
    language: str | None = None
    rate: float = 1.0
    voice: str | None = None
    lead: float | None = None
    is_exact: bool = False

    @property
    def silences(self) -> tuple[float, float]:
        """Seconds of silence that are added before and after its own sound."""
        return self.lead or 0.0, self.pause


def clean(text: str) -> str:
    """Remove control characters and byte-order marks.

    ``split`` calls this; call it before to reject a text before a model is loaded.

    Raises:
        TextError: a NUL byte (the input is not text), or no letter or digit is left.
    """
    cleaned = remove_controls(text)
    if not has_speech(cleaned):
        problem = "is empty" if not cleaned.strip() else "has no letter or digit"
        raise TextError(f"the text {problem}: give at least one word to speak")
    return cleaned


def remove_controls(text: str, position: int = 0) -> str:
    """As ``clean``, for a part of a text: it may have no letter.

    Args:
        position: of the part in the text, for messages.

    Raises:
        TextError: a NUL byte, or not UTF-8.
    """
    if "\0" in text:
        raise TextError(
            f"the text has a NUL byte at position {position + text.index(chr(0))}: "
            "it is not plain text; save it as UTF-8 and try again"
        )
    if any(unicodedata.category(c) == "Cs" for c in text):
        raise TextError("the text is not UTF-8: save it as UTF-8 and try again")
    cleaned = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    return cleaned.replace("\ufeff", "")


def has_speech(text: str) -> bool:
    """Whether there is a letter or a digit of any script in ``text``."""
    return any(c.isalnum() for c in text)


def paragraphs(text: str) -> list[str]:
    """The parts of ``text`` between empty lines, without empty ones; one line end is a blank."""
    return [part.strip() for part in _PARAGRAPH.split(text) if part.strip()]


def split(text: str, limit: int = LIMIT, rules: TextRules = ENGLISH_RULES) -> list[Chunk]:
    """Split any text into chunks whose normalized form has at most ``limit`` characters.

    Splits at empty lines; a paragraph that is too long at sentences, then clauses, then words, and
    only where a single word is longer than ``limit`` (scripts without spaces) between characters.
    A paragraph without a letter or digit ("* * *") is a pause of ``SCENE_PAUSE``.

    Raises:
        TextError: no letter or digit, see ``clean``.
    """
    text = clean(text)
    parts = paragraphs(text)
    if len(parts) == 1 and fits(text, limit, rules):
        return [chunk_of(text, rules)]  # not stripped: nor does upstream
    chunks: list[Chunk] = []
    for paragraph in parts:
        if has_speech(paragraph):
            chunks += _paragraph_chunks(paragraph, limit, rules)
        elif chunks:
            chunks[-1] = replace(chunks[-1], pause=SCENE_PAUSE)
    chunks[-1] = replace(chunks[-1], pause=0.0)
    return chunks


def pause_between(before: str, after: str) -> float:
    """Seconds of silence between two texts that follow each other, as ``split`` has them; within a
    sentence ``INNER_PAUSE``."""
    end = len(before)
    while end and not before[end - 1].isalnum():
        end -= 1
    marks = before[end:] + "".join(itertools.takewhile(lambda c: not c.isalnum(), after))
    _, *between = _PARAGRAPH.split(marks)
    if any(part.strip() for part in between[:-1]):
        return SCENE_PAUSE
    if between:
        return PARAGRAPH_PAUSE
    return SENTENCE_PAUSE if any(c in _SENTENCE_ENDS for c in marks) else INNER_PAUSE


def chunk_of(source: str, rules: TextRules, pause: float = 0.0) -> Chunk:
    """One text as a chunk, whatever its length."""
    return Chunk(rules.normalize(source), pause, source, rules.language)


def _paragraph_chunks(paragraph: str, limit: int, rules: TextRules) -> list[Chunk]:
    pieces = [p.strip() for p in pack(paragraph, limit, rules) if has_speech(p)]
    chunks = [chunk_of(piece, rules, SENTENCE_PAUSE) for piece in pieces]
    return [*chunks[:-1], replace(chunks[-1], pause=PARAGRAPH_PAUSE)]


def pack(paragraph: str, limit: int = LIMIT, rules: TextRules = ENGLISH_RULES) -> list[str]:
    """Split one paragraph as ``split`` does; joined, the pieces are the paragraph but for blanks.

    A piece may have no speech.
    """
    finer = (_CLAUSE.findall, rules.words.findall, _characters)
    sentences = functools.partial(_sentences, language=rules.sentence_language, finer=finer)
    return _pack(paragraph, (sentences, *finer), lambda text: fits(text, limit, rules))


def fits(text: str, limit: int = LIMIT, rules: TextRules = ENGLISH_RULES) -> bool:
    """Whether the normalized ``text`` has at most ``limit`` characters."""
    # Only the length is used: a chunk's text is normalized again, because its first letter is
    # capitalized only without blanks before it, as upstream does. Text far above the limit is not
    # normalized at all, or packing a long paragraph would take quadratic time.
    longest = len(text) + text.count("…") + text.count(";") + MAX_ADDED
    return longest <= limit or (
        len(text) <= 16 * limit and len(rules.normalize(text.strip())) <= limit
    )


def _sentences(text: str, language: str, finer: Sequence[Splitter]) -> Iterable[str]:
    """Sentences, window by window.

    Args:
        finer: splitters that end a sentence which is longer than a window, coarsest first.
    """
    start = 0
    while start < len(text):
        part = text[start : start + _WINDOW]
        # its fallback rules cover other scripts' full stops too
        found = list(sentencex.segment(language, part)) or [part]
        if start + _WINDOW < len(text):  # the last one may go on after the window
            whole = found[:-1] or _without_the_last(part, finer)
            start += sum(map(len, whole))
            yield from whole
        else:
            yield from found
            return


def _without_the_last(text: str, splitters: Sequence[Splitter]) -> list[str]:
    """``text`` without its last part, by the first splitter that finds several."""
    for split in splitters:
        *parts, _ = split(text)
        if parts:
            return ["".join(parts)]
    return [text]


def _characters(text: str) -> list[str]:
    """Split between characters, keeping combining marks with their base letter."""
    parts: list[str] = []
    for c in text:
        is_mark = not c.isascii() and unicodedata.category(c).startswith("M")
        if parts and is_mark and len(parts[-1]) < _CLUSTER:
            parts[-1] += c
        else:
            parts.append(c)
    return parts


def _pack(text: str, splitters: Sequence[Splitter], fits: Callable[[str], bool]) -> list[str]:
    """Fill pieces with as many parts of ``text`` as fit, splitting a part that does not again.

    Args:
        splitters: coarsest first.
    """
    split, *finer = splitters
    pieces: list[str] = []
    current = ""
    for part in split(text):
        if fits(current + part):
            current += part
            continue
        if current.strip():
            pieces.append(current)
        current = part
        if finer and not fits(part):
            *full, current = _pack(part, finer, fits)
            pieces += full
    return [*pieces, current]
