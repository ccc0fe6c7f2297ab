"""Checkpoints: upstream's names and shapes, strict loading, damaged files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatterbox_opt.checkpoints import digests, hub, loader, registry
from chatterbox_opt.checkpoints.random_weights import make, t3_template, upstream_flow
from chatterbox_opt.config.config_file import read_config
from chatterbox_opt.config.model_config import TINY, ModelConfig
from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.models.t3 import convert as t3_convert
from chatterbox_opt.utils.skip_init import skip_init
from chatterbox_opt.voices import library as voice_library


@pytest.fixture
def copy(tiny, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    return directory


def test_t3_template_equals_upstreams_t3():
    """Full size, on the meta device: tensor names and shapes of upstream's own class."""
    from chatterbox.models.t3 import T3

    with torch.device("meta"):
        upstream = T3().state_dict()
    template = t3_template(ModelConfig().t3)
    assert {n: t.shape for n, t in template.items()} == {n: t.shape for n, t in upstream.items()}
    names = t3_convert.t3_upstream_names(ModelConfig().t3)
    unused = t3_convert.unused_names(ModelConfig().t3)
    assert {n for group in names.values() for n in group} | unused == set(upstream)


def test_default_config_builds_upstreams_s3gen():
    from chatterbox.models.s3gen import S3Gen

    from chatterbox_opt.models import voice_encoders
    from chatterbox_opt.models.vocoder import model as vocoder_model

    with skip_init():
        upstream = S3Gen().state_dict()
        encoders = voice_encoders.Encoders(ModelConfig().voice, ModelConfig().t3.speaker)
        parts = {
            "flow": upstream_flow(ModelConfig().flow),
            "mel2wav": vocoder_model.build_hift(ModelConfig().vocoder),
            "tokenizer": encoders.tokenizer,
            "speaker_encoder": encoders.speaker_encoder,
        }
    ours = {f"{p}.{n}": t.shape for p, m in parts.items() for n, t in m.state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in upstream.items()}


def test_random_checkpoints_load_strictly_in_upstreams_classes(tiny, upstream):
    """The fixture loads T3 and the voice encoder strictly, and S3Gen as upstream does."""
    state = load_file(tiny / registry.S3GEN)
    missing = set(upstream.s3gen.state_dict()) - set(state)
    assert missing == {"tokenizer._mel_filters", "tokenizer.window"}


