"""Compiles the entry points of the CPU kernels and keeps the machine code on disk.

Responsible for where the compiled code is kept and when it is stale. Not responsible for what is
compiled.

numba's own disk cache looks at the file of the compiled function alone: a change in a helper that
is inlined from another file would go unnoticed, and old machine code would run. So the cache of
these kernels is a directory named after a digest of all source files in this folder. It lies under
``NUMBA_CACHE_DIR`` where that is set, else under the user's cache directory.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from numba import cfunc, types
from numba.core import config

from chatterbox_opt.kernels.cpu.llvm import NJIT_OPTIONS


@functools.cache
def digest() -> str:
    """A short digest of the sources of all kernels in this folder."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def directory() -> Path:
    """Where compiled code of these sources is kept."""
    base = config.CACHE_DIR or platformdirs.user_cache_path("chatterbox-opt") / "kernels"
    return Path(base) / digest()


@contextmanager
def _numba_caches_in(where: Path) -> Iterator[None]:
    """numba fixes a function's cache directory when the function is declared."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(where)
    try:
        yield
    finally:
        config.CACHE_DIR = before


def entry_point(function: Callable[[Any], None]) -> Any:
    """Compile ``function`` of one address (``void (*)(void *)``), or take it from the disk cache.

    Raises:
        RuntimeError: the cache directory cannot be written to.
    """
    with _numba_caches_in(directory()):
        return cfunc(types.void(types.voidptr), cache=True, **NJIT_OPTIONS)(function)
