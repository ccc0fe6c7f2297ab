"""Atomic file writes: a file appears completely or not at all.

Responsible for temporary names, syncing and renaming, and for the temporary files of processes that
were killed. Not responsible for the content.

A temporary file is locked (flock) by the process that writes it. The system releases the lock when
the process ends, however it ends: a temporary file that can be locked by another process is stale.
Unlike a process id in the name this also holds on a disk that containers or machines share. Where
there are no locks (Windows, some network file systems) a file counts as stale after a day.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# names in directories that have only our files, where earlier versions used shorter ones
PART = re.compile(r"\.(chatterbox-)?[0-9a-f]{16}\.part")
_OURS = re.compile(r"\.chatterbox-[0-9a-f]{16}\.part")  # names in any directory
_STALE_SECONDS = 86_400  # where files cannot be locked
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


@contextmanager
def atomic_write(target: Path, *, sweep: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to ``target``; it is renamed to ``target`` when the block ends.

    If the block is left by an exception, Ctrl-C included, the temporary file is removed and an
    existing ``target`` is unchanged. Two processes may write the same target: the last rename wins.

    Args:
        sweep: first remove the temporary files of killed processes from the directory. False for
            one of many files, in a directory where ``remove_stale`` was called before.

    Raises:
        OSError: the directory is not writable, or the disk is full.
    """
    if sweep:
        remove_stale(target.parent)
    with _locked(target.parent, _create_file) as part:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may only be reported here, before the rename
        os.replace(part, target)


@contextmanager
def temporary_directory(parent: Path) -> Iterator[Path]:
    """Yield a directory in ``parent`` for files that are renamed when they are complete.

    It is removed when the block ends, unless it was itself renamed; stale ones are removed first.

    Raises:
        OSError: ``parent`` is not writable.
    """
    remove_stale(parent)
    with _locked(parent, _create_directory) as part:
        yield part


def remove_stale(directory: Path, names: re.Pattern[str] = _OURS) -> None:
    """Remove the temporary files that killed processes left in a directory, if it can be read.

    Args:
        names: ``PART`` in a directory that has only our files.
    """
    with contextlib.suppress(OSError):
        for path in [path for path in directory.iterdir() if names.fullmatch(path.name)]:
            _remove_if_stale(path)


def _create_file(part: Path) -> None:
    part.open("xb").close()


def _create_directory(part: Path) -> None:
    part.mkdir()


@contextmanager
def _locked(parent: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """Create a temporary path that no other process takes for stale while the block runs."""
    while True:
        part = parent / f".chatterbox-{secrets.token_hex(8)}.part"
        with contextlib.ExitStack() as stack:
            stack.callback(_remove, part)
            create(part)
            try:
                descriptor = _open(part)
                stack.callback(os.close, descriptor)
                if _lock(descriptor) is False or not _is(part, descriptor):
                    continue  # taken for stale between its creation and its lock
            except FileNotFoundError:
                continue
            yield part
            return


def _remove_if_stale(path: Path) -> None:
    """Remove a temporary file or directory of a process that has ended."""
    with contextlib.suppress(OSError):  # gone, or another user's
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return
        descriptor = _open(path)
        try:
            unlocked = _lock(descriptor)
            is_old = time.time() - status.st_mtime > _STALE_SECONDS
            if is_old if unlocked is None else unlocked:
                # while it is locked: its creator may just be about to lock it, and then notices
                _remove(path)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor to lock."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was free (it is held until the descriptor is closed); None: no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is(path: Path, descriptor: int) -> bool:
    return fcntl is None or os.path.samestat(path.lstat(), os.fstat(descriptor))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
