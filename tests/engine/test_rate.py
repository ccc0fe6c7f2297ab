"""The rate of speech: lengths, groups of several rates, streams without seams, errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.sound import snr
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Guard, HopSchedule, Request, Sampling
from chatterbox_opt.config.speaking_rate import combined
from chatterbox_opt.engine.quality import find_faults
from chatterbox_opt.engine.rendering.hops import DueHop, HopGroup, SequenceSound
from chatterbox_opt.engine.rendering.noise import HopNoise
from chatterbox_opt.engine.rendering.stretch import num_frames, stretched, stretched_part
from chatterbox_opt.engine.sequence import Capacity
from chatterbox_opt.errors import InputError
from chatterbox_opt.models.vocoder.model import FADE_LENGTH, fade_in
from chatterbox_opt.models.vocoder.source import HOP_LENGTH, SourceState, VocoderWindow

TEXT = "The first part of this sentence is heard while the rest of it is still computed."
SAMPLING = Sampling(seed=5, max_tokens=70, cfm_steps=2)
CPU = torch.device("cpu")
RATES = [0.5, 0.8, 1.0, 1.25, 1.7, 2.0]


def ramp(frames: int) -> torch.Tensor:
    """A mel whose values are the numbers of its frames."""
    return torch.arange(frames).float().expand(80, frames)


# --- mels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("frames", [2, 3, 50, 333])
def test_a_mel_has_another_length_and_the_same_values(rate, frames):
    found = stretched(ramp(frames), rate)
    assert found.shape == (80, max(2, round(frames / rate)))
    middle = (torch.arange(found.shape[1]) + 0.5) * rate - 0.5
    assert torch.allclose(found[0], middle.clamp(0, frames - 1), atol=1e-4)


def test_at_1_nothing_is_computed():
    mel = torch.full((80, 9), float("nan"))
    assert stretched(mel, 1.0) is mel
    assert stretched_part(mel, 4, 1.0, 6, 8).data_ptr() == mel[:, 2:].data_ptr()
    assert [num_frames(n, 1.0, ended=ended) for n in (0, 1, 8) for ended in (False, True)] == [
        0, 0, 1, 1, 8, 8
    ]  # fmt: skip


@given(st.floats(0.5, 2), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_parts_have_the_frames_of_the_whole(rate, sizes):
    """Whatever the parts; each has the last frame of those before and all up to its own end."""
    frames = 2 * sum(sizes)
    mel = torch.randn(80, frames, generator=torch.Generator().manual_seed(1))
    parts, end = [], 0
    for number, size in enumerate(sizes):
        first = num_frames(end, rate, ended=False)
        offset, end = max(end - 1, 0), end + 2 * size
        last = num_frames(end, rate, ended=number == len(sizes) - 1)
        parts.append(stretched_part(mel[:, offset:end], offset, rate, first, last))
        assert last > first or number, "every hop gives something out"
    assert torch.allclose(torch.cat(parts, 1), stretched(mel, rate), atol=1e-5)


# --- the engine -------------------------------------------------------------------------------


def test_1_is_what_it_was_and_others_have_their_length(engine):
    plain = engine.synthesize(TEXT, None, SAMPLING)
    assert np.array_equal(engine.synthesize(TEXT, None, SAMPLING, rate=1).samples, plain.samples)
    for rate in RATES:
        audio = engine.synthesize(TEXT, None, SAMPLING, rate=rate)
        assert audio.tokens == plain.tokens
        assert len(audio.samples) == round(2 * plain.tokens / rate) * HOP_LENGTH
        assert np.isfinite(audio.samples).all()


def test_pauses_between_chunks_stay(engine):
    text = f"{TEXT}\n\n{TEXT}"
    one, two = engine.pieces(text, None, SAMPLING, rate=2)
    assert len(one.samples) - one.tokens * HOP_LENGTH == 12_000, "half a second"
    assert len(two.samples) == two.tokens * HOP_LENGTH


def test_requests_of_several_rates_sound_together_as_alone(load):
    texts = [f"Text number {i}, which has some words." for i in range(len(RATES))]
    with load() as engine:
        alone = [
            engine.synthesize(text, None, SAMPLING, rate=rate).samples
            for text, rate in zip(texts, RATES, strict=True)
        ]
        engine.plan = dataclasses.replace(engine.plan, slots=4)
        requests = [
            Request(text, text, None, SAMPLING, rate=rate)
            for text, rate in zip(texts, RATES, strict=True)
        ]
        found = {result.id: result.audio().samples for result in engine.batch(requests)}
    for text, expected in zip(texts, alone, strict=True):
        assert np.array_equal(found[text], expected)


def test_a_chunk_has_its_own_rate_within_the_requests(engine):
    assert [combined(*pair) for pair in ((1, 1), (0.9, 2), (2, 2), (0.5, 0.6))] == [1, 1.8, 2, 0.5]
    text = "[rate:0.8]First one.[/rate] [rate:1.25]Second one.[/rate] Third one."
    request = Request("a", text, sampling=SAMPLING, rate=1.25, markup=True)
    state = engine._requests.of(request, Capacity())
    assert [one.chunk.rate for one in state.sequences] == pytest.approx([1.0, 1.5625, 1.25])


@pytest.mark.parametrize(
    "rate", [0, 0.49, 2.01, 10**400, float("nan"), float("inf"), "1", True, None]
)
def test_an_impossible_rate_is_an_input_error(engine, rate):
    with pytest.raises(InputError, match="rate is"):
        Request("a", TEXT, rate=rate)
    with pytest.raises(InputError, match="rate is"):
        engine.pieces(TEXT, rate=rate)


def test_the_quality_checks_expect_the_rate():
    text = "a" * 150  # 10 s of calm speech
    wave = np.ones(24_000 * 5, np.float32)
    assert find_faults(text, wave, ())[0].startswith("too fast")
    assert not find_faults(text, wave, (), rate=2.0)
    slow = np.ones(24_000 * 25, np.float32)
    assert find_faults(text, slow, ())[0].startswith("too slow")
    assert not find_faults(text, slow, (), rate=0.5)
    slow[100_000:172_000] = 0  # 3 s
    assert find_faults(text, slow, (), rate=1.0)[-1].startswith("silent for 3")
    assert not find_faults(text, slow, (), rate=0.5)


def test_slow_speech_is_not_retried(engine):
    """The tiny model's sounds are judged by their length: at any rate as at 1."""
    attempts = {
        rate: [p.attempts for p in engine.pieces(TEXT, None, SAMPLING, guard=Guard(2), rate=rate)]
        for rate in (0.5, 1, 2)
    }
    assert attempts[0.5] == attempts[1] == attempts[2]


