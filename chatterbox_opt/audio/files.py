"""Reads reference recordings and writes audio files, completely or not at all.

Responsible for what a path means (below), and for what a reference recording is decoded to. Not
responsible for formats (audio/containers.py), decoding (audio/decoders.py), models or tensors;
imports no torch.

    a file, or none yet                  replaced when the audio is complete
    a symbolic link                      stays; what it points to is replaced, or made
    -, /dev/stdout, /dev/fd/N            written to when the audio is complete, as WAV
    a named pipe, a character device     written to when the audio is complete; WAV if its name has
                                         no extension
    a directory, a block device          an error
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.audio import containers, decoders, levels, recordings
from chatterbox_opt.audio.decoders import MIN_SECONDS
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError, OutputError, VoiceError
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.utils.librosa_import import import_librosa

if TYPE_CHECKING:
    from chatterbox_opt.audio.tags import Tags
    from chatterbox_opt.config.reference import ReferenceConfig
    from chatterbox_opt.utils.wave import Wave, WaveSink

STDOUT = "-"
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]+)")  # of this process, whatever it is
_RETRY_SECONDS = 0.005
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}

log = logging.getLogger(__name__)


def is_stdout(path: str) -> bool:
    """Whether a path is standard output, under any name."""
    return path == STDOUT or _descriptor(path) == 1


def is_stream(path: str) -> bool:
    """Whether a path is written to and not replaced: a pipe, a device, standard output."""
    if path == STDOUT or _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _descriptor(path: str) -> int | None:
    """The number of an open file that a path names: ``/dev/fd/3``."""
    if match := _DESCRIPTOR.fullmatch(path):
        return int(match[1])
    return _STANDARD.get(path)


def output_format(path: str, subtype: str | None = None) -> tuple[str, str]:
    """Format and subtype for a file name, as soundfile calls them.

    Raises:
        InputError: unknown extension, or a subtype that the format does not have.
    """
    return containers.file_format(extension_of(path), subtype)


def extension_of(path: str) -> str:
    """The extension of a file to write, one of ``containers.FORMATS``; a stream may have none.

    Raises:
        InputError: unknown extension.
    """
    extension = Path(path).suffix.lower()
    if extension not in containers.FORMATS and is_stream(path):
        extension = ".wav"
    if extension not in containers.FORMATS:
        raise InputError(
            f"'{path}' has no known audio extension; use {', '.join(containers.FORMATS)}"
        )
    return extension


def check_writable(path: str) -> None:
    """Check that a file can be written, before minutes of work.

    Raises:
        InputError: the directory is missing or read-only; the path is a directory, a block device,
            a socket, or a pipe or device that cannot be written to.
    """
    if path == STDOUT or _descriptor(path) is not None:
        return
    target = Path(path)
    if target.is_dir():
        raise InputError(f"'{path}' is a directory; give a file name in it")
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise InputError(f"'{path}' cannot be written to; check its permissions")
        return
    if target.exists() and not target.is_file():
        raise InputError(f"'{path}' is a block device or a socket; give a file name")
    parent = link_target(path).parent
    if not parent.is_dir():
        raise InputError(f"there is no directory '{parent}'; make it first (mkdir -p '{parent}')")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"directory '{parent}' cannot be written to; choose another")


def link_target(path: str) -> Path:
    """The file that is replaced: of a symbolic link, what it points to.

    Raises:
        InputError: a symbolic link that points to itself.
    """
    if not os.path.islink(path):
        return Path(path)
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"'{path}' is a symbolic link that points to itself; remove it")
    return target


@contextmanager
def writer(
    path: str, subtype: str | None = None, *, tags: Tags | None = None, sweep: bool = True
) -> Iterator[WaveSink]:
    """Open a mono 24 kHz sink with ``write(float32 [n])``; the file appears when the block ends.

    If the block is left by an exception, Ctrl-C included, no file is left behind and an existing
    one is unchanged. A stream (the table above) gets everything at the end of the block.

    Args:
        tags: of a format without room for them they are dropped.
        sweep: as in ``atomic_write``.

    Raises:
        OutputError: the disk is full, or the file or stream cannot be written.
        BrokenPipeError: the reader of a stream has gone.
    """
    import soundfile

    extension = extension_of(path)
    containers.file_format(extension, subtype)  # raises before anything is opened
    if is_stream(path):
        memory = io.BytesIO()
        with containers.open_sink(memory, extension, subtype, tags) as sink:
            yield sink
        with open_stream(path) as stream:
            send(stream, memory.getbuffer(), path)
        return
    try:
        with atomic_write(link_target(path), sweep=sweep) as part:
            try:
                with containers.open_sink(part, extension, subtype, tags) as sink:
                    yield sink
            except soundfile.LibsndfileError:
                _write_more(part)
                raise
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"could not write '{path}' ({reason}): check the free space and the permissions"
        ) from error


@contextmanager
def open_stream(path: str) -> Iterator[RawIOBase]:
    """Open a stream (``is_stream``) for ``send``; a named pipe waits for its reader.

    Unbuffered: Ctrl-C must not wait for a reader that has stopped reading.

    Raises:
        OutputError: it cannot be opened.
    """
    with ExitStack() as stack:
        with _stream_errors(path):
            stream = stack.enter_context(_open(path))
        yield stream


def _open(path: str) -> AbstractContextManager[RawIOBase]:
    if is_stdout(path):
        buffer: Any = sys.stdout.buffer
        buffer.flush()
        return nullcontext(getattr(buffer, "raw", buffer))
    number = _descriptor(path)
    return open(path if number is None else os.dup(number), "wb", buffering=0)


def send(stream: RawIOBase, content: bytes | memoryview, path: str) -> None:
    """Write all of ``content``, waiting for the reader.

    Args:
        path: of the stream, for messages.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: the reader has gone.
    """
    rest = memoryview(content)
    with _stream_errors(path):
        while rest:
            written = stream.write(rest)
            if written is None:  # another process made it non-blocking
                time.sleep(_RETRY_SECONDS)
            else:
                rest = rest[written:]


@contextmanager
def _stream_errors(path: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader has gone, which is no error of ours
    except OSError as error:
        name = "standard output" if is_stdout(path) else f"'{path}'"
        raise OutputError(
            f"could not write to {name} ({error.strerror}): check the free space"
        ) from error


def _write_more(part: Path) -> None:
    """Append to a file that libsndfile could not write: it does not tell why, an OSError does."""
    with part.open("ab") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class Reference:
    """A decoded reference recording.

    Attributes:
        wave: float32 [n], mono, 24 kHz.
        remark: what is odd in the recording and what was corrected, or "".
    """

    wave: Wave
    remark: str


def read_reference(path: Path, name: str | None = None) -> Wave:
    """Decode a recording, or what a pipe sends, and log what is odd.

    Args:
        name: of the file in messages, if it is a copy.

    Raises:
        VoiceError: as ``check_reference``; a pipe that sent nothing or too much.
    """
    name = name or str(path)
    with recordings.regular_file(path) as file:
        reference = decode_reference(file, name)
    if reference.remark:
        log.warning("'%s': %s", name, reference.remark)
    return reference.wave


def decode_reference(
    file: Path, name: str | None = None, config: ReferenceConfig | None = None
) -> Reference:
    """Decode a recording as upstream does: mono, 24 kHz, float32.

    A file that soundfile reads has the samples of ``librosa.load`` bit for bit, unless it has more
    than five minutes (audio/decoders.py) or levels that are not plausible (audio/levels.py).

    Args:
        file: a regular file that ``check_reference`` accepts.
        name: of the file in messages, if it is a copy.
        config: what the model needs of it; None accepts what some model accepts.

    Raises:
        VoiceError: not audio, too short, silent, or has NaN/Inf samples.
    """
    librosa = import_librosa()
    name = name or str(file)
    wave, rate, remark = _decode(file, name)
    if config:
        config.check_length(len(wave) / rate, name)
    return Reference(librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE), remark)


def check_reference(
    path: Path, name: str | None = None, config: ReferenceConfig | None = None
) -> None:
    """Check that a file is a usable recording, by decoding it; imports no librosa.

    Of a pipe only whether it exists is checked: it can be read only once.

    Args:
        name: of the file in messages, if it is a copy.
        config: as for ``decode_reference``.

    Raises:
        VoiceError: no such file, a directory or a device, empty, too large, not audio, too short,
            silent, or has NaN/Inf samples.
    """
    recordings.check_file(path)
    if not recordings.is_pipe(path):
        wave, rate, _ = _decode(path, name or str(path))
        if config:
            config.check_length(len(wave) / rate, name or str(path))


def _decode(file: Path, name: str) -> tuple[Wave, int, str]:
    """Return float32 [n] at the file's own rate, the rate in Hz, and a remark."""
    import numpy as np

    sound = decoders.decode(file, name)
    if sound.seconds < MIN_SECONDS:
        raise VoiceError(
            f"'{name}' lasts {sound.seconds:.1f} s; use at least {MIN_SECONDS:.0f} s of speech, "
            "6 to 10 s is best"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(sound.samples.max() - sound.samples.min())
    if not finite:
        raise VoiceError(f"'{name}' has NaN/Inf samples; export it again")
    wave, remarks = levels.normalize(sound.samples, sound.rate)
    if max(wave.max(), -wave.min()) < levels.SILENCE_PEAK:
        constant = " (a constant offset and no sound)" if remarks else ""
        raise VoiceError(f"'{name}' is silent{constant}; use a recording of speech")
    return wave, sound.rate, "; ".join((*sound.remarks, *remarks))
