"""Directories for caches that no other user can write to.

Responsible for creating them and for recognizing one whose files may be another user's: compiled
kernels are machine code, and a user who can write such a file can run code in this process. Not
responsible for the content of files. On Windows, which has no such modes, nothing is checked.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

PRIVATE = 0o700
ROOT_USER = 0
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def fault(status: os.stat_result, user: int) -> str:
    """Why a file or directory may hold what another user wrote, or "".

    Args:
        user: the id of the user who may have written it; the administrator always may.
    """
    if status.st_uid not in (user, ROOT_USER):
        return f"it belongs to another user, {status.st_uid}"
    if status.st_mode & OTHERS_WRITE:
        return f"others can write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def parent_fault(status: os.stat_result) -> str:
    """Why others can replace what is in a directory of whatever owner, or "".

    Everybody's directory with the sticky bit, such as the one for temporary files, is none.
    """
    everybody = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    return f"others can replace it (mode {stat.S_IMODE(status.st_mode):o})" if everybody else ""


def directory_fault(path: Path) -> str:
    """Why a directory cannot hold a cache that is trusted, or ""; it may be absent.

    Raises:
        OSError: it cannot be looked at.
    """
    if not hasattr(os, "getuid"):
        return ""
    path, user = path.absolute(), os.getuid()
    reason = ""
    if path.is_symlink() and path.lstat().st_uid not in (user, ROOT_USER):
        reason = "it is another user's symbolic link"
    elif path.exists():
        reason = fault(path.stat(), user)
    parents = (parent for parent in path.resolve().parents if parent.exists())
    return reason or next(filter(None, (parent_fault(p.stat()) for p in parents)), "")


def listed(path: Path) -> list[Path]:
    """What is in a directory, sorted; nothing of one that is absent or that this user cannot enter,
    of which the latter is said once."""
    try:
        return sorted(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        warn_once(f"'{path}' cannot be read ({error.strerror}): what is in it is not used")
        return []


def create(path: Path) -> None:
    """Create a directory and its missing parents for this user alone.

    Raises:
        OSError: it cannot be created.
    """
    if not path.is_dir():
        create(path.parent)
        path.mkdir(mode=PRIVATE, exist_ok=True)


def trusted(path: Path, what: str, remedy: str) -> bool:
    """Whether a directory, present or absent, is used as a cache; if not, warn once.

    Args:
        what: what would be in it, for the warning.
        remedy: for the warning.
    """
    try:
        reason = directory_fault(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links in a loop
        reason = f"{error}"
    if reason:
        warn_once(f"'{path}' is not used for {what}: {reason}; {remedy}")
    return not reason


def usable(path: Path, what: str, remedy: str) -> bool:
    """Whether a directory, created if it is absent, can be written to and is ``trusted``."""
    try:
        create(path)
    except OSError:
        return False
    return os.access(path, os.W_OK) and trusted(path, what, remedy)


def discard(path: Path) -> None:
    """Remove a file of a cache, or an empty directory in its place; if possible."""
    try:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("'%s' was not removed (%s)", path, error.strerror)


@functools.cache
def warn_once(message: str) -> None:
    """Warn once in each process, however many files of a cache are read."""
    log.warning("%s", message)
