"""Chinese characters as Cangjie codes, whose letters are tokens.

Responsible for upstream's codes (tokenizer.py, ChineseCangjieConverter, 0.1.7). Not responsible for
where words are separated (language_steps.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from chatterbox_opt.errors import WeightsError
from chatterbox_opt.text.tokenizers.files import CANGJIE, damaged, read_json
from chatterbox_opt.utils.damage import DAMAGE_ERRORS


def read_codes(directory: Path) -> dict[str, str]:
    """The tokens of every character of the table: "[cj_d][cj_d][cj_.]".

    Characters that share a code are numbered: all but the first have the number as last token.

    Raises:
        WeightsError: the table is missing or damaged.
    """
    path = directory / CANGJIE
    if not path.is_file():
        raise WeightsError(
            f"'{directory}' has no {CANGJIE}, which Chinese needs: get the model again"
        )
    entries = read_json(path)
    code_of: dict[str, str] = {}
    numbers: dict[str, dict[str, int]] = {}  # code -> character -> its number
    counts: dict[str, int] = {}
    try:
        for entry in entries:
            character, code = entry.split("\t")[:2]
            code_of[character] = code  # the last one of a character counts
            number = counts.get(code, 0)
            numbers.setdefault(code, {}).setdefault(character, number)
            counts[code] = number + 1
    except DAMAGE_ERRORS as error:
        raise damaged(path, error) from error
    return {c: _tokens(code, numbers[code][c]) for c, code in code_of.items()}


def _tokens(code: str, number: int) -> str:
    letters = code + (str(number) if number else "")
    return "".join(f"[cj_{letter}]" for letter in letters) + "[cj_.]"


def encode(text: str, codes: Mapping[str, str]) -> str:
    """Replace characters of the table; those that are no letters, and all others, stay."""
    return "".join(codes.get(c, c) if unicodedata.category(c) == "Lo" else c for c in text)
