"""Cache of converted weights: same output with and without it, and never an error."""

from __future__ import annotations

import logging
import os
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt import Engine, Sampling
from chatterbox_opt.checkpoints import loader, registry, sealed_file, weight_cache
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.layers import weight_layout

HALF = torch.bfloat16


@pytest.fixture
def cache(tmp_path):
    return WeightCache(tmp_path / "weights", min_bytes=0)


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


def load(directory, cache):
    checkpoint = registry.locate(str(directory))
    stages = (
        loader.load_t3(checkpoint, HALF, cache=cache),
        loader.load_flow(checkpoint, HALF, cache),
    )
    return [stage.state_dict() for stage in stages]


def same(one, other):
    return all(
        a.keys() == b.keys()
        and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
        for a, b in zip(one, other, strict=True)
    )


def names(cache):
    return sorted(path.name.split("-", 2)[2] for path in cache.entries())


def never():
    raise AssertionError("converted although it was cached")


def test_output_with_cached_weights_is_bit_identical(tiny, cache):
    def synthesize():
        with Engine.load(str(tiny), "dev", device="cpu", overrides={"dtype": "bfloat16"},
                         watermark=False, weights=cache) as engine:  # fmt: skip
            return engine.synthesize("Hello there.", sampling=Sampling(seed=4, max_tokens=12))

    fresh = synthesize()
    assert names(cache) == ["flow-bfloat16.pt", "t3-bfloat16.pt"]
    cached = synthesize()
    assert np.array_equal(cached.samples, fresh.samples)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_integer_weights_are_cached(tiny, cache, dtype, monkeypatch):
    if reason := weight_layout.unsupported_dtypes().get(dtype):
        pytest.skip(reason)

    def synthesize():
        with Engine.load(str(tiny), "dev", device="cpu", overrides={"dtype": dtype},
                         watermark=False, weights=cache) as engine:  # fmt: skip
            return engine.synthesize("Hello there.", sampling=Sampling(seed=4, max_tokens=12))

    fresh = synthesize()
    assert f"t3-{dtype}.pt" in names(cache)
    monkeypatch.setattr(loader, "t3_from_upstream", lambda *_: never())
    assert np.array_equal(synthesize().samples, fresh.samples)


def test_cached_tensors_are_mapped_and_aligned(tiny, cache, monkeypatch):
    fresh = load(tiny, cache)
    monkeypatch.setattr(loader, "t3_from_upstream", lambda *_: never())
    monkeypatch.setattr(loader, "_read_flow", lambda *_: never())
    cached = load(tiny, cache)
    assert same(cached, fresh)
    assert {t.data_ptr() % 64 for state in cached for t in state.values()} == {0}


def test_buffers_outside_the_state_dict_are_cast(tiny, cache):
    checkpoint = registry.locate(str(tiny))
    fresh, cached = (loader.load_flow(checkpoint, HALF, cache) for _ in range(2))
    assert {n: b.dtype for n, b in cached.named_buffers()} == {
        n: b.dtype for n, b in fresh.named_buffers()
    }
    t3s = [loader.load_t3(checkpoint, HALF, cache=cache) for _ in range(2)]
    assert torch.equal(t3s[0].frequencies, t3s[1].frequencies)


def test_arbitrary_tensors_are_restored(tiny, cache):
    """As quantized weights need: integers with scales, views of larger storages."""
    checkpoint = registry.locate(str(tiny))
    wide = torch.arange(600, dtype=torch.int8).reshape(20, 30)
    tensors = {
        "a.weight": wide[:, ::2].t(),
        "a.scale": torch.rand(20),
        "b": torch.tensor(3, dtype=torch.uint8),
    }
    cache.tensors(checkpoint, "t3", "int8", lambda: tensors)
    cached = cache.tensors(checkpoint, "t3", "int8", never)
    assert cached.keys() == tensors.keys()
    assert all(cached[n].dtype == t.dtype and torch.equal(cached[n], t) for n, t in tensors.items())
    assert cache.entries()[0].stat().st_size < 10_000


def overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        file.write(content)


def flip_a_bit_of_each_page(path):
    content = bytearray(path.read_bytes())
    for i in range(2000, len(content), 4096):
        content[i] ^= 1 << i % 8
    path.write_bytes(content)


def rewritten(change):
    """A file that torch wrote, with changed tensors under the right names."""

    def damage(path):
        saved = torch.load(path, weights_only=True)
        torch.save({name: change(tensor) for name, tensor in saved.items()}, path)

    return damage


def swap_disk_blocks(path):
    content = path.read_bytes()
    path.write_bytes(content[:8192] + content[12288:16384] + content[8192:12288] + content[16384:])


