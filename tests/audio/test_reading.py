"""Recordings of any format and with any header are read as they sound, or refused with the reason."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
import threading
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile
from helpers.common import SAMPLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatterbox_opt.audio import decoders, recordings
from chatterbox_opt.audio.files import check_reference, decode_reference, read_reference
from chatterbox_opt.errors import VoiceError

SPEECH = soundfile.read(SAMPLE, dtype="float32")[0][:60_000]  # 2.5 s, 24 kHz


def pcm(wave: np.ndarray) -> bytes:
    return (wave * 32767).astype("<i2").tobytes()


def wav(data: bytes, riff: int, declared: int, rate: int = 24_000, tail: bytes = b"") -> bytes:
    """A mono 16-bit wav with any lengths in its header."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", riff, b"WAVE")
        + form
        + struct.pack("<4sI", b"data", declared)
        + data
        + tail
    )


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def encode(path: Path, codec: str, rate: int, layout: str = "mono", container=None) -> Path:
    """Write SPEECH with FFmpeg's encoders."""
    wave = librosa.resample(SPEECH, orig_sr=24_000, target_sr=rate)
    channels = 1 if layout == "mono" else 2
    samples = np.repeat((np.clip(wave, -1, 1) * 32767).astype(np.int16), channels)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
    frame.sample_rate = rate
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.bit_rate = 12_200 if rate == 8_000 else 64_000
        for part in (frame, None):
            for packet in stream.encode(part):
                file.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("a.wav", "PCM_16", 44_100, 2), ("a.wav", "PCM_U8", 8_000, 1), ("a.wav", "FLOAT", 48_000, 5),
        ("a.wav", "IMA_ADPCM", 22_050, 1), ("a.flac", "PCM_24", 96_000, 2), ("a.ogg", "VORBIS", 44_100, 2),
        ("a.opus", "OPUS", 48_000, 1), ("a.mp3", "MPEG_LAYER_III", 44_100, 2), ("a.aiff", "PCM_16", 24_000, 1),
        ("a.caf", "ALAC_16", 16_000, 1), ("a.au", "ULAW", 8_000, 1),
    ],
)  # fmt: skip
def test_what_upstream_reads_is_bit_identical(tmp_path, name, subtype, rate, channels):
    """Also across blocks, of which a long recording has many."""
    wave = np.resize(SPEECH, 3 * decoders.BLOCK)
    gains = np.linspace(1, 0.3, channels)
    path = tmp_path / name
    format_ = "OGG" if name == "a.opus" else None
    with soundfile.SoundFile(path, "w", rate, channels, subtype, format=format_) as file:
        for start in range(0, len(wave), 20_000):
            file.write(wave[start : start + 20_000, None] * gains)
    read = decode_reference(path)
    assert np.array_equal(read.wave, librosa.load(path, sr=24_000)[0])
    assert read.remark == ""


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout", "container"),
    [
        ("a.m4a", "aac", 44_100, "mono", None),
        ("named.wav", "aac", 44_100, "stereo", "adts"),
        ("a.webm", "libopus", 48_000, "mono", None),
        ("a.3gp", "aac", 44_100, "mono", None),
        ("b.3gp", "libopencore_amrnb", 8_000, "mono", None),
        ("a.amr", "libopencore_amrnb", 8_000, "mono", None),
        ("a.wma", "wmav2", 44_100, "mono", "asf"),
        ("a.mkv", "libmp3lame", 44_100, "stereo", None),
        ("a.mov", "alac", 44_100, "stereo", None),
    ],
)
def test_what_phones_and_browsers_record_is_read(tmp_path, name, codec, rate, layout, container):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec} encoder")
    path = encode(tmp_path / name, codec, rate, layout, container)
    check_reference(path)
    wave = read_reference(path)
    assert wave.dtype == np.float32
    assert len(wave) / 24_000 == pytest.approx(2.5, abs=0.15)
    assert loudness(wave) == pytest.approx(loudness(SPEECH), abs=2)


def loudness(wave: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(wave)))


