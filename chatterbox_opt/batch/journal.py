"""Which files of an output directory are ours although the manifest has no line for them.

    DIR/manifest.journal   a line of JSON for each; absent if there is none

Responsible for noting a file before it is written, so that a run may replace what a killed one
left, and nothing else. Not responsible for files that the manifest knows (manifest.py).

- ``started``: an item's file, noted and synced before it appears; its line in the manifest follows.
- ``forgotten``: an item's file whose line was discarded by ``--force``.
- ``output``: the joined file, relative to the directory, and ``metadata.csv``.

A file that gets a line in the manifest is dropped here, as is one that is gone. A started file may
have a line too, if the process was killed before the journal was rewritten: ``open_manifest`` drops
it before anything is renamed, so a name that a rename has freed never passes for one that was
started.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chatterbox_opt.utils.atomic_file import atomic_write

FILE = "manifest.journal"
STARTED, FORGOTTEN, OUTPUT = "started", "forgotten", "output"


@dataclass(frozen=True, slots=True)
class Note:
    """A file of ours.

    Attributes:
        file: name in the directory, or path relative to it.
        status: "started", "forgotten" or "output".
        size: bytes, if it was complete when it was noted.
    """

    file: str
    status: str
    size: int | None = None


class Journal:
    """The notes of a directory that this process has locked.

    Attributes:
        notes: by file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.notes = {note.file: note for note in _read(directory / FILE)}

    def add(self, *notes: Note) -> None:
        """Append notes and sync them to disk.

        Raises:
            OSError: disk full, or the directory is gone.
        """
        if not notes:
            return
        lines = [json.dumps(dataclasses.asdict(note)) + "\n" for note in notes]
        with (self._directory / FILE).open("a", encoding="ascii") as file:
            file.write("".join(["\n", *lines]))  # the last line may be partial
            file.flush()
            os.fsync(file.fileno())
        self.notes |= {note.file: note for note in notes}

    def drop(self, files: Iterable[str]) -> None:
        """Remove files from the notes; they stay in the file until ``tidy``."""
        for file in files:
            self.notes.pop(file, None)

    def tidy(self) -> None:
        """Forget the files that are gone, and rewrite the journal; without notes there is none.

        A failure leaves the file as it is.
        """
        self.drop([file for file in self.notes if not os.path.lexists(self._directory / file)])
        path = self._directory / FILE
        lines = [json.dumps(dataclasses.asdict(note)) + "\n" for note in self.notes.values()]
        with suppress(OSError):
            if not lines:
                path.unlink(missing_ok=True)
            elif path.read_text(encoding="ascii") != "".join(lines):
                with atomic_write(path, sweep=False) as part:
                    part.write_text("".join(lines), encoding="ascii")


def _read(path: Path) -> list[Note]:
    """The notes of all lines that are not damaged."""
    notes = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            cells = json.loads(line)
            note = Note(cells["file"], cells["status"], cells.get("size"))
            if isinstance(note.file, str):
                notes.append(note)
    return notes