def test_same_seed_writes_the_same_bytes(tiny, tmp_path):
    make(tmp_path / "again", "tiny", seed=1)
    make(tmp_path / "other", "tiny", seed=2)
    for name in (registry.T3, registry.S3GEN, registry.VOICE_ENCODER):
        expected = (tiny / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == expected
        assert (tmp_path / "other" / name).read_bytes() != expected
    assert sum(f.stat().st_size for f in tiny.iterdir()) < 16 << 20
    identities = {registry.locate(str(d)).voice_identity for d in (tiny, tmp_path / "other")}
    assert len(identities) == 2


def rewrite(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path)


def load_all(directory):
    checkpoint = registry.locate(str(directory))
    loader.load_t3(checkpoint, torch.float32)
    loader.load_flow(checkpoint, torch.float32)
    loader.load_vocoder(checkpoint)
    voice_library.load_encoders(checkpoint)
    loader.load_tokenizer(checkpoint)


def test_model_prefix_is_stripped(copy, tiny):
    state = load_file(copy / registry.T3)
    save_file({f"model.{n}": t for n, t in state.items()}, copy / registry.T3)
    wrapped = loader.load_t3(registry.locate(str(copy)), torch.float32)
    plain = loader.load_t3(registry.locate(str(tiny)), torch.float32)
    for one, other in zip(wrapped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            registry.T3,
            lambda s: s.pop("speech_head.weight"),
            "t3 is missing 1 tensors, first speech_head",
        ),
        (
            registry.T3,
            lambda s: s.update(extra=torch.zeros(1)),
            "t3 has 1 unknown tensors, first extra",
        ),
        (registry.T3, lambda s: s.update({"text_emb.weight": torch.zeros(3, 3)}), "is expected"),
        (registry.VOICE_ENCODER, lambda s: s.pop("proj.bias"), "lacks 1 tensors"),
        (registry.VOICE_ENCODER, lambda s: s.update(extra=torch.zeros(1)), "unknown tensor extra"),
        (registry.S3GEN, lambda s: s.pop("flow.encoder_proj.bias"), "flow lacks 1 tensors"),
        (registry.S3GEN, lambda s: s.pop("mel2wav.conv_pre.bias"), "vocoder lacks 1 tensors"),
        (
            registry.S3GEN,
            lambda s: s.update({"mel2wav.conv_pre.bias": torch.zeros(3)}),
            "does not fit",
        ),
        (
            registry.T3,
            lambda s: s.update({"text_emb.weight": s["text_emb.weight"].long()}),
            "t3 text_emb.weight is torch.int64: wrong or converted file",
        ),
        (
            registry.T3,  # together as many rows as before
            lambda s: s.update(
                {
                    "tfmr.layers.0.self_attn.q_proj.weight": torch.zeros(60, 64),
                    "tfmr.layers.0.self_attn.k_proj.weight": torch.zeros(68, 64),
                }
            ),
            r"q_proj.weight is \[60, 64\] where \[64, 64\] is expected",
        ),
        (
            registry.S3GEN,
            lambda s: s.update({"mel2wav.conv_pre.bias": s["mel2wav.conv_pre.bias"].bool()}),
            "vocoder conv_pre.bias is torch.bool, not torch.float32 or",
        ),
        (
            registry.S3GEN,
            lambda s: s.update(
                {"flow.decoder.estimator.down_blocks.0.0.res_conv.weight": torch.zeros(3, 3)}
            ),
            "flow does not fit",
        ),
        (
            registry.VOICE_ENCODER,
            lambda s: s.update({"proj.bias": s["proj.bias"].to(torch.float8_e4m3fn)}),
            "proj.bias is torch.float8_e4m3fn",
        ),
    ],
)
def test_missing_unknown_or_misshapen_tensors_raise(copy, file, change, message):
    rewrite(copy / file, change)
    with pytest.raises(WeightsError, match=message) as caught:
        load_all(copy)
    assert "\n" not in str(caught.value)


def test_extra_s3gen_tensors_and_buffers_are_ignored(copy):
    def change(state):
        state["flow.something.new"] = torch.zeros(1)
        state["tokenizer.window"] = torch.hann_window(400)

    rewrite(copy / registry.S3GEN, change)
    load_all(copy)


@pytest.mark.parametrize(
    "file", [registry.T3, registry.S3GEN, registry.VOICE_ENCODER, registry.TOKENIZER]
)
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"{}" * 99,
        lambda b: b"\xff" * 8 + b[8:],  # a header of 2^64 bytes
        lambda b: b.replace(b"[", b"[9999999999999,"),
    ],
)
def test_damaged_or_half_downloaded_files_raise(copy, file, damage):
    (copy / file).write_bytes(damage((copy / file).read_bytes()))
    with pytest.raises(WeightsError, match="get it again"):
        load_all(copy)


@pytest.mark.parametrize(
    "content",
    [
        *("{}", "[]", "5", '{"model": 5}', '{"model": {"type": "BPE"}}', "[" * 100_000),
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    ],
)
def test_foreign_tokenizer_raises(copy, content):
    (copy / registry.TOKENIZER).write_text(content)
    with pytest.raises(WeightsError, match="tokenizer"):
        load_all(copy)


