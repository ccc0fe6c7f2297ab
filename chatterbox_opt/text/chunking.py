"""Text to chunks: clean, normalise as upstream does, split at sentences within a length.

Knows the rules of written text. Knows nothing of tokens, voices or tensors, and imports no torch.

T3 was trained on single utterances, and upstream caps one run at 1,000 tokens (40 s): longer
text is cut or turns to gibberish. So a long text becomes several chunks, and no word is lost
between them. A text that fits is one chunk, spoken exactly as upstream would speak it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import sentencex

from chatterbox_opt.errors import TextError

LIMIT = 300  # characters of one chunk; users of upstream settled on 280 to 300
SENTENCE_PAUSE = 0.2  # seconds of silence between two chunks of one paragraph
PARAGRAPH_PAUSE = 0.5  # seconds of silence between paragraphs

# upstream tts.py, punc_norm: applied in this order
_REPLACEMENTS = (
    ("...", ", "),
    ("…", ", "),
    (":", ","),
    (" - ", ", "),
    (";", ", "),
    ("—", "-"),
    ("–", "-"),
    (" ,", ","),
    ("“", '"'),
    ("”", '"'),
    ("‘", "'"),
    ("’", "'"),
)
_ENDERS = (".", "!", "?", "-", ",")
_CLAUSE = re.compile(r".+?(?:[,;:)\]—–](?:\s+|$)|[，、；：]|$)", re.DOTALL)
_WORD = re.compile(r"\S+\s*|\s+")
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one T3 run says, and the silence that follows it.

    Attributes:
        text: normalised text, at most ``LIMIT`` characters unless another limit was asked for.
        pause: seconds of silence after it; 0 for the last chunk.
        source: the same words before normalising (which is not the same when done twice).
    """

    text: str
    pause: float = 0.0
    source: str = ""


def normalize(text: str) -> str:
    """Return ``text`` as upstream's ``punc_norm`` returns it, for every string (tts.py, 0.1.7)."""
    if not text:
        return "You need to add some text for me to talk."
    if text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    text = text.rstrip(" ")
    return text if text.endswith(_ENDERS) else text + "."


def clean(text: str) -> str:
    """Drop what no voice can say and no person typed: control characters and byte-order marks.

    Raises:
        TextError: a NUL byte (the input is not text), or nothing speakable is left.
    """
    if "\0" in text:
        raise TextError(
            f"the text has a NUL byte at position {text.index(chr(0))}: "
            "it is not plain text; save it as UTF-8 and try again"
        )
    if any(unicodedata.category(c) == "Cs" for c in text):
        raise TextError("the text is not UTF-8: save it as UTF-8 and try again")
    kept = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    kept = kept.replace("\ufeff", "")
    if not has_speech(kept):
        found = "is empty" if not kept.strip() else "has no letter or digit"
        raise TextError(f"the text {found}: give at least one word to speak")
    return kept


def has_speech(text: str) -> bool:
    """Whether there is a letter or a digit of any script in ``text``."""
    return any(c.isalnum() for c in text)


def split(text: str, limit: int = LIMIT, spell: Callable[[str], str] | None = None) -> list[Chunk]:
    """Turn any text into chunks whose normalised form has at most ``limit`` characters.

    Boundaries are looked for at sentences, then clauses, then words, and only where a single
    word is longer than ``limit`` (scripts without spaces) between characters.

    Args:
        spell: puts a paragraph into words first, for a model that reads letters only.

    Raises:
        TextError: nothing to speak, see ``clean``.
    """
    text = clean(text)
    if spell is not None:
        text = "\n\n".join(filter(has_speech, map(spell, _PARAGRAPH.split(text))))
        if not text:
            raise TextError("the text has no word that this model can read: it knows English only")
    if _fits(text, limit):
        return [Chunk(normalize(text), source=text)]  # unstripped: upstream sees blanks too
    chunks: list[Chunk] = []
    for paragraph in filter(has_speech, _PARAGRAPH.split(text)):
        pieces = [p.strip() for p in _pack(paragraph.strip(), limit, 0) if has_speech(p)]
        chunks += [Chunk(normalize(piece), SENTENCE_PAUSE, piece) for piece in pieces]
        chunks[-1] = replace(chunks[-1], pause=PARAGRAPH_PAUSE)
    chunks[-1] = replace(chunks[-1], pause=0.0)
    return chunks


def _fits(text: str, limit: int) -> bool:
    # normalising adds at most a full stop and one blank per ellipsis; skip it for what is far off
    return len(text) <= 16 * limit and len(normalize(text.strip())) <= limit


def _sentences(text: str) -> Iterable[str]:
    return sentencex.segment("en", text)  # its fallback rules know the enders of other scripts too


def _characters(text: str) -> list[str]:
    """Split between characters, keeping combining marks with the letter that carries them."""
    parts: list[str] = []
    for c in text:
        if parts and unicodedata.category(c).startswith("M"):
            parts[-1] += c
        else:
            parts.append(c)
    return parts


_FINER: tuple[Callable[[str], Iterable[str]], ...] = (
    _sentences,
    _CLAUSE.findall,
    _WORD.findall,
    _characters,
)


def _pack(text: str, limit: int, level: int) -> list[str]:
    """Fill pieces up to ``limit`` with parts of ``text``; a part too long is split more finely."""
    pieces: list[str] = []
    current = ""
    for part in _FINER[level](text):
        if _fits(current + part, limit):
            current += part
            continue
        if current.strip():
            pieces.append(current)
        current = part
        if not _fits(part, limit) and level + 1 < len(_FINER):
            *full, current = _pack(part, limit, level + 1)
            pieces += full
    return [*pieces, current]
