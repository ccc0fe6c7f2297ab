"""Writes sound in the formats of files, and reads it back: wav, flac and ogg by soundfile; mp3,
opus, m4a and m4b by PyAV (FFmpeg's libraries), with tags.

Responsible for codecs, containers, and decoded sound that is as long as the samples were. Not
responsible for paths and when a file appears (files.py), for bytes that are sent as they are made
(encoders.py), or for recordings of others (decoders.py).

An encoder's last packets are there only after it was flushed, and a container's last page after it
was closed: ``Muxer.finish`` does both. mp3 and aac encoders put silence of their own (priming) in
front of the sound: 1,105 samples in libmp3lame and 1,024 in FFmpeg's aac. A file says so, and
players leave them out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from chatterbox_opt.audio.decoders import soundfile_name
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError, OutputError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chatterbox_opt.audio.tags import Tags
    from chatterbox_opt.utils.wave import Wave, WaveSink


@dataclass(frozen=True, slots=True)
class Codec:
    """How PyAV makes a format.

    Attributes:
        container, codec: FFmpeg's names.
        bit_rate: bits a second, or 0.
        priming: packets at the start that hold nothing but the encoder's own silence, and that are
            left out because nothing says so.
        options, container_options: FFmpeg's.
        max_chapters: None: the container has no such limit.
    """

    container: str
    codec: str
    bit_rate: int = 0
    priming: int = 0
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    max_chapters: int | None = None


_SOUNDFILE = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_CODECS = {
    # ID3v2 counts chapters in one byte, Vorbis comments number them by three digits
    ".mp3": Codec("mp3", "libmp3lame", 96_000, max_chapters=255),
    ".opus": Codec("ogg", "libopus", 48_000, max_chapters=1000),
    ".m4a": Codec("mp4", "aac", 64_000, container_options={"brand": "M4A "}),
    ".m4b": Codec("mp4", "aac", 64_000, container_options={"brand": "M4B "}),
}
_SUBTYPES = {".mp3": "MPEG_LAYER_III", ".opus": "OPUS", ".m4a": "AAC", ".m4b": "AAC"}
FORMATS = (*_SOUNDFILE, *_CODECS)  # extensions
LOSSY = (".ogg", *_CODECS)
_BLOCK = 1 << 16  # samples that libsndfile gets at once


def file_format(extension: str, subtype: str | None = None) -> tuple[str, str]:
    """Name and subtype (sample format or codec) of a format, as soundfile calls them.

    Args:
        extension: one of ``FORMATS``.

    Raises:
        InputError: a subtype that the format does not have.
    """
    if extension in _CODECS:
        format_, only = extension.strip(".").upper(), _SUBTYPES[extension]
        known, name = [only], (subtype or only).upper()
    else:
        import soundfile

        format_, usual = _SOUNDFILE[extension]
        known, name = list(soundfile.available_subtypes(format_)), (subtype or usual).upper()
    if name not in known:
        raise InputError(f"{format_} has no subtype '{subtype}'; it has {', '.join(known)}")
    if subtype and extension not in _CODECS:
        _try_subtype(format_, name)
    return format_, name


def _try_subtype(format_: str, subtype: str) -> None:
    """Raise InputError if libsndfile cannot write it, though the format has it."""
    import soundfile

    try:
        soundfile.SoundFile(
            io.BytesIO(), "w", SAMPLE_RATE, channels=1, subtype=subtype, format=format_
        ).close()
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{format_} with subtype '{subtype}' cannot be written here: give another"
        ) from error


def has_tags(extension: str) -> bool:
    """Whether title, author, cover and chapters can be written to such a file."""
    return extension in _CODECS


def check_tags(extension: str, tags: Tags) -> None:
    """Raise InputError if a file of a format that has tags has no room for these."""
    most = _CODECS[extension].max_chapters
    if most is not None and len(tags.chapters) > most:
        raise InputError(
            f"{len(tags.chapters)} chapters are more than the {most} that {extension} has room "
            "for: give .m4b"
        )


@contextmanager
def open_sink(
    target: Path | io.BytesIO, extension: str, subtype: str | None = None, tags: Tags | None = None
) -> Iterator[WaveSink]:
    """Open a file for mono sound at 24 kHz; it is complete when the block ends.

    Args:
        target: a path, whose own extension does not matter.
        extension: one of ``FORMATS``.
        tags: of a format without room for them they are dropped.

    Raises:
        OSError: the file cannot be written.
        soundfile.LibsndfileError: the same; libsndfile does not tell why.
    """
    with ExitStack() as stack:
        if extension in _CODECS:
            file: io.BufferedIOBase = (
                target if isinstance(target, io.BytesIO) else stack.enter_context(target.open("wb"))
            )
            yield stack.enter_context(_muxing(file, _CODECS[extension], tags))
            return
        import soundfile

        name = target if isinstance(target, io.BytesIO) else soundfile_name(target)
        format_, subtype = file_format(extension, subtype)
        opened = soundfile.SoundFile(name, "w", SAMPLE_RATE, 1, subtype, format=format_)
        yield SoundfileSink(stack.enter_context(opened))


@contextmanager
def _muxing(file: Any, codec: Codec, tags: Tags | None) -> Iterator[Muxer]:
    with _ffmpeg_errors():
        muxer = Muxer(file, codec, tags)
        try:
            yield muxer
            muxer.finish()
        finally:
            muxer.close()


@contextmanager
def _ffmpeg_errors() -> Iterator[None]:
    """FFmpeg's errors, of which some are no OSError, as OSErrors."""
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise OSError(str(error)) from error


