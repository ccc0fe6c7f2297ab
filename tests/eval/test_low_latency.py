"""What low latency costs in quality on the built-in model (make test-quality).

40 texts in five voices, in float32. The parts of a text are compared with the same text rendered in
one hop: the same tokens, and the same noise of each frame. Another noise is the yardstick: how far
apart two whole renderings of the same tokens are. All figures are printed. Only the word error rate
needs the recognizer (extra ``ears``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.common import ROOT

from chatterbox_opt import Engine, Sampling
from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import MEL_PER_TOKEN, SAMPLE_RATE
from chatterbox_opt.engine.rendering.hops import DueHop, HopGroup, SequenceSound
from chatterbox_opt.engine.scheduler import MARK_AFTER, MARK_BEFORE
from chatterbox_opt.engine.sequence import RequestState
from chatterbox_opt.eval.wer import word_error_rate
from chatterbox_opt.models.vocoder.source import HOP_LENGTH, VocoderWindow
from chatterbox_opt.sampling import MAX_TOKENS
from chatterbox_opt.text.chunking import Chunk
from chatterbox_opt.utils.wave import Wave
from chatterbox_opt.voice import Voice
from training.pico.sound import mel_of

pytestmark = pytest.mark.quality
SENTENCES = ROOT / "training" / "pico" / "sentences" / "lengths.txt"
COUNT = 40
LOW = HopSchedule()
WHOLE = HopSchedule(sizes=(MAX_TOKENS,), held_back=0)
OTHER_NOISE = 1000  # added to the seed
DECIBEL = 20 / np.log(10)  # of a natural logarithm of a magnitude
NEAR = 5  # mel frames on both sides of a seam
# of the log-spectral distance
WINDOW, STEP = 1024, 240  # samples
FLOOR = 120.0  # dB below the loudest bin of the whole
# a click: the largest second difference within 1 ms of a place, relative to its level within 20 ms
PEAK, LEVEL = SAMPLE_RATE // 1000, SAMPLE_RATE // 50
RANDOM_PLACES = 40  # a text


def texts() -> list[str]:
    """Single sentences of at least 18 words."""
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    single = (line for line in lines if not re.search("[.!?] ", line))
    return [line for line in single if len(line.split()) >= 18][:COUNT]


@dataclass
class Rendered:
    """Audio of a text: log-mel [80, F], float32 [n], the same with watermark, and seams."""

    mel: np.ndarray
    wave: Wave
    marked: Wave
    seams: list[int]  # in frames


@dataclass
class Comparison:
    """A text, its whole sound, its sound in parts, and the whole with another noise."""

    text: str
    whole: Rendered
    low: Rendered
    other: Rendered


class Recording:
    """The vocoder; ``mels`` gets the new frames of each part."""

    def __init__(self, vocoder, mels: list[np.ndarray]) -> None:
        self._vocoder, self._mels = vocoder, mels

    def extend(self, windows: Sequence[VocoderWindow]):
        for window in windows:
            self._mels.append(window.mel[:, window.left : window.left + window.new].numpy())
        return self._vocoder.extend(windows)


def render(
    engine: Engine, watermark: Watermark, text: str, voice: Voice, codes: list[int], seed: int,
    schedule: HopSchedule,
) -> Rendered:  # fmt: skip
    """What the engine makes of the tokens, without T3."""
    request = RequestState("", seed)
    request.add_chunks([Chunk(text)], voice, Sampling(seed=seed))
    [sequence] = request.sequences
    sequence.tokens = codes
    sound, mels, seams = SequenceSound(schedule), [], []
    while len(sound.given) < len(codes) and (hop := sound.next_hop(codes, ended=True)):
        group = HopGroup([DueHop(sequence, sound, hop)])
        with engine.pipeline.placement("flow") as flow:
            found = group.flow(flow, engine.pipeline.device)
        with engine.pipeline.placement("vocoder") as vocoder:
            group.vocode(Recording(vocoder, mels), found)()
        seams.append(MEL_PER_TOKEN * hop.given)
    parts = list(request.parts)
    before = np.empty(0, dtype=np.float32)
    marked = []
    for part in parts:
        heard = before[-MARK_BEFORE:] if len(before) else None
        marked.append(watermark.apply(part.samples, heard, part.following[:MARK_AFTER]))
        before = np.concatenate((before, part.samples))
    return Rendered(np.concatenate(mels, axis=1), before, np.concatenate(marked), seams[1:])


@pytest.fixture(scope="module")
def compared() -> list[Comparison]:
    return list(comparisons())


def comparisons(count: int = COUNT) -> Iterator[Comparison]:
    watermark = Watermark()
    with (
        torch.inference_mode(),
        Engine.load(
            "pico", "dev", device="cpu", overrides={"dtype": "float32"}, watermark=False
        ) as engine,
    ):
        names = list(registry.shipped_voices("pico"))
        for i, text in enumerate(texts()[:count]):
            voice = engine.voice(names[i % len(names)])
            codes = engine.speech_tokens(text, voice, Sampling(seed=i)).tolist()
            whole, low, other = (
                render(engine, watermark, text, voice, codes, seed, schedule)
                for seed, schedule in ((i, WHOLE), (i, LOW), (i + OTHER_NOISE, WHOLE))
            )
            yield Comparison(text, whole, low, other)


# --- measures ---------------------------------------------------------------------------------


def cosine(one: Rendered, two: Rendered) -> float:
    a, b = one.mel.ravel().astype(float), two.mel.ravel().astype(float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def rms(one: Rendered, two: Rendered, seams: Sequence[int] | None = None) -> float:
    """Of the log-mel difference, in dB; of the frames around the seams, if there are any given."""
    difference = (one.mel - two.mel) * DECIBEL
    if seams is not None:
        difference = np.concatenate([difference[:, s - NEAR : s + NEAR] for s in seams], axis=1)
    return float(np.sqrt(np.square(difference).mean()))


def steps(rendered: Rendered, seams: Sequence[int]) -> list[float]:
    """Size of the change from the last frame before each seam to the first one after it."""
    return [float(np.linalg.norm(rendered.mel[:, s] - rendered.mel[:, s - 1])) for s in seams]


def spectral_distance(one: Rendered, two: Rendered) -> float:
    """Log-spectral distance in dB, the mean over frames."""
    spectra = [spectrum(rendered.wave) for rendered in (one, two)]
    floor = spectra[0].max() - FLOOR
    a, b = (np.maximum(s, floor) for s in spectra)
    return float(np.sqrt(np.square(a - b).mean(axis=0)).mean())


def mel_distance(one: Rendered, two: Rendered, seams: Sequence[int]) -> float:
    """RMS of the difference of the waves' log-mels in dB, the mean over frames near the seams."""
    a, b = (mel_of(torch.from_numpy(rendered.wave)[None])[0].numpy() for rendered in (one, two))
    distance = DECIBEL * np.sqrt(np.square(a - b).mean(axis=0))
    return float(np.concatenate([distance[s - NEAR : s + NEAR] for s in seams]).mean())


