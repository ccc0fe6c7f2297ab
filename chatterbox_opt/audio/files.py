"""Reads reference recordings and writes audio files, completely or not at all.

Responsible for output formats, standard output, and for what a reference recording is decoded to.
Not responsible for decoding itself (audio/decoders.py), models or tensors; imports no torch.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.audio import decoders, levels, recordings
from chatterbox_opt.audio.decoders import MIN_SECONDS
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError, OutputError, VoiceError
from chatterbox_opt.utils.atomic_file import atomic_write

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}
STDOUT = "-"

log = logging.getLogger(__name__)


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
        try:
            sys.stdout.buffer.write(memory.getvalue())
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise  # the reader has gone, which is no error of ours
        except OSError as error:
            raise OutputError(
                f"could not write to standard output ({error.strerror}): check the free space"
            ) from error
        return
    try:
        with atomic_write(Path(path)) as part:
            try:
                with soundfile.SoundFile(
                    decoders.soundfile_name(part), "w", SAMPLE_RATE, 1, subtype, format=format_
                ) as sink:
                    yield Sink(sink)
            except soundfile.LibsndfileError:
                _write_more(part)
                raise
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"could not write '{path}' ({reason}): check the free space and the permissions"
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


def decode_reference(file: Path, name: str | None = None) -> Reference:
    """Decode a recording as upstream does: mono, 24 kHz, float32.

    A file that soundfile reads has the samples of ``librosa.load`` bit for bit, unless it has more
    than five minutes (audio/decoders.py) or levels that are not plausible (audio/levels.py).

    Args:
        file: a regular file that ``check_reference`` accepts.
        name: of the file in messages, if it is a copy.

    Raises:
        VoiceError: not audio, too short, silent, or has NaN/Inf samples.
    """
    import librosa

    wave, rate, remark = _decode(file, name or str(file))
    return Reference(librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE), remark)


def check_reference(path: Path, name: str | None = None) -> None:
    """Check that a file is a usable recording, by decoding it; imports no librosa.

    Of a pipe only whether it exists is checked: it can be read only once.

    Args:
        name: of the file in messages, if it is a copy.

    Raises:
        VoiceError: no such file, a directory or a device, empty, too large, not audio, too short,
            silent, or has NaN/Inf samples.
    """
    recordings.check_file(path)
    if not recordings.is_pipe(path):
        _decode(path, name or str(path))


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
