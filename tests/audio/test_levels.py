"""What no microphone gives is corrected or reported; what one gives is left as it is."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from helpers.common import ROOT, SAMPLE

from chatterbox_opt.audio import levels
from chatterbox_opt.audio.files import check_reference, decode_reference
from chatterbox_opt.errors import VoiceError

RATE = 24_000
SPEECH = soundfile.read(SAMPLE, dtype="float32")[0][: 3 * RATE]
NOISE = np.random.default_rng(0).normal(size=3 * RATE).astype(np.float32) * 0.1
TONE = (np.sin(np.arange(3 * RATE) / 20) * 0.3).astype(np.float32)


def normalized(wave: np.ndarray) -> tuple[np.ndarray, list[str]]:
    return levels.normalize(wave.reshape(len(wave), -1), RATE)


@pytest.mark.parametrize("path", [SAMPLE, *sorted((ROOT / "docs" / "samples").glob("*.mp3"))])
def test_speech_is_unchanged_and_without_remark(path):
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave, remarks = levels.normalize(samples, rate)
    assert np.array_equal(wave, samples[:, 0])
    assert remarks == []


@pytest.mark.parametrize("gain", [0.001, 0.1, 1.2 / np.abs(SPEECH).max()])
def test_levels_up_to_the_overshoot_of_decoders_are_unchanged(gain):
    wave = SPEECH * np.float32(gain)
    assert np.array_equal(normalized(wave)[0], wave)
    assert normalized(wave)[1] == []


@pytest.mark.parametrize("scale", [2.0**15, 2.0**23, 2.0**31])
def test_integers_that_were_not_scaled_are_scaled_exactly(scale):
    wave, [remark] = normalized(SPEECH * np.float32(scale))
    assert np.array_equal(wave, SPEECH)
    assert f"divided by {scale:.6g}" in remark


@pytest.mark.parametrize("peak", [1.5, 3.0, 100.0])
def test_a_peak_above_the_range_becomes_one(peak):
    wave, [remark] = normalized(SPEECH * np.float32(peak / np.abs(SPEECH).max()))
    assert np.abs(wave).max() == pytest.approx(1)
    assert np.corrcoef(wave, SPEECH)[0, 1] > 0.9999
    assert "samples reach" in remark


def test_a_damaged_frame_does_not_silence_the_rest():
    wave = SPEECH.copy()
    wave[5000:5100] = 30_000
    limited, [remark] = normalized(wave)
    assert np.array_equal(limited[6000:], SPEECH[6000:])
    assert "limited to 1" in remark


@pytest.mark.parametrize("offset", [0.02, -0.3, 1.5])
def test_a_constant_offset_is_removed(offset):
    wave, [remark] = normalized(SPEECH + np.float32(offset))
    assert np.abs(wave - SPEECH).max() < 1e-3
    assert "constant offset" in remark


def test_unsigned_integers_as_floats():
    wave, remarks = normalized((SPEECH + 1) * np.float32(2**15))
    assert np.abs(wave - SPEECH).max() < 2e-3
    assert len(remarks) == 2


@pytest.mark.parametrize("other", [-1.0, -0.8])
def test_channels_that_cancel_each_other_out(other):
    wave, [remark] = normalized(np.stack([SPEECH, SPEECH * np.float32(other)], axis=1))
    assert np.array_equal(wave, SPEECH)
    assert "only channel 1 is used" in remark


@pytest.mark.parametrize("gains", [(1, 1), (1, 0), (0, 0, 1, 0, 0, 0), (1, -0.3)])
def test_other_channels_are_averaged_as_upstream_does(gains):
    samples = np.stack([SPEECH * np.float32(gain) for gain in gains], axis=1)
    wave, remarks = normalized(samples)
    assert np.array_equal(wave, np.mean(samples.T, axis=0))
    assert remarks == []


@pytest.mark.parametrize(("gain", "clipped"), [(1, False), (3, True), (10, True)])
def test_clipping_is_reported(gain, clipped):
    wave, remarks = normalized(np.clip(SPEECH * np.float32(gain), -1, 1))
    assert ["clipped" in remark for remark in remarks] == [True] * clipped


@pytest.mark.parametrize("wave", [TONE, NOISE, np.sign(TONE) * 0.5, np.pad(TONE, 20_000)])
def test_a_tone_or_noise_is_reported(wave):
    _, [remark] = normalized(wave.astype(np.float32))
    assert "tone or noise" in remark


@pytest.mark.parametrize(
    ("value", "message"), [(0.0, "is silent;"), (0.5, "a constant offset and no")]
)
def test_a_constant_is_silent(tmp_path, value, message):
    soundfile.write(tmp_path / "a.wav", np.full(2 * RATE, value), RATE, "FLOAT")
    with pytest.raises(VoiceError, match=message):
        check_reference(tmp_path / "a.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_samples_that_are_no_numbers_are_refused(tmp_path, value):
    wave = SPEECH.copy()
    wave[[5, 6]] = value, -value
    soundfile.write(tmp_path / "a.wav", wave, RATE, "FLOAT")
    with pytest.raises(VoiceError, match="NaN/Inf"):
        check_reference(tmp_path / "a.wav")


def test_all_remarks_are_one_line(tmp_path):
    wave = np.clip(SPEECH * 10, -1, 1) * np.float32(20_000) + 9_000
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), RATE, "FLOAT")
    read = decode_reference(tmp_path / "a.wav")
    assert read.remark.count(";") >= 3
    assert "\n" not in read.remark
    assert np.abs(read.wave).max() < 1.1