DAMAGE = {
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "last byte missing": lambda path: os.truncate(path, path.stat().st_size - 1),
    "digest missing": lambda path: os.truncate(path, path.stat().st_size - sealed_file.SEAL_BYTES),
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"P"),
    "random": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "appended": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "first byte": lambda path: overwrite(path, 0, b"Q"),
    "digest": lambda path: overwrite(path, -3, b"xyz"),
    "zero bytes": lambda path: overwrite(path, 20_000, bytes(4096)),
    "bits": flip_a_bit_of_each_page,
    "blocks": swap_disk_blocks,
    "zeros": rewritten(torch.zeros_like),
    "louder": rewritten(lambda tensor: tensor * 2),
    "dtypes": rewritten(lambda tensor: tensor.double()),
    "shapes": rewritten(lambda tensor: tensor[None]),
    "no tensors": lambda path: torch.save([1], path),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_removed_and_made_again(tiny, cache, damage, caplog):
    checkpoint = registry.locate(str(tiny))
    generator = torch.Generator().manual_seed(5)
    fresh = {"a": torch.rand(300, 1000, generator=generator), "b": torch.ones(3).half()}
    cache.tensors(checkpoint, "t3", "bfloat16", lambda: fresh)
    [path] = cache.entries()
    whole = path.read_bytes()
    damage(path)
    assert not path.is_file() or path.read_bytes() != whole
    again = cache.tensors(checkpoint, "t3", "bfloat16", lambda: fresh)
    assert again is fresh
    [warning] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "are not used" in warning.getMessage()
    assert path.stat().st_size == len(whole)
    assert sealed_file.is_sealed(path, path.name)
    cached = cache.tensors(checkpoint, "t3", "bfloat16", never)
    assert all(torch.equal(cached[name], fresh[name]) for name in fresh)


def test_a_file_cannot_stand_for_another(tiny, cache, caplog):
    checkpoint = registry.locate(str(tiny))
    for variant in ("bfloat16", "float16"):
        cache.tensors(checkpoint, "t3", variant, lambda: {"x": torch.ones(9)})
    one, other = cache.entries()
    shutil.copy(one, other)
    assert sealed_file.is_sealed(one, one.name)
    assert not sealed_file.is_sealed(other, other.name)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 255))
def test_any_changed_byte_is_noticed(sealed, position, change):
    path, content = sealed
    damaged = bytearray(content)
    damaged[position % len(content)] ^= change
    path.write_bytes(damaged)
    assert not sealed_file.is_sealed(path, "name")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "archive.pt"
    torch.save({"x": torch.arange(300_000)}, path)
    sealed_file.seal(path, "name")
    assert sealed_file.is_sealed(path, "name")
    assert not sealed_file.is_sealed(path, "another name")
    return path, path.read_bytes()


def wrong(tensors, change):
    return {name: change(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change", [lambda t: t[None], lambda t: t.double() if t.is_floating_point() else t]
)
def test_tensors_that_do_not_fit_the_model_are_converted_again(tiny, cache, change, caplog):
    """With a correct digest: written by a version of the package with another layout."""
    fresh = load(tiny, cache)
    paths = cache.entries()
    for path in paths:
        saved = torch.load(path, weights_only=True)
        torch.save(wrong(saved, change), path)
        sealed_file.seal(path, path.name)
    assert same(load(tiny, cache), fresh)
    assert caplog.text.count("are not used") == 2
    assert same(load(tiny, cache), fresh)
    assert sorted(cache.entries()) == sorted(paths)
    assert caplog.text.count("are not used") == 2


def test_unwritable_directory_or_full_disk_is_only_logged_at_debug_level(
    tiny, tmp_path, caplog, monkeypatch
):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.DEBUG, "chatterbox_opt"):
        fresh = load(tiny, WeightCache(None))
        assert same(load(tiny, WeightCache(tmp_path / "file" / "weights", min_bytes=0)), fresh)
        assert caplog.text.count("were not cached") == 2
        monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)))
        full = type("Usage", (), {"free": 1000})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        cache = WeightCache(tmp_path / "weights", min_bytes=0)
        assert same(load(tiny, cache), fresh)
    assert "MiB free" in caplog.text
    assert not cache.entries()
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


def test_disk_full_while_writing_leaves_no_file(tiny, cache, monkeypatch, caplog):
    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with caplog.at_level(logging.DEBUG, "chatterbox_opt"):
        load(tiny, cache)
    assert "were not cached" in caplog.text
    assert not list(cache.directory.iterdir())


def test_replaced_checkpoint_is_converted_again(tiny, copy, tmp_path, cache):
    from chatterbox_opt.checkpoints.random_weights import make

    first, elsewhere = load(copy, cache), load(tiny, cache)
    assert same(first, elsewhere)
    assert len(cache.entries()) == 4, "two checkpoints of two parts"
    old = set(cache.entries())
    make(copy, "tiny", seed=9)
    assert not same(load(copy, cache), first)
    assert len(cache.entries()) == 4
    assert len(old & set(cache.entries())) == 2, "only the replaced checkpoint's files are removed"