def test_the_sound_of_a_video_is_read(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=5)
        video.width = video.height = 32
        sound = file.add_stream("aac", rate=24_000, layout="mono")
        for _ in range(12):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            file.mux(video.encode(picture))
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm(SPEECH), "<i2")[None], format="s16", layout="mono")  # fmt: skip
        frame.sample_rate = 24_000
        for stream in (video, sound):
            file.mux(stream.encode(None if stream is video else frame))
        file.mux(sound.encode(None))
    assert len(read_reference(path)) / 24_000 == pytest.approx(2.5, abs=0.15)


def test_a_video_without_sound_says_so(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=5)
        video.width = video.height = 32
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        file.mux(video.encode(picture))
        file.mux(video.encode(None))
    with pytest.raises(VoiceError, match="has no sound in it"):
        check_reference(path)


@pytest.mark.parametrize(
    ("riff", "declared", "remark"),
    [
        (0, 0, "declares no sound"),
        (36, 0, "declares no sound"),
        (37, 1, "declares no sound"),
        (4132, 4096, "declares 0.1 s of sound"),
        (52_836, 52_800, "declares 1.1 s of sound"),
        (0xFFFFFFFF, 0xFFFFFFFF, ""),
        (0, 0xFFFFFFFF, ""),
        (0x7FFFFFFF, 0x7FFFFFDB, ""),
    ],
)
def test_a_length_that_was_never_written_is_not_believed(tmp_path, caplog, riff, declared, remark):
    path = saved(tmp_path / "killed.wav", wav(pcm(SPEECH), riff, declared))
    good = saved(tmp_path / "good.wav", wav(pcm(SPEECH), 36 + 2 * len(SPEECH), 2 * len(SPEECH)))
    check_reference(path)
    assert np.array_equal(read_reference(path), read_reference(good))
    assert [remark in record.getMessage() for record in caplog.records] == [True] * bool(remark)


def test_an_empty_wav_with_other_chunks_stays_empty(tmp_path):
    notes = b"LIST" + struct.pack("<I", 200_000) + b"x" * 200_000
    path = saved(tmp_path / "a.wav", wav(b"", 36 + len(notes), 0, tail=notes))
    with pytest.raises(VoiceError, match=r"lasts 0\.0 s"):
        check_reference(path)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32"])
def test_a_wav_in_which_soundfile_cannot_seek_is_read(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, SPEECH, 8_000, subtype)
    assert len(read_reference(path)) / 24_000 == pytest.approx(7.5, abs=0.1)


@pytest.mark.parametrize("name", ["a.raw", "a.RAW", "a.pcm", "a.s16le", "a.f32"])
def test_headerless_audio_says_how_to_convert_it(tmp_path, name):
    path = saved(tmp_path / name, pcm(SPEECH))
    with pytest.raises(VoiceError, match=r"headerless audio.*ffmpeg -f s16le -ar 24000") as caught:
        check_reference(path)
    assert "\n" not in str(caught.value)


def test_a_wav_that_is_named_raw_is_read(tmp_path):
    path = saved(tmp_path / "a.raw", wav(pcm(SPEECH), 36 + 2 * len(SPEECH), 2 * len(SPEECH)))
    assert len(read_reference(path)) == len(SPEECH)


@pytest.mark.parametrize(
    ("rate", "channels", "message"),
    [
        (1, 1, "sample rate of 1 Hz"),
        (3_999, 1, "sample rate of 3,999 Hz"),
        (384_001, 1, "sample rate of 384,001 Hz"),
        (24_000, 33, "33 channels"),
    ],
)
def test_an_impossible_rate_or_channel_count_is_refused(tmp_path, rate, channels, message):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(SPEECH[:30_000, None], channels), rate)
    with pytest.raises(VoiceError, match=message):
        check_reference(path)


