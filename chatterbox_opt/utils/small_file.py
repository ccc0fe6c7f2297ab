"""Reads files that should be small.

Responsible for the bound: a file of any size, or a device without an end, takes no memory. Not
responsible for what is in the file.
"""

from __future__ import annotations

from pathlib import Path


def read_at_most(path: Path, most: int) -> bytes | None:
    """The content of a file, or None if it has more than ``most`` bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    return content if len(content) <= most else None
