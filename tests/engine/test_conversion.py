"""Voice conversion: in float32 one window is upstream's ChatterboxVC; several are one signal."""

from __future__ import annotations

import dataclasses
import functools
from itertools import pairwise

import librosa
import numpy as np
import pytest
import soundfile
import torch
from helpers.common import SAMPLE
from helpers.upstream_reference import Unmarked, empty_s3gen

from chatterbox_opt import (
    Audio,
    Conversion,
    Engine,
    InputError,
    Piece,
    Request,
    Sampling,
    VoiceError,
    WeightsError,
)
from chatterbox_opt.checkpoints import random_weights, registry
from chatterbox_opt.checkpoints.reader import Tensors
from chatterbox_opt.engine import windows
from chatterbox_opt.engine.conversion import states
from chatterbox_opt.engine.rendering.renderer import Renderer, no_stream
from chatterbox_opt.models.speech_tokenizer import SpeechTokenizer
from chatterbox_opt.voices.library import load_speech_tokenizer


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("turbo") / "turbo"
    random_weights.make(directory, "tiny", 3, "turbo")
    return directory


@pytest.fixture(scope="module")
def speech():
    """Ten seconds of speech at 24 kHz."""
    wave, rate = soundfile.read(SAMPLE, dtype="float32")
    assert rate == 24_000 and wave.ndim == 1
    return wave


@pytest.fixture(scope="module")
def short(speech, tmp_path_factory):
    """0.7 s, whose last token is incomplete: 17.5 tokens."""
    path = tmp_path_factory.mktemp("recordings") / "short.wav"
    soundfile.write(path, speech[24_000 : 24_000 + 16_800], 24_000, "FLOAT")
    return path


def upstream_vc(directory, monkeypatch):
    """Upstream's ChatterboxVC over the same files, without its watermark."""
    from chatterbox import vc

    checkpoint = registry.locate(str(directory))
    monkeypatch.setattr(vc.perth, "PerthImplicitWatermarker", Unmarked)
    s3gen = empty_s3gen(checkpoint.config)
    s3gen.load_state_dict(dict(Tensors(checkpoint.s3gen)), strict=False)
    conditionals = torch.load(checkpoint.conditionals, weights_only=True)
    return vc.ChatterboxVC(s3gen.eval(), "cpu", conditionals["gen"])


@pytest.mark.parametrize(("kind", "voices"), [("tiny", (None, SAMPLE)), ("turbo", (None,))])
def test_one_window_is_upstreams(kind, voices, request, short, store, monkeypatch):
    """Of Turbo with its own voice only: upstream's class does not bring a recording to -27 LUFS."""
    directory = request.getfixturevalue(kind)
    upstream = upstream_vc(directory, monkeypatch)
    with Engine.load(str(directory), "dev", device="cpu", store=store, watermark=False) as engine:
        for seed, voice in enumerate(voices):
            torch.manual_seed(seed)
            expected = upstream.generate(short, voice)[0].numpy()
            audio = engine.convert(short, voice, seed=seed)
            assert len(audio.samples) == 16_800 and len(expected) == 18 * 960
            assert np.abs(audio.samples - expected[:16_800]).max() < 1e-4
            assert audio == engine.convert(short, voice, seed=seed)


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 749, 750, 751, 1449, 1450, 1451, 90_001])
def test_windows_cover_all_tokens_and_overlap(tokens):
    found = windows.spans(tokens)
    assert found[0][0] == 0 and found[-1][1] == tokens
    assert all(0 < last - first <= windows.WINDOW + 1 for first, last in found)
    assert all(two[0] < one[1] for one, two in pairwise(found))
    overlaps = {one[1] - two[0] for one, two in pairwise(found)}
    assert overlaps <= {windows.OVERLAP}
    assert len(found) == 1 or min(last - first for first, last in found) > windows.WINDOW // 2


