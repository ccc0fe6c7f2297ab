"""What a process holds in memory."""

from __future__ import annotations

import os
from pathlib import Path

MIB = 1 << 20


def resident(pid: int | str = "self") -> float:
    """MiB in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB
