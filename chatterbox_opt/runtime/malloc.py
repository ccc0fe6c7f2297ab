"""glibc malloc settings of this process; no effect with other C libraries.

Responsible for when freed pages are returned to the system. Not responsible for allocations.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# parameters of mallopt (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MMAP_THRESHOLD = 32 << 20  # bytes: the largest value that glibc accepts
TRIM_THRESHOLD = 1 << 30  # bytes of free memory at the top of the heap that are not returned
TOP_PAD = 64 << 20  # bytes by which the heap grows


def _glibc() -> Any:
    """The C library, or None if it is not glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def trim() -> None:
    """Return freed memory to the system.

    After the float32 matrices of T3 had been converted to a smaller dtype, 340 MB of free memory
    stayed with the process.
    """
    if libc := _glibc():
        libc.malloc_trim(0)


def keep_freed_pages() -> None:
    """From now on keep freed pages, up to a limit, for later allocations.

    On a CPU every layer frees its tensors and allocates the same sizes again. Pages that glibc had
    returned must be mapped, zeroed and faulted in again: a sixth of T3's time with eight sequences
    in a batch.
    """
    if libc := _glibc():
        for parameter, value in (
            (M_MMAP_THRESHOLD, MMAP_THRESHOLD),
            (M_TRIM_THRESHOLD, TRIM_THRESHOLD),
            (M_TOP_PAD, TOP_PAD),
        ):
            libc.mallopt(parameter, value)