def test_missing_files_are_listed_in_the_error(copy):
    (copy / registry.T3).unlink()
    (copy / registry.TOKENIZER).unlink()
    with pytest.raises(WeightsError, match="lacks t3_cfg.safetensors, tokenizer.json"):
        registry.locate(str(copy))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        (json.dumps({"made": True, "t4": {}}), "unknown part 't4'; known: t3, flow"),
        (json.dumps({"t3": 5}), "t3 must map names to numbers"),
        (json.dumps({"t3": None}), "t3 must map names to numbers"),
        (json.dumps({"t3": {"layers": "two"}}), 't3.layers is "two"; it must be a whole number'),
        (json.dumps({"t3": {"layers": None}}), "t3.layers is null; it must be a whole number"),
        (json.dumps({"t3": {"layers": True}}), "t3.layers is true; it must be a whole number"),
        (json.dumps({"t3": {"layers": 2.0}}), "t3.layers is 2.0; it must be a whole number"),
        (json.dumps({"t3": {"layers": 0}}), "t3.layers is 0; it must be .* from 1 to 256"),
        (json.dumps({"t3": {"layers": 10**9}}), "t3.layers is 1000000000; it must be .* to 256"),
        (json.dumps({"vocoder": {"width": -4}}), "vocoder.width is -4; it must be .* to 16384"),
        (json.dumps({"t3": {"rope_theta": -1}}), "t3.rope_theta is -1; it must be a number above"),
        (f'{{"t3": {{"rope_theta": 1{"0" * 400}}}}}', "it must be a number above 0, at most"),
        ('{"t3": {"norm_eps": NaN}}', "t3.norm_eps is NaN; it must be a number above 0"),
        ('{"t3": {"norm_eps": ' + "9" * 5000 + "}}", "not valid JSON"),
        ('{"t3": {"layers": 2, "layers": 3}}', "the name 'layers' is there more than once"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps({"made": "yes"}), "made must be true or false"),
        (json.dumps({"t3": {"heads": 3}}), "t3.width is 1024, which 3 heads do not divide"),
        (json.dumps({"t3": {"text_vocab": 9}}), "start_text is 255, beyond t3.text_vocab 9"),
        (json.dumps({"t3": {"width": 16384}}), "describes .* parameters or more: .* get it again"),
        (" " * (2 << 20), "more than 1 MiB"),
        (json.dumps({"t3": {"layer": 2}}), "t3 has no 'layer'; known: layers"),
    ],
)
def test_invalid_config_raises(copy, config, message):
    (copy / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=message):
        registry.locate(str(copy))


def test_missing_config_means_default_config(tmp_path):
    assert read_config(tmp_path) == ModelConfig()


@pytest.mark.parametrize("config", ["[]", json.dumps({"model_type": "llama", "dtype": "float32"})])
def test_foreign_config_is_ignored(tmp_path, config):
    """Hub repositories and fine-tunes often have a config.json in another format."""
    (tmp_path / "config.json").write_text(config)
    assert read_config(tmp_path) == ModelConfig()


def test_known_name_wins_over_a_directory(tmp_path, monkeypatch):
    (tmp_path / "chatterbox").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch", lambda snapshot, files: tmp_path / "from-the-hub")
    with pytest.raises(WeightsError, match="from-the-hub"):
        registry.locate("chatterbox")
    with pytest.raises(WeightsError, match="'chatterbox' lacks"):
        registry.locate("./chatterbox")


@pytest.mark.parametrize("name", [registry.T3, "config.json"])
def test_real_models_are_not_overwritten(tmp_path, name):
    from typer.testing import CliRunner

    from chatterbox_opt.cli.application import app

    (tmp_path / name).write_text('{"model_type": "precious"}')
    result = CliRunner().invoke(app, ["models", "make", str(tmp_path)])
    assert "of another origin" in str(result.exception)
    assert (tmp_path / name).read_text() == '{"model_type": "precious"}'


def test_unknown_model_error_lists_known_models():
    with pytest.raises(InputError, match="unknown model 'nope'; known: chatterbox"):
        registry.locate("nope")


@pytest.mark.parametrize(
    ("config", "digest"), [(ModelConfig(), "55d7320e7b3cca3a"), (TINY, "d3636d4d77b88c5a")]
)
def test_identities_stay_those_of_the_first_manifests(config, digest):
    """They are in manifests and cache names: a renamed class or field must not change them."""
    text = digests._config_text(config)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    other = dataclasses.replace(config, t3=dataclasses.replace(config.t3, layers=9))
    assert digests._config_text(other) != text
