"""The measures of pico's parts that need neither its files nor the teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.pico import codes, parts
from training.pico.harmonics import contrast
from training.pico.utterances import Utterance

H, E, L = (codes.INDEX[symbol] for symbol in "hɛl")
PAUSE = codes.INDEX[","]


def test_phones_are_without_pauses_and_repetitions():
    tokens = codes.BASE * np.array([PAUSE, H, E, E]) + np.array([H, E, E, L])
    assert parts.phones_of(tokens) == [H, E, L]


@pytest.mark.parametrize(("weight", "above"), [(1.0, True), (1e-4, False)])
def test_a_source_without_harmonics_is_below_its_constant(weight, above):
    merge = torch.nn.Linear(9, 1).requires_grad_(False)
    merge.weight.fill_(weight)
    merge.bias.fill_(0.1)
    f0 = np.full(50, 120.0, dtype=np.float16)
    f0[:10] = 0  # unvoiced: noise, which does not count
    one = Utterance("hello.", 0.5, np.zeros(25, np.int16), np.zeros(25, np.uint8), f0=f0)
    level = parts.source_level(merge, [one])
    assert level > 5 if above else level < -50


def test_harmonics_stand_out_where_there_are_any():
    """Pulses at 125 Hz behind a filter that ends at 2 kHz, and noise of the same level above it."""
    rng, count = np.random.default_rng(0), 24_000
    pulses = np.zeros(count)
    pulses[::192] = 14.0
    spectra = [np.fft.rfft(part) for part in (pulses, rng.normal(size=count))]
    low = np.arange(len(spectra[0])) < 2000
    wave = np.fft.irfft(np.where(low, *spectra)).astype(np.float32)
    f0 = np.full(50, 125.0, dtype=np.float32)
    found = contrast([(wave, f0)])
    assert min(found[:2]) > 15, "from 0 to 2 kHz"
    assert max(map(abs, found[2:])) < 2
    f0[::3] = 0
    assert np.isnan(contrast([(wave, f0)])).all(), "nowhere voiced for long enough"
