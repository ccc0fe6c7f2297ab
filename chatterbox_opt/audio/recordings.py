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
from pathlib import Path

from chatterbox_opt.errors import VoiceError

MAX_FILE_BYTES = 2 << 30  # of a regular file; the whole of it is hashed
MAX_PIPE_BYTES = 256 << 20  # of what a pipe sends: five minutes of 96 kHz stereo in 24 bits
BLOCK = 1 << 20  # bytes per read, so that Ctrl-C is heard in between


def check_file(path: Path, what: str = "voice") -> None:
    """Check that a recording can be opened; reads nothing.

    Args:
        what: it is, in messages.

    Raises:
        VoiceError: no such file, a directory, a device, empty, too large, or not readable.
    """
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
            f"{MAX_FILE_BYTES >> 30} GiB are read; save some seconds of its speech in a new file"
        )


def is_pipe(path: Path) -> bool:
    """Whether the path is a pipe (a FIFO, ``<(command)`` in a shell): it can be read only once."""
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


@contextmanager
def regular_file(path: Path, what: str = "voice") -> Iterator[Path]:
    """Yield a file that can be read more than once: the path itself, or a copy of a pipe's content.

    The copy is deleted at the end of the block.

    Args:
        what: as of ``check_file``.

    Raises:
        VoiceError: as ``check_file``; the pipe sent nothing, or too much.
    """
    check_file(path, what)
    if not is_pipe(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-pipe-") as directory:
        copy = Path(directory) / "pipe"
        try:
            _copy_pipe(path, copy)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ENOSPC:
                raise VoiceError(
                    f"pipe '{path}' cannot be copied to '{directory}' ({reason}); use a file, or "
                    "set TMPDIR to a directory with free space"
                ) from error
            raise VoiceError(f"pipe '{path}' cannot be read ({reason}); use a file") from error
        yield copy


def _copy_pipe(pipe: Path, copy: Path) -> None:
    total = 0
    with pipe.open("rb", buffering=0) as source, copy.open("wb") as target:
        while block := source.read(BLOCK):
            total += target.write(block)
            if total > MAX_PIPE_BYTES:
                raise VoiceError(
                    f"pipe '{pipe}' sends more than {MAX_PIPE_BYTES >> 20} MiB; "
                    "some seconds of speech are enough"
                )
    if not total:
        raise VoiceError(f"pipe '{pipe}' sent nothing; check the command that writes to it")