def test_changed_mtime_invalidates_the_cache(copy, cache):
    load(copy, cache)
    before = set(cache.entries())
    os.utime(copy / registry.T3, (1, 1))
    load(copy, cache)
    assert len(cache.entries()) == 2
    assert not before & set(cache.entries())


def test_directory_size_is_bounded(tiny, cache):
    checkpoint = registry.locate(str(tiny))
    bounded = WeightCache(cache.directory, min_bytes=0, max_bytes=5000)
    for i, variant in enumerate(("a", "b", "c", "d")):
        bounded.tensors(checkpoint, "t3", variant, lambda: {"x": torch.zeros(300)})
        newest = max(bounded.entries(), key=lambda path: path.name)
        os.utime(newest, (i, i))
    assert 1 <= len(bounded.entries()) < 4
    assert sum(path.stat().st_size for path in bounded.entries()) <= 5000
    assert "t3-d.pt" in names(bounded), "the newest file is never evicted"
    stale = cache.directory / f".{'0' * 16}.part"
    stale.touch()
    os.utime(stale, (time.time() - 1e6,) * 2)
    bounded.tensors(checkpoint, "t3", "e", lambda: {"x": torch.zeros(3)})
    assert not stale.exists()
    assert bounded.clear() > 0
    assert not bounded.entries()


def test_small_and_float32_weights_are_not_cached(tiny, tmp_path):
    cache = WeightCache(tmp_path / "weights")
    load(tiny, cache)
    cache = WeightCache(tmp_path / "weights", min_bytes=0)
    loader.load_t3(registry.locate(str(tiny)), torch.float32, cache=cache)
    assert not cache.entries()


def test_environment_variable_and_keep(monkeypatch, tmp_path):
    monkeypatch.setenv(weight_cache.VARIABLE, str(tmp_path))
    assert weight_cache.default().directory.parent == tmp_path, "a subfolder of our own"
    assert weight_cache.default(keep=False).directory is None, "--no-cache"
    for word in ("false", "0", "FALSE", ""):
        monkeypatch.setenv(weight_cache.VARIABLE, word)
        assert weight_cache.default().directory is None
    monkeypatch.delenv(weight_cache.VARIABLE)
    assert weight_cache.default().directory.name == "weights"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no file modes on this system")
def test_a_directory_that_others_can_write_to_is_not_used(monkeypatch, tmp_path, caplog):
    (tmp_path / "public").mkdir()
    (tmp_path / "public").chmod(0o777)
    for name in ("public", "public/below"):
        monkeypatch.setenv(weight_cache.VARIABLE, str(tmp_path / name))
        for _ in range(2):
            assert weight_cache.default().directory is None
    assert caplog.text.count("is not used for converted weights: others can") == 2
    (tmp_path / "public").chmod(0o700)
    assert weight_cache.default().directory


def test_only_files_of_the_cache_are_removed(tiny, cache):
    checkpoint = registry.locate(str(tiny))
    cache.tensors(checkpoint, "t3", "bfloat16", lambda: {"x": torch.ones(9)})
    [path] = cache.entries()
    users = [cache.directory / name for name in ("mine.pt", "notes.txt", "a-b-t3-bfloat16.pt")]
    users.append(cache.directory / path.name.replace("bfloat16", "int8"))  # of another content
    location = path.name.split("-")[0]
    users.append(cache.directory / f"{location}-old.pt")
    for file in users:
        file.write_bytes(b"the user's")
    (cache.directory / path.name.replace("bfloat16", "int4")).mkdir()
    tiny_cache = WeightCache(cache.directory, min_bytes=0, max_bytes=1)
    tiny_cache.tensors(checkpoint, "flow", "bfloat16", lambda: {"x": torch.ones(9)})
    assert len(cache.entries()) == 1
    assert cache.clear() > 0
    assert not cache.entries()
    assert all(file.read_bytes() == b"the user's" for file in users)


def test_doctor_and_models_clear_commands(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from chatterbox_opt.cli.application import app

    monkeypatch.setenv(weight_cache.VARIABLE, str(tmp_path))
    (tmp_path / "x.pt").write_bytes(b"0" * 99)
    own = weight_cache.default().directory / f"{'0' * 12}-{'1' * 16}-t3-int8.pt"
    own.parent.mkdir()
    own.write_bytes(weight_cache.ARCHIVE + b"0" * (3 << 20))
    runner = CliRunner()
    assert "1 file, 3 MiB in" in runner.invoke(app, ["doctor"], env={"COLUMNS": "400"}).output
    assert "3 MiB removed" in runner.invoke(app, ["models", "clear"]).output
    assert not own.exists()
    assert (tmp_path / "x.pt").exists()
