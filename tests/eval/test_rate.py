"""What another rate does to the built-in model's speech (make test-quality): its length, its pitch
and its words. The figures are printed; only the words need the recognizer (extra ``ears``).
"""

from __future__ import annotations

from itertools import cycle, product

import numpy as np
import pytest
from helpers.texts import everyday

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.eval.wer import word_error_rate
from chatterbox_opt.utils.librosa_import import import_librosa
from chatterbox_opt.utils.wave import Wave

pytestmark = pytest.mark.quality
RATES = (0.8, 1.25)
VOICES = list(registry.shipped_voices("pico"))
F0_HOP = SAMPLE_RATE // 100
ALLOWED = 0.01  # of the pitch, and of the word error rate


def speech_at(engine: Engine, lines: list[tuple[str, str]], rate: float) -> list[Wave]:
    """Texts, each in a voice; with the same tokens at any rate."""
    requests = [
        Request(str(i), text, voice, Sampling(seed=i), rate=rate)
        for i, (text, voice) in enumerate(lines)
    ]
    found = {result.id: result.audio().samples for result in engine.batch(requests)}
    return [found[request.id] for request in requests]


@pytest.fixture(scope="module")
def pico():
    with Engine.load("pico", "dev", device="cpu", watermark=False) as engine:
        yield engine


def pitch(wave: Wave) -> np.ndarray:
    """F0 in Hz every 10 ms, NaN where unvoiced."""
    f0, _, _ = import_librosa().pyin(
        wave, fmin=60, fmax=400, sr=SAMPLE_RATE, frame_length=2048, hop_length=F0_HOP
    )
    return f0


def at_other_times(f0: np.ndarray, rate: float, frames: int) -> np.ndarray:
    """F0 of speech at a rate where that at 1 has its frames."""
    index = np.round(np.arange(frames) / rate).astype(int)
    return f0[index.clip(max=len(f0) - 1)]


@pytest.mark.parametrize("rate", [0.5, *RATES, 2.0])
def test_the_length_is_another_and_the_pitch_the_same(pico, rate):
    """Where both are voiced, at the same places of the speech: their median ratio."""
    lines = list(zip(everyday(6), cycle(VOICES), strict=False))
    ratios = []
    for plain, other in zip(speech_at(pico, lines, 1.0), speech_at(pico, lines, rate), strict=True):
        assert len(other) == pytest.approx(len(plain) / rate, rel=0.02)
        f0 = pitch(plain)
        ratio = at_other_times(pitch(other), rate, len(f0)) / f0
        ratios += ratio[np.isfinite(ratio)].tolist()
    low, middle, high = np.percentile(ratios, (10, 50, 90))
    print(f"rate {rate:g}: pitch {middle:.4f} ({low:.3f} to {high:.3f}), {len(ratios)} frames")
    assert len(ratios) > 300 and abs(middle - 1) <= ALLOWED


def test_the_words_are_understood_as_well(pico, recogniser):
    """Every sentence in every voice: with each in one, chance alone is half a point."""
    lines = list(product(everyday(100), VOICES))
    found = {}
    for rate in (1.0, *RATES):
        waves = speech_at(pico, lines, rate)
        heard = [recogniser.transcribe(wave, SAMPLE_RATE) for wave in waves]
        pairs = [(text, words) for (text, _), words in zip(lines, heard, strict=True)]
        found[rate] = word_error_rate(pairs)
        each = [f"{name} {word_error_rate(pairs[i :: len(VOICES)]).rate:.1%}"
                for i, name in enumerate(VOICES)]  # fmt: skip
        words = found[rate].words
        print(f"rate {rate:g}: {found[rate].rate:.2%} of {words} words wrong: {', '.join(each)}")
    assert all(found[rate].rate <= found[1.0].rate + ALLOWED for rate in RATES)