# --- streams ----------------------------------------------------------------------------------


class FixedFlow:
    """Gives out the frames of a known mel, whatever the tokens."""

    def __init__(self, mel: torch.Tensor) -> None:
        self.mel = mel

    def extend(self, windows, steps):
        return [self.mel[:, window.first : 2 * len(window.tokens)] for window in windows]


def streamed(engine, vocoder, mel, rate, schedule):
    """The parts of a sequence whose tokens come one by one, and its sequence."""
    request = Request("a", TEXT, None, SAMPLING, latency=schedule, rate=rate)
    state = engine._requests.of(request, Capacity())
    [sequence] = state.sequences
    tokens = list(range(mel.shape[1] // 2))
    sound = SequenceSound.of(sequence, schedule, ())
    for known in range(1, len(tokens) + 1):
        ended, sequence.tokens = known == len(tokens), tokens[:known]
        while hop := sound.next_hop(sequence.tokens, ended=ended):
            group = HopGroup([DueHop(sequence, sound, hop)])
            group.vocode(vocoder, group.flow(FixedFlow(mel), CPU))()
            if hop.is_last:
                break
    return [part.samples for part in state.parts], sequence


STREAMS = [
    # but for the usual parts, the slowest and the fastest rates are the fast tests
    pytest.param(
        schedule,
        rate,
        marks=pytest.mark.slow if schedule != HopSchedule() and 0.5 < rate < 2.0 else (),
    )
    for schedule in (HopSchedule(), HopSchedule((3, 5)), HopSchedule((7, 1)))
    for rate in RATES
]


@pytest.mark.parametrize(("schedule", "rate"), STREAMS)
def test_a_joined_stream_is_the_stretched_whole(engine, vocoder, rate, schedule):
    mel = torch.randn(80, 170, generator=torch.Generator().manual_seed(6)) * 2 - 5
    with torch.inference_mode():
        parts, sequence = streamed(engine, vocoder, mel, rate, schedule)
        noise = HopNoise(sequence.seed, sequence.voice.mel.shape[1], CPU)
        whole = stretched(mel, rate)
        frames = whole.shape[1]
        state = SourceState(noise.offsets, 0.0, torch.empty(0))
        window = VocoderWindow(whole, frames, state, noise.source(0, frames))
        ((expected, _),) = vocoder.extend([window])
        expected[: 2 * FADE_LENGTH] *= fade_in(CPU)
    assert len(parts) > 2 and all(len(part) for part in parts)
    joined = np.concatenate(parts)
    assert len(joined) == len(expected)
    cuts = np.cumsum([len(part) for part in parts])[:-1]
    around = [slice(max(cut - 200, 0), cut + 200) for cut in cuts]
    # as near as at 1, where the vocoder sees no more than it needs behind a part
    assert snr(joined, expected.numpy()) > 65
    assert all(snr(joined[seam], expected.numpy()[seam]) > 55 for seam in around)


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.25, 2.0])
def test_a_low_latency_stream_has_the_length_and_the_tokens(engine, rate):
    whole = engine.synthesize(TEXT, None, SAMPLING, rate=rate)
    pieces = list(engine.pieces(TEXT, None, SAMPLING, latency="low", rate=rate))
    assert len(pieces) > 1 and sum(piece.tokens for piece in pieces) == whole.tokens
    assert sum(len(piece.samples) for piece in pieces) == len(whole.samples)
    again = list(engine.stream(TEXT, None, SAMPLING, latency="low", rate=rate))
    assert all(np.array_equal(p.samples, w) for p, w in zip(pieces, again, strict=True))


def test_text_that_arrives_has_the_rate(engine):
    words = iter(["Some words ", "of one sentence. ", "And another."])
    fast = list(engine.pieces(words, None, SAMPLING, rate=2))
    plain = list(engine.pieces(iter(["Some words of one sentence. And another."]), None, SAMPLING))
    assert [p.tokens for p in fast] == [p.tokens for p in plain]
    for quick, usual in zip(fast, plain, strict=True):
        pause = len(usual.samples) - 2 * usual.tokens * HOP_LENGTH
        assert len(quick.samples) == usual.tokens * HOP_LENGTH + pause
