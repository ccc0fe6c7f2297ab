"""The manifest of a batch: an append-only log with one line of JSON per result of an item.

Responsible for one output directory: its manifest, its lock, and the conditions under which an item
counts as done. Not responsible for synthesis or job files; imports no torch.

    DIR/manifest.jsonl     a line is appended and synced to disk after its item's file is in place
    DIR/manifest.journal   files that are ours without a line in the manifest (journal.py)
    DIR/manifest.lock      held during a run; the system releases it when the process ends

Of several lines with the same id the last one counts, regardless of their times.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from chatterbox_opt.batch import descriptions
from chatterbox_opt.batch.journal import FILE as JOURNAL
from chatterbox_opt.batch.journal import FORGOTTEN, STARTED, Journal, Note
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.utils.atomic_file import PART, remove_stale

log = logging.getLogger(__name__)

FILE = "manifest.jsonl"
LOCK = "manifest.lock"
DONE, FAILED = "done", "failed"
MOVED = "moved"  # the file has another name now
PRUNED = "pruned"  # the file was deleted by --prune
FREED = (MOVED, PRUNED)  # a file of this name is not ours


@dataclass(frozen=True, slots=True)
class Entry:
    """The result of one item. The fields are the keys of a manifest line: they must not change.

    Attributes:
        id: the item's.
        text_hash, settings_hash: hashes of the request (see runner.py).
        status: "done", "failed", "moved" (see resuming.py) or "pruned".
        file: name in the directory; "" if failed.
        size: of the file, bytes.
        duration: of the audio, seconds.
        seconds: computing time.
        seed: the one that was used.
        attempts: maximum over the chunks, plus the retries of the item caused by --verify.
        faults: of the best attempt, detected by the quality checks and --verify.
        error: why it failed.
        time: local time, for information only.
        text, voice: of the item; "" and None in lines of earlier versions.
        sampling: its sampling parameters, by name.
        model: name, precision and whether it is watermarked.
        language: of the item; None also in lines of earlier versions.
        rate: at which it is spoken.
        words: text, start, end and chunk of each (see ``Word``); empty if nobody asked for them.
    """

    id: str
    text_hash: str
    settings_hash: str
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
    text: str = ""
    voice: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    language: str | None = None
    rate: float = 1.0
    words: tuple[tuple[Any, ...], ...] = ()


class Manifest:
    """The open manifest of a directory that this process has locked (see ``open_manifest``).

    Attributes:
        directory: of the files.
        entries: by id, the last of each.
        journal: the files that are ours without an entry.
    """

    def __init__(self, directory: Path, descriptor: int, entries: list[Entry]) -> None:
        self.directory = directory
        self.entries: dict[str, Entry] = {}
        self._descriptor = descriptor
        self._of_file: dict[str, Entry] = {}  # the last of each
        for entry in entries:
            self._note(entry)
        self.journal = Journal(directory)
        self.journal.drop(self._listed())
        self.journal.tidy()

    def _note(self, entry: Entry) -> None:
        self.entries[entry.id] = entry
        if entry.file:
            self._of_file[entry.file] = entry

    def _listed(self) -> list[str]:
        return [file for file, entry in self._of_file.items() if entry.status not in FREED]

    def owns(self, file: str) -> bool:
        """Whether a file, if it is there, was written by this or an earlier run."""
        entry = self._of_file.get(file)
        return file in self.journal.notes or (entry is not None and entry.status not in FREED)

    def start(self, file: str, status: str = STARTED) -> None:
        """Note that a file is about to be written, so that it is ours even after a kill. What
        describes an item's file that is replaced is deleted.

        Raises:
            OSError: disk full, or the directory is gone.
        """
        if status == STARTED:
            captions = descriptions.captions_of(self.journal, file)
            descriptions.remove(self.directory, self.journal, captions)
        if not self.owns(file):
            self.journal.add(Note(file, status))
        elif status == STARTED:
            descriptions.remove_metadata(self.directory, self.journal)

    def forget(self) -> None:
        """Discard all entries; their files stay ours.

        Raises:
            OSError: disk full.
        """
        entries = [self._of_file[file] for file in self._listed()]
        self.journal.add(*(Note(entry.file, FORGOTTEN, entry.size) for entry in entries))
        os.ftruncate(self._descriptor, 0)
        self.entries.clear()
        self._of_file.clear()

    def present(self) -> list[str]:
        """Items' files of all runs that are in place and unchanged."""
        forgotten = [note for note in self.journal.notes.values() if self._is_item(note)]
        return [*(entry.file for entry in self.finished()), *(note.file for note in forgotten)]

    def _is_item(self, note: Note) -> bool:
        size = self._size(note.file)
        return (
            note.status in (STARTED, FORGOTTEN) and size is not None and note.size in (None, size)
        )

    def prune(self, files: Iterable[str]) -> None:
        """Delete files of ours; files that get their names later are not ours.

        Raises:
            OSError: a file cannot be deleted.
            OutputError: as ``append``.
        """
        deleted = []
        for file in files:
            (self.directory / file).unlink(missing_ok=True)
            deleted += [self._of_file[file]] if file in self._of_file else []
        if deleted:
            descriptions.remove_metadata(self.directory, self.journal)
        # of the lines of an id the last one counts: it must not be one of an older file
        last = [self.entries[id] for id in dict.fromkeys(entry.id for entry in deleted)]
        lines = [dataclasses.replace(entry, status=PRUNED) for entry in deleted]
        self.append(*lines, *(entry for entry in last if entry not in deleted))

    def finished(self) -> list[Entry]:
        """Entries whose file is in place, in the order of their lines; one for a file."""
        return [entry for entry in self._of_file.values() if self._in_place(entry)]

    def _in_place(self, entry: Entry) -> bool:
        return entry.status == DONE and entry.size == self._size(entry.file)

    def _size(self, file: str) -> int | None:
        try:
            return (self.directory / file).stat().st_size
        except (OSError, ValueError):  # ValueError: a name that this locale cannot encode
            return None

    def append(self, *entries: Entry) -> list[Entry]:
        """Write a line for each and sync them to disk; return the entries with their time.

        Raises:
            OutputError: disk full, or the manifest was removed or replaced.
        """
        path, time = self.directory / FILE, _now()
        timed = [dataclasses.replace(entry, time=time) for entry in entries]
        lines = [json.dumps(dataclasses.asdict(entry), ensure_ascii=False) for entry in timed]
        # JSON can contain lone surrogates, which UTF-8 cannot encode
        content = "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")
        size_before = os.fstat(self._descriptor).st_size
        try:
            if not os.path.samestat(path.stat(), os.fstat(self._descriptor)):
                raise OutputError(f"'{path}' was replaced by another program: run again")
            while content:
                content = content[os.write(self._descriptor, content) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size_before)  # remove the partial line
            raise OutputError(
                f"could not write '{path}' ({error.strerror}): check that the directory is there "
                "and has free space, and run again to go on"
            ) from error
        for entry in timed:
            self._note(entry)
        self.journal.drop(entry.file for entry in timed)
        return timed


