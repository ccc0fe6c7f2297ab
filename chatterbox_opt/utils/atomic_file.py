"""Atomic file writes: a file appears completely or not at all.

Responsible for temporary names, syncing and renaming. Not responsible for the content.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = re.compile(r"\.[0-9a-f]{16}\.part")  # names of temporary files


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``target``; it is renamed to ``target`` when the block ends.

    If the block is left by an exception, Ctrl-C included, the temporary file is removed and an
    existing ``target`` is unchanged. Two processes may write the same target: the last rename wins.

    Raises:
        OSError: the directory is not writable, or the disk is full.
    """
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    part.open("xb").close()
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may only be reported here, before the rename
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