def cut(whole: np.ndarray, length: int, order=lambda numbers: numbers):
    """A signal cut into windows of 200 tokens, and joined again; the windows in an order."""
    tokens = -(-len(whole) // 960)
    found = windows.spans(tokens, window=200)
    seams = windows.Seams(found, length)
    padded = np.pad(whole, (0, 960 * tokens - len(whole)))
    joined = []
    for number in order(range(len(found))):
        first, last = found[number]
        samples = padded[960 * first : 960 * last].copy()
        if number:
            samples[:960] = 0  # as the fade-in of every rendered sequence
        joined += seams.add(number, Piece(samples, "", last - first, {}))
    assert [one.window for one in joined] == list(range(len(found))) and len(found) > 2
    assert sum(one.piece.tokens for one in joined) == tokens
    return joined, np.concatenate([one.piece.samples for one in joined])


@pytest.mark.parametrize("length", [600_000, 599_990, 600_050])
@pytest.mark.parametrize("order", [iter, reversed], ids=["in order", "last first"])
def test_equal_windows_are_joined_to_the_same_signal(length, order):
    whole = np.random.default_rng(1).uniform(-1, 1, 600_000).astype(np.float32)
    joined, samples = cut(whole, length, order)
    assert len(samples) == length
    common = min(length, len(whole))
    assert np.abs(samples[:common] - whole[:common]).max() < 1e-6
    assert not samples[common:].any()
    ends = np.cumsum([len(one.piece.samples) for one in joined])
    for one, end in zip(joined[:-1], ends, strict=False):  # what the watermark is computed with
        assert np.allclose(one.after, whole[end : end + windows.AFTER], atol=1e-6)
    for one, end in zip(joined[1:], ends, strict=False):
        assert np.allclose(one.before, whole[end - windows.BEFORE : end], atol=1e-6)


def test_other_phases_are_joined_without_a_click_where_it_is_quiet():
    """A tone of another phase in each window; a pause of 100 ms in each overlap."""
    time, found = np.arange(600_000) / 24_000, windows.spans(625, window=200)
    level = np.full(600_000, 0.5)
    for first, _ in found[1:]:
        level[960 * first + 25_000 : 960 * first + 27_400] = 0.01
    seams, joined = windows.Seams(found, 600_000), []
    for number, (first, last) in enumerate(found):
        part = slice(960 * first, 960 * last)
        wave = level[part] * np.sin(2 * np.pi * 300 * time[part] + 2.5 * number)
        joined += seams.add(number, Piece(wave.astype(np.float32), "", 1, {}))
    samples = np.concatenate([one.piece.samples for one in joined])
    steps = np.abs(np.diff(samples))
    assert len(samples) == 600_000
    for end in np.cumsum([len(one.piece.samples) for one in joined])[:-1]:
        assert level[end : end + windows.FADE].max() == 0.01
        assert steps[end : end + windows.FADE].max() < 0.01 * 0.12, "a click"
    # loud everywhere: no jump that the tone itself does not have
    level[:] = 0.5
    seams, joined = windows.Seams(found, 600_000), []
    for number, (first, last) in enumerate(found):
        part = slice(960 * first, 960 * last)
        wave = 0.5 * np.sin(2 * np.pi * 300 * time[part] + 2.5 * number)
        joined += seams.add(number, Piece(wave.astype(np.float32), "", 1, {}))
    samples = np.concatenate([one.piece.samples for one in joined])
    assert np.abs(np.diff(samples)).max() < 1.1 * 0.5 * 2 * np.pi * 300 / 24_000


def test_tokens_of_several_windows_are_upstreams(tiny, speech):
    """Windows of 30 s with 4 s in common, one after the other; at the end upstream may lose 2 s."""
    tokenizer = load_speech_tokenizer(registry.locate(str(tiny)))
    wave = librosa.resample(np.resize(speech, 24_000 * 60), orig_sr=24_000, target_sr=16_000)
    for seconds in (31.01, 59.9):
        part = wave[: int(seconds * 16_000)]
        expected = tokenizer.tokenizer(torch.from_numpy(part)[None])[0][0].tolist()
        assert tokenizer.tokens(part) == expected and len(expected) == -(-len(part) // 640)
    part = wave[: int(52.5 * 16_000)]
    expected = tokenizer.tokenizer(torch.from_numpy(part)[None])[0][0].tolist()
    found = tokenizer.tokens(part)
    assert found[: len(expected)] == expected and len(found) == len(expected) + 50 == 1313


def test_windows_bound_the_memory(tiny, speech, monkeypatch):
    """The tokenizer sees 30 s at a time, in every order of length."""
    tokenizer = load_speech_tokenizer(registry.locate(str(tiny)))
    seen, plain = [], tokenizer.tokenizer.quantize

    def quantize(mel, length):
        seen.append(tuple(mel.shape))
        return plain(mel, length)

    monkeypatch.setattr(tokenizer.tokenizer, "quantize", quantize)
    wave = np.resize(speech, 16_000 * 100)
    assert len(tokenizer.tokens(wave)) == 2_500
    assert len(seen) == 4 and max(frames for _, _, frames in seen) == 3_000
    assert {rows for rows, _, _ in seen} == {1}


def test_seams_of_real_speech_are_in_its_pauses(store, monkeypatch):
    """Of pico, whose sound is speech: several windows against one."""
    short_windows = functools.partial(windows.spans, window=110)
    with Engine.load_converter("pico", device="cpu", store=store, watermark=False) as engine:
        whole = engine.convert(SAMPLE, "ada", seed=7, cfm_steps=2)
        monkeypatch.setattr(states, "spans", short_windows)
        pieces = list(engine.converted_pieces(Conversion("", SAMPLE, "ada", 7, 2)))
    samples = np.concatenate([piece.samples for piece in pieces])
    assert len(samples) == len(whole.samples) and len(pieces) == 4
    assert sum(piece.tokens for piece in pieces) == whole.tokens
    ordinary = np.quantile(np.abs(np.diff(whole.samples)), 0.99)
    for end in np.cumsum([len(piece.samples) for piece in pieces])[:-1]:
        around = samples[end - 24 : end + windows.FADE + 24]
        assert np.abs(np.diff(around)).max() < ordinary / 10, "a click"
        assert np.abs(whole.samples[end : end + windows.FADE]).max() < 0.02, "within a word"


# --- an engine ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(speech, tmp_path_factory):
    """31 s at 16 kHz in two channels: two windows."""
    path = tmp_path_factory.mktemp("recordings") / "long.flac"
    wave = librosa.resample(np.resize(speech, 24_000 * 31 + 7), orig_sr=24_000, target_sr=16_000)
    soundfile.write(path, np.stack((wave, 0.5 * wave), axis=1), 16_000)
    return path


def test_a_long_recording_is_several_windows_and_keeps_its_length(engine, long):
    audio = engine.convert(long, seed=1, cfm_steps=1)
    frames = soundfile.info(long).frames
    assert len(audio.samples) == -(-frames * 3 // 2) and audio.tokens == -(-(frames // 160) // 4)
    pieces = list(engine.converted_pieces(Conversion("", long, None, 1, 1)))
    assert len(pieces) == 2
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), audio.samples)
    assert set(audio.seconds) == {"flow", "vocoder"}


def test_a_watermark_does_not_change_the_length(tiny, store, speech):
    with Engine.load_converter(str(tiny), "dev", device="cpu", store=store) as engine:
        for length in (12_345, 24_001):
            given = Audio(speech[:length], 24_000, 0, 0, {})
            assert len(engine.convert(given, seed=1, cfm_steps=1).samples) == length


def test_many_are_what_each_is_alone_and_an_error_ends_only_its_own(engine, short, long, speech):
    given = Audio(speech[:24_000], 24_000, 0, 0, {})
    conversions = [
        Conversion("short", short, None, 1, 1),
        Conversion("none", "no such.wav", None, 1),
        Conversion("long", long, None, 2, 1),
        Conversion("audio", given, str(SAMPLE), 3, 1),
        Conversion("drawn", given),
    ]
    found = {result.id: result for result in engine.convert_many(iter(conversions))}
    assert set(found) == {one.id for one in conversions}
    assert "there is no recording file 'no such.wav'" in str(found["none"].error)
    for one in conversions:
        if one.seed is not None and one.id != "none":
            alone = engine.convert(one.source, one.voice, seed=one.seed, cfm_steps=1)
            assert found[one.id].audio() == alone, one.id
    again = engine.convert(given, seed=found["drawn"].seed)
    assert found["drawn"].audio() == again
    with pytest.raises(InputError, match=r"samples of shape \[24000, 2\]; give mono"):
        Conversion("stereo", Audio(np.zeros((24_000, 2), np.float32), 24_000, 0, 0, {}))
    with pytest.raises(InputError, match="conversion is 'x'; give a Conversion"):
        list(engine.convert_many(["x"]))


def test_texts_and_recordings_share_an_engine(engine, short):
    sampling = Sampling(seed=4, max_tokens=20)
    alone = engine.synthesize("Hello.", None, sampling)
    converted = engine.convert(short, seed=5)
    handle = engine.submit(Request("text", "Hello.", None, sampling))
    results = list(engine.convert_many(Conversion(str(i), short, None, 5) for i in range(5)))
    assert handle.result().audio() == alone
    assert all(result.audio() == converted for result in results)


def test_recordings_and_windows_are_rendered_together(load, short, long):
    """As on a GPU: in groups, on the thread of the renderer."""
    with load() as engine:
        alone = {path: engine.convert(path, seed=1, cfm_steps=1) for path in (short, long)}
        pipeline = engine.pipeline
        pipeline.group, pipeline.renderer = 4, Renderer(pipeline.recovery, no_stream)
        engine.plan = dataclasses.replace(engine.plan, slots=8)
        sizes, plain = [], pipeline.renderer.submit

        def submit(groups, *, overlap):
            groups = list(groups)
            sizes.extend(len(group.sequences) for group in groups)
            return plain(groups, overlap=overlap)

        pipeline.renderer.submit = submit
        order = [short, long, short, long, short, short]
        jobs = [Conversion(str(number), path, None, 1, 1) for number, path in enumerate(order)]
        results = list(engine.convert_many(jobs))
        assert len(results) == len(order)
        for result in results:
            assert result.audio() == alone[order[int(result.id)]]
        assert max(sizes) == 4 and sum(sizes) == 8


def test_an_interrupted_conversion_leaves_an_idle_engine(engine, long):
    pieces = engine.converted_pieces(Conversion("", long, None, 1, 1))
    assert len(next(pieces).samples)
    pieces.close()
    assert engine._loop._scheduler.idle and engine.pipeline.idle


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(24_000), "is silent"),
        (np.ones(2_000), "lasts 0.08 s; 0.1 s of speech are needed"),
        (np.full(24_000, np.nan), "NaN/Inf"),
    ],
)
def test_what_is_no_speech_is_refused(engine, samples, message):
    with pytest.raises(VoiceError, match=message):
        engine.convert(Audio(samples.astype(np.float32), 24_000, 0, 0, {}))


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_tokenizer_without_memory_goes_on_on_the_cpu(load, short, monkeypatch, caplog, message):
    engine = load()
    expected = engine.convert(short, seed=1)
    quantize, errors = SpeechTokenizer.tokens, [RuntimeError(message)]

    def tokens(self, wave):
        if errors:
            raise errors.pop()
        return quantize(self, wave)

    monkeypatch.setattr(SpeechTokenizer, "tokens", tokens)
    assert np.array_equal(engine.convert(short, seed=1).samples, expected.samples)
    assert "recordings become tokens on the CPU from now on" in caplog.text
    errors.append(RuntimeError("a shape"))
    with pytest.raises(RuntimeError, match="a shape"):
        engine.convert(short)