def spectrum(wave: Wave) -> np.ndarray:
    """In dB: [bins, frames]."""
    window = torch.hann_window(WINDOW)
    bins = torch.stft(torch.from_numpy(wave), WINDOW, STEP, window=window, return_complex=True)
    return (20 * torch.log10(bins.abs().clamp(min=1e-7))).numpy()


def clicks(wave: Wave, places: Sequence[int]) -> list[float]:
    """How much each place, a sample, stands out; in dB."""
    curve = np.diff(wave.astype(float), 2)
    found = []
    for place in places:
        level = np.sqrt(np.square(curve[max(0, place - LEVEL) : place + LEVEL]).mean())
        peak = np.abs(curve[max(0, place - PEAK) : place + PEAK]).max()
        found.append(20 * np.log10((peak + 1e-12) / (level + 1e-12)))
    return found


def click_p95(compared: Sequence[Comparison], name: str) -> tuple[float, float]:
    """At seams, and at random places of the same sound; in dB."""
    generator = np.random.default_rng(1)
    at_seams, elsewhere = [], []
    for one in compared:
        wave = getattr(one.low, name)
        at_seams += clicks(wave, [s * HOP_LENGTH for s in one.low.seams])
        elsewhere += clicks(wave, generator.integers(LEVEL, len(wave) - LEVEL, RANDOM_PLACES))
    return float(np.percentile(at_seams, 95)), float(np.percentile(elsewhere, 95))


def summary(name: str, values: Sequence[float], other: Sequence[float]) -> None:
    print(f"{name}: mean {np.mean(values):.5g}, least {min(values):.5g}, largest {max(values):.5g}; "
          f"another noise {np.mean(other):.5g} ({min(other):.5g} to {max(other):.5g})")  # fmt: skip


