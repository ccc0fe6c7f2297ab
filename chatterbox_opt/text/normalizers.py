"""Upstream's normalizer of each kind of model: punctuation, spaces, the first letter.

Responsible for being equal to upstream's ``punc_norm`` for every string (tts.py, tts_turbo.py and
mtl_tts.py, 0.1.7). Not responsible for lengths (chunking.py) or for words (english/).
"""

from __future__ import annotations

from chatterbox_opt.config.model_config import ENGLISH, MULTILINGUAL_TEXT, TURBO_ENGLISH

_EMPTY = "You need to add some text for me to talk."
_QUOTES = (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"))
# applied in this order
_PLAIN = (
    ("...", ", "),
    ("…", ", "),
    (":", ","),
    (" - ", ", "),
    (";", ", "),
    ("—", "-"),
    ("–", "-"),
    (" ,", ","),
    *_QUOTES,
)
_REPLACEMENTS = {
    ENGLISH: _PLAIN,
    TURBO_ENGLISH: (("…", ", "), (":", ","), ("—", "-"), ("–", "-"), (" ,", ","), *_QUOTES),
    MULTILINGUAL_TEXT: _PLAIN,
}
_MARKS = (".", "!", "?", "-", ",")
_END_MARKS = {
    ENGLISH: _MARKS,
    TURBO_ENGLISH: _MARKS,
    MULTILINGUAL_TEXT: (*_MARKS, "、", "，", "。", "？", "！"),
}
MAX_ADDED = 3  # characters, besides one for each "…" and ";": a capital of three, a full stop


def normalize(text: str, kind: str = ENGLISH) -> str:
    """Equals upstream's ``punc_norm`` of that kind of model for every string.

    Args:
        kind: ``ModelConfig.text``.
    """
    if not text:
        return _EMPTY
    if text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for old, new in _REPLACEMENTS[kind]:
        text = text.replace(old, new)
    text = text.rstrip(" ")
    return text if text.endswith(_END_MARKS[kind]) else text + "."
