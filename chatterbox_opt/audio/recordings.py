"""Which files are read as reference recordings: regular ones up to a size, and pipes.

Responsible for access, before anything is decoded. Not responsible for formats (audio/decoders.py).
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from chatterbox_opt.errors import VoiceError

MAX_FILE_BYTES = 2 << 30  # of a regular file; the whole of it is hashed
BLOCK = 1 << 20  # bytes per read, so that Ctrl-C is heard in between


@dataclass(frozen=True, slots=True)
class Use:
    """What a recording is read for.

    Attributes:
        name: of the recording, in messages.
        pipe_bytes: at most, of what a pipe sends.
        remedy: for one that is too large.
    """

    name: str
    pipe_bytes: int
    remedy: str


# five minutes of 96 kHz stereo in 24 bits
VOICE = Use("voice", 256 << 20, "save some seconds of its speech in a new file")
SPEECH = Use("recording", MAX_FILE_BYTES, "cut it into parts")


def check_file(path: Path, use: Use = VOICE) -> None:
    """Check that a recording can be opened; reads nothing.

    Raises:
        VoiceError: no such file, a directory, a device, empty, too large, or not readable.
    """
    what = use.name
    if os.path.isdir(path):  # unlike pathlib's methods, these accept names that are too long
        raise VoiceError(f"{what} '{path}' is a directory; use an audio file")
    if not os.path.exists(path):
        raise VoiceError(f"there is no {what} file '{path}'; check the path")
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise VoiceError(f"{what} '{path}' is a device or a socket; use an audio file")
    if not os.access(path, os.R_OK):
        raise VoiceError(f"{what} file '{path}' cannot be read; check its permissions")
    if stat.S_ISFIFO(status.st_mode):
        return
    if status.st_size == 0:
        raise VoiceError(f"{what} file '{path}' is empty; use a recording of speech")
    if status.st_size > MAX_FILE_BYTES:
        raise VoiceError(
            f"{what} file '{path}' has {status.st_size / 2**30:.1f} GiB, at most "
            f"{MAX_FILE_BYTES >> 30} GiB are read; {use.remedy}"
        )


def is_pipe(path: Path) -> bool:
    """Whether the path is a pipe (a FIFO, ``<(command)`` in a shell): it can be read only once."""
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


@contextmanager
def regular_file(path: Path, use: Use = VOICE) -> Iterator[Path]:
    """Yield a file that can be read more than once: the path itself, or a copy of a pipe's content.

    The copy is deleted at the end of the block.

    Raises:
        VoiceError: as ``check_file``; the pipe sent nothing, or too much.
    """
    check_file(path, use)
    if not is_pipe(path):
        yield path
        return
    with path.open("rb", buffering=0) as pipe, copied(pipe, f"pipe '{path}'", use) as copy:
        yield copy


@contextmanager
def copied(pipe: RawIOBase | BinaryIO, name: str, use: Use) -> Iterator[Path]:
    """Yield a copy of what a pipe or standard input sends; it is deleted at the end of the block.

    Args:
        name: of the source, in messages.

    Raises:
        VoiceError: nothing or too much came, it cannot be read, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-pipe-") as directory:
        copy = Path(directory) / "pipe"
        try:
            _copy(pipe, copy, name, use)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ENOSPC:
                raise VoiceError(
                    f"{name} cannot be copied to '{directory}' ({reason}); use a file, or "
                    "set TMPDIR to a directory with free space"
                ) from error
            raise VoiceError(f"{name} cannot be read ({reason}); use a file") from error
        yield copy


def _copy(source: RawIOBase | BinaryIO, copy: Path, name: str, use: Use) -> None:
    total = 0
    with copy.open("wb") as target:
        while block := source.read(BLOCK):
            total += target.write(block)
            if total > use.pipe_bytes:
                raise VoiceError(f"{name} sends more than {use.pipe_bytes >> 20} MiB; {use.remedy}")
    if not total:
        raise VoiceError(f"{name} sent nothing; check the command that writes to it")