def test_wrong_arguments(engine, short):
    with pytest.raises(InputError, match="source is 3"):
        engine.convert(3)
    with pytest.raises(InputError, match="cfm_steps"):
        engine.convert(short, cfm_steps=0)
    with pytest.raises(VoiceError, match="recording 'tests' is a directory"):
        engine.convert("tests")


# --- without T3 ---------------------------------------------------------------------------------


def test_upstreams_two_files_are_enough(tiny, engine, short, store, tmp_path):
    """As for upstream's ``ChatterboxVC.from_local``; and config.json, because it is tiny."""
    for name in ("s3gen.safetensors", "conds.pt", "config.json"):
        (tmp_path / name).symlink_to(tiny / name)
    with Engine.load_converter(
        tmp_path, "dev", device="cpu", store=store, watermark=False
    ) as converter:
        assert converter.convert(short, seed=1) == engine.convert(short, seed=1)
        assert converter.convert(short, SAMPLE, seed=1) == engine.convert(short, SAMPLE, seed=1)
        assert not converter.voice(SAMPLE).speaker.any()
        with pytest.raises(InputError, match="loaded only to convert recordings"):
            converter.synthesize("Hello.")
    with pytest.raises(WeightsError, match="lacks ve.safetensors"):
        Engine.load(tmp_path, "dev", device="cpu", store=store)
    (tmp_path / "s3gen.safetensors").unlink()
    with pytest.raises(WeightsError, match="lacks s3gen.safetensors; a model directory needs"):
        Engine.load_converter(tmp_path, "dev", device="cpu", store=store, watermark=False)


