"""The tokenizers of Chatterbox (English) and of the multilingual models: characters and pairs.

Responsible for upstream's ids (tokenizer.py, EnTokenizer and MTLTokenizer, 0.1.7). Not responsible
for what a language's library does (language_steps.py).
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.text.tokenizers.language_steps import Step, make_step

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE = "[SPACE]"


class EnglishTokenizer:
    """A blank is a token of its own; small and capital letters differ."""

    tags: frozenset[str] = frozenset()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.space: int | None = tokenizer.token_to_id(_SPACE)

    def encode(self, text: str, language: str | None = None) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text.replace(" ", _SPACE)).ids
        return ids


class MultilingualTokenizer:
    """Small letters in Unicode's NFKD, rewritten as the language needs, after its token.

    Japanese kanji become hiragana, Chinese characters Cangjie codes, Korean syllables jamo; Hebrew
    gets its vowel points and Russian its stress.
    """

    tags: frozenset[str] = frozenset()

    def __init__(self, tokenizer: Tokenizer, directory: Path) -> None:
        """Take over a tokenizer.

        Args:
            directory: of the model, with the files of single languages.
        """
        self._tokenizer, self._directory = tokenizer, directory
        self.space: int | None = tokenizer.token_to_id(_SPACE)
        self._steps: dict[str, Step] = {}

    def encode(self, text: str, language: str | None = None) -> list[int]:
        text = unicodedata.normalize("NFKD", text.lower())
        if language is not None:
            text = f"[{language}]{self._step(language)(text)}"
        ids: list[int] = self._tokenizer.encode(text.replace(" ", _SPACE)).ids
        return ids

    def _step(self, language: str) -> Step:
        """The step of a language, which may take seconds to load."""
        if language not in self._steps:
            self._steps[language] = make_step(language, self._directory)
        return self._steps[language]
