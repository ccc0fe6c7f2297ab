"""Files that appear whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = re.compile(r"\.[0-9a-f]{16}\.part")  # the temporary names of whole_file


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that takes its place when the block ends well.

    Whatever ends the block early, Ctrl-C included, removes the temporary file and leaves an
    existing ``target`` as it was. Two processes may write the same target: the last rename wins.

    Raises:
        OSError: the directory is not writable, or the disk is full.
    """
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    part.open("xb").close()
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may only show here, and must before the rename
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
