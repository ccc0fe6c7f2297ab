"""Decodes sound files of all common formats, by blocks and within bounds.

Responsible for formats: soundfile reads what upstream reads through it, PyAV (FFmpeg's libraries)
the rest: m4a, aac, webm, 3gp, amr, wma, the sound of videos. Not responsible for which files may be
opened (audio/recordings.py), for levels (audio/levels.py) or for resampling (audio/files.py).

A header is not trusted: it may declare a terabyte of sound, a rate of 1 Hz, or no sound at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.errors import VoiceError, first_line
from chatterbox_opt.utils.quiet import silence_stderr

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

MIN_SECONDS = 1.0  # of reference speech; upstream's encoders need at least this much
MAX_SECONDS = 300  # the rest is not read; upstream's voice encoder reads all, the others 10 s
MAX_SAMPLES = 1 << 26  # of all channels (256 MiB): five minutes of 192 kHz mono, 96 kHz stereo
# of a recording that is decoded whole; the samples (2 GiB) are three hours at 48 kHz
MAX_HOURS, MAX_WHOLE_SAMPLES = 4, 1 << 29
MIN_RATE, MAX_RATE = 4_000, 384_000  # Hz
MAX_CHANNELS = 32
BLOCK = 1 << 16  # frames per read, so that Ctrl-C is heard in between
# what PyAV may open: containers of sound, no playlists, which name other files
CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dss,eac3,flac,flv,loas,matroska,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,nut,ogg,qcp,rm,tak,tta,voc,w64,wav,webm,wv,xwma"
)
# of files with nothing but samples: neither rate nor sample format can be known
HEADERLESS = (
    ".raw", ".pcm", ".lpcm", ".s8", ".u8", ".s16", ".s16le", ".s16be", ".s24", ".s24le", ".s24be",
    ".s32", ".s32le", ".s32be", ".f32", ".f32le", ".f32be", ".f64", ".f64le", ".f64be",
    ".sb", ".ub", ".sw", ".uw", ".sl", ".al", ".ul", ".alaw", ".ulaw", ".mulaw",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sound:
    """Decoded sound.

    Attributes:
        samples: float32 [frames, channels], C-contiguous; integer formats are scaled to +-1.
        rate: in Hz.
        remarks: what a user should know about the file, as parts of a sentence.
    """

    samples: Samples
    rate: int
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / self.rate


def decode(file: Path, name: str, *, whole: bool = False) -> Sound:
    """Decode a regular file: its first five minutes, or less of many channels.

    Args:
        name: of the file in messages.
        whole: all of it, mixed to one channel as ``librosa.to_mono`` does.

    Raises:
        VoiceError: not audio, headerless, no sound in it, an unusual rate or number of channels;
            longer than ``MAX_HOURS`` or ``MAX_WHOLE_SAMPLES``.
    """
    sound, reason = None, "unknown format"
    try:
        sound = _with_soundfile(file, name, whole=whole)
    except _soundfile_errors() as error:
        reason = getattr(error, "error_string", "") or first_line(error)
    if sound and not _may_have_more(file, sound):
        return sound
    if file.suffix.lower() in HEADERLESS and sound is None:
        raise VoiceError(
            f"'{name}' is headerless audio, its rate and sample format are unknown; convert it, "
            f"for example: ffmpeg -f s16le -ar 24000 -ac 1 -i '{name}' voice.wav"
        )
    try:
        other = _with_av(file, name, ignore_length=sound is not None, whole=whole)
    except _av_errors() as error:
        if sound is None:
            raise VoiceError(
                f"'{name}' cannot be read as audio ({reason.rstrip('.')}); "
                "convert it to wav, flac, ogg or mp3"
            ) from error
        return sound
    except VoiceError:
        if sound is None:
            raise
        return sound
    if sound is None:
        return other
    if other.seconds < MIN_SECONDS or other.seconds < 2 * sound.seconds:
        return sound
    declared = f"{sound.seconds:.1f} s of sound" if sound.seconds else "no sound"
    remark = f"its header declares {declared}, so it was read to the end of the file"
    return Sound(other.samples, other.rate, (remark, *other.remarks))


def declared_seconds(file: Path) -> float | None:
    """Seconds of a regular file by its header; None if soundfile does not know the format."""
    import soundfile

    try:
        return float(soundfile.info(soundfile_name(file)).duration)
    except _soundfile_errors():
        return None


def soundfile_name(path: Path) -> str | bytes:
    """A file name as soundfile takes it: not a str that the locale could not decode."""
    return os.fspath(path) if os.name == "nt" else os.fsencode(path)


def _may_have_more(file: Path, sound: Sound) -> bool:
    """Whether there may be sound after the end that a header declares, which ``sound`` has.

    A recorder that was killed, or a program that wrote to a pipe, leaves a length of 0 or that of
    its first buffer in a wav. A complete wav has well-formed chunks, or nothing, after its sound.
    """
    size = file.stat().st_size
    with file.open("rb") as source:
        riff, _, kind = source.read(4), source.read(4), source.read(4)
        if (riff, kind) != (b"RIFF", b"WAVE"):
            return sound.seconds < MIN_SECONDS
        name, length = source.read(4), int.from_bytes(source.read(4), "little")
        while name and name != b"data":
            source.seek(length + length % 2, os.SEEK_CUR)
            name, length = source.read(4), int.from_bytes(source.read(4), "little")
        source.seek(length + length % 2, os.SEEK_CUR)
        rest = size - source.tell() - 8
        name, length = source.read(4), int.from_bytes(source.read(4), "little")
    return rest > 0 and not (name.isascii() and name.decode().isprintable() and length <= rest)


def _soundfile_errors() -> tuple[type[Exception], ...]:
    import soundfile

    return (soundfile.SoundFileError, OSError, EOFError, ValueError, RuntimeError)


def _av_errors() -> tuple[type[Exception], ...]:
    from av.error import FFmpegError

    return (FFmpegError, OSError, EOFError, ValueError, RuntimeError, LookupError)


def _with_soundfile(file: Path, name: str, *, whole: bool) -> Sound:
    """Decode with libsndfile: the samples that ``librosa.load`` reads, but by blocks.

    soundfile seeks after each block, which changes an mp3's samples: this reads like a stream.
    """
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    with contextlib.ExitStack() as stack:
        stack.enter_context(silence_stderr())  # mpg123 reports each damaged frame there
        source: Any = soundfile_name(file)
        if file.suffix.lower() == ".raw":  # soundfile refuses the name, whatever the content is
            source = stack.enter_context(file.open("rb")).fileno()
        stream = stack.enter_context(Stream(source, closefd=False))
        rate, channels, frames = stream.samplerate, stream.channels, stream.frames
        limit = _limit(rate, channels, name, whole=whole)
        blocks = _soundfile_blocks(stream, limit, frames)
        return _whole(blocks, rate, limit, name) if whole else _sound(blocks, rate, limit)


def _soundfile_blocks(stream: Any, limit: int, declared: int) -> Iterator[Samples]:
    """At most ``limit`` and one more frames: the one tells that there is more."""
    left = min(limit + 1, declared)
    while left > 0:
        block = stream.read(min(left, BLOCK), dtype="float32", always_2d=True)
        if not len(block):
            return
        left -= len(block)
        yield block


def _with_av(file: Path, name: str, *, ignore_length: bool, whole: bool) -> Sound:
    """Decode the best audio stream with FFmpeg's libraries.

    Neither the name nor the content may make them read anything else: a name can look like an
    address, and a playlist names other files.

    Args:
        ignore_length: a wav is read to the end of the file.
    """
    import av

    options = {
        "format_whitelist": CONTAINERS,
        "protocol_whitelist": "file",
        "ignore_length": str(int(ignore_length)),
    }
    address = f"file:{file.absolute()}"
    with av.open(address, options=options, metadata_errors="ignore") as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise VoiceError(f"'{name}' has no sound in it; use a recording of speech")
        blocks = _av_blocks(container, stream, name)
        first, rate = next(blocks, (None, 0))
        if first is None:
            raise VoiceError(f"'{name}' has no sound that can be decoded; convert it to wav")
        limit = _limit(rate, first.shape[1], name, whole=whole)
        blocks_in_order = _first_frames(first, blocks, limit)
        if whole:
            return _whole(blocks_in_order, rate, limit, name)
        return _sound(blocks_in_order, rate, limit)


def _first_frames(
    first: Samples, blocks: Iterator[tuple[Samples, int]], limit: int
) -> Iterator[Samples]:
    yield first
    total = len(first)
    for block, _ in blocks:
        if total > limit:
            return
        total += len(block)
        yield block


def _av_blocks(container: Any, stream: Any, name: str) -> Iterator[tuple[Samples, int]]:
    """Decoded frames as float32 [n, channels] with their rate, all in the first one's format.

    A damaged packet is skipped; if most are, it is not what the demuxer took it for.
    """
    import av

    resampler: Any = None
    decoded = damaged = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            if damaged > 8 + decoded:
                raise
            continue
        for frame in frames:
            decoded += 1
            if resampler is None:
                _limit(frame.sample_rate, len(frame.layout.channels), name)
                target = {"format": "flt", "layout": frame.layout, "rate": frame.sample_rate}
                resampler = av.AudioResampler(**target)
            try:
                converted = resampler.resample(frame)
            except ValueError:  # rate or channels change within the stream
                converted = resampler.resample(None)
                resampler = av.AudioResampler(**target)
                converted += resampler.resample(frame)
            for piece in converted:
                channels = len(piece.layout.channels)
                yield piece.to_ndarray().reshape(-1, channels), piece.sample_rate


def _limit(rate: int, channels: int, name: str, *, whole: bool = False) -> int:
    """Number of frames that are read.

    Raises:
        VoiceError: no recording has this rate or this many channels.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise VoiceError(
            f"'{name}' declares a sample rate of {rate:,} Hz; {MIN_RATE:,} to {MAX_RATE:,} Hz are "
            "read: export it again, at 24 kHz for example"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise VoiceError(
            f"'{name}' has {channels} channels; 1 to {MAX_CHANNELS} are read: convert it to mono"
        )
    if whole:
        return min(MAX_HOURS * 3600 * rate, MAX_WHOLE_SAMPLES)
    return min(MAX_SECONDS * rate, MAX_SAMPLES // channels)


def _sound(blocks: Iterator[Samples], rate: int, limit: int) -> Sound:
    import numpy as np

    found = list(blocks)
    samples = np.concatenate(found) if found else np.empty((0, 1), np.float32)
    if len(samples) <= limit:
        return Sound(samples, rate)
    return Sound(samples[:limit], rate, (f"only its first {limit / rate:.0f} s are used",))


def _whole(blocks: Iterator[Samples], rate: int, limit: int, name: str) -> Sound:
    """All blocks mixed to one channel, each at once: channels would fill the memory."""
    import numpy as np

    mixed = (np.mean(block.T, axis=(0,))[:, None] if block.shape[1] > 1 else block
             for block in blocks)  # fmt: skip
    sound = _sound(mixed, rate, limit)
    if sound.remarks:
        raise VoiceError(
            f"'{name}' lasts more than {limit / rate / 3600:.1f} hours at {rate:,} Hz: cut it into "
            "several files, or export it at 24 kHz"
        )
    return sound
