"""The disk cache of compiled CPU kernels: never an error, and never another user's code."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys

import pytest
from helpers.common import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.kernels.cpu.openmp import OpenMPRuntime

compile_cache = pytest.importorskip("chatterbox_opt.kernels.cpu.compile_cache")

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no file modes on this system")


def first(_address):
    """Small enough that compiling it takes little time."""


def second(_address):
    """Another one."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache.config, "CACHE_DIR", str(tmp_path / "kernels"))
    return compile_cache.directory()


@pytest.fixture
def announced(monkeypatch):
    steps = []
    monkeypatch.setattr(compile_cache, "announce", lambda step, **_: steps.append(step))
    return steps


def load(function):
    """The kernel runs; a wrong signature or address would end the process."""
    kernel = compile_cache.entry_point(function)
    OpenMPRuntime().run(kernel.address, 0)


def entry(folder, function):
    [path] = folder.glob(f"*.{function.__name__}-*.kernel")
    return path


def swap(path, other):
    shutil.copy(other, path)


DAMAGE = {
    "empty": lambda path, _: path.write_bytes(b""),
    "in the magic": lambda path, _: os.truncate(path, 7),
    "in the digest": lambda path, _: os.truncate(path, len(compile_cache.MAGIC) + 9),
    "without content": lambda path, _: os.truncate(path, len(compile_cache.MAGIC) + 32),
    "in the content": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "last byte": lambda path, _: os.truncate(path, path.stat().st_size - 1),
    "appended": lambda path, _: path.write_bytes(path.read_bytes() + b"."),
    "random": lambda path, _: path.write_bytes(os.urandom(5000)),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "bit": lambda path, _: path.write_bytes(path.read_bytes()[:-99] + b"?" + path.read_bytes()[-98:]),
    "pickle": lambda path, _: path.write_bytes(pickle.dumps(("0.61", {}))),
    "another kernel": swap,
    "a directory": lambda path, _: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, _: (path.unlink(), os.mkfifo(path)),
}  # fmt: skip


def test_a_kernel_is_compiled_once(folder, announced, caplog):
    load(first)
    load(first)
    assert len(announced) == 1
    load(second)
    assert len(announced) == 2
    assert len(list(folder.iterdir())) == 2, "one file each, and no temporary ones"
    assert not caplog.records


@pytest.mark.slow
def test_what_is_compiled_computes_what_is_loaded(tmp_path):
    """To the last bit: a request has the same speech on the first start and on the second."""
    (tmp_path / "kernels").mkdir(mode=0o700)
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    compiled, loaded = (
        subprocess.run(
            [sys.executable, "-m", "helpers.small_kernel"],
            env=environment, capture_output=True, text=True, check=True,
        )
        for _ in range(2)
    )  # fmt: skip
    assert len(list((tmp_path / "kernels").rglob("*.kernel"))) == 1
    assert compiled.stdout == loaded.stdout != ""


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_removed_and_made_again(folder, announced, damage, caplog):
    load(first)
    load(second)
    path = entry(folder, first)
    damage(path, entry(folder, second))
    for _ in range(2):
        load(first)
    assert len(announced) == 3, "compiled again, once"
    [warning] = caplog.records
    assert "compiling again" in warning.getMessage()
    assert compile_cache.read(path) is not None


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_noticed(stored, position, change):
    content = bytearray(stored.read_bytes())
    assert compile_cache.read(stored) == b"machine code"
    content[position % len(content)] ^= change
    damaged = stored.with_name("damaged")
    damaged.mkdir(exist_ok=True)
    (damaged / stored.name).write_bytes(content)
    assert compile_cache.read(damaged / stored.name) is None
    assert not (damaged / stored.name).exists()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "a.kernel"
    compile_cache.write(path, b"machine code")
    return path


def test_files_of_numbas_own_cache_are_not_read(folder, announced):
    """They are pickles without a digest, of whatever origin."""
    load(first)
    path = entry(folder, first)
    subfolder = folder / "kernels_0123"
    subfolder.mkdir()
    for name in ("first-1.py311.nbi", "first-1.py311.1.nbc"):
        (subfolder / name).write_bytes(b"")
    load(first)
    assert len(announced) == 1
    assert path.exists()


def test_a_directory_that_cannot_be_written_to_costs_only_time(tmp_path, caplog):
    (tmp_path / "file").touch()
    compile_cache.write(tmp_path / "file" / "a.kernel", b"machine code")
    assert "is not kept" in caplog.text


@posix
def test_code_that_others_can_change_is_not_run(folder, announced, caplog):
    load(first)
    path = entry(folder, first)
    path.chmod(0o666)
    load(first)
    assert len(announced) == 2
    assert "others can write to it (mode 666)" in caplog.text
    assert path.stat().st_mode & 0o777 == 0o600


@posix
def test_a_directory_that_others_can_write_to_is_passed_over(tmp_path, monkeypatch, caplog):
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    monkeypatch.setattr(compile_cache.config, "CACHE_DIR", str(public))
    monkeypatch.setattr(compile_cache.platformdirs, "user_cache_path", lambda _: tmp_path / "users")
    for _ in range(4):
        assert compile_cache.directory().is_relative_to(tmp_path / "users")
    [warning] = caplog.records
    assert f"'{public}' is not used for compiled kernels: others can" in warning.getMessage()
    assert not list(public.iterdir())


@posix
def test_without_a_private_directory_nothing_is_read_or_kept(tmp_path, monkeypatch, announced):
    monkeypatch.setattr(compile_cache.cache_directory, "directory_fault", lambda _: "a reason")
    assert compile_cache.directory() is None
    for _ in range(2):
        load(first)
    assert len(announced) == 2
