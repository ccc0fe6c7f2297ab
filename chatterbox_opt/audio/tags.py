"""What a file of sound says about itself: title, author, cover and chapters.

Responsible for these values and for how FFmpeg's containers are told of them. Not responsible for
the sound (encoders.py) or for where the values come from (batch/).

Containers keep them in their own forms: mp4 as iTunes does (and chapters as a text track and in
Nero's list), mp3 as ID3v2 with CHAP and CTOC frames, Ogg as Vorbis comments, in which a picture is
a FLAC picture block in base64 (RFC 9639, section 8.8).
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.small_file import read_at_most

MAX_COVER = 16 << 20  # bytes
MAX_TITLE = 255  # bytes in UTF-8: Nero's list of chapters has no room for more
GENRE = "Audiobook"
_ITUNES_AUDIOBOOK = "2"  # of iTunes' media types
_FRONT_COVER = 3  # of the types of pictures in ID3 and FLAC
_PICTURES = {b"\xff\xd8\xff": ("image/jpeg", "mjpeg"), b"\x89PNG\r\n\x1a\n": ("image/png", "png")}


@dataclass(frozen=True, slots=True)
class Chapter:
    """A part of a file.

    Attributes:
        title: one line.
        start, end: samples at 24 kHz from the beginning of the file.
    """

    title: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tags:
    """What a file says about itself; what is empty is left out.

    Attributes:
        title, author: one line each.
        cover: content of a JPEG or PNG file.
        chapters: in order, from the beginning of the file to its end.
    """

    title: str = ""
    author: str = ""
    cover: bytes = b""
    chapters: tuple[Chapter, ...] = ()


def one_line(text: str) -> str:
    """A text as a tag can have it: one line of printable characters, in at most ``MAX_TITLE``
    bytes."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    content = line.encode("utf-8", "replace")
    if len(content) <= MAX_TITLE:
        return content.decode()
    return content[: MAX_TITLE - len("…".encode())].decode("utf-8", "ignore").rstrip() + "…"


def is_picture(content: bytes) -> bool:
    """Whether it begins as a JPEG or PNG does; the picture itself is not decoded."""
    return _kind(content) is not None


def read_cover(path: Path) -> bytes:
    """The content of a picture.

    Raises:
        InputError: it cannot be read, is too large, or neither JPEG nor PNG.
    """
    try:
        content = read_at_most(path, MAX_COVER)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cover '{path}' cannot be read ({reason}): check the path") from error
    if content is None:
        raise InputError(f"cover '{path}' is larger than {MAX_COVER >> 20} MiB: make it smaller")
    if not is_picture(content):
        raise InputError(f"cover '{path}' is neither JPEG nor PNG: convert it to one of them")
    return content


def add_tags(container: Any, tags: Tags) -> Any:
    """Tell a container of PyAV, before its first packet.

    Returns:
        the packet with the cover, to be muxed first; None: the container gets no such packet.
    """
    is_mp4, is_ogg = container.format.name == "mp4", container.format.name == "ogg"
    values = {
        "title": tags.title,
        "album": tags.title,
        "artist": tags.author,
        "album_artist": tags.author,
        "genre": GENRE if tags.chapters else "",
        "media_type": _ITUNES_AUDIOBOOK if is_mp4 and tags.chapters else "",
        "METADATA_BLOCK_PICTURE": _flac_picture(tags.cover) if is_ogg and tags.cover else "",
    }
    if is_ogg:
        values |= _vorbis_chapters(tags.chapters)
    elif tags.chapters:
        container.set_chapters([_av_chapter(*numbered) for numbered in enumerate(tags.chapters)])
    container.metadata.update({key: value for key, value in values.items() if value})
    if not tags.cover or is_ogg:
        return None
    return _cover_packet(container, tags.cover)


def _av_chapter(number: int, chapter: Chapter) -> dict[str, Any]:
    return {
        "id": number,
        "start": chapter.start,
        "end": chapter.end,
        "time_base": Fraction(1, SAMPLE_RATE),
        "metadata": {"title": chapter.title},
    }


def _vorbis_chapters(chapters: tuple[Chapter, ...]) -> dict[str, str]:
    """Chapters as comments. FFmpeg would write them too, but rounds the seconds up from a half."""
    comments: dict[str, str] = {}
    for number, chapter in enumerate(chapters):
        minutes, milliseconds = divmod(round(chapter.start * 1000 / SAMPLE_RATE), 60_000)
        time = f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds / 1000:06.3f}"
        comments |= {f"CHAPTER{number:03}": time, f"CHAPTER{number:03}NAME": chapter.title}
    return comments


def _cover_packet(container: Any, cover: bytes) -> Any:
    """A packet of a stream of its own; its size in pixels is asked for, and used for nothing."""
    import av
    from av.stream import Disposition

    _, codec = _kind(cover) or ("", "")
    stream = container.add_mux_stream(codec, width=1, height=1)
    stream.disposition = Disposition.attached_pic
    stream.metadata["comment"] = "Cover (front)"  # the type of picture in ID3
    packet = av.Packet(cover)
    packet.stream = stream
    packet.pts = packet.dts = 0
    packet.time_base = Fraction(1, SAMPLE_RATE)
    packet.is_keyframe = True
    return packet


def _flac_picture(cover: bytes) -> str:
    mime, _ = _kind(cover) or ("", "")
    head = struct.pack(f">II{len(mime)}sI", _FRONT_COVER, len(mime), mime.encode(), 0)
    sizes = struct.pack(">IIII", 0, 0, 0, 0)  # pixels and colors: not told
    return base64.b64encode(head + sizes + struct.pack(">I", len(cover)) + cover).decode()


def _kind(content: bytes) -> tuple[str, str] | None:
    """The media type of a picture, and FFmpeg's name of its codec."""
    return next((kind for mark, kind in _PICTURES.items() if content.startswith(mark)), None)
