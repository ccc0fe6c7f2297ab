"""The names of the tokenizers' files, and reading them.

Responsible for names, bounds and for errors that name the file. Not responsible for what a kind of
model needs of them (loading.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.errors import WeightsError, first_line
from chatterbox_opt.utils.damage import DAMAGE_ERRORS
from chatterbox_opt.utils.small_file import read_at_most

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENGLISH = "tokenizer.json"
MULTILINGUAL, CANGJIE = "grapheme_mtl_merged_expanded_v1.json", "Cangjie5_TC.json"
HEBREW = ("dicta-1.0.onnx", "dicta-1.0.int8.onnx")  # of a library, in the model's directory
VOCABULARY, MERGES = "vocab.json", "merges.txt"
CONFIG, ADDED, SPECIAL = (  # may be absent
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
MAX_BYTES = 16 << 20  # Chatterbox's has some 10 KB, GPT-2's 2 MB
REQUIRED = ("[START]", "[STOP]")


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a file in the format of the tokenizers library.

    Raises:
        WeightsError: damaged, or without the start and stop tokens.
    """
    from tokenizers import Tokenizer

    content = read_bytes(path)
    try:
        unknown = json.loads(content.decode("utf-8"))["model"].get("unk_token")
        tokenizer = Tokenizer.from_buffer(content)
    except DAMAGE_ERRORS as error:
        raise damaged(path, error) from error
    if any(tokenizer.token_to_id(token) is None for token in REQUIRED):
        raise WeightsError(f"{path} has no [START] or [STOP]: it is not Chatterbox's tokenizer")
    if isinstance(unknown, str) and tokenizer.token_to_id(unknown) is None:
        raise WeightsError(f"{path} does not have its own unk_token: delete it and get it again")
    return tokenizer


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises WeightsError."""
    content = read_bytes(path)
    try:
        return json.loads(content.decode("utf-8"))
    except DAMAGE_ERRORS as error:
        raise damaged(path, error) from error


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        WeightsError: it cannot be read, or is too large for a tokenizer.
    """
    try:
        content = read_at_most(path, MAX_BYTES)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): get it again") from error
    if content is None:
        raise WeightsError(
            f"{path} has more than {MAX_BYTES >> 20} MiB: it is not a tokenizer; get it again"
        )
    return content


def damaged(path: Path, error: Exception) -> WeightsError:
    """The error of a file that a parser does not understand."""
    return WeightsError(
        f"{path} is damaged or not a tokenizer ({first_line(error)}): delete it and get it again"
    )
