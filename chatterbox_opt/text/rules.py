"""What differs between models and languages when a text is split.

Responsible for the value that selects a normalizer, a chunk's length and sentencex's language. Not
responsible for splitting (chunking.py, incremental.py) or for tokens (tokenizers/).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from chatterbox_opt.config.model_config import ENGLISH, MULTILINGUAL_TEXT, TURBO_ENGLISH
from chatterbox_opt.text.normalizers import normalize

LIMIT = 300  # characters of one chunk; what users of upstream recommend is 280 to 300
# of languages that say more with a character: about as many seconds of speech
_SHORTER = {"ja": 120, "ko": 120, "zh": 90}
# sentencex's rules that fit a language better than those of its own code
_SENTENCES = {"no": "da"}
_WORD = re.compile(r"\S+\s*|\s+")
# a tag such as [clear throat] is never cut
_TAG = re.compile(r"\[[a-z]*(?: [a-z]*)*(?:\]|\Z)")
_WORD_OR_TAG = re.compile(r"(?:\[[a-z]+(?: [a-z]+)*\]|\S)+\s*|\s+")


@dataclass(frozen=True, slots=True)
class TextRules:
    """How the texts of a model are normalized and split.

    Attributes:
        kind: ``ModelConfig.text``.
        language: of the text, for a model that knows several; None: not known.
    """

    kind: str = ENGLISH
    language: str | None = None

    @property
    def limit(self) -> int:
        """Characters of one chunk, at most."""
        return _SHORTER.get(self._language, LIMIT)

    @property
    def sentence_language(self) -> str:
        """The language whose abbreviations sentencex knows."""
        return _SENTENCES.get(self._language, self._language)

    @property
    def words(self) -> re.Pattern[str]:
        """Matches a word with the blanks after it."""
        return _WORD_OR_TAG if self.kind == TURBO_ENGLISH else _WORD

    @property
    def joins_dense(self) -> bool:
        """Whether sentences of scripts without spaces are joined without one."""
        return self.kind == MULTILINGUAL_TEXT

    def outside_tags(self, text: str, end: int) -> int:
        """``end``, or the beginning of the tag that it would cut: "[clear", at the end of a text
        that goes on, may become one. A tag that is closed at the text's end is complete."""
        if self.kind != TURBO_ENGLISH or "[" not in text:
            return end
        for tag in _TAG.finditer(text):
            if tag.end() == len(text):
                return len(text) if text.endswith("]") else tag.start()
            if tag.start() < end < tag.end():
                return tag.start()
        return end

    def normalize(self, text: str) -> str:
        """As upstream does for this kind of model."""
        return normalize(text, self.kind)

    @property
    def _language(self) -> str:
        return "en" if self.language is None or self.kind != MULTILINGUAL_TEXT else self.language


ENGLISH_RULES = TextRules()
