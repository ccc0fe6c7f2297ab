"""``--flow turbo``: Turbo's S3Gen behind another model's T3, and who can have it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import upstream_reference
from helpers.upstream_family import NoAnalyzer, upstream_multilingual
from helpers.upstream_reference import empty_s3gen
from safetensors.torch import load_file
from typer.testing import CliRunner

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.checkpoints import families, flows, hub, loader, random_weights, registry
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.cli.application import app
from chatterbox_opt.config import plan, profile, settings
from chatterbox_opt.config.hardware import Hardware
from chatterbox_opt.errors import InputError, ProfileError, WeightsError
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.voices.store import VoiceStore

ATOL = 1e-4
LIMIT = 15  # tokens: phases drift apart in a long vocoder run (WHOLE_ATOL)
SPEAKER = "samples/speaker.flac"


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "turbo"
    random_weights.make(directory, "tiny", 3, "turbo")
    return directory


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "multilingual"
    random_weights.make(directory, "tiny", 3, "multilingual")
    return directory


def load(directory, flow, tmp_path, **overrides) -> Engine:
    return Engine.load(
        str(directory), "dev", device="cpu", store=VoiceStore(tmp_path / "voices"),
        watermark=False, overrides={"flow_model": str(flow)} | overrides,
    )  # fmt: skip


def upstream_flow(turbo):
    """Upstream's S3Gen of Turbo, loaded strictly as upstream does."""
    s3gen = empty_s3gen(registry.locate(str(turbo)).config)
    assert s3gen.meanflow
    s3gen.load_state_dict(load_file(turbo / flows.FILE), strict=True)
    return s3gen.eval()


def limited(upstream):
    inference = upstream.t3.inference
    upstream.t3.inference = lambda **options: inference(**options | {"max_new_tokens": LIMIT})
    return upstream


def test_chatterbox_with_turbos_flow_is_upstreams_t3_with_upstreams_mean_flow(
    tiny, turbo, tmp_path, monkeypatch
):
    upstream = limited(upstream_reference.upstream_tts(tiny))
    upstream.s3gen = upstream_flow(turbo)
    monkeypatch.setattr(upstream, "watermarker", upstream_reference.Unmarked())
    with load(tiny, turbo, tmp_path) as engine, load(tiny, "own", tmp_path) as own:
        torch.manual_seed(5)
        expected = upstream.generate("Hello there.")[0].numpy()
        audio = engine.synthesize("Hello there.", None, Sampling(seed=5, max_tokens=LIMIT))
        assert np.abs(audio.samples - expected).max() < ATOL
        plain = own.synthesize("Hello there.", None, Sampling(seed=5, max_tokens=LIMIT))
        assert audio.tokens == plain.tokens > 5
        assert len(audio.samples) == len(plain.samples), "no silence is appended"
        assert np.abs(audio.samples - plain.samples).max() > 100 * ATOL


@pytest.mark.slow
def test_multilingual_with_turbos_flow_is_upstreams(multilingual, turbo, tmp_path, monkeypatch):
    upstream = limited(upstream_multilingual(multilingual, monkeypatch))
    upstream.s3gen = upstream_flow(turbo)
    # as in test_family.py: what upstream's master has removed, and ids of random models
    monkeypatch.setattr("chatterbox.models.t3.t3.AlignmentStreamAnalyzer", NoAnalyzer)
    monkeypatch.setattr("chatterbox.mtl_tts.drop_invalid_tokens", lambda ids: ids[ids < 6561])
    with load(multilingual, turbo, tmp_path) as engine:
        torch.manual_seed(5)
        expected = upstream.generate("Guten Tag.", "de", repetition_penalty=1.2)[0].numpy()
        sampling = Sampling(seed=5, max_tokens=LIMIT)
        audio = engine.synthesize("Guten Tag.", None, sampling, language="de")
        assert np.abs(audio.samples - expected).max() < upstream_reference.WHOLE_ATOL


