"""The family as files: each kind is recognised, found, and loaded by upstream's own ``from_local``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil

import pytest
import torch
from helpers.upstream_family import upstream_multilingual, upstream_turbo
from huggingface_hub import constants
from safetensors.torch import load_file

from chatterbox_opt.checkpoints import families, hub, loader, random_weights, registry, weight_cache
from chatterbox_opt.checkpoints.hub import Snapshot
from chatterbox_opt.checkpoints.reader import Tensors
from chatterbox_opt.config.config_file import read_config, write_config
from chatterbox_opt.config.model_config import NANO, TURBO, ModelConfig
from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.text.tags import SOUNDS
from chatterbox_opt.voices import library

KINDS = tuple(families.RANDOM_KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny checkpoint of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        random_weights.make(root / kind, "tiny", 1, kind)
    return root


def test_each_kind_is_recognised_by_its_files(made):
    for kind in KINDS:
        checkpoint = registry.locate(str(made / kind))
        assert checkpoint.kind is families.RANDOM_KINDS[kind]
        config = dataclasses.replace(random_weights.config_of(kind, "tiny"), random_weights=True)
        assert checkpoint.config == config
        assert {path.name for path in (made / kind).iterdir()} == {
            *checkpoint.kind.files, "config.json",
        }  # fmt: skip


def test_the_same_seed_writes_the_same_bytes_of_each_kind(made, tmp_path):
    for kind in KINDS:
        random_weights.make(tmp_path / kind, "tiny", 1, kind)
        for path in (made / kind).iterdir():
            assert path.read_bytes() == (tmp_path / kind / path.name).read_bytes(), path


def test_a_checkpoint_of_another_kind_is_replaced_whole(made, tmp_path):
    target = tmp_path / "m"
    shutil.copytree(made / "multilingual", target)
    random_weights.make(target, "tiny", 1, "turbo")
    assert registry.locate(str(target)).kind is families.TURBO_KIND
    assert not (target / "s3gen.pt").exists()


def test_full_size_configs_are_upstreams():
    for kind, config in (("turbo", TURBO), ("nano", NANO), ("chatterbox", ModelConfig())):
        assert random_weights.config_of(kind, "full") == config


TEXTS = {
    **{"de": "Größe, und?", "el": "Καλημέρα", "ru": "Ёлка", "he": "שלום", "ar": "مرحبا"},
    **{"hi": "नमस्ते", "ko": "안녕하세요", "zh": "你好。", "tr": "İyi günler", "ja": "かんじ"},
}


def test_upstreams_turbo_loads_a_random_checkpoint(made, monkeypatch):
    model = upstream_turbo(made / "turbo", monkeypatch)
    config = registry.locate(str(made / "turbo")).config
    assert len(model.tokenizer) == config.t3.text_vocab
    assert model.t3.is_gpt
    assert model.s3gen.flow.decoder.estimator.meanflow
    assert model.conds.t3.cond_prompt_speech_tokens.shape == (1, 375)
    ids = model.tokenizer("Hi there. [laugh] Oh [clear throat]!").input_ids
    first = config.t3.text_vocab - len(SOUNDS) - len(families.STYLE_TAGS)
    tags = [SOUNDS.index(tag) for tag in ("[laugh]", "[clear throat]")]
    assert [i - first for i in ids if i >= first] == tags
    assert model.tokenizer.decode(ids) == "Hi there. [laugh] Oh [clear throat]!"


def test_upstreams_multilingual_loads_a_random_checkpoint(made, monkeypatch):
    model = upstream_multilingual(made / "multilingual", monkeypatch)
    assert model.t3.hp.is_multilingual
    for language, text in TEXTS.items():
        ids = model.tokenizer.text_to_tokens(text, language_id=language)[0]
        decoded = model.tokenizer.decode(ids)
        assert decoded.startswith(f"[{language}]")
        assert len(ids) > len(text), "one for each character, and the language"
        assert (ids != 1).all(), f"{decoded} has no unknown token"
    assert "[cj_" in model.tokenizer.decode(model.tokenizer.text_to_tokens("你好", "zh")[0])


def test_torch_files_hold_what_safetensors_files_would(made):
    """The encoders of a voice are read from ve.pt and s3gen.pt."""
    checkpoint = registry.locate(str(made / "multilingual"))
    assert checkpoint.s3gen.suffix == checkpoint.voice_encoder.suffix == ".pt"
    expected = torch.load(checkpoint.s3gen, weights_only=True)
    tensors = Tensors(checkpoint.s3gen, "mel2wav.")
    assert len(tensors) == sum(name.startswith("mel2wav.") for name in expected)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[f"mel2wav.{name}"])
    encoders = library.load_encoders(checkpoint)
    saved = torch.load(checkpoint.voice_encoder, weights_only=True)
    assert torch.equal(encoders.voice_encoder.proj.weight, saved["proj.weight"])


def test_the_stages_are_loaded_from_the_files_of_the_kind(made):
    checkpoint = registry.locate(str(made / "multilingual"))
    t3 = loader.load_t3(checkpoint, torch.float32)
    expected = load_file(checkpoint.t3)["speech_head.weight"]
    assert torch.equal(t3.head.weight, expected)
    flow = loader.load_flow(checkpoint, torch.float32)
    saved = torch.load(checkpoint.s3gen, weights_only=True)
    assert torch.equal(flow.encoder_proj.bias, saved["flow.encoder_proj.bias"])
    loader.load_vocoder(checkpoint)
    for kind in ("turbo", "nano"):
        loader.load_vocoder(registry.locate(str(made / kind)))


def test_a_torch_file_is_mapped_again_while_it_is_read(made, monkeypatch):
    from chatterbox_opt.checkpoints import reader

    path, opened = made / "multilingual" / "s3gen.pt", []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **kw: opened.append(a) or load(*a, **kw))
    monkeypatch.setattr(reader._TorchFile, "remap_bytes", 1 << 20)
    everything = {name: tensor.clone() for name, tensor in Tensors(path).items()}
    assert 3 < len(opened) < 10
    assert everything.keys() == load(path, weights_only=True).keys()


class Payload:
    """Runs a command where pickle is trusted."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def big(path):
    torch.save({"proj.bias": torch.zeros(1).expand(1 << 40)}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: torch.save({"proj.bias": Payload()}, path), "damaged or half downloaded"),
        (lambda path: torch.save([torch.zeros(2)], path), "not tensors by name"),
        (lambda path: torch.save({"proj.bias": 5}, path), "'proj.bias' is no tensor"),
        (lambda path: torch.save({3: torch.zeros(2)}, path), "3 is no tensor"),
        (big, "proj.bias claims 4,398,046,511,104 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2000]), "half downloaded"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged"),
        (lambda path: path.write_bytes(b"x" * 999_999), "not a file of torch.save"),
        (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), "torch.save"),
        (lambda path: torch.save({"x" * (17 << 20): torch.zeros(1)}, path), "its header claims"),
    ],
)
def test_a_torch_file_is_refused_and_never_executed(made, tmp_path, monkeypatch, write, reason):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ve.pt"
    shutil.copy(made / "multilingual" / "ve.pt", path)
    write(path)
    with pytest.raises(WeightsError, match=reason) as caught:
        Tensors(path)
    assert "get it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(made, tmp_path, kind):
    target = tmp_path / "m"
    shutil.copytree(made / kind, target)
    for name in families.RANDOM_KINDS[kind].required:
        (target / name).rename(tmp_path / "away")
        with pytest.raises(WeightsError, match=f"lacks .*{name}.*; a model directory needs"):
            registry.locate(str(target))
        (tmp_path / "away").rename(target / name)


