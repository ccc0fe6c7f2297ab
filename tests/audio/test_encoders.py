"""Encoded sound: as long as the samples, decodable from its first bytes, the same sound."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.decoding import FRAME, decoded
from helpers.sound import TONE, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.audio.encoders import FORMATS, MEDIA_TYPES, encoder
from chatterbox_opt.audio.tempo import Tempo
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError


def encoded(wave: np.ndarray, format_: str, piece: int) -> list[bytes]:
    one = encoder(format_)
    return [*(one.encode(wave[i : i + piece]) for i in range(0, len(wave), piece)), one.finish()]


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=5, deadline=None)
@given(samples=st.integers(4_000, 60_000), piece=st.integers(1_000, 30_000))
def test_the_decoded_sound_is_as_long_as_the_samples(format_, samples, piece):
    wave = tone(samples)
    parts = encoded(wave, format_, piece)
    sound = decoded(b"".join(parts), format_)
    assert abs(len(sound) - samples) <= FRAME.get(format_, 0)
    rest = min(len(sound), samples) - 600
    late = 47 if format_ == "mp3" else 0
    same = np.corrcoef(sound[1800 - late : rest - late], wave[1800:rest])[0, 1]
    assert same > 0.99, "the sound, at its place"


@pytest.mark.parametrize("format_", FORMATS)
def test_a_player_can_begin_with_the_first_bytes(format_):
    parts = encoded(tone(48_000), format_, 9_600)
    # the first piece is 400 ms; what was sent until the second one is decodable on its own
    sound = decoded(parts[0] + parts[1], format_)
    assert len(sound) >= 9_600


@pytest.mark.parametrize("format_", FORMATS)
def test_no_sound_and_a_sound_that_is_dropped(format_):
    assert encoder(format_).finish()[:4] in (b"", b"RIFF")
    dropped = encoder(format_)
    dropped.encode(tone(5_000))
    dropped.close()
    assert MEDIA_TYPES[format_].startswith("audio/")


def test_an_unknown_format():
    with pytest.raises(InputError, match="'m4b' is no format of a stream; use mp3, opus"):
        encoder("m4b")


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.5, 0.8, 1, 1.25, 2, 3, 4])
def test_another_speed_keeps_the_pitch(speed):
    wave, tempo = tone(72_000), Tempo(speed)
    parts = [tempo.change(wave[i : i + 7_000]) for i in range(0, len(wave), 7_000)]
    sound = np.concatenate([*parts, tempo.finish()])
    if speed == 1:
        assert np.array_equal(sound, wave)
    assert len(sound) == pytest.approx(len(wave) / speed, rel=0.01)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(sound) == pytest.approx(TONE, abs=2)


@pytest.mark.parametrize("speed", [0.2, 4.1, float("nan"), float("inf"), -1])
def test_an_impossible_speed(speed):
    with pytest.raises(InputError, match="use 0.25 to 4"):
        Tempo(speed)


def test_no_sound_at_another_speed():
    tempo = Tempo(2)
    assert not len(tempo.change(np.empty(0, np.float32))) and not len(tempo.finish())
