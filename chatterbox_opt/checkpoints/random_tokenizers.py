"""Text tokenizers of random checkpoints, in the formats of upstream's.

Responsible for their vocabularies: every text becomes about as many tokens as with upstream's.
Not responsible for weights (random_weights.py) or for reading a tokenizer.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

from chatterbox_opt.checkpoints import families
from chatterbox_opt.config.model_config import (
    MULTILINGUAL_TEXT,
    TURBO_ENGLISH,
    ModelConfig,
    T3Config,
)
from chatterbox_opt.text.languages import LANGUAGES
from chatterbox_opt.text.tags import SOUNDS

BYTES = 256
END_OF_TEXT = "<|endoftext|>"
TAGS = (*SOUNDS, *families.STYLE_TAGS)
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by how often they occur
SPACE = "\u0120"  # how the byte 32 is written
IDEOGRAPHS = (0x4E00, 0x9FFF)  # first and last
SCRIPTS = (  # of the languages, after NFKD: first and last character
    *((0x21, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF)),
    *((0x600, 0x6FF), (0x900, 0x97F), (0x1100, 0x11FF), (0x3000, 0x30FF)),
)


def files(config: ModelConfig) -> dict[str, str]:
    """The contents of a tokenizer's files by name."""
    if config.text == TURBO_ENGLISH:
        return byte_level(config.t3.text_vocab)
    if config.text == MULTILINGUAL_TEXT:
        graphemes = characters(config.t3, _language_tokens(), list(_script_characters()))
        return {families.GRAPHEMES: _text(graphemes), families.CANGJIE: _text(_cangjie())}
    return {families.CHATTERBOX.tokenizer[0]: _text(characters(config.t3))}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def characters(
    config: T3Config, more: tuple[str, ...] = (), known: list[str] | None = None
) -> dict[str, Any]:
    """A character tokenizer in the format of upstream's tokenizer.json, with its special ids.

    Args:
        more: special tokens besides start, stop, space and unknown.
        known: the characters; None are Latin ones.
    """
    special = {"[STOP]": config.stop_text, "[UNK]": 1, "[SPACE]": 2, "[START]": config.start_text}
    if known is None:
        every = (chr(c) for c in range(33, 0x250))
        known = [c for c in every if c.isprintable() and not c.isspace()]
    free = (i for i in range(config.text_vocab) if i not in special.values())
    special |= dict(zip(more, free, strict=False))
    vocabulary = special | dict(zip(known, free, strict=False))
    for i in free:
        vocabulary[f"[PLACEHOLDER{i}]"] = i
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "special": True, "content": c, **flags} for c, i in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _language_tokens() -> tuple[str, ...]:
    """Upstream's tokens of languages and of the keys of a Cangjie code."""
    keys = "abcdefghijklmnopqrstuvwxyz0123456789."
    return (*(f"[{code}]" for code in LANGUAGES), *(f"[cj_{key}]" for key in keys))


def _script_characters() -> Iterator[str]:
    """Characters of the languages that are not composed of others."""
    for c in (chr(i) for first, last in SCRIPTS for i in range(first, last + 1)):
        visible = c.isprintable() and not c.isspace() and c != "["
        if visible and unicodedata.normalize("NFKD", c) == c:
            yield c


def _cangjie() -> list[str]:
    """A code of three to five letters for each ideograph, two of which share one."""
    rows = []
    for i, point in enumerate(range(IDEOGRAPHS[0], IDEOGRAPHS[1] + 1)):
        code, rest = "", i // 2
        for _ in range(3 + i % 6 // 2):
            rest, letter = divmod(rest, 26)
            code += chr(ord("a") + letter)
        rows.append(f"{chr(point)}\t{code}")
    return rows


def byte_level(size: int) -> dict[str, str]:
    """A byte-level BPE in the files of a GPT-2 tokenizer, with the tags of Turbo's.

    Args:
        size: of the vocabulary: bytes, merges, the end of a text, and tags.
    """
    alphabet = _byte_alphabet()
    pairs = [pair for pair, _ in zip(_merges(), range(size - BYTES - 1 - len(TAGS)), strict=False)]
    tokens = [*alphabet, *(a + b for a, b in pairs), END_OF_TEXT]
    added = {tag: len(tokens) + i for i, tag in enumerate(TAGS)}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    decoder = {
        str(i): {"content": token, **flags, "special": token == END_OF_TEXT}
        for token, i in ({END_OF_TEXT: len(tokens) - 1} | added).items()
    }
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        **ends,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 1024,
        "tokenizer_class": "GPT2Tokenizer",
    }
    return {
        families.VOCABULARY: _text({token: i for i, token in enumerate(tokens)}),
        families.MERGES: "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs),
        families.ADDED_TOKENS: json.dumps(added, indent=2) + "\n",
        families.TOKENIZER_CONFIG: json.dumps(config, indent=2) + "\n",
        families.SPECIAL_TOKENS: json.dumps(ends, indent=2) + "\n",
    }


def _byte_alphabet() -> list[str]:
    """GPT-2's character for each byte, in the order of its ids: printable ones stand for
    themselves, the others for characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = BYTES - len(printable)
    return [chr(byte) for byte in printable] + [chr(BYTES + i) for i in range(others)]


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs that make words of letters, the frequent and short ones first, after a space or not."""
    for letter in LETTERS:
        yield SPACE, letter
    words = [*(SPACE + letter for letter in LETTERS), *LETTERS]
    while True:
        longer = []
        for word in words:
            for letter in LETTERS:
                yield word, letter
                longer.append(word + letter)
        words = longer
