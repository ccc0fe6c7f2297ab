"""Compressed sound that is made as samples come: mp3, opus, aac, flac; and wav and pcm.

Responsible for bytes that a player can begin to decode at once, and whose decoded sound is as long
as the samples were. Not responsible for files (containers.py, files.py) or for who gets the bytes.

A file says in a header how much silence the encoder put in front of the sound. A stream cannot,
because that header is written last; so the packets that hold nothing else are left out. mp3 then
begins 47 samples (2 ms) late. For that no packet of mp3 may borrow bits from an earlier one
(``reservoir``).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from chatterbox_opt.audio.containers import Codec, Muxer
from chatterbox_opt.audio.streaming import PCM, WAV, to_pcm, wav_header
from chatterbox_opt.errors import InputError

if TYPE_CHECKING:
    from typing import Protocol

    from chatterbox_opt.utils.wave import Wave

    class Encoder(Protocol):
        """Encodes one sound, from its beginning to its end."""

        def encode(self, wave: Wave) -> bytes:
            """Take float32 [n] at 24 kHz; what can be sent now, perhaps nothing."""

        def finish(self) -> bytes:
            """The rest; nothing may be encoded afterwards."""

        def close(self) -> None:
            """Free the encoder without its rest; harmless after ``finish``."""


CODECS = {
    "mp3": Codec("mp3", "libmp3lame", 96_000, 2, {"reservoir": "0"}, {"write_xing": "0"}),
    # a page every 100 ms, not every second: a player waits for whole pages
    "opus": Codec("ogg", "libopus", 48_000, 0, {}, {"page_duration": "100000"}),
    "aac": Codec("adts", "aac", 96_000, 1),
    "flac": Codec("flac", "flac"),
}
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    WAV: "audio/wav",
    PCM: "audio/pcm",
}
FORMATS = tuple(MEDIA_TYPES)


def encoder(format_: str) -> Encoder:
    """An encoder of one of ``FORMATS``.

    Raises:
        InputError: another format.
    """
    if format_ in (WAV, PCM):
        return PlainEncoder(header=wav_header() if format_ == WAV else b"")
    if format_ in CODECS:
        return CodecEncoder(CODECS[format_])
    raise InputError(f"'{format_}' is no format of a stream; use {', '.join(FORMATS)}")


class PlainEncoder:
    """16-bit samples, after a header."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def encode(self, wave: Wave) -> bytes:
        header, self._header = self._header, b""
        return header + to_pcm(wave)

    def finish(self) -> bytes:
        header, self._header = self._header, b""
        return header

    def close(self) -> None:
        pass


class _Bytes(io.RawIOBase):
    """What the container writes; not seekable, so nothing is written twice."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._written)
        self._written.clear()
        return taken


class CodecEncoder:
    """An encoder of FFmpeg's libraries, with its container."""

    def __init__(self, codec: Codec) -> None:
        self._output = _Bytes()
        self._muxer = Muxer(self._output, codec)

    def encode(self, wave: Wave) -> bytes:
        self._muxer.write(wave)
        return self._output.take()

    def finish(self) -> bytes:
        self._muxer.finish()
        return self._output.take()

    def close(self) -> None:
        self._muxer.close()
