"""Triton's cache: verified files, and only in directories of the user's own. Compiles on the CPU."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from chatterbox_opt.runtime import compiler_caches

needs_triton = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no file modes on this system")
NAME = "kernel.json"


@pytest.fixture
def manager(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    from chatterbox_opt.kernels.cuda.compile_cache import VerifyingCacheManager as Manager

    assert f"{Manager.__module__}:{Manager.__name__}" == compiler_caches.OUR_MANAGER
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return Manager("ab" * 16)


def fill(manager):
    names = {"kernel.cubin": b"code", "kernel.ptx": "text", NAME: "{}"}
    group = {name: manager.put(content, name) for name, content in names.items()}
    manager.put_group(NAME, group)
    manager.put(b"a library", "launcher.so")
    return group


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "random": lambda path: path.write_bytes(os.urandom(99)),
    "appended": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "another": lambda path: shutil.copy(path.with_name("launcher.so"), path),
}
FILES = ("kernel.cubin", "kernel.ptx", NAME, f"__grp__{NAME}", "kernel.cubin.digest")


@needs_triton
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_a_miss(manager, name, damage, caplog):
    group = fill(manager)
    assert manager.get_group(NAME) == group
    damage(Path(manager._make_path(name)))
    assert manager.get_group(NAME) is None
    assert caplog.text.count("compiling again") == 1
    assert fill(manager) == manager.get_group(NAME)
    assert Path(manager.get_file("launcher.so")).read_bytes() == b"a library"


@needs_triton
def test_a_damaged_launcher_is_a_miss(manager):
    assert manager.get_file("launcher.so") is None
    fill(manager)
    Path(manager.get_file("launcher.so")).write_bytes(b"another library")
    assert manager.get_file("launcher.so") is None
    assert not manager.has_file("launcher.so")


@needs_triton
def test_files_without_a_digest_are_used_unless_unreadable(manager, caplog):
    """As an unpacked archive of kernels has them."""
    group = fill(manager)
    for path in Path(manager._make_path("x")).parent.glob("*.digest"):
        path.unlink()
    assert manager.get_group(NAME) == group
    Path(manager._make_path(f"__grp__{NAME}")).write_text("{")
    assert manager.get_group(NAME) is None
    assert "compiling again" in caplog.text


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in (*compiler_caches.DIRECTORIES, "TRITON_HOME", compiler_caches.MANAGER):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(
        compiler_caches.platformdirs, "user_cache_path", lambda _: tmp_path / "users"
    )
    return monkeypatch


def test_without_variables_both_caches_are_the_users_own(environment, tmp_path):
    for _ in range(2):
        compiler_caches.use_private_directories()
        assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "users" / "triton")
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "users" / "inductor")
        assert (tmp_path / "users" / "triton").is_dir()


@posix
@pytest.mark.parametrize("variable", ["TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME"])
def test_a_directory_that_others_can_write_to_is_passed_over(
    environment, tmp_path, variable, caplog
):
    (tmp_path / "chosen").mkdir(mode=0o700)
    environment.setenv(variable, str(tmp_path / "chosen"))
    name = "TRITON_CACHE_DIR" if variable == "TRITON_HOME" else variable
    compiler_caches.use_private_directories()
    if variable != "TRITON_HOME":
        assert os.environ[variable] == str(tmp_path / "chosen"), "kept"
    assert not caplog.records
    if variable == "TRITON_HOME":
        environment.delenv("TRITON_CACHE_DIR", raising=False)
    (tmp_path / "chosen").chmod(0o777)
    for _ in range(2):
        compiler_caches.use_private_directories()
        assert Path(os.environ[name]).parent == tmp_path / "users"
    assert caplog.text.count("is not used for compiled kernels") == 1


def test_without_a_place_a_temporary_directory_serves_one_process(environment, tmp_path):
    (tmp_path / "users").write_text("")
    compiler_caches.use_private_directories()
    paths = {Path(os.environ[name]) for name in compiler_caches.DIRECTORIES}
    assert len(paths) == 2
    for path in paths:
        assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o700
        path.rmdir()
