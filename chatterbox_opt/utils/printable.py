"""Text of users and files as a terminal can show it: what would control the terminal is escaped.

Responsible for one line. Not responsible for what is printed or where (console.py, tables.py).
"""

from __future__ import annotations

import json
import unicodedata

# controls, formats (bidirectional controls, zero-width characters), surrogates, line separators
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
MESSAGE_CHARACTERS = 2000
JOINERS = "\u200c\u200d"  # within words and emoji: they change no order and hide nothing


def printable(text: str) -> str:
    """``text`` on one line, without characters that a terminal obeys or that hide others.

    They are written as Python does: ``\\x1b``, ``\\n``, ``\\u202e``.
    """
    if text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if _is_control(c) else c for c in text)


def message_line(text: str) -> str:
    """A message on one printable line; of a very long one, its beginning and its end.

    A message quotes what a file contains, which may be a megabyte; the remedy is at its end.
    """
    line = printable(" ".join(text.split()))
    half = MESSAGE_CHARACTERS // 2
    return line if len(line) <= MESSAGE_CHARACTERS else f"{line[:half]} … {line[-half:]}"


def printable_json(document: str) -> str:
    """A JSON document of several lines, with the same characters in its strings escaped."""
    return "".join(json.dumps(c)[1:-1] if c != "\n" and _is_control(c) else c for c in document)


def _is_control(c: str) -> bool:
    return c not in JOINERS and unicodedata.category(c) in ESCAPED
