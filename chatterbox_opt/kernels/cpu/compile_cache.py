"""Compiles the entry points of the CPU kernels and caches the machine code on disk.

Responsible for where compiled code is stored, when it is stale, whether a file is what was written,
and that the same code runs whether it was stored or has just been compiled; not responsible for
what is compiled.

    DIR/<digest of the sources>/<function>-<digest of CPU, numba and Python>.kernel

A file holds a name and an ELF object: the kernel and all functions that it calls.

Why not numba's disk cache: it is keyed on the file of the compiled function alone, so a change in a
helper that is inlined from another file would go unnoticed, and old machine code would run. And it
unpickles whatever it finds: an empty or damaged file ends the process, a changed one runs. A file
here opens with a digest of its name and content. A digest keeps no user out who can write to the
directory: it is used only if no other user can (utils/cache_directory.py), and so is each file.

Why each kernel is linked by itself: numba compiles every helper as a library of its own, then
copies its code into the kernel's library and optimizes it once more. Both copies have the same
symbol, and the linker takes whichever the process has already: the first copy in a process that
has compiled, the second in one that has loaded a file. They add floats in another order, so that
the same request would get other speech on its first start than on its second.

DIR is ``NUMBA_CACHE_DIR`` where that is set, else in the user's cache directory.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import platformdirs
from numba import types
from numba.core import config
from numba.core.registry import cpu_target

from chatterbox_opt.kernels.cpu.llvm import NJIT_OPTIONS
from chatterbox_opt.utils import cache_directory
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.utils.steps import announce

log = logging.getLogger(__name__)

WHAT = "compiled kernels"
REMEDY = "set NUMBA_CACHE_DIR to a directory that only you can write to"
MAGIC = b"chatterbox-opt kernel 2\n"
DIGEST_BYTES = 32


@functools.cache
def digest() -> str:
    """A short digest of the sources of all kernels in this folder and below."""
    sha, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        sha.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
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


@dataclass(frozen=True, slots=True)
class Kernel:
    """A C function ``void (*)(void *)`` in this process; openmp.py calls it.

    Attributes:
        address: of the function; valid as long as ``engine`` lives.
        engine: LLVM's, which owns the code.
    """

    address: int
    engine: Any


def entry_point(function: Callable[[Any], None]) -> Kernel:
    """Compile ``function`` as C's ``void (*)(void *)``, or load it from the disk cache.

    Raises:
        RuntimeError: no cache directory can be written to, or LLVM fails.
    """
    context = cpu_target.target_context
    context.refresh()  # numba's own functions become symbols that code may refer to
    folder = directory()
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    versions = numba.__version__, sys.implementation.cache_tag
    key = hashlib.sha256(repr((context.codegen().magic_tuple(), versions)).encode())
    path = folder and folder / f"{name}-{key.hexdigest()[:16]}.kernel"
    content = path and read(path)
    if not content:
        announce("compiling the CPU kernels, once: about 15 seconds", rare=True)
        content = _compile(function)
        if path:
            write(path, content)
    return _linked(content)


def _compile(function: Callable[[Any], None]) -> bytes:
    """The symbol of the compiled function, a zero byte, and an object file."""
    compiled = numba.cfunc(types.void(types.voidptr), **NJIT_OPTIONS)(function)
    # numba has no public way to a callback's library
    assert not compiled._library.has_dynamic_globals, "it holds addresses of this process"
    _, _, (code, _) = compiled._library.serialize_using_object_code()
    return bytes(compiled.native_name.encode() + b"\0" + code)


def _linked(content: bytes) -> Kernel:
    """Link what ``_compile`` returned, with no other kernel's symbols in reach."""
    symbol, _, code = content.partition(b"\0")
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernel(engine.get_function_address(symbol.decode()), engine)
