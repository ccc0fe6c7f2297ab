"""Any header of a sound file: it is read, or refused in one line that names the file."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
from helpers.fuzz import damage, examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.audio.files import check_reference
from chatterbox_opt.audio.speech import read_speech
from chatterbox_opt.errors import VoiceError

RATE = 24_000
SPEECH = np.sin(np.arange(RATE + RATE // 4) * 0.05) * 0.3
WORDS = st.integers(0, 2**16 - 1) | st.sampled_from([0, 1, 2, 3, 6, 7, 8, 16, 24, 32, 64, 0xFFFE])
LONGS = st.integers(0, 2**32 - 1) | st.sampled_from(
    [0, 1, 8, 4000, RATE, 384_000, 2**31, 2**32 - 1]
)


def encoded(kind: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SPEECH, RATE, format=kind, subtype=subtype)
    return file.getvalue()


FILES = {
    "wav": encoded("WAV"), "flac": encoded("FLAC"), "ogg": encoded("OGG"), "mp3": encoded("MP3"),
    "aiff": encoded("AIFF"), "au": encoded("AU"), "w64": encoded("W64"), "caf": encoded("CAF"),
    "opus": encoded("OGG", "OPUS"), "rf64": encoded("RF64"),
}  # fmt: skip


def read_or_refused(path, content: bytes) -> None:
    path.write_bytes(content)
    for read in (check_reference, lambda path: read_speech(path, 16_000)):
        try:
            read(path)
        except VoiceError as error:
            assert path.name in str(error)
            assert "\n" not in str(error)
            assert len(str(error)) < 1000


@examples(20)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_damaged_file_of_any_format(tmp_path, name, data):
    read_or_refused(tmp_path / f"a.{name}", damage(data.draw, FILES[name]))


@examples(20)
@given(
    form=st.tuples(WORDS, WORDS, LONGS, LONGS, WORDS, WORDS),
    sizes=st.tuples(LONGS, LONGS | st.sampled_from([16, 18, 40]), LONGS),
    extra=st.lists(st.tuples(st.binary(min_size=4, max_size=4), LONGS, st.binary(max_size=40)), max_size=3),
    body=st.binary(max_size=300),
    times=st.sampled_from([1, 50, 500]),
)  # fmt: skip
def test_any_wav_header(tmp_path, form, sizes, extra, body, times):
    """Format, channels, rates, widths and lengths that do not fit together, and other chunks."""
    chunks = b"".join(name + struct.pack("<I", size) + content for name, size, content in extra)
    head = b"RIFF" + struct.pack("<I", sizes[0]) + b"WAVE"
    head += b"fmt " + struct.pack("<I", sizes[1]) + struct.pack("<HHIIHH", *form)
    content = head + chunks + b"data" + struct.pack("<I", sizes[2]) + body * times
    read_or_refused(tmp_path / "a.wav", content)


@examples(20)
@given(
    magic=st.sampled_from([b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb\x90", b"FORM", b".snd",
                           b"\0\0\0\x20ftypM4A ", b"\x1aE\xdf\xa3", b"#!AMR\n", b"caff", b"#EXTM3U\n", b""]),
    rest=st.binary(max_size=300),
    name=st.sampled_from(["a.wav", "a.mp3", "a.m4a", "a.raw", "a.pcm", "a", "a.m3u8", "a.txt"]),
)  # fmt: skip
def test_any_bytes_after_the_beginning_of_a_format(tmp_path, magic, rest, name):
    read_or_refused(tmp_path / name, magic + rest)
