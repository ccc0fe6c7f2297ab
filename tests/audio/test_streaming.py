from __future__ import annotations

import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile

from chatterbox_opt.audio.streaming import FORMATS, stream_writer, to_pcm, wav_header
from chatterbox_opt.errors import InputError, OutputError

EDGES = np.array(
    [0, 1, -1, 1.5, -1.5, np.inf, -np.inf, 1 - 2**-24, -1 + 2**-24, 1e-9, -1e-9, 2**-15, -(2**-15),
     2**-16, -(2**-16), 0.99998, -0.99998, 32767 / 32768, 3e38], np.float32,
)  # fmt: skip


def as_libsndfile_does(wave: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, wave, 24_000, "PCM_16", format="WAV")
    file.seek(0)
    return soundfile.read(file, dtype="int16")[0]


def test_samples_are_those_of_a_wav_file():
    random = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) * 0.5
    wave = np.concatenate([random, EDGES, np.linspace(-1.1, 1.1, 30_001, dtype=np.float32)])
    assert np.array_equal(np.frombuffer(to_pcm(wave), "<i2"), as_libsndfile_does(wave))
    assert to_pcm(wave[::2]) == to_pcm(np.ascontiguousarray(wave[::2]))
    assert to_pcm(wave[:0]) == b""


def test_the_header_is_that_of_a_wav_file_but_for_its_lengths():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(10, np.float32), 24_000, "PCM_16", format="WAV")
    expected = bytearray(file.getvalue()[:44])
    expected[4:8] = expected[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert wav_header() == bytes(expected)


@pytest.mark.parametrize("format_", FORMATS)
def test_each_piece_is_sent_at_once(format_):
    reading, writing = os.pipe()
    try:
        with stream_writer(f"/dev/fd/{writing}", format_) as sink:
            if format_ == "wav":
                assert os.read(reading, 1000) == wav_header()
            for wave in (EDGES[:3], EDGES[3:]):
                sink.write(wave)
                assert os.read(reading, 1000) == to_pcm(wave)
    finally:
        os.close(writing)
        os.close(reading)


def test_a_slow_reader_gets_everything(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    wave = np.linspace(-1, 1, 200_000, dtype=np.float32)  # longer than a pipe holds
    with stream_writer(str(fifo)) as sink:
        sink.write(wave)
        sink.write(wave)
    reader.join()
    assert received == [wav_header() + 2 * to_pcm(wave)]
    sound, rate = soundfile.read(io.BytesIO(received[0]), dtype="int16")
    assert rate == 24_000 and len(sound) == 400_000


def test_standard_output(capfdbinary):
    with stream_writer("-", "pcm") as sink:
        sink.write(EDGES)
    assert capfdbinary.readouterr().out == to_pcm(EDGES)


def test_a_non_blocking_reader_gets_everything():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    received = bytearray()

    def read() -> None:
        while block := os.read(reading, 1 << 16):
            received.extend(block)

    reader = threading.Thread(target=read)
    wave = np.linspace(-1, 1, 200_000, dtype=np.float32)
    with stream_writer(f"/dev/fd/{writing}", "pcm") as sink:
        threading.Timer(0.02, reader.start).start()
        sink.write(wave)
    os.close(writing)
    reader.join()
    os.close(reading)
    assert bytes(received) == to_pcm(wave)


def test_a_reader_that_has_gone_is_no_error_of_ours():
    reading, writing = os.pipe()
    with pytest.raises(BrokenPipeError):
        with stream_writer(f"/dev/fd/{writing}") as sink:
            os.close(reading)
            sink.write(EDGES)
    os.close(writing)


def test_a_full_device_is_named():
    with pytest.raises(OutputError, match="'/dev/full' .No space left"):
        with stream_writer("/dev/full"):
            pass


def test_errors_of_the_work_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), stream_writer("/dev/null"):
        (tmp_path / "none").read_bytes()


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="wav or pcm"), stream_writer("-", "mp3"):
        pass
