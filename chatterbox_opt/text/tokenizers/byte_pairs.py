"""The tokenizer of Turbo and Nano: GPT-2's byte pairs with tokens for sounds.

Responsible for the ids of transformers' ``AutoTokenizer`` with ``padding=True, truncation=True``,
from the same files and without importing transformers. Not responsible for which tags a text has
(tags.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.errors import WeightsError
from chatterbox_opt.text.tokenizers.files import (
    ADDED,
    CONFIG,
    MERGES,
    SPECIAL,
    VOCABULARY,
    damaged,
    read_bytes,
    read_json,
)
from chatterbox_opt.utils.damage import DAMAGE_ERRORS

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token")
_END_OF_TEXT = "<|endoftext|>"
_UNLIMITED = 10**20  # transformers writes a larger number where there is no limit
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class BytePairTokenizer:
    """Byte-level BPE; longer texts than the model's limit are cut at the end.

    Attributes:
        tags: added tokens in square brackets.
        space: None: a blank is a part of the word behind it.
    """

    space: int | None = None

    def __init__(self, directory: Path) -> None:
        """Read the files of a directory.

        Raises:
            WeightsError: missing, damaged, or with a setting that is not supported.
        """
        config = _read_optional(directory / CONFIG)
        for name in ("add_bos_token", "add_eos_token"):
            if config.get(name):
                raise WeightsError(
                    f"{directory / CONFIG}: {name} is not supported: set it to false"
                )
        try:
            self._tokenizer = _byte_pairs(directory, config)
            added = list(_added_tokens(directory, config))
            self._tokenizer.add_tokens(added)
            limit = config.get("model_max_length")
            if limit is not None and limit <= _UNLIMITED:
                self._tokenizer.enable_truncation(int(limit))
        except DAMAGE_ERRORS as error:
            raise damaged(directory / CONFIG, error) from error
        contents = (token.content for token in added)
        self.tags = frozenset(c for c in contents if c.startswith("[") and c.endswith("]"))

    def encode(self, text: str, language: str | None = None) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids


def _read_optional(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty if it is not there. Raises WeightsError."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a JSON object: delete it and get it again")
    return values


def _byte_pairs(directory: Path, config: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = read_json(directory / VOCABULARY)
    if not isinstance(vocabulary, dict) or not all(isinstance(i, int) for i in vocabulary.values()):
        raise WeightsError(f"{directory / VOCABULARY} does not map tokens to numbers: get it again")
    merges = directory / MERGES
    try:
        lines = read_bytes(merges).decode("utf-8").split("\n")
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        model: dict[str, Any] = {"type": "BPE", "vocab": vocabulary, "merges": pairs}
        model |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
        # its constructor raises bare exceptions on damaged pairs
        tokenizer = Tokenizer.from_buffer(json.dumps({"version": "1.0", "model": model}).encode())
    except DAMAGE_ERRORS as error:
        raise damaged(merges, error) from error
    prefix = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=prefix)
    return tokenizer


def _added_tokens(directory: Path, config: dict[str, Any]) -> Iterator[AddedToken]:
    """In the order of their ids, which follow those of the vocabulary; then the special ones.

    Older files list them in added_tokens.json, without flags.
    """
    from tokenizers import AddedToken

    special = {name: _END_OF_TEXT for name in _SPECIAL}
    declared = config.get("added_tokens_decoder")
    if declared is None:
        config = config | _read_optional(directory / SPECIAL)
        ids = _read_optional(directory / ADDED)
        declared = {id: {"content": content, "normalized": False} for content, id in ids.items()}
    special |= {name: config[name] for name in (*_SPECIAL, "pad_token") if config.get(name)}
    names = {_content(token): token for token in special.values()}
    for _, token in sorted(declared.items(), key=lambda item: int(item[0])):
        names.pop(token["content"], None)
        flags = {flag: bool(token[flag]) for flag in _FLAGS if flag in token}
        yield AddedToken(token["content"], **flags)
    for content in names:
        yield AddedToken(content, special=True, normalized=False)


def _content(token: Any) -> str:
    content = token["content"] if isinstance(token, dict) else token
    return str(content)
