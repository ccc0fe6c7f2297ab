"""Low latency: parts of a sequence while T3 decodes it: schedule, seams, order, company, errors."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import numpy as np
import pytest
import torch
from helpers.common import SAMPLE
from helpers.sound import snr
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Request, Sampling
from chatterbox_opt.config import hop_schedule
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.rendering.hops import SequenceSound, _blended
from chatterbox_opt.engine.rendering.noise import BLOCK, HopNoise
from chatterbox_opt.engine.sequence import Sequence
from chatterbox_opt.errors import DeviceError, InputError, RequestCancelledError
from chatterbox_opt.models.flow.model import FlowWindow
from chatterbox_opt.models.vocoder.model import source
from chatterbox_opt.models.vocoder.source import (
    HOP_LENGTH,
    LEFT_FRAMES,
    SourceState,
    VocoderWindow,
    continued_source,
)

TEXT = "The first part of this sentence is heard while the rest of it is still computed."
SAMPLING = Sampling(seed=5, max_tokens=70, cfm_steps=2)
CPU = torch.device("cpu")
SMALL = HopSchedule(sizes=(4, 8), held_back=3, context=20)


def low(engine, text=TEXT, sampling=SAMPLING, **options):
    return list(engine.pieces(text, None, sampling, latency="low", **options))


def joined(pieces) -> np.ndarray:
    return np.concatenate([piece.samples for piece in pieces])


# --- the schedule -----------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(0, 15),
    st.integers(0, 60),
    st.integers(1, 300),
    st.integers(1, 9),
)
def test_every_token_is_given_out_once_whenever_the_host_looks(sizes, held, context, total, stride):
    schedule = HopSchedule(tuple(sizes), held, context)

    def hops(stride):
        made, given = [], 0
        for known in [*range(1, total, stride), total]:
            ended = known == total
            while not (made and made[-1].is_last) and (
                hop := schedule.next(len(made), given, known, ended=ended)
            ):
                assert hop.given == given and hop.total <= known
                assert 0 <= hop.first <= 2 * given and hop.context_frames <= context
                made.append(hop)
                given = hop.end
        assert given == total and made[-1].is_last
        assert all(hop.total == hop.end + held for hop in made[:-1])
        return made

    assert hops(stride) == hops(1), "the hops do not depend on when they can be made"


def test_the_default_schedule():
    made, given = [], 0
    while not made or not made[-1].is_last:
        made.append(HopSchedule().next(len(made), given, 400, ended=True))
        given = made[-1].end
    assert [hop.end - hop.given for hop in made] == [10, 40, 100, 100, 100, 50]
    assert [hop.first for hop in made] == [0, 0, 0, 200, 400, 600]
    assert made[0].total == 19


# --- random numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[300], [1, 2, 300], [20, 31, 32, 33, 64, 290, 300]])
def test_noise_of_a_frame_does_not_depend_on_the_parts(cuts):
    whole, parts = HopNoise(7, 50, CPU), HopNoise(7, 50, CPU)
    flow, sources = whole.flow(300), whole.source(0, 300)
    assert flow.shape == (350, 80) and sources.shape == (300 * HOP_LENGTH, 9)
    first = 0
    for last in cuts:
        assert torch.equal(parts.flow(last), flow[: 50 + last])
        part = parts.source(first, last)
        assert torch.equal(part, sources[first * HOP_LENGTH : last * HOP_LENGTH])
        first = last
    assert torch.equal(parts.offsets, whole.offsets) and parts.offsets[0] == 0
    assert abs(float(flow.mean())) < 0.02 and abs(float(sources.std()) - 1) < 0.01
    assert not torch.equal(HopNoise(8, 50, CPU).flow(5), flow[:55])


def test_a_part_of_no_frames_has_no_noise_wherever_it_is():
    noise = HopNoise(7, 0, CPU)
    noise.source(0, BLOCK)
    for frame in (BLOCK, BLOCK + 1, 2 * BLOCK):
        assert noise.source(frame, frame).shape == (0, 9)


def test_nothing_held_back_at_the_end_of_a_block_of_noise(engine):
    tokens = BLOCK // 2
    sampling = dataclasses.replace(SAMPLING, max_tokens=tokens)
    pieces = list(engine.pieces(TEXT, None, sampling, latency=HopSchedule((1,), held_back=0)))
    assert len(joined(pieces)) == len(engine.synthesize(TEXT, None, sampling).samples)


def test_noise_of_the_source_is_dropped_behind_the_last_use():
    noise = HopNoise(7, 0, CPU)
    for first in range(0, 4000, 40):
        noise.source(first, first + 60)
        assert len(noise._source) <= 60 // BLOCK + 2


def test_new_frames_fade_in_from_the_provisional_ones():
    provisional, final = torch.zeros(80, 4), torch.ones(80, 10)
    found = _blended(provisional, final)
    expected = torch.tensor([0.2, 0.4, 0.6, 0.8] + [1.0] * 6).expand(80, -1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(_blended(provisional[:, :0], final), final), "the first part"
    assert _blended(provisional, final[:, :2]).shape == (80, 2), "a short last part"


# --- flow and vocoder -------------------------------------------------------------------------


@pytest.fixture
def flow(engine):
    with engine.pipeline.placement("flow") as flow:
        yield flow


def test_a_window_of_all_frames_is_a_whole_run(engine, flow):
    """The same arithmetic, with noise in another layout."""
    voice = engine.voice(None)
    tokens = torch.randint(0, 6561, (30,), generator=torch.Generator().manual_seed(1))
    prompt = voice.mel.shape[1]
    noise = torch.randn(1, 80, prompt + 60, generator=torch.Generator().manual_seed(2))
    (expected,) = flow([tokens], [voice], [torch.Generator().manual_seed(2)], 3)
    window = FlowWindow(tokens, voice, noise[0].T, 0)
    (found,) = flow.extend([window], 3)
    assert torch.equal(found, expected)
    (later,) = flow.extend([dataclasses.replace(window, first=40)], 3)
    assert later.shape == (80, 20)


def test_windows_of_several_sequences_do_not_affect_each_other(engine, flow):
    voice = engine.voice(None)
    windows = []
    for seed, count, first in ((1, 30, 40), (2, 11, 0), (3, 25, 10)):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 6561, (count,), generator=generator)
        noise = torch.randn(voice.mel.shape[1] + 2 * count, 80, generator=generator)
        windows.append(FlowWindow(tokens, voice, noise, first))
    alone = [flow.extend([window], 2)[0] for window in windows]
    for one, other in zip(flow.extend(windows, 2), alone, strict=True):
        assert torch.equal(one, other)


def pitch(frames: int) -> torch.Tensor:
    """F0 of speech: a glide with unvoiced gaps, float32 [frames]."""
    f0 = 120 + 60 * torch.sin(torch.arange(frames) / 17)
    f0[30:38] = 0
    return f0


@pytest.mark.parametrize("cuts", [[20, 70, 170, 400], [7, 8, 9, 100, 400], [400]])
def test_the_source_continues_with_its_phase(vocoder, cuts):
    """Equals the source of a whole run for the same random numbers, whatever the parts."""
    frames, f0 = 400, pitch(400)
    generator = torch.Generator().manual_seed(4)
    expected = source(vocoder.merge, f0[None], generator)[0]
    generator.manual_seed(4)
    offsets = (torch.rand(1, 9, 1, generator=generator) * 2 * torch.pi - torch.pi)[0, :, 0]
    offsets[0] = 0
    noise = torch.randn(1, 9, frames * HOP_LENGTH, generator=generator)[0].T
    state, parts, first = SourceState(offsets, 0.0, torch.empty(0)), [], 0
    with torch.inference_mode():
        for last in cuts:
            rows = slice(first * HOP_LENGTH, last * HOP_LENGTH)
            parts.append(continued_source(vocoder.merge, f0[first:last], state, noise[rows]))
            state = state.after(f0[first:last], torch.cat((state.source, parts[-1])))
            assert len(state.source) == min(last, LEFT_FRAMES) * HOP_LENGTH
            first = last
    with torch.inference_mode():
        at_once = continued_source(
            vocoder.merge, f0, SourceState(offsets, 0.0, torch.empty(0)), noise
        )
    assert snr(at_once, expected) > 60, "upstream sums phases in float32"
    assert snr(torch.cat(parts), at_once) > 100
    seams = [slice(c * HOP_LENGTH - 200, c * HOP_LENGTH + 200) for c in cuts[:-1]]
    assert all(snr(torch.cat(parts)[seam], at_once[seam]) > 80 for seam in seams)


def stream_waves(vocoder, mel, cuts, right, noise) -> torch.Tensor:
    state, first, waves = SourceState(noise.offsets, 0.0, torch.empty(0)), 0, []
    for last in cuts:
        end = min(last + right, mel.shape[1])
        left = len(state.source) // HOP_LENGTH
        window = VocoderWindow(
            mel[:, first - left : end], last - first, state, noise.source(first, end)
        )
        ((wave, state),) = vocoder.extend([window])
        waves.append(wave[: (last - first) * HOP_LENGTH])
        first = last
    return torch.cat(waves)


@pytest.mark.parametrize("cuts", [[20, 70, 170], [12, 24, 36, 100, 170]])
def test_the_waveform_continues_as_if_it_was_whole(vocoder, cuts):
    mel = torch.randn(80, 170, generator=torch.Generator().manual_seed(6)) * 2 - 5
    whole = stream_waves(vocoder, mel, [170], 0, HopNoise(3, 0, CPU))
    parts = stream_waves(vocoder, mel, cuts, 18, HopNoise(3, 0, CPU))
    assert snr(parts, whole) > 100
    blind = stream_waves(vocoder, mel, cuts, 0, HopNoise(3, 0, CPU))
    assert snr(blind, whole) < 60, "the test would notice"


# --- the engine -------------------------------------------------------------------------------


def test_parts_are_the_whole_chunk_and_come_before_its_end(engine, monkeypatch):
    whole = engine.synthesize(TEXT, None, SAMPLING)
    seen = []
    pieces = engine.pieces(TEXT, None, SAMPLING, lambda p: seen.append(p.tokens), latency="low")
    first = next(pieces)
    assert max(seen) < whole.tokens, "T3 has not finished"
    assert first.tokens == 10 and (first.part, first.ends_chunk) == (0, False)
    found = [first, *pieces]
    assert [piece.part for piece in found] == list(range(len(found)))
    assert [piece.ends_chunk for piece in found] == [False] * (len(found) - 1) + [True]
    assert sum(piece.tokens for piece in found) == whole.tokens
    assert len(joined(found)) == len(whole.samples)
    assert all(np.isfinite(piece.samples).all() for piece in found)
    assert np.array_equal(joined(low(engine)), joined(found)), "the same seed, the same sound"
    assert {"t3", "flow", "vocoder"} <= set(found[-1].seconds)


@pytest.mark.parametrize("tokens", [1, 9, 10, 18, 19, 20, 43, 44, 45])
def test_any_number_of_tokens(engine, tokens):
    sampling = dataclasses.replace(SAMPLING, max_tokens=tokens)
    pieces = low(engine, sampling=sampling)
    whole = engine.synthesize(TEXT, None, sampling)  # special tokens are dropped
    assert 0 < sum(piece.tokens for piece in pieces) == whole.tokens <= tokens
    assert len(joined(pieces)) == whole.tokens * 960


def test_the_tokens_are_those_of_the_whole(engine, monkeypatch):
    given = []
    finish = SequenceSound.next_hop

    def note(sound, tokens, *, ended):
        if ended:
            given.append(list(tokens))
        return finish(sound, tokens, ended=ended)

    monkeypatch.setattr(SequenceSound, "next_hop", note)
    low(engine)
    assert given[0] == engine.speech_tokens(TEXT, None, SAMPLING).tolist()


def test_several_chunks_come_in_order_with_their_pauses(engine):
    text = "\n\n".join([TEXT, "Another paragraph, of a few words.", "And the last."])
    whole = list(engine.pieces(text, None, SAMPLING))
    parts = low(engine, text)
    chunks = [list(group) for _, group in itertools.groupby(parts, lambda piece: piece.text)]
    assert [chunk[0].text for chunk in chunks] == [piece.text for piece in whole]
    for chunk, piece in zip(chunks, whole, strict=True):
        assert sum(part.tokens for part in chunk) == piece.tokens
        assert len(joined(chunk)) == len(piece.samples)
        assert chunk[-1].ends_chunk


def test_streams_and_a_batch_share_the_engine_and_sound_as_alone(load):
    texts = [f"Stream number {i}, which has some words." for i in range(6)]
    sampling = [dataclasses.replace(SAMPLING, seed=i, max_tokens=60) for i in range(6)]
    with load() as engine:
        parts = [low(engine, t, s) for t, s in zip(texts, sampling, strict=True)]
        assert max(map(len, parts)) > 1
        alone = [joined(pieces) for pieces in parts]
        plain = engine.synthesize("A whole one.", None, SAMPLING).samples
        engine.plan = dataclasses.replace(engine.plan, slots=4)
        handles = [
            engine.submit(Request(t, t, None, s, latency="low"))
            for t, s in zip(texts, sampling, strict=True)
        ]
        whole = engine.submit(Request("whole", "A whole one.", None, SAMPLING))
        for handle, expected in zip(handles, alone, strict=True):
            result = handle.result()
            assert np.array_equal(result.audio().samples, expected)
        assert np.array_equal(whole.result().audio().samples, plain)


def test_cancel_frees_the_slot_within_a_hop(load):
    with load() as engine:
        handle = engine.submit(Request("a", TEXT, None, SAMPLING, latency="low"))
        next(handle)
        handle.cancel()
        with pytest.raises(RequestCancelledError):
            list(handle)
        assert engine.synthesize("Hello.", None, SAMPLING).tokens
        assert engine.pipeline.idle and not engine.pipeline._ended


def test_a_generator_that_is_closed_ends_its_request(load):
    with load() as engine:  # of its own: another test may have started the thread of the session's
        pieces = engine.pieces(TEXT, None, SAMPLING, latency="low")
        next(pieces)
        pieces.close()
        assert engine.pipeline.idle


def test_a_failed_step_does_not_change_what_is_given_out(load, monkeypatch):
    """The sequence is decoded again; parts that are out are not given out twice."""
    with load() as engine:
        expected = low(engine)
        decoder, calls = engine.pipeline.decoder, itertools.count()
        step = decoder.step

        def failing():
            if next(calls) == 40:
                decoder._again(decoder.running)
                decoder._drop_batch()
            return step()

        monkeypatch.setattr(decoder, "step", failing)
        found = low(engine)
        assert next(calls) > len(expected[0].samples) // 960 + 40
    assert [p.tokens for p in found] == [p.tokens for p in expected]
    assert np.array_equal(joined(found), joined(expected))


def test_other_tokens_after_an_error_end_the_stream(load, monkeypatch):
    with load() as engine:
        decoder, calls = engine.pipeline.decoder, itertools.count()
        step = decoder.step

        def failing():
            if next(calls) == 40:
                for sequence in decoder.running:
                    decoder._again([sequence])
                    monkeypatch.setattr(Sequence, "seed", 99)
                decoder._drop_batch()
            return step()

        monkeypatch.setattr(decoder, "step", failing)
        pieces = engine.pieces(TEXT, None, SAMPLING, latency="low")
        assert next(pieces).tokens == 10
        with pytest.raises(DeviceError, match="decoded again with other tokens"):
            list(pieces)
        assert engine.pipeline.idle


def test_a_failed_hop_fails_its_request_only(load, monkeypatch):
    with load() as engine:
        plain = engine.synthesize("Hello.", None, SAMPLING).samples
        flow = engine.pipeline.placement.module("flow")

        def broken(*_):
            raise RuntimeError("broken window")

        monkeypatch.setattr(flow, "extend", broken)
        handles = [
            engine.submit(Request("a", TEXT, None, SAMPLING, latency="low")),
            engine.submit(Request("b", "Hello.", None, SAMPLING)),
        ]
        failed, fine = (handle.result() for handle in handles)
        assert "broken window" in str(failed.error)
        assert np.array_equal(fine.audio().samples, plain)


def test_faults_of_a_stream_are_warnings(engine, monkeypatch, caplog):
    monkeypatch.setattr("chatterbox_opt.engine.retries.find_faults", lambda *_, **__: ("a loop",))
    with caplog.at_level(logging.WARNING, "chatterbox_opt"):
        pieces = low(engine, guard=Guard(retries=3))
    assert [piece.faults for piece in pieces] == [()] * (len(pieces) - 1) + [("a loop",)]
    assert "has faults and was streamed already: a loop" in caplog.text


def test_a_long_stream_keeps_one_window(load, monkeypatch):
    """What is kept of a sequence does not grow with it, but for flow noise (320 bytes a frame)."""
    kept = []
    with load() as engine:
        emit = engine.pipeline.renderer.submit

        def note(groups, *, overlap):
            done = emit(groups, overlap=overlap)
            for sequence, sound in engine.pipeline._sounds.items():
                state = sound.state
                kept.append(
                    (state.mel.shape[1], len(state.source.source), len(state.noise._source))
                )
                assert sum(map(len, sequence.heard)) <= 4800 + 100 * 960
            return done

        monkeypatch.setattr(engine.pipeline.renderer, "submit", note)
        low(engine, sampling=dataclasses.replace(SAMPLING, max_tokens=500, cfm_steps=1))
    mel, samples, blocks = (max(values) for values in zip(*kept, strict=True))
    assert (mel, samples) == (LEFT_FRAMES, LEFT_FRAMES * HOP_LENGTH)
    assert blocks <= 10


def test_the_watermark_is_found_in_a_joined_stream(tiny, tmp_path):
    from chatterbox_opt import Engine
    from chatterbox_opt.audio.watermark import Watermark

    with Engine.load("pico", "dev", device="cpu") as engine:
        sampling = Sampling(seed=3, max_tokens=90, cfm_steps=2)
        marked = joined(low(engine, "This is a stream of sound, in a few pieces.", sampling))
    assert Watermark().strength(marked) > 0.9


def test_an_unknown_latency_is_an_input_error(engine):
    with pytest.raises(InputError, match="latency is 'fast'; known: chunk, low"):
        engine.pieces("Hello.", latency="fast")
    with pytest.raises(InputError, match="latency"):
        Request("a", "Hello.", latency=None)


def test_a_shortened_voice_keeps_the_end_of_its_prompt(engine):
    voice = engine.voice(SAMPLE)
    tokens, extra = voice.tokens.shape[1], voice.mel.shape[1] - 2 * voice.tokens.shape[1]
    short = voice.shortened(1)
    assert torch.equal(short.tokens, voice.tokens[:, -25:])
    assert torch.equal(short.mel, voice.mel[:, -50 - extra :])
    assert torch.equal(short.prompt, voice.prompt) and torch.equal(short.xvector, voice.xvector)
    assert voice.shortened(1000) == voice and tokens > 25
    assert joined(list(engine.pieces(TEXT, short, SAMPLING, latency="low"))).size
    for seconds in (0.2, -1, "x", None):
        with pytest.raises(InputError):
            voice.shortened(seconds)


def test_a_schedule_of_its_own(engine, flow, monkeypatch):
    steps, extend = [], flow.extend

    def note(windows, number):
        steps.append(number)
        return extend(windows, number)

    monkeypatch.setattr(flow, "extend", note)
    monkeypatch.setattr(hop_schedule, "EARLY_TOKENS", 10)
    schedule = HopSchedule((4, 6), first_steps=1)
    pieces = list(engine.pieces(TEXT, None, SAMPLING, latency=schedule))
    assert [piece.tokens for piece in pieces[:-1]] == [4, *[6] * (len(pieces) - 2)]
    assert steps == [1, 1, *[SAMPLING.cfm_steps] * (len(pieces) - 2)]
    for wrong in (
        {"sizes": ()},
        {"sizes": (0,)},
        {"sizes": ("a",)},
        {"held_back": -1},
        {"first_steps": 0},
    ):
        with pytest.raises(InputError):
            HopSchedule(**wrong)
