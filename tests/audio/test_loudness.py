"""Loudness and peaks of sound that comes in blocks are those of the whole."""

from __future__ import annotations

import math

import numpy as np
import pyloudnorm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.audio import loudness
from chatterbox_opt.config.model_config import SAMPLE_RATE

RNG = np.random.default_rng(0)
SECONDS = (0.2, 0.4, 0.45, 3.0, 20.0)


def sound(seconds: float) -> np.ndarray:
    """Noise with pauses and a slow swell."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    loud = (0.02 + 0.2 * np.sin(time) ** 2) * (np.sin(3 * time + 1) > -0.6)
    return (RNG.standard_normal(len(time)) * loud).clip(-1, 1).astype(np.float32)


def cut(wave: np.ndarray, size: int) -> list[np.ndarray]:
    return [wave[start : start + size] for start in range(0, len(wave), size)]


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("block", [77, 2_400, 24_000])
def test_the_meter_shows_what_pyloudnorm_measures(seconds, block):
    wave = sound(seconds)
    meter = pyloudnorm.Meter(SAMPLE_RATE, block_size=min(0.4, seconds))
    expected = meter.integrated_loudness(wave.astype(np.float64))
    heard = loudness.measured(cut(wave, block))
    assert heard.loudness() == pytest.approx(expected, abs=0.001)
    assert heard.peak == np.abs(wave).max()
    assert loudness.measured((wave,)).loudness() == pytest.approx(expected, abs=0.001)


def test_silence_has_no_loudness():
    assert loudness.measured((np.zeros(99_999, np.float32),)).loudness() == -math.inf
    assert loudness.measured((np.empty(0, np.float32),)).loudness() == -math.inf
    assert loudness.find_gain(lambda: [], -18, 0.5) == (0, -math.inf)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5_000), st.integers(1, 3_000), st.floats(0.01, 1))
def test_the_limiter_does_not_depend_on_the_blocks(samples, block, ceiling):
    wave = sound(5_000 / SAMPLE_RATE)[:samples]
    whole = [*loudness.amplified([wave], 6, ceiling)]
    parts = [*loudness.amplified(cut(wave, block), 6, ceiling)]
    joined, expected = (np.concatenate([np.empty(0, np.float32), *p]) for p in (parts, whole))
    assert len(joined) == samples and np.allclose(joined, expected, atol=1e-6)
    assert np.abs(joined).max(initial=0) <= ceiling + 1e-6


@pytest.mark.parametrize("target", [-30.0, -20.0, -16.0])
def test_the_gain_brings_sound_to_its_target(target):
    blocks = cut(sound(20), 24_000)
    reads = []
    gain, reached = loudness.find_gain(lambda: reads.append(1) or blocks, target, 0.6)
    heard = loudness.measured(loudness.amplified(blocks, gain, 0.6))
    assert heard.loudness() == pytest.approx(target, abs=2 * loudness.TOLERANCE)
    assert reached == pytest.approx(heard.loudness(), abs=0.001)
    assert heard.peak <= 0.6 + 1e-6 and len(reads) <= loudness.ROUNDS
