"""Tokenizer files of each kind of model, made from a few lines; libraries that only pretend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chatterbox_opt.text.languages import LANGUAGES
from chatterbox_opt.text.tags import SOUNDS

LINES = (
    "The quick brown fox jumps over the lazy dog, and nobody heard it laugh.",
    "They're sure that it's 42 degrees; we'll see what he'd have done there.",
    "Then the other one went on with the thing, in the end of the long night.",
)
CHARACTERS = "日日昌晶字天我你好气今"  # the first one twice, which upstream's table has too
CODES = ("a", "b", "aa", "aaa", "jnd", "mk", "hqi", "onf", "vnd", "ou", "oin")
SHARED = ("明", "萌", "朋")  # have one code together
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def write_byte_pairs(directory: Path, *, limit: int | None = 1024, legacy: bool = False) -> None:
    """The files of Turbo's tokenizer: byte-level BPE of a few lines, with tokens for sounds.

    Args:
        limit: model_max_length; None: without one.
        legacy: added tokens are in added_tokens.json.
    """
    from tokenizers import ByteLevelBPETokenizer

    directory.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(LINES * 3, vocab_size=600, special_tokens=["<|endoftext|>"])
    trained.save_model(str(directory))
    first = trained.get_vocab_size()
    ids = {tag: first + i for i, tag in enumerate(("[angry]", *SOUNDS))}
    config: dict[str, Any] = {
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
        "add_bos_token": False,
        "add_prefix_space": False,
        "errors": "replace",
        "tokenizer_class": "GPT2Tokenizer",
    }
    if limit is not None:
        config["model_max_length"] = limit
    if legacy:
        _write(directory / "added_tokens.json", ids)
        special = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")}
        _write(directory / "special_tokens_map.json", special)
    else:
        added = {"<|endoftext|>": trained.token_to_id("<|endoftext|>")} | ids
        config["added_tokens_decoder"] = {
            str(i): {"content": c, "special": c not in ids, **_FLAGS} for c, i in added.items()
        }
    _write(directory / "tokenizer_config.json", config)


def write_multilingual(directory: Path) -> Path:
    """The files of a multilingual tokenizer: characters, a few pairs, and upstream's tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    special = ["[STOP]", "[UNK]", "[SPACE]", *(f"[{code}]" for code in LANGUAGES)]
    special += [f"[cj_{c}]" for c in "abcdefghijklmnopqrstuvwxyz0123456789."]
    tokens = dict(zip(special, range(len(special)), strict=True)) | {"[START]": 255}
    ranges = ((33, 0x250), (0x300, 0x700), (0x900, 0x980), (0x1100, 0x1200), (0x3000, 0x3100))
    graphemes = [chr(c) for a, b in ranges for c in range(a, b)] + list("，？！")
    pairs = ["th", "in", "the", "ch", "он"]
    free = (i for i in range(5000) if i not in tokens.values())
    added = [{"id": i, "special": True, "content": c, **_FLAGS} for c, i in tokens.items()]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
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
            "vocab": tokens | dict(zip([*graphemes, *pairs], free, strict=False)),
            "merges": ["t h", "i n", "th e", "c h", "о н"],
        },
    }
    path = directory / "grapheme_mtl_merged_expanded_v1.json"
    _write(path, content)
    entries = [f"{c}\t{code}\t1" for c, code in zip(CHARACTERS, CODES, strict=True)]
    entries += [f"{c}\tajb" for c in SHARED]
    _write(directory / "Cangjie5_TC.json", entries)
    return path


def write_libraries(directory: Path) -> None:
    """Packages with the interface of those for Chinese, Hebrew, Russian and for detection."""
    files = {
        "py3langid.py": "def rank(text):\n"
        "    first = {'H': 'eu', 'J': 'nb', 'G': 'de'}.get(text[0], 'fr')\n"
        "    return [('la', -1.0), (first, -2.0), ('en', -3.0)]\n",
        "spacy_pkuseg.py": "class pkuseg:\n"
        "    def cut(self, text):\n"
        "        return [text[i:i + 2].strip() for i in range(0, len(text), 2)]\n",
        "dicta_onnx.py": "class Dicta:\n"
        "    def __init__(self, path=None):\n"
        "        self.path = path\n"
        "    def add_diacritics(self, text):\n"
        "        return ''.join(c + '\\u05b8' * ('\\u05d0' <= c <= '\\u05ea') for c in text)\n",
        "russian_text_stresser/__init__.py": "",
        "russian_text_stresser/text_stresser.py": "class RussianTextStresser:\n"
        "    def stress_text(self, text):\n"
        "        return text.replace('о', 'о\\u0301')\n",
    }
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
