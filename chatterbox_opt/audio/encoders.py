"""Compressed sound that is made as samples come: mp3, opus, aac, flac; and wav and pcm.

Responsible for bytes that a player can begin to decode at once, and whose decoded sound is as long
as the samples were. Not responsible for files on disk (files.py) or for who gets the bytes.

PyAV (FFmpeg's libraries) encodes. Two things are done for the sake of length. An encoder's last
packets are there only after it was flushed, and a container's last page after it was closed:
``finish`` does both before it returns the rest. And mp3 and aac encoders put silence of their own
(priming) in front of the sound: 1,105 samples in libmp3lame and 1,024 in FFmpeg's aac. A file
says so in a header that a stream cannot have, because it is written last; so the packets that hold
nothing else are left out. mp3 then begins 47 samples (2 ms) late. For that no packet of mp3 may
borrow bits from an earlier one (``reservoir``).
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatterbox_opt.audio.streaming import PCM, WAV, to_pcm, wav_header
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
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


@dataclass(frozen=True, slots=True)
class Codec:
    """How PyAV makes a format.

    Attributes:
        container, codec: FFmpeg's names.
        bit_rate: bits a second, or 0.
        priming: packets at the start that hold nothing but the encoder's own silence.
        options, container_options: FFmpeg's.
    """

    container: str
    codec: str
    bit_rate: int = 0
    priming: int = 0
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)


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
        import av

        self._output = _Bytes()
        self._container: Any = av.open(
            self._output, "w", format=codec.container, container_options=codec.container_options
        )
        self._stream = _add_stream(self._container, codec)
        self._resampler: Any = av.AudioResampler(
            format=self._stream.codec_context.format, layout="mono", rate=SAMPLE_RATE
        )
        self._priming = codec.priming
        self._samples = 0

    def encode(self, wave: Wave) -> bytes:
        if len(wave):
            self._mux(self._resampler.resample(audio_frame(wave, self._samples)))
            self._samples += len(wave)
        return self._output.take()

    def finish(self) -> bytes:
        if self._samples:
            self._mux(self._resampler.resample(None))
            self._mux([None])
        self.close()
        return self._output.take()

    def close(self) -> None:
        self._container.close()

    def _mux(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            for packet in self._stream.encode(frame):
                if self._priming:
                    self._priming -= 1
                else:
                    self._container.mux(packet)


def _add_stream(container: Any, codec: Codec) -> Any:
    stream = container.add_stream(
        codec.codec, rate=SAMPLE_RATE, layout="mono", options=codec.options
    )
    if codec.bit_rate:
        stream.bit_rate = codec.bit_rate
    return stream


def audio_frame(wave: Wave, first: int) -> Any:
    """Float32 [n] at 24 kHz as PyAV's frame.

    Args:
        first: number of its first sample in the sound.
    """
    import av

    frame = av.AudioFrame.from_ndarray(wave[None], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    frame.pts = first
    return frame
