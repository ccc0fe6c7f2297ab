"""Waves in and out: reference recordings read, results written whole or not at all.

Knows files, formats and the standard output. Knows nothing of models or tensors, and imports no
torch.
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
    from chatterbox_opt.request import Wave

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}
STDOUT = "-"
SHORTEST = 1.0  # seconds of reference speech; upstream's encoders see nothing useful in less
SILENCE = 1e-4  # peak below which a recording counts as silent (-80 dBFS)


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
    chosen = (subtype or SUBTYPES[format_]).upper()
    if not soundfile.check_format(format_, chosen):
        known = ", ".join(soundfile.available_subtypes(format_))
        raise InputError(f"{format_} has no subtype '{subtype}'; it has {known}")
    return format_, chosen


def check_writable(path: str) -> None:
    """Say now, not after minutes of work, that a file cannot be put there.

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
    """An open sound file. Writes in blocks: libsndfile's Vorbis crashes on minutes at once."""

    BLOCK = 1 << 16

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, wave: Wave) -> None:
        """Append float32 [n]."""
        for start in range(0, len(wave), self.BLOCK):
            self._file.write(wave[start : start + self.BLOCK])


@contextmanager
def writer(path: str, subtype: str | None = None) -> Iterator[Sink]:
    """Open a mono 24 kHz sink with ``write(float32 [n])``; the file appears when the block ends.

    Whatever ends the block early, Ctrl-C included, leaves nothing behind, and an existing file as
    it was. With ``-`` a WAV goes to standard output at the end.

    Raises:
        OutputError: the disk is full, or the file cannot be written.
    """
    import soundfile

    format_, chosen = output_format(path, subtype)
    if path == STDOUT:
        memory = io.BytesIO()
        with soundfile.SoundFile(memory, "w", SAMPLE_RATE, 1, chosen, format=format_) as sink:
            yield Sink(sink)
        sys.stdout.buffer.write(memory.getvalue())
        sys.stdout.buffer.flush()
        return
    try:
        with (
            atomic_write(Path(path)) as part,
            soundfile.SoundFile(part, "w", SAMPLE_RATE, 1, chosen, format=format_) as sink,
        ):
            yield Sink(sink)
    except (OSError, soundfile.LibsndfileError) as error:
        raise OutputError(
            f"could not write '{path}' ({error}): check the free space and the permissions"
        ) from error


def read_reference(path: Path) -> Wave:
    """Read a recording as upstream does: mono, 24 kHz, float32 (``librosa.load``).

    Raises:
        VoiceError: missing, empty, not audio, too short, silent, or not numbers.
    """
    import librosa
    import numpy as np
    import soundfile
    from librosa.util.exceptions import ParameterError

    check_reference(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa announces its second reader
        try:
            wave, _ = librosa.load(path, sr=SAMPLE_RATE)
        except (soundfile.LibsndfileError, OSError, EOFError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise VoiceError(_unreadable(path, reason)) from error
        except ParameterError as error:
            reason = "holds samples that are not numbers (NaN); export it again"
            raise VoiceError(f"'{path}' {reason}") from error
        except _second_reader_errors() as error:
            raise VoiceError(_unreadable(path, "no reader knows the format")) from error
    if len(wave) < SHORTEST * SAMPLE_RATE:
        raise VoiceError(_too_short(path, len(wave) / SAMPLE_RATE))
    if np.abs(wave).max() < SILENCE:
        raise VoiceError(f"'{path}' is silent; give a recording with speech in it")
    return wave


def check_reference(path: Path) -> None:
    """Look at the file and its header, in a moment.

    Raises:
        VoiceError: no such file, a directory, empty, not audio, or too short.
    """
    if os.path.isdir(path):  # unlike pathlib's, these are no error for a name that is too long
        raise VoiceError(f"voice '{path}' is a directory; give an audio file")
    if not os.path.exists(path):
        raise VoiceError(f"there is no voice file '{path}'; check the path")
    if path.stat().st_size == 0:
        raise VoiceError(f"voice file '{path}' is empty; give a recording of speech")
    if not os.access(path, os.R_OK):
        raise VoiceError(f"voice file '{path}' cannot be read; check its permissions")
    _check_header(path)


def _check_header(path: Path) -> None:
    """Read what soundfile should be able to read; leave other formats to librosa's readers."""
    import soundfile

    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        if path.suffix.lower() in FORMATS:
            raise VoiceError(_unreadable(path, error.error_string)) from error
        return
    if info.duration < SHORTEST:
        raise VoiceError(_too_short(path, info.duration))


def _too_short(path: Path, seconds: float) -> str:
    return (
        f"'{path}' lasts {seconds:.1f} s; give at least {SHORTEST:.0f} s of speech, "
        "6 to 10 s is best"
    )


def _unreadable(path: Path, reason: str) -> str:
    return f"'{path}' cannot be read as audio ({reason}); convert it to wav, flac, ogg or mp3"


def _second_reader_errors() -> tuple[type[Exception], ...]:
    """Errors of audioread, librosa's second reader before 1.0: they share no base with others."""
    try:
        from audioread.exceptions import DecodeError
    except ImportError:
        return ()
    return (DecodeError,)
