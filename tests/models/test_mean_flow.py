"""Mean flow: two steps, no guidance rows, the three silence tokens; against upstream's classes."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import fake_graph_capture
from helpers.common import SAMPLE, assert_close
from helpers.fake_graph_capture import capture_graphs
from helpers.upstream_reference import WHOLE_ATOL, Unmarked, upstream_tts

from chatterbox_opt import Engine, Sampling
from chatterbox_opt.checkpoints import families, loader, random_weights, registry
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.config.config_file import write_config
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import NANO, SILENCE, TINY, TURBO, ModelConfig
from chatterbox_opt.engine.rendering.hops import SequenceSound
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.kernels.cpu import onednn
from chatterbox_opt.layers import linear_int, linear_onednn, weight_layout
from chatterbox_opt.models.flow import estimator, model
from chatterbox_opt.models.flow.model import FlowWindow
from chatterbox_opt.voices.store import VoiceStore

CONFIG = dataclasses.replace(TINY, flow=dataclasses.replace(TINY.flow, mean_flow=True))
ATOL = 1e-4
TEXT = "Two steps are enough for this sentence."
SAMPLING = Sampling(seed=21, cfg_weight=0.7, max_tokens=60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Llama T3 with a mean flow, whose mixer is not the identity of t that upstream starts with."""
    directory = tmp_path_factory.mktemp("mean-flow")
    random_weights._write(directory, families.CHATTERBOX, CONFIG, "tiny", 1)
    found = registry.locate(str(directory))
    assert found.config.flow.mean_flow and found.config.flow.steps == 2
    return found


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory):
    store = VoiceStore(tmp_path_factory.mktemp("voices"))
    name = str(checkpoint.directory)
    with Engine.load(name, "dev", device="cpu", store=store, watermark=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tts(checkpoint):
    made = upstream_tts(checkpoint.directory)
    made.watermarker = Unmarked()
    assert made.s3gen.meanflow
    return made


@pytest.fixture(scope="module")
def flow(checkpoint):
    return loader.load_flow(checkpoint, torch.float32)


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 6561, (count,), generator=torch.Generator().manual_seed(seed + count))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("count", [1, 7, 60, 131])
def test_mel_equals_upstreams_for_one_seed(engine, flow, tts, recorded, count):
    """The recording's mel has an odd number of frames, which noise and tokens do not count."""
    voice, gen = engine.voice(), dict(tts.conds.gen)
    if recorded:
        voice = engine.voice(SAMPLE)
        voice = dataclasses.replace(voice, tokens=voice.tokens[:, :60], mel=voice.mel[:, :121])
        gen = {
            "prompt_token": voice.tokens,
            "prompt_token_len": torch.tensor([60]),
            "prompt_feat": voice.mel,
            "prompt_feat_len": None,
            "embedding": voice.xvector,
        }
    torch.manual_seed(5)
    expected = tts.s3gen.flow_inference(ids(count), ref_dict=gen, finalize=True)
    (mel,) = flow([ids(count)], [voice], [torch.Generator().manual_seed(5)])
    print(f"{count} tokens: {float((mel - expected[0]).abs().max()):.2g}")
    assert_close(mel[None], expected, atol=ATOL)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_other_numbers_of_steps_equal_upstreams(engine, flow, tts, steps):
    torch.manual_seed(5)
    expected = tts.s3gen.flow_inference(
        ids(30), ref_dict=dict(tts.conds.gen), finalize=True, n_cfm_timesteps=steps
    )
    (mel,) = flow([ids(30)], [engine.voice()], [torch.Generator().manual_seed(5)], steps)
    assert_close(mel[None], expected, atol=ATOL)


def test_the_end_of_a_step_matters(engine, flow, monkeypatch):
    """Guards the tests above: they would fail if r was not given, or was t."""
    (expected,) = flow([ids(30)], [engine.voice()], [torch.Generator().manual_seed(5)])
    plain = estimator.Estimator.time_shifts
    monkeypatch.setattr(
        estimator.Estimator, "time_shifts", lambda net, times, ends: plain(net, times, times)
    )
    (found,) = flow([ids(30)], [engine.voice()], [torch.Generator().manual_seed(5)])
    assert (found - expected).abs().max() > 100 * ATOL


@pytest.mark.parametrize("text", [pytest.param(TEXT, marks=pytest.mark.slow), "Hello."])
def test_synthesis_equals_upstreams_for_one_seed(engine, tts, text):
    """Without a number of steps in the request: two, as upstream."""
    torch.manual_seed(21)
    expected = tts.generate(text, cfg_weight=0.7, exaggeration=0.5)[0]
    audio = engine.synthesize(text, None, Sampling(seed=21, cfg_weight=0.7))
    assert_close(torch.from_numpy(audio.samples), expected, atol=WHOLE_ATOL)
    again = engine.synthesize(text, None, Sampling(seed=21, cfg_weight=0.7, cfm_steps=2))
    assert np.array_equal(again.samples, audio.samples)


