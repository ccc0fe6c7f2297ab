"""Compiles the entry points of the CPU kernels and caches the machine code on disk.

Responsible for where compiled code is stored, when it is stale and whether a file is what was
written; not responsible for what is compiled.

    DIR/<digest of the sources>/<function>-<digest of CPU, numba and Python>.kernel

numba's own disk cache does not do. It is keyed on the file of the compiled function alone: a change
in a helper that is inlined from another file would go unnoticed, and old machine code would run.
And it unpickles whatever it finds: an empty or damaged file ends the process, a changed one runs.
So numba gets a cache object of ours (``_Cache``), with one file per function that opens with a
digest of its name and content. A digest keeps no user out who can write to the directory: it is
used only if no other user can (utils/cache_directory.py), and so is each file.

DIR is ``NUMBA_CACHE_DIR`` where that is set, else in the user's cache directory.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import platformdirs
from numba import types
from numba.core import ccallback, config, serialize, sigutils
from numba.core.compiler import CompileResult

from chatterbox_opt.kernels.cpu.llvm import NJIT_OPTIONS
from chatterbox_opt.utils import cache_directory
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.utils.steps import announce

log = logging.getLogger(__name__)

WHAT = "compiled kernels"
REMEDY = "set NUMBA_CACHE_DIR to a directory that only you can write to"
MAGIC = b"chatterbox-opt kernel 1\n"
DIGEST_BYTES = 32


@functools.cache
def digest() -> str:
    """A short digest of the sources of all kernels in this folder."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()[:16]


def directory() -> Path | None:
    """Where compiled code of these sources is stored: the first of these that can be written to.

    ``NUMBA_CACHE_DIR`` if it is set; the user's cache directory; next to the sources, as numba does
    by itself. A directory in which others can write is passed over, with a warning.

    Returns:
        None if others can write to all of them: nothing is read or stored.

    Raises:
        RuntimeError: none can be written to; or NUMBA_CACHE_DIR, which is private, cannot.
    """
    chosen = Path(config.CACHE_DIR) if config.CACHE_DIR else None
    if chosen and cache_directory.trusted(chosen, WHAT, REMEDY):
        places = [chosen]
    else:
        users = platformdirs.user_cache_path("chatterbox-opt") / "kernels"
        places = [users, Path(__file__).parent / "__pycache__"]
    own = [place for place in places if cache_directory.trusted(place, WHAT, REMEDY)]
    for folder in (place / digest() for place in own):
        if cache_directory.usable(folder, WHAT, REMEDY):
            return folder
    if own == places:
        raise RuntimeError(f"'{places[0]}' cannot be written to: set NUMBA_CACHE_DIR")
    return None


def read(path: Path) -> bytes | None:
    """The content of a file that ``write`` wrote under this name; None if there is none.

    A file that is anything else, or that another user may have written, is removed, with a warning.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("it is no regular file")
        with path.open("rb") as file:
            status, stored = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        _remove(path, error.strerror or str(error))
        return None
    content = stored[len(MAGIC) + DIGEST_BYTES :]
    if stored != _sealed(path.name, content):
        _remove(path, "its content has changed")
        return None
    if hasattr(os, "getuid") and (reason := cache_directory.fault(status, os.getuid())):
        _remove(path, reason)
        return None
    return content


def write(path: Path, content: bytes) -> None:
    """Store ``content`` with a digest of it and of the file's name.

    A full disk or a directory that has become read-only is logged and costs only time.
    """
    try:
        with atomic_write(path) as part:
            part.chmod(0o600)
            part.write_bytes(_sealed(path.name, content))
    except OSError as error:
        log.warning("%s is not kept in '%s' (%s)", path.name, path.parent, error.strerror)


def _sealed(name: str, content: bytes) -> bytes:
    sha = hashlib.blake2b(name.encode() + b"\0" + content, digest_size=DIGEST_BYTES)
    return MAGIC + sha.digest() + content


def _remove(path: Path, reason: str) -> None:
    log.debug("'%s' is not used (%s)", path, reason)
    cache_directory.warn_once(
        f"compiled kernels in '{path.parent}' are not used ({reason}): compiling again"
    )
    cache_directory.discard(path)


class _Cache:
    """numba's cache of one function (numba.core.caching), in a file of our own.

    Args:
        folder: None neither reads nor stores.
    """

    def __init__(self, function: Callable[[Any], None], folder: Path | None) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self._folder = folder

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled code, or None."""
        target_context.refresh()  # numba fills in what compiled code refers to
        path = self._path(signature, target_context.codegen())
        content = path and read(path)
        if not content:
            announce("compiling the CPU kernels, once: about 15 seconds", rare=True)
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(content))

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Store compiled code, if it holds no addresses of this process."""
        path = self._path(signature, compiled.library.codegen)
        if path and not compiled.library.has_dynamic_globals:
            write(path, serialize.dumps(compiled._reduce()))

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        versions = numba.__version__, sys.implementation.cache_tag
        facts = repr((str(signature), codegen.magic_tuple(), versions))
        key = hashlib.sha256(facts.encode()).hexdigest()[:16]
        return self._folder and self._folder / f"{self._name}-{key}.kernel"


def entry_point(function: Callable[[Any], None]) -> Any:
    """Compile ``function`` as C's ``void (*)(void *)``, or load it from the disk cache.

    Raises:
        RuntimeError: no cache directory can be written to.
    """
    signature = sigutils.normalize_signature(types.void(types.voidptr))
    callback: Any = ccallback.CFunc(function, signature, locals={}, options=NJIT_OPTIONS)
    callback._cache = _Cache(function, directory())
    callback.compile()  # under numba's own lock: engines may load in threads
    return callback
