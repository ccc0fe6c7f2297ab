"""Reads reference recordings and writes audio files, completely or not at all.

Responsible for files, formats and standard output. Not responsible for models or tensors; imports
no torch.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError, OutputError, VoiceError
from chatterbox_opt.utils.atomic_file import atomic_write

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}
STDOUT = "-"
MIN_SECONDS = 1.0  # of reference speech; upstream's encoders need at least this much
SILENCE_PEAK = 1e-4  # below this a recording counts as silent (-80 dBFS)


def output_format(path: str, subtype: str | None = None) -> tuple[str, str]:
    """Return soundfile's format and subtype for a file name, or ``-`` for WAV on stdout.

    Raises:
        InputError: unknown extension, or a subtype that the format does not have.
    """
    import soundfile

    extension = ".wav" if path == STDOUT else Path(path).suffix.lower()
    if extension not in FORMATS:
        raise InputError(f"'{path}' has no known audio extension; use {', '.join(FORMATS)}")
    format_ = FORMATS[extension]
    name = (subtype or SUBTYPES[format_]).upper()
    if not soundfile.check_format(format_, name):
        known = ", ".join(soundfile.available_subtypes(format_))
        raise InputError(f"{format_} has no subtype '{subtype}'; it has {known}")
    return format_, name


def check_writable(path: str) -> None:
    """Check that a file can be written, before minutes of work.

    Raises:
        InputError: the directory is missing or read-only, or the path is a directory.
    """
    if path == STDOUT:
        return
    target = Path(path)
    if target.is_dir():
        raise InputError(f"'{path}' is a directory; give a file name in it")
    parent = target.parent
    if not parent.is_dir():
        raise InputError(f"there is no directory '{parent}'; make it first (mkdir -p '{parent}')")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"directory '{parent}' cannot be written to; choose another")


class Sink:
    """An open audio file. Writes in blocks: libsndfile's Vorbis encoder crashes on long arrays."""

    BLOCK = 1 << 16  # samples

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, wave: Wave) -> None:
        """Append float32 [n]."""
        for start in range(0, len(wave), self.BLOCK):
            self._file.write(wave[start : start + self.BLOCK])


@contextmanager
def writer(path: str, subtype: str | None = None) -> Iterator[Sink]:
    """Open a mono 24 kHz sink with ``write(float32 [n])``; the file appears when the block ends.

    If the block is left by an exception, Ctrl-C included, no file is left behind and an existing
    one is unchanged. With ``-`` a WAV is written to standard output at the end.

    Raises:
        OutputError: the disk is full, or the file cannot be written.
    """
    import soundfile

    format_, subtype = output_format(path, subtype)
    if path == STDOUT:
        memory = io.BytesIO()
        with soundfile.SoundFile(memory, "w", SAMPLE_RATE, 1, subtype, format=format_) as sink:
            yield Sink(sink)
        sys.stdout.buffer.write(memory.getvalue())
        sys.stdout.buffer.flush()
        return
    try:
        with (
            atomic_write(Path(path)) as part,
            soundfile.SoundFile(part, "w", SAMPLE_RATE, 1, subtype, format=format_) as sink,
        ):
            yield Sink(sink)
    except (OSError, soundfile.LibsndfileError) as error:
        raise OutputError(
            f"could not write '{path}' ({error}): check the free space and the permissions"
        ) from error


def read_reference(path: Path) -> Wave:
    """Check a recording and decode it.

    Raises:
        VoiceError: missing, empty, not audio, too short, silent, or has NaN/Inf samples.
    """
    check_reference(path)
    return decode_reference(path)


def decode_reference(path: Path) -> Wave:
    """Decode a recording as upstream does: mono, 24 kHz, float32 (``librosa.load``).

    Args:
        path: a file that ``check_reference`` accepts.

    Raises:
        VoiceError: not audio, too short, silent, or has NaN/Inf samples.
    """
    import librosa
    import numpy as np
    import soundfile
    from librosa.util.exceptions import ParameterError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa warns when it falls back to audioread
        try:
            wave, _ = librosa.load(path, sr=SAMPLE_RATE)
        except (soundfile.LibsndfileError, OSError, EOFError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise VoiceError(_unreadable(path, reason)) from error
        except ParameterError as error:
            raise VoiceError(f"'{path}' has NaN/Inf samples; export it again") from error
        except _audioread_errors() as error:
            raise VoiceError(_unreadable(path, "unknown format")) from error
    if len(wave) < MIN_SECONDS * SAMPLE_RATE:
        raise VoiceError(_too_short(path, len(wave) / SAMPLE_RATE))
    if np.abs(wave).max() < SILENCE_PEAK:
        raise VoiceError(f"'{path}' is silent; use a recording of speech")
    return wave


def check_reference(path: Path) -> None:
    """Check that the file exists and that its header is that of usable audio; fast.

    Raises:
        VoiceError: no such file, a directory, empty, not audio, or too short.
    """
    if os.path.isdir(path):  # unlike pathlib's methods, these accept names that are too long
        raise VoiceError(f"voice '{path}' is a directory; use an audio file")
    if not os.path.exists(path):
        raise VoiceError(f"there is no voice file '{path}'; check the path")
    if path.stat().st_size == 0:
        raise VoiceError(f"voice file '{path}' is empty; use a recording of speech")
    if not os.access(path, os.R_OK):
        raise VoiceError(f"voice file '{path}' cannot be read; check its permissions")
    _check_header(path)


def _check_header(path: Path) -> None:
    """Check the header of formats that soundfile reads; others are left to librosa."""
    import soundfile

    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        if path.suffix.lower() in FORMATS:
            raise VoiceError(_unreadable(path, error.error_string)) from error
        return
    if info.duration < MIN_SECONDS:
        raise VoiceError(_too_short(path, info.duration))


def _too_short(path: Path, seconds: float) -> str:
    return (
        f"'{path}' lasts {seconds:.1f} s; use at least {MIN_SECONDS:.0f} s of speech, "
        "6 to 10 s is best"
    )


def _unreadable(path: Path, reason: str) -> str:
    return f"'{path}' cannot be read as audio ({reason}); convert it to wav, flac, ogg or mp3"


def _audioread_errors() -> tuple[type[Exception], ...]:
    """Errors of audioread, librosa's fallback before 1.0; they have no base class in common."""
    try:
        from audioread.exceptions import DecodeError
    except ImportError:
        return ()
    return (DecodeError,)