def test_a_flac_of_unknown_length_is_read(tmp_path):
    """A pipe's: soundfile reports 2**63 - 1 frames."""
    content = bytearray(SAMPLE.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path = saved(tmp_path / "a.flac", bytes(content))
    assert np.array_equal(read_reference(path), librosa.load(SAMPLE, sr=24_000)[0])


def test_an_mp3_that_declares_terabytes_is_read(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, SPEECH, 24_000)
    before = read_reference(path)
    content = bytearray(path.read_bytes())
    header = max(content.find(b"Xing"), content.find(b"Info"))
    assert header > 0
    content[header + 8 : header + 12] = b"\x7f\xff\xff\xff"  # frames
    path.write_bytes(content)
    assert soundfile.info(path).frames > 1 << 40
    read = read_reference(path)
    assert np.array_equal(read[: len(before)], before)
    assert len(read) < len(before) + 4_000


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a"])
def test_a_long_recording_is_cut_and_says_so(tmp_path, monkeypatch, name):
    path = tmp_path / name
    if name == "a.m4a":
        encode(path, "aac", 24_000)
    else:
        soundfile.write(path, SPEECH, 24_000)
    whole = decode_reference(path)
    assert whole.remark == ""
    monkeypatch.setattr(decoders, "MAX_SECONDS", 2)
    cut = decode_reference(path)
    assert cut.remark == "only its first 2 s are used"
    assert np.array_equal(cut.wave, whole.wave[:48_000])


def test_samples_of_all_channels_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(SPEECH[:, None], 4), 24_000)
    monkeypatch.setattr(decoders, "MAX_SAMPLES", 4 * 36_000)
    assert decode_reference(path).remark == "only its first 2 s are used"
    assert len(decode_reference(path).wave) == 36_000


def test_devices_and_large_files_are_refused_unread(tmp_path, monkeypatch):
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(VoiceError, match="is a device"):
            check_reference(Path(device))
        with pytest.raises(VoiceError, match="is a device"):
            read_reference(Path(device))
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(recordings.MAX_FILE_BYTES + 1)
    with pytest.raises(VoiceError, match=r"has 2\.0 GiB"):
        check_reference(large)


def send(pipe: Path, content: bytes) -> threading.Thread:
    os.mkfifo(pipe)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # the reader had enough
            pipe.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    return writer


def test_a_pipe_is_read_once_into_a_file_that_is_deleted(tmp_path):
    writer = send(tmp_path / "pipe", SAMPLE.read_bytes())
    check_reference(tmp_path / "pipe")  # takes nothing from it
    with recordings.regular_file(tmp_path / "pipe") as file:
        assert file.read_bytes() == SAMPLE.read_bytes()
        assert np.array_equal(read_reference(file), read_reference(SAMPLE))
    assert not file.exists()
    writer.join()


@pytest.mark.parametrize(("content", "message"), [(b"", "sent nothing"), (b"x" * 9, "more than 0")])
def test_a_pipe_without_sound_or_without_end_says_so(tmp_path, content, message):
    writer = send(tmp_path / "pipe", content)
    short = dataclasses.replace(recordings.SPEECH, pipe_bytes=8)
    with pytest.raises(VoiceError, match=message):
        recordings.regular_file(tmp_path / "pipe", short).__enter__()
    writer.join()


def test_speech_of_hours_comes_through_a_pipe():
    assert recordings.SPEECH.pipe_bytes == recordings.MAX_FILE_BYTES > 4 * 3600 * 48_000 * 2


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/voice-\xff.flac"))
    assert len(read_reference(saved(path, SAMPLE.read_bytes())))


def test_playlists_are_not_followed(tmp_path):
    saved(tmp_path / "secret.wav", wav(pcm(SPEECH), 0, 0xFFFFFFFF))
    lists = {"a.m3u8": "#EXTM3U\n#EXTINF:2,\nsecret.wav\n#EXT-X-ENDLIST\n", "a.ffconcat": "ffconcat version 1.0\nfile secret.wav\n"}  # fmt: skip
    for name, content in lists.items():
        with pytest.raises(VoiceError, match="cannot be read as audio"):
            check_reference(saved(tmp_path / name, content.encode()))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, capfd, data):
    """Flipped bytes declare terabytes of sound, odd rates, other formats."""
    name = data.draw(st.sampled_from(["a.wav", "a.mp3", "a.flac", "a.ogg"]))
    path = tmp_path / name
    soundfile.write(path, SPEECH[:30_000], 24_000)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        place = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        wave = read_reference(path)
    except VoiceError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(wave).all()
    assert capfd.readouterr().err.count("mpg123") == 0
