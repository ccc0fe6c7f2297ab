"""What a batch has done: one line of JSON for each attempt at an item, never rewritten.

Knows one directory: its manifest, its lock, and what an item's file must look like to count as
done. Knows nothing of speech or of job files, and imports no torch.

    DIR/manifest.jsonl   appended to, flushed to the disk after each item's file is in its place
    DIR/manifest.lock    held while a run works here; the system drops it with the process

Of several lines of one item the last counts, whatever their times say.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.utils.atomic_file import PART

log = logging.getLogger(__name__)

FILE = "manifest.jsonl"
LOCK = "manifest.lock"
DONE, FAILED = "done", "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one item.

    Attributes:
        id: the item's.
        text, settings: hashes of what was asked.
        status: "done" or "failed".
        file: name in the directory; "" if failed.
        size: of the file, bytes.
        duration: of the sound, seconds.
        seconds: of work.
        seed: the one that was used.
        attempts: the most that one chunk took, with what --verify asked for.
        faults: what the guard still found in it; empty for good speech.
        error: why it failed.
        time: when, by the clock of the machine; for people.
    """

    id: str
    text: str
    settings: str
    status: str
    file: str = ""
    size: int = 0
    duration: float = 0.0
    seconds: float = 0.0
    seed: int | None = None
    attempts: int = 0
    faults: tuple[str, ...] = ()
    error: str = ""
    time: str = ""


class Manifest:
    """The open manifest of a directory that this process has for itself (see ``open_manifest``)."""

    def __init__(self, directory: Path, descriptor: int, entries: dict[str, Entry]) -> None:
        self.directory = directory
        self._descriptor = descriptor
        self._entries = entries

    def done(self, id: str, text: str, settings: str, file: str) -> Entry | None:
        """The entry of an item that needs no work: same text and settings, its file in place."""
        entry = self._entries.get(id)
        wanted = (DONE, text, settings, file)
        if entry is None or (entry.status, entry.text, entry.settings, entry.file) != wanted:
            return None
        try:
            there = (self.directory / file).stat().st_size == entry.size
        except OSError:
            there = False
        return entry if there else None

    def append(self, entry: Entry) -> Entry:
        """Write a line and wait until the disk has it; return the entry with its time.

        Raises:
            OutputError: disk full, or the manifest was removed or replaced.
        """
        path = self.directory / FILE
        entry = dataclasses.replace(entry, time=_now())
        line = json.dumps(dataclasses.asdict(entry), ensure_ascii=False) + "\n"
        # a lone surrogate, which JSON can smuggle in, has no UTF-8 of its own
        content = line.encode("utf-8", "backslashreplace")
        before = os.fstat(self._descriptor).st_size
        try:
            if not os.path.samestat(path.stat(), os.fstat(self._descriptor)):
                raise OutputError(f"'{path}' was replaced by another program: run again")
            while content:
                content = content[os.write(self._descriptor, content) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)  # no half line before the next
            raise OutputError(
                f"could not write '{path}' ({error.strerror}): check that the directory is there "
                "and has free space, and run again to go on"
            ) from error
        self._entries[entry.id] = entry
        return entry


@contextmanager
def open_manifest(directory: Path, *, anew: bool = False) -> Iterator[Manifest]:
    """Have a directory for oneself while the block runs, with what was done there before.

    What a killed run left is put right: a torn last line goes, half-written files go.

    Args:
        anew: forget what was done.

    Raises:
        InputError: another run works there, or it is not a directory that can be written to.
    """
    import filelock

    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / LOCK).touch()
    except OSError as error:
        reason = "it is a file" if directory.is_file() else error.strerror
        raise InputError(
            f"'{directory}' cannot be written to ({reason}): give another --out-dir"
        ) from error
    try:
        lock = filelock.FileLock(directory / LOCK, timeout=0)
        with lock, _descriptor(directory / FILE, anew=anew) as descriptor:
            for left in directory.iterdir():
                if PART.fullmatch(left.name):
                    left.unlink(missing_ok=True)
            entries = _read(descriptor, directory / FILE)
            yield Manifest(directory, descriptor, entries)
    except filelock.Timeout as error:
        raise InputError(
            f"another run is working in '{directory}': wait for it, or give another --out-dir"
        ) from error


@contextmanager
def _descriptor(path: Path, *, anew: bool) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | (os.O_TRUNC if anew else 0), 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: Path) -> dict[str, Entry]:
    """Entries by id, the last of each; the file ends at a line's end afterwards."""
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        content = file.read()
    *lines, tail = content.split(b"\n")
    if tail and _entry(tail):
        os.write(descriptor, b"\n")  # whole but for its end
        lines.append(tail)
    elif tail:
        log.warning("%s ends in half a line, of a run that was killed: dropped", path)
        os.ftruncate(descriptor, len(content) - len(tail))
    entries: dict[str, Entry] = {}
    owners: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        entry = _entry(line)
        if entry is None:
            log.warning("%s line %d is damaged: what it said is done again", path, number)
            continue
        entries[entry.id] = entry
        if entry.file:
            owners[entry.file] = entry.id
    # a file that another item was written over is no longer this one's
    return {id: e for id, e in entries.items() if not e.file or owners[e.file] == id}


def _entry(line: bytes) -> Entry | None:
    """A line's entry; None where it is damaged. Keys of later versions are passed over."""
    try:
        found: dict[str, Any] = json.loads(line)
        known = {f.name: found[f.name] for f in dataclasses.fields(Entry) if f.name in found}
        entry = Entry(**known)
        if not (isinstance(entry.id, str) and isinstance(entry.file, str)):
            return None
        return dataclasses.replace(entry, faults=tuple(entry.faults))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