def test_config_json_changes_the_config_of_the_kind(tmp_path):
    changed = dataclasses.replace(TURBO, t3=dataclasses.replace(TURBO.t3, layers=3))
    write_config(tmp_path, changed, TURBO)
    assert json.loads((tmp_path / "config.json").read_text()) == {"t3": {"layers": 3}}
    assert read_config(tmp_path, TURBO) == changed
    (tmp_path / "config.json").unlink()
    write_config(tmp_path, TURBO, TURBO)
    assert not (tmp_path / "config.json").exists()
    assert read_config(tmp_path, TURBO) is TURBO


def test_a_whole_clone_of_the_hub_repository_is_chatterbox(tmp_path):
    for kind in (families.MULTILINGUAL_V3, families.MULTILINGUAL_V2):
        for name in kind.files:
            (tmp_path / name).touch()
    assert registry.kind_of(tmp_path) is families.MULTILINGUAL_V3
    (tmp_path / families.MULTILINGUAL_V3.t3).unlink()
    assert registry.kind_of(tmp_path) is families.MULTILINGUAL_V2
    for name in families.CHATTERBOX.files:
        (tmp_path / name).touch()
    assert registry.kind_of(tmp_path) is families.CHATTERBOX


@pytest.mark.parametrize("name", families.HUB)
def test_hub_models_have_all_files_and_true_pins(name):
    kind, snapshots = registry.kind_named(name), registry.snapshots(name)
    files = [file for snapshot in snapshots for file in snapshot.files]
    assert sorted(files) == sorted(kind.files)
    assert set(kind.files) <= set(families.ALL_FILES)
    for snapshot in snapshots:
        assert set(snapshot.pins) <= set(snapshot.files)
        assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in snapshot.pins.values())
    sizes = {"turbo": 2_987_680_596, "multilingual": 3_208_951_924}
    assert snapshots[0].size == sizes.get(name, snapshots[0].size)