@contextmanager
def open_manifest(directory: Path, *, reset: bool = False) -> Iterator[Manifest]:
    """Lock a directory while the block runs, and load its manifest.

    Cleans up after a killed run: removes a partial last line and partially written files.

    Args:
        reset: discard the entries of earlier runs; their files stay ours.

    Raises:
        InputError: another run holds the lock, it is not a writable directory, or one of its
            files is a directory or a pipe.
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
    _check_regular(directory)
    try:
        lock = filelock.FileLock(directory / LOCK, timeout=0)
        with lock, _open(directory / FILE) as descriptor:
            remove_stale(directory, PART)
            manifest = Manifest(directory, descriptor, _read(descriptor, directory / FILE))
            try:
                if reset:
                    manifest.forget()
                yield manifest
            finally:
                manifest.journal.tidy()
    except filelock.Timeout as error:
        raise InputError(
            f"another run is working in '{directory}': wait for it, or give another --out-dir"
        ) from error


def _check_regular(directory: Path) -> None:
    for path in (directory / name for name in (FILE, LOCK, JOURNAL)):
        if path.exists() and not path.is_file():
            raise InputError(f"'{path}' is no file: remove it, or give another --out-dir")


@contextmanager
def _open(path: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: Path) -> list[Entry]:
    """The entries of all lines; afterwards the file ends with a line break."""
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        content = file.read()
    *lines, tail = content.split(b"\n")
    if tail and _parse(tail):
        os.write(descriptor, b"\n")  # complete except for its line break
        lines.append(tail)
    elif tail:
        log.warning("%s ends in a partial line, of a run that was killed: removed", path)
        os.ftruncate(descriptor, len(content) - len(tail))
    entries = []
    for number, line in enumerate(lines, 1):
        entry = _parse(line)
        if entry is None:
            log.warning("%s line %d is damaged: its item is synthesized again", path, number)
        else:
            entries.append(entry)
    return entries


def _parse(line: bytes) -> Entry | None:
    """A line's entry, None if it is damaged. Unknown keys (of later versions) are ignored."""
    try:
        cells: dict[str, Any] = json.loads(line)
        if "settings" in cells:  # an earlier version: hashes under the names of what they are of
            cells |= {"text_hash": cells["text"], "settings_hash": cells["settings"], "text": ""}
        known = {f.name: cells[f.name] for f in dataclasses.fields(Entry) if f.name in cells}
        if not all(_is_valid(key, value) for key, value in known.items()):
            return None
        entry = Entry(**known)
        words = tuple(tuple(word) for word in entry.words)
        return dataclasses.replace(entry, faults=tuple(entry.faults), words=words)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_valid(key: str, value: Any) -> bool:
    """Whether a field of a line has a value of its kind; a default has."""
    if key == "file":  # a name in the directory: anything else could be moved or deleted elsewhere
        return isinstance(value, str) and not set(value) & set("/\\\0") and value not in (".", "..")
    if key == "faults":
        return isinstance(value, (list, tuple)) and all(isinstance(fault, str) for fault in value)
    if key == "words":
        return isinstance(value, (list, tuple)) and all(map(_is_word, value))
    if key == "sampling":
        return isinstance(value, dict)
    if value is None:
        return key in ("seed", "voice", "language")
    if key in ("size", "seed", "attempts", "duration", "seconds", "rate"):
        return _is_number(value, whole=key not in ("duration", "seconds", "rate"))
    return isinstance(value, str)


def _is_number(value: Any, *, whole: bool) -> bool:
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) < 1 << 64


def _is_word(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return False
    text, *times, chunk = value
    numbers = (*(_is_number(time, whole=False) for time in times), _is_number(chunk, whole=True))
    return isinstance(text, str) and all(numbers)


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