# --- bars -------------------------------------------------------------------------------------


def test_it_is_what_the_engine_gives_out(compared):
    """Two texts: tokens while T3 decodes, seams and watermark are the same, bit for bit."""
    with Engine.load("pico", "dev", device="cpu", overrides={"dtype": "float32"}) as engine:
        names = list(registry.shipped_voices("pico"))
        for i, one in enumerate(compared[:2]):
            waves = list(engine.stream(one.text, names[i], Sampling(seed=i), latency="low"))
            assert np.array_equal(np.concatenate(waves), one.low.marked)
            ends = np.cumsum([len(wave) for wave in waves])[:-1]
            assert [end // HOP_LENGTH for end in ends] == one.low.seams


def test_mel(compared):
    cosines, values = ([f(c.whole, c.low) for c in compared] for f in (cosine, rms))
    summary("log-mel cosine", cosines, [cosine(c.whole, c.other) for c in compared])
    summary("log-mel RMS dB", values, [rms(c.whole, c.other) for c in compared])
    assert np.mean(cosines) >= 0.9985 and min(cosines) >= 0.9975
    assert np.mean(values) <= 2.3 and max(values) <= 3.5


def test_mel_at_seams(compared):
    values = [rms(c.whole, c.low, c.low.seams) for c in compared]
    summary("seam RMS dB", values, [rms(c.whole, c.other, c.low.seams) for c in compared])
    assert np.mean(values) <= 3.3 and max(values) <= 6.5


def test_step_at_seams(compared):
    low, whole, other = (
        [step for c in compared for step in steps(getattr(c, name), c.low.seams)]
        for name in ("low", "whole", "other")
    )
    ratio = np.mean(low) / np.mean(whole)
    print(f"step: {ratio:.3f} of the whole's; another noise {np.mean(other) / np.mean(whole):.3f}")
    assert 0.9 <= ratio <= 1.1


def test_the_sound_at_seams(compared):
    """By mels of the waves. Spectra of single harmonics are farther apart, as F0 is summed to a
    phase: a little of it at a seam changes them much later on, which is not heard."""
    summary(
        "log-spectral distance dB",
        [spectral_distance(c.whole, c.low) for c in compared],
        [spectral_distance(c.whole, c.other) for c in compared],
    )
    values = [mel_distance(c.whole, c.low, c.low.seams) for c in compared]
    other = [mel_distance(c.whole, c.other, c.low.seams) for c in compared]
    summary("log-mel RMS dB of waves at seams", values, other)
    assert np.mean(values) <= 0.83 * np.mean(other)


@pytest.mark.parametrize("name", ["wave", "marked"])
def test_clicks(compared, name):
    at_seams, elsewhere = click_p95(compared, name)
    print(f"click p95 of {name}: {at_seams:.1f} dB at seams, {elsewhere:.1f} dB at random places")
    assert at_seams <= elsewhere + 1


def test_watermark_is_found(compared):
    watermark = Watermark()
    whole, low = (
        [watermark.strength(getattr(c, n).marked) for c in compared[:10]] for n in ("whole", "low")
    )
    print(f"watermark: {np.mean(low):.3f} (least {min(low):.3f}), whole {np.mean(whole):.3f}")
    assert min(low) >= 0.9


def test_word_error_rate(compared, recogniser):
    whole, low = (
        word_error_rate(
            (c.text, recogniser.transcribe(getattr(c, name).wave, SAMPLE_RATE)) for c in compared
        )
        for name in ("whole", "low")
    )
    print(
        f"word error rate: low {low.errors} of {low.words} = {low.rate:.2%}, whole {whole.rate:.2%}"
    )
    assert low.rate <= whole.rate + 0.015


def test_there_are_seams_to_judge(compared):
    """Figures depend on how many seams there are."""
    seconds = [len(c.whole.wave) / SAMPLE_RATE for c in compared]
    seams = [len(c.low.seams) for c in compared]
    print(
        f"{len(compared)} texts of {min(seconds):.1f} to {max(seconds):.1f} s, {sum(seams)} seams"
    )
    assert len(compared) == COUNT and min(seams) >= 2
    assert all(later - earlier >= 20 for c in compared for earlier, later in pairwise(c.low.seams))