def test_company_and_streams_are_as_with_any_model(tiny, turbo, tmp_path):
    requests = [
        Request(str(i), f"Line {i} of a few.", None, Sampling(seed=i, max_tokens=20))
        for i in range(3)
    ]
    with load(tiny, turbo, tmp_path) as engine:
        alone = [engine.synthesize(one.text, None, one.sampling) for one in requests]
        for result in engine.batch(requests):
            assert np.array_equal(result.audio().samples, alone[int(result.id)].samples)
        parts = list(engine.pieces(requests[0].text, None, requests[0].sampling, latency="low"))
    assert sum(part.tokens for part in parts) == alone[0].tokens
    assert sum(len(part.samples) for part in parts) == len(alone[0].samples)


@pytest.mark.slow
def test_a_recording_is_what_upstreams_class_of_the_t3_makes_of_it(tiny, turbo, tmp_path):
    """Its loudness stays; tokens, mel and x-vector are of Turbo's encoders, and so is T3's prompt."""
    upstream = upstream_reference.upstream_tts(tiny)
    upstream.s3gen = upstream_flow(turbo)
    upstream.prepare_conditionals(SPEAKER)
    store = VoiceStore(tmp_path / "voices")
    own, joined = registry.locate(str(tiny)), flows.locate(str(tiny), str(turbo))
    voice = VoiceLibrary(joined, store).voice(SPEAKER)
    gen, t3 = upstream.conds.gen, upstream.conds.t3
    assert torch.equal(voice.tokens, gen["prompt_token"])
    assert torch.equal(voice.prompt, t3.cond_prompt_speech_tokens)
    for ours, theirs in (
        (voice.mel, gen["prompt_feat"]),
        (voice.xvector, gen["embedding"]),
        (voice.speaker, t3.speaker_emb),
    ):
        torch.testing.assert_close(ours, theirs, atol=ATOL, rtol=0)
    assert joined.voice_identity not in (
        own.voice_identity,
        registry.locate(str(turbo)).voice_identity,
    )
    assert not torch.equal(VoiceLibrary(own, store).voice(SPEAKER).tokens, voice.tokens)


def test_each_part_is_cached_as_the_file_that_it_is_from(tiny, turbo, tmp_path):
    """So T3 is not converted again when the flow changes, nor is one file evicted for the other."""
    cache = WeightCache(tmp_path / "weights", min_bytes=0)
    own, joined = registry.locate(str(tiny)), flows.locate(str(tiny), str(turbo))
    for checkpoint in (own, joined, registry.locate(str(turbo))):
        loader.load_t3(checkpoint.source("t3"), torch.bfloat16, cache=cache)
        loader.load_flow(checkpoint, torch.bfloat16, cache)
    assert len(cache.entries()) == 4, "two T3 and two flows"
    with_joined = loader.load_flow(joined, torch.bfloat16, cache).state_dict()
    of_turbo = loader.load_flow(registry.locate(str(turbo)), torch.bfloat16, cache).state_dict()
    assert all(torch.equal(with_joined[name], tensor) for name, tensor in of_turbo.items())
    assert registry.identity(joined) != registry.identity(own)


def test_only_the_one_file_is_needed(tiny, turbo, tmp_path):
    for name in (flows.FILE, "config.json"):
        shutil.copy(turbo / name, tmp_path / name)
    cache = WeightCache(tmp_path / "weights", min_bytes=0)
    checkpoint = flows.locate(str(tiny), str(tmp_path))
    assert checkpoint.config.flow.mean_flow and checkpoint.config.text == "english"
    assert loader.load_flow(checkpoint, torch.bfloat16, cache).steps == 2
    assert len(cache.entries()) == 1