@pytest.fixture
def silent(engine, monkeypatch):
    """The engine with Turbo's three silence tokens behind those of T3."""
    monkeypatch.setattr(engine.pipeline, "_silence", TURBO.silence)
    return engine


def test_which_models_append_silence():
    assert TURBO.silence == NANO.silence == (SILENCE,) * 3 == (4299, 4299, 4299)
    assert ModelConfig().silence == CONFIG.silence == ()


def test_silence_behind_the_tokens_is_rendered_as_upstream_does(silent, tts, monkeypatch):
    plain = tts.s3gen.inference

    def with_silence(speech_tokens, **options):
        tokens = torch.cat((speech_tokens.flatten(), torch.tensor([SILENCE] * 3)))
        return plain(speech_tokens=tokens, **options)

    monkeypatch.setattr(tts.s3gen, "inference", with_silence)
    torch.manual_seed(21)
    expected = tts.generate(TEXT, cfg_weight=0.7, exaggeration=0.5)[0]
    audio = silent.synthesize(TEXT, None, Sampling(seed=21, cfg_weight=0.7))
    assert_close(torch.from_numpy(audio.samples), expected, atol=WHOLE_ATOL)
    assert len(audio.samples) == 960 * (audio.tokens + 3)


def test_silence_is_in_the_last_part_of_a_stream_and_no_token(silent):
    whole = silent.synthesize(TEXT, None, SAMPLING)
    schedule = HopSchedule(sizes=(8, 16), held_back=5, context=20)
    pieces = list(silent.pieces(TEXT, None, SAMPLING, latency=schedule))
    assert len(pieces) > 2
    assert sum(piece.tokens for piece in pieces) == whole.tokens
    assert sum(len(piece.samples) for piece in pieces) == len(whole.samples)
    assert pieces[-1].ends_chunk


@pytest.mark.parametrize("total", range(1, 40))
def test_every_token_and_the_silence_are_given_out_once(total):
    sound = SequenceSound(HopSchedule((5, 9), held_back=2, context=10), TURBO.silence)
    tokens, hops = list(range(total)), []
    for known in range(1, total + 1):
        while hop := sound.next_hop(tokens[:known], ended=known == total):
            hops.append(hop)
            sound.given, sound.hops = sound.rendered(tokens)[: hop.end], len(hops)
            if hop.is_last:
                break
    assert hops[-1].is_last and hops[-1].total == total + 3
    assert sum(hop.new_frames for hop in hops) == 2 * (total + 3)
    assert sound.given == [*tokens, *TURBO.silence]


# --- several sequences, windows, graphs, precisions ---------------------------------------------


def test_rows_together_equal_rows_alone(engine, flow):
    """Padding on the right of a batch is masked, also without guidance rows."""
    conditions = [flow.encode(ids(n)[None], engine.voice())[0] for n in (40, 3, 25)]
    noises = [torch.randn(len(c), 80) for c in conditions]
    longest = max(map(len, noises))
    stacked = [
        torch.stack([F.pad(one, (0, 0, 0, longest - len(one)), value=9.0) for one in rows])
        for rows in (noises, conditions)
    ]
    with torch.inference_mode():
        schedule = flow.estimator.schedule(2, torch.device("cpu"))
        together = flow.solve(*stacked, [len(n) for n in noises], schedule)
        for i, (noise, condition) in enumerate(zip(noises, conditions, strict=True)):
            (alone,) = flow.solve(noise[None], condition[None], [len(noise)], schedule)
            assert_close(together[i, : len(noise)], alone, atol=ATOL)


