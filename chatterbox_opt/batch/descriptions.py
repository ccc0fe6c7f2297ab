"""Files of ours that describe audio files: captions next to them, and ``metadata.csv``.

Responsible for their names, and for removing those that describe other audio than is there now.
Not responsible for their content (joining/timestamps.py, metadata.py), or for renaming
(resuming.py).

Only files that the journal has as output of a run count: others are of the user.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path, PurePath

from chatterbox_opt.batch.journal import OUTPUT, Journal

METADATA = "metadata.csv"


class CaptionFormat(str, Enum):
    """Formats of caption files."""

    SRT = "srt"
    VTT = "vtt"
    JSON = "json"


CAPTIONS = tuple(f".{form.value}" for form in CaptionFormat)


def caption_name(file: str, form: CaptionFormat) -> str:
    """The caption file of an audio file: a name, or a path."""
    return str(PurePath(file).with_suffix(f".{form.value}"))


def captions_of(journal: Journal, file: str) -> list[str]:
    """Caption files of an audio file."""
    named = (caption_name(file, form) for form in CaptionFormat)
    return [name for name in named if _is_output(journal, name)]


def stale_captions(journal: Journal, files: Iterable[str]) -> list[str]:
    """Caption files in the directory that are of none of the audio files, nor of a joined one."""
    joined = (note.file for note in journal.notes.values() if note.status == OUTPUT)
    described = {PurePath(file).stem for file in files}
    described |= {PurePath(file).stem for file in joined if PurePath(file).suffix not in CAPTIONS}
    return [
        name
        for name in journal.notes
        if _is_output(journal, name)
        and PurePath(name).suffix in CAPTIONS
        and PurePath(name).name == name
        and PurePath(name).stem not in described
    ]


def remove(directory: Path, journal: Journal, names: Iterable[str]) -> None:
    """Delete files of ours, and forget them.

    Raises:
        OSError: one cannot be deleted.
    """
    for name in names:
        (directory / name).unlink(missing_ok=True)
        journal.drop([name])


def remove_metadata(directory: Path, journal: Journal) -> None:
    """Delete ``metadata.csv`` if it is ours. Raises as ``remove``."""
    if _is_output(journal, METADATA):
        remove(directory, journal, [METADATA])


def _is_output(journal: Journal, name: str) -> bool:
    note = journal.notes.get(name)
    return note is not None and note.status == OUTPUT