def test_who_has_it_already_says_so_and_pico_refuses(turbo, tmp_path, caplog):
    with load(turbo, "turbo", tmp_path) as engine:
        assert engine.plan.flow_model == "own" and not engine.checkpoint.sources
    assert "'turbo' has a two-step flow already: --flow turbo changes nothing" in caplog.text
    for model, flow, message in (
        ("pico", "turbo", "'pico' has speech tokens of its own"),
        (str(registry.built_in("pico")), str(turbo), "speech tokens of its own"),
        ("nano", str(turbo), "'nano' has a two-step flow of its own"),
        ("chatterbox", "fast", "unknown flow 'fast'; known: own, turbo, or a directory"),
        ("chatterbox", str(tmp_path), "lacks s3gen_meanflow.safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            flows.check(model, flow)
    flows.check("nano", "turbo")
    flows.check("multilingual-pt-br", "turbo")


def test_plain_chatterbox_has_no_other_flow(tiny, turbo, monkeypatch, tmp_path):
    monkeypatch.setenv("DISABLE_OPTIMIZATION", "true")
    with pytest.raises(InputError, match="plain Chatterbox has its own flow only"):
        load(tiny, turbo, tmp_path)


def test_a_missing_download_names_what_gets_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="chatterbox-opt models get turbo.*leave out --flow"):
        flows.locate(str(tiny), "turbo")
    missing = flows.must_download("turbo")
    assert missing.files == (flows.FILE,) and list(missing.pins) == [flows.FILE]
    assert flows.must_download("own") is None


def test_the_download_is_used(tiny, turbo, monkeypatch):
    config = registry.locate(str(turbo)).config
    fetched = []
    monkeypatch.setattr(hub, "fetch", lambda snapshot: fetched.append(snapshot) or turbo)
    checkpoint = flows.locate(str(tiny), "turbo")
    assert checkpoint.s3gen == turbo / flows.FILE and checkpoint.config.flow == config.flow
    assert fetched[0].repository == families.HUB["turbo"].repository


def test_where_it_is_asked_for(tmp_path):
    cpu = Hardware("cpu", "x")
    path = tmp_path / "mine.yaml"
    path.write_text("dtype: {flow: float32}\nflow_model: turbo\n")
    resolved = plan.resolve(str(path), cpu, environment={})
    assert resolved.flow_model == "turbo" and "flow of turbo" in resolved.summary()
    assert f"flow_model turbo: from profile {path}" in resolved.reasons
    own = plan.resolve(str(path), cpu, {"flow_model": "own"}, {})
    assert own.flow_model == "own" and "flow of" not in own.summary()
    assert settings.flow_model(str(path), {}) == "turbo"
    assert settings.flow_model(str(path), {"flow_model": "own"}) == "own"
    assert settings.flow_model("auto", {}) == "own"
    assert {profile.load_profile(name).flow_model for name in profile.profile_names()} == {"own"}
    assert resolved.precision == own.precision, "manifests have it as part of the model"
    path.write_text("flow_model: {model: turbo}\n")
    with pytest.raises(ProfileError, match="flow_model is .*; known: own, turbo, or a directory"):
        plan.resolve(str(path), cpu)
    with pytest.raises(ProfileError, match="flow_model is ''"):
        plan.resolve("dev", cpu, {"flow_model": ""})


def run(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_synth_and_batch_record_it_and_a_resume_remakes_what_has_another_flow(
    tiny, turbo, tmp_path
):
    common = ("--model", tiny, "--profile", "dev", "--device", "cpu", "--max-tokens", 10,
              "--seed", 1, "--no-watermark")  # fmt: skip
    out = tmp_path / "one.wav"
    result = run(
        "synth", "Hello.", *common, "--flow", turbo, "-o", out, "--json", "--no-check", "-q"
    )
    assert f"flow of {turbo}" in json.loads(result.splitlines()[-1])["plan"]
    job = tmp_path / "job.txt"
    job.write_text("Hello.\n")
    batch = ("batch", job, *common, "--out-dir", tmp_path / "out", "--json", "-q", "--retries", 0)
    made = [run(*batch, *flow) for flow in ((), (), ("--flow", turbo), ("--flow", turbo))]
    begun = [json.loads(lines.splitlines()[0]) for lines in made]
    assert [event["skipped"] for event in begun] == [0, 1, 0, 1]
    item = next(e["item"] for e in map(json.loads, made[2].splitlines()) if "item" in e)
    assert f"float32 with the flow of {turbo}" in item["model"]
