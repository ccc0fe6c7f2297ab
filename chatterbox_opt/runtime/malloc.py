"""The process's heap, where its allocator can be told: glibc on Linux, nothing elsewhere.

Knows what glibc does with freed memory. Knows nothing of what is in it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# mallopt's numbers (malloc.h)
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGE = 32 << 20  # bytes: the largest threshold that glibc takes
KEPT = 1 << 30  # bytes of free memory at the heap's end that stay
AHEAD = 64 << 20  # bytes by which the heap grows


def _glibc() -> Any:
    """The C library, or None where it is another one."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def trim() -> None:
    """Give freed memory back to the system.

    Of the float32 matrices that a narrow T3 is made of, holes of 340 MB stayed with the process.
    """
    if libc := _glibc():
        libc.malloc_trim(0)


def keep_freed_pages() -> None:
    """From now on keep what is freed, up to a bound, for what is asked for next.

    On the processor every layer frees its tensors and asks for the same sizes again. What glibc
    had given back has to be mapped, zeroed and faulted in anew: a sixth of T3's time with eight
    utterances side by side.
    """
    if libc := _glibc():
        for parameter, value in (
            (MMAP_THRESHOLD, LARGE),
            (TRIM_THRESHOLD, KEPT),
            (TOP_PAD, AHEAD),
        ):
            libc.mallopt(parameter, value)
