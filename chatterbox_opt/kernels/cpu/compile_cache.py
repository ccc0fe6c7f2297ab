"""Compiles the entry points of the CPU kernels and caches the machine code on disk.

Responsible for where compiled code is stored and when it is stale; not responsible for what is
compiled.

numba's disk cache is keyed on the file of the compiled function alone: a change in a helper that
is inlined from another file would go unnoticed, and old machine code would run. So the cache of
these kernels is a directory named after a digest of all source files in this folder. It is below
``NUMBA_CACHE_DIR`` where that is set, else below the user's cache directory.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from numba import cfunc, types
from numba.core import config

from chatterbox_opt.kernels.cpu.llvm import NJIT_OPTIONS
from chatterbox_opt.utils.steps import announce

_LOCK = threading.Lock()  # numba's setting is the process's, and engines may load in threads


@functools.cache
def digest() -> str:
    """A short digest of the sources of all kernels in this folder."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()[:16]


def directory() -> Path:
    """Where compiled code of these sources is stored: the first of these that can be written to.

    ``NUMBA_CACHE_DIR`` if it is set, and nothing else; the user's cache directory; next to the
    sources, as numba does by itself.

    Raises:
        RuntimeError: none can be written to.
    """
    places = (
        [Path(config.CACHE_DIR)]
        if config.CACHE_DIR
        else [
            platformdirs.user_cache_path("chatterbox-opt") / "kernels",
            Path(__file__).parent / "__pycache__",
        ]
    )
    for folder in (place / digest() for place in places):
        if _is_writable(folder):
            return folder
    raise RuntimeError(f"'{places[0]}' cannot be written to: set NUMBA_CACHE_DIR")


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextmanager
def _numba_cache_dir(path: Path) -> Iterator[None]:
    """Set numba's cache directory, which it reads when a function is declared."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(path)
    try:
        yield
    finally:
        config.CACHE_DIR = before


def is_compiled(function: Callable[[Any], None], folder: Path) -> bool:
    """Whether there is compiled code of ``function`` in ``folder``, for whatever CPU.

    numba has no callback for a cache miss; this is its name for the index of a function's code.
    """
    return any(folder.rglob(f"*.{function.__qualname__}-*.nbi"))


def entry_point(function: Callable[[Any], None]) -> Any:
    """Compile ``function`` as C's ``void (*)(void *)``, or load it from the disk cache.

    Raises:
        RuntimeError: no cache directory can be written to.
    """
    folder = directory()
    if not is_compiled(function, folder):
        announce("compiling the CPU kernels, once: about 15 seconds", rare=True)
    with _LOCK, _numba_cache_dir(folder):
        return cfunc(types.void(types.voidptr), cache=True, **NJIT_OPTIONS)(function)