def place(cache, snapshot: Snapshot, source, names):
    """Put files where huggingface_hub has them after a download."""
    folder = cache / ("models--" + snapshot.repository.replace("/", "--")) / "snapshots"
    directory = folder / snapshot.revision
    directory.mkdir(parents=True, exist_ok=True)
    for ours, theirs in names.items():
        shutil.copy(source / theirs, directory / ours)
    return directory


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and a registry without pins."""
    for name, snapshot in families.HUB.items():
        monkeypatch.setitem(families.HUB, name, dataclasses.replace(snapshot, pins={}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def tiny_config(patch, kind):
    """Have every directory described as the tiny one of a kind: the hub's have no config.json."""
    config = random_weights.config_of(kind, "tiny")
    patch.setattr(registry, "read_config", lambda directory, base: config)


def test_v2_is_used_where_only_it_is_here(made, cache, monkeypatch, caplog):
    tiny_config(monkeypatch, "multilingual")
    source, v2 = made / "multilingual", families.MULTILINGUAL_V2
    assert registry.must_download("multilingual") is families.HUB["multilingual"]
    place(
        cache, families.HUB["multilingual-v2"], source, dict(zip(v2.files, v2.files, strict=True))
    )
    assert registry.must_download("multilingual") is None
    assert registry.locate("multilingual").kind is v2
    assert "'multilingual' is not here: using multilingual-v2" in caplog.text
    assert registry.cached("multilingual") is None
    place(cache, families.HUB["multilingual"], source, {families.MULTILINGUAL_V3.t3: v2.t3})
    assert registry.locate("multilingual").kind is families.MULTILINGUAL_V3


def test_a_pack_takes_its_voice_encoder_from_the_base_repository(made, cache, monkeypatch):
    tiny_config(monkeypatch, "multilingual")
    pack, source = registry.kind_named("multilingual-pt-br"), made / "multilingual"
    monkeypatch.setattr(hub, "fetch", lambda snapshot, files: hub.in_cache(snapshot))
    names = {pack.t3: "t3_mtl23ls_v2.safetensors", pack.s3gen: "s3gen.pt"}
    place(cache, families.HUB[pack.name], source, names | {families.GRAPHEMES: families.GRAPHEMES})
    assert registry.must_download(pack.name) is pack.shared
    shared = place(cache, pack.shared, source, {name: name for name in pack.shared.files})
    checkpoint = registry.locate(pack.name)
    assert checkpoint.voice_encoder == shared / "ve.pt"
    assert checkpoint.conditionals == shared / "conds.pt"
    assert checkpoint.t3.name == "t3_pt_br.safetensors"
    assert checkpoint.kind.languages == ("pt",)


def synthetic(directory, names):
    """Files whose bytes and times are always the same."""
    for i, name in enumerate(names):
        digests = (hashlib.sha256(f"{name} {k}".encode()).digest() for k in range(40_000))
        (directory / name).write_bytes(b"".join(digests))
        os.utime(directory / name, ns=(10**18 + i, 10**18 + i))


def test_identities_of_chatterbox_and_pico_stay_what_they_were(tmp_path, monkeypatch):
    """They name cached voices and converted weights, and are in manifests: these values are those
    of version 0.1, before there were other kinds; pico's are its second edition's."""
    pico = registry.locate("pico")
    assert pico.voice_identity == "d302bbfd3b984d020ada9dfd48d4f93a"
    assert registry.identity(pico) == "89a30636a56d670dd221ddee"
    synthetic(tmp_path, registry.FILES)
    monkeypatch.setattr(registry.file_sizes, "check", lambda *_: None)
    checkpoint = registry.locate(str(tmp_path))
    assert checkpoint.voice_identity == "f0ad35c4c47e67ca924bc49ccff2a330"
    assert registry.identity(checkpoint) == "cd6d80b3af6c3afa48a54518"
    assert weight_cache._content_hash(checkpoint) == "af32c9ca9684d4a6"


def test_voices_are_shared_by_models_that_want_the_same(made):
    identities = {k: registry.locate(str(made / k)).voice_identity for k in KINDS}
    assert identities["turbo"] == identities["nano"], "the encoders' files are the same"
    assert len(set(identities.values())) == 3


def test_only_names_are_downloaded(tmp_path):
    assert registry.download("pico") == registry.built_in("pico")
    with pytest.raises(InputError, match="no name of a model; known: chatterbox, turbo, nano"):
        registry.download(str(tmp_path))
