"""Where a sentence may end: one look at a text and the words after it.

Responsible for sentencex's answer about one place, and for what it does not know: quotes that are
still open, list markers, references. Not responsible for the text that arrives (incremental.py).
"""

from __future__ import annotations

import re
import unicodedata

import sentencex

from chatterbox_opt.text.chunking import has_speech

ANY_WORD = ("a ", "5 ", "A ")  # sentencex looks at the next word's first letter, if at any
_LIST_MARKER = re.compile(r"\W*(?:\d+|[A-Za-z])\W*")
_REFERENCE = re.compile(r"\s*(?:\[\d+\])+[.,;:]?")  # "[3]": belongs to the sentence before it
_NO_END = ",;:-–—"
_DENSE_ENDS = ("。", "！", "？", "｡", "।", "॥", "؟", "۔")  # also without a blank after them
_DENSE_CLOSING = "」』”’）》】"
_MARKS_ONLY = re.compile(r"[.!?…)\]\"'”’»]+")
_WORD_ENDS = (
    ".",
    "!",
    "?",
    "…",
    ":",
    ";",
    "؟",
    "۔",
    "؛",
    "।",
    "॥",
)  # complete a word that is followed by nothing
_CLOSING = ")]\"'”’»"
_CLOSERS = {
    '"': '"', "“": "”", "„": "“”", "«": "»", "»": "«", "‹": "›", "‘": "’", "(": ")", "[": "]",
    "{": "}", "（": "）", "「": "」", "『": "』", "《": "》", "【": "】",
}  # fmt: skip
_AMBIGUOUS = '"«»“'  # open or close; they open at the beginning of a word
_DELIMITER = re.compile(r"[\"“”„«»‹›‘’()\[\]{}（）「」『』《》【】]")


def is_end(text: str, space: str, words: tuple[str, ...], language: str = "en") -> bool:
    """Whether a sentence ends between ``text`` and each of these words, with ``space`` between.

    "1." is no sentence, nor is "(He left."

    Args:
        language: sentencex's.
    """
    if not has_speech(text) or _LIST_MARKER.fullmatch(text) or _is_open(text):
        return False
    return all(_splits(text, space, word, language) for word in words)


def is_reference(text: str) -> bool:
    """Whether ``text`` is "[3]" or the like, which belongs to the sentence before it."""
    return bool(_REFERENCE.fullmatch(text))


def has_only_marks(text: str) -> bool:
    """Whether ``text`` is nothing but marks that end a sentence, or close one."""
    return bool(_MARKS_ONLY.fullmatch(text.strip()))


def may_end(text: str) -> bool:
    """Whether a sentence may end here; most words need no closer look."""
    if not text or text[-1].isalnum() or text[-1] in _NO_END:
        return False
    return text[-1].isascii() or unicodedata.category(text[-1])[0] != "M"  # a vowel sign


def ends_dense(text: str) -> bool:
    """Whether a sentence may end here without a blank after it."""
    return text.rstrip(_DENSE_CLOSING).endswith(_DENSE_ENDS)


def begins_dense(c: str) -> bool:
    """Whether a sentence may begin with this character, without a blank before it."""
    return c.isalnum() or (c in _CLOSERS and c != '"')


def end_of_words(text: str) -> int:
    """The position behind the last word of ``text`` that is certainly complete."""
    wide = unicodedata.east_asian_width(text[-1:] or " ") in "WF"
    if wide or text.rstrip(_CLOSING).endswith(_WORD_ENDS):
        return len(text)
    return text.rfind(" ") + 1


def _splits(text: str, space: str, word: str, language: str) -> bool:
    """Whether sentencex splits between ``text`` and ``word``."""
    position = 0
    for sentence in sentencex.segment(language, text + space + word):
        position += len(sentence)
        if len(text) <= position <= len(text) + len(space):
            return True
    return False


def _is_open(text: str) -> bool:
    """Whether a quote or bracket of ``text`` is not closed."""
    expected: list[str] = []
    for match in _DELIMITER.finditer(text):
        c, at = match[0], match.start()
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if c == "’" and after.isalnum():  # an apostrophe
            continue
        closes = [i for i, closers in enumerate(expected) if c in closers]
        begins_word = not before or before.isspace() or before in _CLOSERS or before in "-–—"
        if closes and not (c == '"' and before.isspace() and after.strip()):
            del expected[closes[-1] :]
        elif c in _CLOSERS and after.strip() and (begins_word or c not in _AMBIGUOUS):
            expected.append(_CLOSERS[c])
    return bool(expected)