@pytest.mark.parametrize(
    ("kind", "file"), [("nano", "s3gen_meanflow.safetensors"), ("multilingual", "s3gen.pt")]
)
def test_the_file_tells_the_kind(kind, file, short, store, tmp_path):
    random_weights.make(tmp_path, "tiny", 1, kind)
    for path in tmp_path.iterdir():
        if path.name not in (file, "conds.pt", "config.json"):
            path.unlink()
    options = {"device": "cpu", "store": store, "watermark": False}
    with Engine.load_converter(tmp_path, "dev", **options) as converter:
        assert converter.checkpoint.config.flow.mean_flow == (kind == "nano")
        audio = converter.convert(short, seed=1)
        assert len(audio.samples) == 16_800 and np.abs(audio.samples).max() > 0.01


def test_a_whole_checkpoint_loads_no_t3_and_has_the_same_voices(tiny, engine, short, store):
    with Engine.load_converter(
        tiny, "dev", device="cpu", store=store, watermark=False
    ) as converter:
        assert converter.pipeline.placement.stages == ["flow", "vocoder"]
        assert converter.convert(short, seed=1) == engine.convert(short, seed=1)
        assert converter.voice(SAMPLE) == engine.voice(SAMPLE)


def test_plain_chatterbox_is_refused(tiny, monkeypatch):
    monkeypatch.setenv("DISABLE_OPTIMIZATION", "true")
    with pytest.raises(InputError, match="plain Chatterbox converts no recordings"):
        Engine.load_converter(tiny, "dev", device="cpu")