@pytest.mark.skipif(not onednn.supported(), reason="no AVX-512")
def test_times_are_embedded_on_all_cores(checkpoint, engine, monkeypatch):
    """Their float32 products depend on the number of threads, the rest of an int8 flow does not."""
    made, threads = loader.load_flow(checkpoint, torch.bfloat16), []
    linear_int.quantize_transformers(made, estimator.Transformer)
    linear_onednn.use_onednn(made)
    made.use_core_threads()
    monkeypatch.setattr(model, "group_by_length", lambda lengths, device: [[0], [1]])
    plain = estimator.Estimator.time_shifts

    def noted(*args):
        threads.append(torch.get_num_threads())
        return plain(*args)

    monkeypatch.setattr(estimator.Estimator, "time_shifts", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        made(
            [ids(9), ids(9)],
            [engine.voice()] * 2,
            [torch.Generator().manual_seed(i) for i in (1, 2)],
        )
    finally:
        torch.set_num_threads(before)
    assert threads == [4], "once for all, not with a group's two"


def test_a_step_runs_the_estimator_once_per_row(engine, flow, monkeypatch):
    rows, plain = [], estimator.Estimator.forward
    monkeypatch.setattr(
        estimator.Estimator,
        "forward",
        lambda net, x, c, shifts: rows.append(len(c.first)) or plain(net, x, c, shifts),
    )
    flow([ids(9)], [engine.voice()], [None])
    assert rows == [1, 1]


def test_a_window_of_all_frames_is_a_whole_run(engine, flow):
    voice, tokens = engine.voice(), ids(20)
    drawn = flow._noise(
        voice.mel.shape[1] + 40, 40, torch.Generator().manual_seed(3), torch.device("cpu")
    )
    (expected,) = flow([tokens], [voice], [torch.Generator().manual_seed(3)])
    (found,) = flow.extend([FlowWindow(tokens, voice, drawn, 0)])
    assert torch.equal(found, expected)


def test_replayed_graphs_give_the_same_audio(checkpoint, engine, tmp_path):
    calls = [(text, Sampling(seed=i, max_tokens=20)) for i, text in enumerate(("Hi.", TEXT, "Hi."))]
    expected = [engine.synthesize(text, None, sampling).samples for text, sampling in calls]
    name = str(checkpoint.directory)
    with Engine.load(
        name, "dev", device="cpu", store=VoiceStore(tmp_path), watermark=False
    ) as replaying:
        capture_graphs(replaying, fake_graph_capture.record)
        for _ in range(2):
            for (text, sampling), wave in zip(calls, expected, strict=True):
                found = replaying.synthesize(text, None, sampling).samples
                assert found.shape == wave.shape
                assert np.abs(found - wave).max() < 1e-3


def cosine(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(F.cosine_similarity(found.flatten(), expected.flatten(), dim=0))


@pytest.mark.parametrize(
    ("dtype", "int8", "least"),
    [
        (torch.bfloat16, False, 0.999),
        (torch.float16, False, 0.9999),
        (torch.bfloat16, True, 0.999),
    ],
)
def test_low_precision_is_close(checkpoint, engine, flow, dtype, int8, least):
    if int8 and not onednn.supported():
        pytest.skip("no AVX-512")
    made = loader.load_flow(checkpoint, dtype)
    if int8:
        linear_int.quantize_transformers(made, estimator.Transformer)
        linear_onednn.use_onednn(made)
    generators = [torch.Generator().manual_seed(5)], [torch.Generator().manual_seed(5)]
    (exact,) = flow([ids(90)], [engine.voice()], generators[0])
    (found,) = made([ids(90)], [engine.voice()], generators[1])
    print(f"{dtype}{' int8' * int8}: cosine {cosine(found, exact):.5f}")
    assert cosine(found, exact) > least
    made.set_precision(torch.float32)
    (back,) = made([ids(90)], [engine.voice()], [torch.Generator().manual_seed(5)])
    assert cosine(back, exact) > least
    assert made.estimator.time_shifts(torch.rand(2), torch.rand(2)).dtype == torch.float32


def test_the_time_embedding_stays_in_float32(checkpoint):
    made = loader.load_flow(checkpoint, torch.bfloat16)
    times = ("time_in", "time_out", "time_mixer")
    assert {getattr(made.estimator, name).weight.dtype for name in times} == {torch.float32}
    assert made.dtype == torch.bfloat16


def test_cached_and_narrowly_stored_weights_are_close(checkpoint, engine, flow, tmp_path):
    def mel(made):
        return made([ids(40)], [engine.voice()], [torch.Generator().manual_seed(1)])[0]

    cache = WeightCache(tmp_path)
    converted, read = (loader.load_flow(checkpoint, torch.bfloat16, cache) for _ in range(2))
    assert torch.equal(mel(converted), mel(read))
    stored = loader.load_flow(checkpoint, torch.float32)
    weight_layout.store_narrow(stored, torch.float16)
    assert_close(mel(stored), mel(flow), atol=0.05)


def test_a_mean_flow_that_its_config_does_not_name_is_refused(checkpoint, tiny):
    plain = dataclasses.replace(checkpoint, config=TINY)
    with pytest.raises(WeightsError, match="it is a mean flow.*do not belong together"):
        loader.load_flow(plain, torch.float32)
    other = dataclasses.replace(registry.locate(str(tiny)), config=CONFIG)
    with pytest.raises(WeightsError, match=r"lacks decoder\.estimator\.time_embed_mixer\.weight"):
        loader.load_flow(other, torch.float32)


# --- the number of steps ------------------------------------------------------------------------


def test_steps_are_the_models_own_where_a_request_has_none(load, checkpoint, engine, monkeypatch):
    def steps_of(running, sampling):
        seen = []
        flow = running.pipeline.placement.module("flow")
        plain = type(flow).solve

        def solve(net, *args):
            seen.append(len(args[-1][0]) - 1)
            return plain(net, *args)

        monkeypatch.setattr(type(flow), "solve", solve)
        running.synthesize("Hi.", None, sampling)
        monkeypatch.undo()
        return seen

    short = Sampling(seed=1, max_tokens=5)
    assert steps_of(engine, short) == [2]
    assert steps_of(engine, dataclasses.replace(short, cfm_steps=3)) == [3]
    with contextlib.closing(load()) as plain:
        assert steps_of(plain, short) == [10]
        assert steps_of(plain, dataclasses.replace(short, cfm_steps=2)) == [2]


def test_the_config_is_written_and_read(tmp_path):
    write_config(tmp_path, CONFIG)
    assert '"mean_flow": true' in (tmp_path / "config.json").read_text()
