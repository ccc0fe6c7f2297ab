"""Sound that is written as it comes: WAV of unknown length, or raw samples.

Responsible for what is sent to standard output, a pipe or a device, and when. Not responsible for
files that are replaced when they are complete (files.py) or for playback (player.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, RawIOBase
from typing import TYPE_CHECKING

from chatterbox_opt.audio import files
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

WAV, PCM = "wav", "pcm"
FORMATS = (WAV, PCM)  # of a stream; pcm is raw s16le, mono, 24 kHz
_SAMPLE = 2  # bytes
_UNKNOWN = 0xFFFFFFFF  # a length, as ffmpeg and sox write it to pipes
_WAV_HEADER = "<4sI4s4sIHHIIHH4sI"
_INTEGER_PCM = 1


class StreamSink:
    """Sends 16-bit samples to a stream, each piece at once."""

    def __init__(self, stream: RawIOBase, path: str) -> None:
        self._stream, self._path = stream, path

    def write(self, wave: Wave) -> None:
        """Send float32 [n].

        Raises:
            OutputError: the stream cannot be written.
            BrokenPipeError: the reader has gone.
        """
        files.send(self._stream, to_pcm(wave), self._path)


def check_format(format_: str) -> None:
    """Raise InputError unless it is one of ``FORMATS``."""
    if format_ not in FORMATS:
        raise InputError(f"'{format_}' is no format of a stream; use {' or '.join(FORMATS)}")


@contextmanager
def stream_writer(path: str, format_: str = WAV) -> Iterator[StreamSink]:
    """Open a sink on a stream (``files.is_stream``); the header is sent at once.

    Raises:
        InputError: unknown format.
        OutputError: the stream cannot be written.
        BrokenPipeError: the reader has gone.
    """
    check_format(format_)
    with files.open_stream(path) as stream:
        if format_ == WAV:
            files.send(stream, wav_header(), path)
        yield StreamSink(stream, path)


def wav_header(length: int | None = None) -> bytes:
    """The header of a WAV, 16 bit, mono, 24 kHz.

    Args:
        length: of the samples in bytes, or None: not known.
    """
    after_size = struct.calcsize(_WAV_HEADER) - 8
    return struct.pack(
        _WAV_HEADER,
        *(b"RIFF", _UNKNOWN if length is None else after_size + length, b"WAVE"),
        *(b"fmt ", 16, _INTEGER_PCM, 1, SAMPLE_RATE, SAMPLE_RATE * _SAMPLE, _SAMPLE, 8 * _SAMPLE),
        *(b"data", _UNKNOWN if length is None else length),
    )


def to_pcm(wave: Wave) -> bytes:
    """Float32 [n] as s16le, as libsndfile writes PCM_16: rounded down and clipped."""
    import soundfile

    memory = BytesIO()
    soundfile.write(memory, wave, SAMPLE_RATE, "PCM_16", "LITTLE", "RAW")
    return memory.getvalue()
