"""Directories of saved voices: recordings whose file names are the voices' names.

Responsible for their names and for moving them between directories without losing one. Not
responsible for where the directories are (voices/store.py) or for what is in a recording.
"""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import logging
import mimetypes
import os
import re
import shutil
from pathlib import Path

from chatterbox_opt.utils import cache_directory
from chatterbox_opt.utils.atomic_file import atomic_write

HEADER = 4096  # bytes; every audio format has a zero byte among them, text has none
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

log = logging.getLogger(__name__)


def voices(directory: Path) -> dict[str, Path]:
    """Voices of a directory, sorted, with their recordings; of several the latest one."""
    latest = {path.stem: path for path in _recordings(directory)}
    return {name: latest[name] for name in sorted(latest)}


def recordings_of(name: str, directory: Path) -> list[Path]:
    """All recordings of a voice in a directory, the latest last; none, if it is no voice there.

    Several, if a process was killed while it replaced one, or a person put one next to it.
    """
    return [path for path in _recordings(directory) if path.stem == name]


def _recordings(directory: Path) -> list[Path]:
    """All files that are named as voices are and that may be recordings, the latest last."""
    changed = {}
    for path in cache_directory.listed(directory):
        with contextlib.suppress(FileNotFoundError):  # another process has replaced or moved it
            if NAME.fullmatch(path.stem) and os.path.isfile(path) and _may_be_recording(path):
                changed[path] = (path.stat().st_mtime_ns, path.name)
    return sorted(changed, key=changed.__getitem__)


def _may_be_recording(path: Path) -> bool:
    """Whether it is neither text nor a document, such as a transcript next to a recording; an
    extension is not needed."""
    kind, _ = mimetypes.guess_type(path.name)
    if kind is not None:
        return kind.startswith(("audio/", "video/", "application/ogg"))
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(HEADER)
    except PermissionError:
        return True  # its use is an error that says why


def move(source: Path, target: Path) -> None:
    """Move all voices to another directory, which may be on another disk; logs what was moved.

    Each is copied completely before the original is deleted, so a crash, a full disk or a second
    process loses none. If ``target`` has another recording of that name, the moved one gets a
    number. One that cannot be moved stays where it is.
    """
    found = voices(source)
    if not found or source.resolve() == target.resolve():
        return
    moved = []
    for name, path in found.items():
        try:
            moved.append(_move(name, path, target))
        except FileNotFoundError:
            continue  # another process has moved it
        except OSError as error:
            log.info("saved voice %s stays in %s (%s)", name, source, error.strerror)
    if moved:
        log.warning("saved voices moved from %s to %s: %s", source, target, ", ".join(moved))
    with contextlib.suppress(OSError):  # not empty
        source.rmdir()


def _move(name: str, path: Path, directory: Path) -> str:
    """Return the name in the new directory."""
    directory.mkdir(parents=True, exist_ok=True)
    there = voices(directory)
    numbered = (f"{name[:59]}-{number}" for number in itertools.count(2))
    for free in itertools.chain([name], numbered):
        if free not in there:
            with atomic_write(directory / f"{free}{path.suffix}") as part:
                shutil.copyfile(path, part)
            break
        if filecmp.cmp(path, there[free], shallow=False):
            break  # copied by a run that was killed before it deleted the original
    path.unlink(missing_ok=True)
    return free if free == name else f"{name} (as {free})"
