"""The tokenizer of a checkpoint, by the kind of its texts.

Responsible for the interface and for the file of each kind. Not responsible for the start and
stop tokens, which T3's prompt adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from chatterbox_opt.config.model_config import MULTILINGUAL_TEXT, TURBO_ENGLISH
from chatterbox_opt.errors import InputError
from chatterbox_opt.text.tokenizers.byte_pairs import BytePairTokenizer
from chatterbox_opt.text.tokenizers.files import ENGLISH, MULTILINGUAL, read_tokenizer
from chatterbox_opt.text.tokenizers.graphemes import EnglishTokenizer, MultilingualTokenizer


class TextTokenizer(Protocol):
    """Turns normalized text into token ids."""

    @property
    def tags(self) -> frozenset[str]:
        """The tags in square brackets that have a token and are spoken as a sound."""

    @property
    def space(self) -> int | None:
        """The id of the token between two words; None if there is no such token."""

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """The ids of a normalized text, without start and stop.

        Args:
            language: a code of languages.py; None: not known. Only multilingual models use it.

        Raises:
            InputError: the library of the language is missing, or fails.
            WeightsError: a file that the language needs is missing or damaged.
        """


class NoTexts:
    """In place of the tokenizer of an engine without T3."""

    tags: frozenset[str] = frozenset()
    space: int | None = None

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Raise InputError: nothing can be done with a text."""
        raise InputError(
            "this engine was loaded only to convert recordings: load it with Engine.load to "
            "synthesize texts"
        )


def load(directory: Path, kind: str, languages: Path | None = None) -> TextTokenizer:
    """Load the tokenizer of a checkpoint.

    Args:
        kind: ``ModelConfig.text``.
        languages: of the optional files, which single languages need; None: the same directory.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    if kind == TURBO_ENGLISH:
        return BytePairTokenizer(directory)
    if kind == MULTILINGUAL_TEXT:
        return MultilingualTokenizer(
            read_tokenizer(directory / MULTILINGUAL), languages or directory
        )
    return EnglishTokenizer(read_tokenizer(directory / ENGLISH))