def read_blocks(file: Path, size: int) -> Iterator[Wave]:
    """Sound of a file that this package wrote: float32 [size] at 24 kHz, the last one shorter.

    Raises:
        OutputError: it is gone, or damaged.
    """
    read = _read_soundfile if file.suffix.lower() in _SOUNDFILE else _read_av
    try:
        yield from read(file, size)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise OutputError(
            f"'{file}' cannot be read ({first_line(error)}): delete it, and run again"
        ) from error


def _read_soundfile(file: Path, size: int) -> Iterator[Wave]:
    import soundfile

    with soundfile.SoundFile(soundfile_name(file)) as opened:
        yield from opened.blocks(size, dtype="float32")


def _read_av(file: Path, size: int) -> Iterator[Wave]:
    import av

    with _ffmpeg_errors(), file.open("rb") as content, av.open(content) as container:
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE, frame_size=size)
        for frame in chain(container.decode(audio=0), (None,)):
            for block in resampler.resample(frame):
                yield block.to_ndarray()[0]


class SoundfileSink:
    """Writes in blocks: libsndfile's Vorbis encoder crashes on long arrays."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, wave: Wave) -> None:
        for start in range(0, len(wave), _BLOCK):
            self._file.write(wave[start : start + _BLOCK])


class Muxer:
    """An encoder of FFmpeg's libraries, with its container."""

    def __init__(self, file: Any, codec: Codec, tags: Tags | None = None) -> None:
        """Begin a file.

        Args:
            file: has ``write``; where the container goes back to its header also ``seek`` and
                ``tell``.
        """
        import av

        self._container: Any = av.open(
            file, "w", format=codec.container, container_options=codec.container_options
        )
        self._stream = _audio_stream(self._container, codec)
        self._resampler: Any = av.AudioResampler(
            format=self._stream.codec_context.format, layout="mono", rate=SAMPLE_RATE
        )
        self._priming = codec.priming
        self._samples = 0
        if tags is not None:
            from chatterbox_opt.audio.tags import add_tags  # a rare call, and slow to import

            cover = add_tags(self._container, tags)
            if cover is not None:
                self._container.mux(cover)

    def write(self, wave: Wave) -> None:
        """Append float32 [n] at 24 kHz."""
        if len(wave):
            self._mux(self._resampler.resample(audio_frame(wave, self._samples)))
            self._samples += len(wave)

    def finish(self) -> None:
        """Write the rest; nothing may be written afterwards."""
        if self._samples:
            self._mux(self._resampler.resample(None))
            self._mux([None])
        self._container.close()

    def close(self) -> None:
        """Free the encoder without its rest; harmless after ``finish``, or after an error."""
        from av.error import FFmpegError

        with suppress(FFmpegError, OSError):  # what it still writes is of no use
            self._container.close()

    def _mux(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            for packet in self._stream.encode(frame):
                if self._priming:
                    self._priming -= 1
                else:
                    self._container.mux(packet)


def _audio_stream(container: Any, codec: Codec) -> Any:
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
    import numpy as np

    samples = np.ascontiguousarray(wave[None])  # PyAV takes no other
    frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    frame.pts = first
    return frame
