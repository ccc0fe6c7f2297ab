"""Directories of saved voices: recordings whose file names are the voices' names.

Responsible for their names and for moving them between directories without losing one. Not
responsible for where the directories are (voices/store.py) or for what is in a recording.
"""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import logging
import re
import shutil
from pathlib import Path

from chatterbox_opt.utils.atomic_file import atomic_write

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

log = logging.getLogger(__name__)


def voices(directory: Path) -> dict[str, Path]:
    """Voices of a directory, sorted, with their recordings."""
    return {path.stem: path for path in _recordings(directory)}


def recordings_of(name: str, directory: Path) -> list[Path]:
    """All recordings of a voice in a directory, sorted; none, if it is no voice there.

    Several, if a process was killed while it replaced one, or a person put one next to it.
    """
    return [path for path in _recordings(directory) if path.stem == name]


def _recordings(directory: Path) -> list[Path]:
    """All files that are named as voices are, sorted; an extension is not needed."""
    paths = sorted(directory.glob("*"))
    return [path for path in paths if NAME.fullmatch(path.stem) and path.is_file()]


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
