"""Files that a command reads, and that it must not replace by what it writes.

Responsible for finding them on disk, whatever name they have there. Not responsible for other files
that are in the way (batch/resuming.py), or for whether one can be written (audio/files.py).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.errors import InputError, VoiceError
from chatterbox_opt.voices.store import VoiceStore

STDIN = "-"


def check_kept(inputs: Iterable[str | Path | None], outputs: Iterable[str | None]) -> None:
    """Check that no output replaces an input, before any work.

    Two names of one file are one: links count. A pipe or a device is written to and not replaced,
    so it may be both.

    Args:
        inputs: files that are read; ``-`` is standard input. None, and what is no file, is left
            out.
        outputs: files that are written; None is left out.

    Raises:
        InputError: one would.
    """
    read = _read(inputs)
    for output in outputs:
        if output is None or audio_files.is_stream(output):
            continue
        identity = _identity(output)
        if identity is not None and (input := read.get(identity)):
            name = "standard input" if input == STDIN else f"'{input}'"
            raise InputError(
                f"'{output}' would replace {name}, which is read: give the output another name"
            )


def not_read(inputs: Iterable[str | Path | None], files: Iterable[Path]) -> list[Path]:
    """The files that are none of the inputs, under any name; ``inputs`` as of ``check_kept``."""
    read = _read(inputs)
    return [file for file in files if _identity(file) not in read]


def recordings(voices: Iterable[str | None], store: VoiceStore) -> Iterator[Path]:
    """The recordings of voices that are files or saved names, each once; of no others."""
    for voice in dict.fromkeys(voices):
        if voice is not None:
            with contextlib.suppress(VoiceError):
                yield store.find(voice)


def _read(inputs: Iterable[str | Path | None]) -> dict[tuple[int, int], str | Path]:
    """The inputs that are regular files, by what they are."""
    known = ((_identity(name), name) for name in inputs if name is not None)
    return {identity: name for identity, name in known if identity is not None}


def _identity(name: str | Path) -> tuple[int, int] | None:
    """What a regular file is, under any name; None: it is none."""
    try:
        status = os.stat(0 if name == STDIN else name)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
