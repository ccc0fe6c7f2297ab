"""Whole recordings for voice conversion: the samples of librosa.load, whatever the length."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import soundfile
from helpers.common import SAMPLE

from chatterbox_opt.audio import decoders, speech
from chatterbox_opt.errors import VoiceError


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (24_000, 5)])
def test_the_samples_are_librosas(tmp_path, rate, channels, monkeypatch):
    """Also beyond the length at which a voice's recording is cut, and across blocks."""
    monkeypatch.setattr(decoders, "MAX_SECONDS", 2)
    path = tmp_path / "a.wav"
    wave = np.resize(soundfile.read(SAMPLE, dtype="float32")[0], 3 * decoders.BLOCK + 5)
    with soundfile.SoundFile(path, "w", rate, channels) as file:
        for start in range(0, len(wave), 100_000):
            file.write(wave[start : start + 100_000, None] * np.linspace(1, 0.3, channels))
    read = speech.read_speech(path, 16_000)
    assert np.array_equal(read.wave, librosa.load(path, sr=16_000)[0])
    assert read.length == -(-len(wave) * 24_000 // rate)
    assert read.remark == ""


def test_what_is_too_long_is_an_error_and_not_cut(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.full(24_000 * 11, 0.1), 24_000)
    monkeypatch.setattr(decoders, "MAX_WHOLE_SAMPLES", 24_000 * 10)
    with pytest.raises(VoiceError, match="lasts more than .* at 24,000 Hz: cut it into several"):
        speech.read_speech(path, 16_000)


def test_what_is_odd_is_corrected_and_reported(tmp_path):
    path = tmp_path / "a.wav"
    wave = soundfile.read(SAMPLE, dtype="float32")[0]
    soundfile.write(path, 3 * wave / np.abs(wave).max(), 24_000, "FLOAT")
    read = speech.read_speech(path, 24_000)
    assert "divided by 3" in read.remark and np.abs(read.wave).max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "recording file '.*' is empty"), (b"text" * 99, "cannot be read as audio")],
)
def test_what_is_no_sound(tmp_path, content, message):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(VoiceError, match=message):
        speech.read_speech(path, 16_000)
