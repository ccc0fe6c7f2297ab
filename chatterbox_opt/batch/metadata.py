"""Writes what is in a batch's directory as the metadata of a data set.

Responsible for two forms of ``metadata.csv``. Not responsible for the audio files.

- ``csv``: a header, then one row a file, quoted where needed. The first column is ``file_name``, so
  that Hugging Face's AudioFolder reads it.
- ``ljspeech``: ``name|text|text`` without a header or quotes; the name has no extension. The third
  column is for numbers in words, which we have no other text for.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from chatterbox_opt.batch.descriptions import METADATA
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.errors import OutputError
from chatterbox_opt.utils.atomic_file import atomic_write

COLUMNS = ("file_name", "text", "voice", "duration", "seed", "model")


class Metadata(str, Enum):
    """Forms of metadata."""

    CSV = "csv"
    LJSPEECH = "ljspeech"


def write_metadata(directory: Path, entries: Iterable[Entry], form: Metadata) -> Path:
    """Write ``directory/metadata.csv`` for entries that are done, in their order.

    Raises:
        OutputError: it cannot be written.
    """
    target = directory / METADATA
    try:
        with atomic_write(target) as part, part.open("w", encoding="utf-8", newline="") as file:
            if form == Metadata.LJSPEECH:
                file.writelines(_ljspeech_line(entry) for entry in entries)
            else:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                writer.writerows(_cells(entry) for entry in entries)
    except (OSError, UnicodeEncodeError) as error:
        raise OutputError(f"could not write '{target}' ({error}): check the directory") from error
    return target


def _ljspeech_line(entry: Entry) -> str:
    text = " ".join(entry.text.replace("|", " ").split())  # the form has no quotes
    return f"{Path(entry.file).stem}|{text}|{text}\n"


def _cells(entry: Entry) -> tuple[object, ...]:
    voice = "" if entry.voice is None else entry.voice
    return entry.file, entry.text, voice, entry.duration, entry.seed, entry.model
