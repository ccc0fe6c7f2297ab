"""Caches in which every file is damaged: a command speaks the same, with a warning for each cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.common import SAMPLE

pytestmark = pytest.mark.slow
# the built-in model's parts are smaller than those that are cached
COMMAND = """
import dataclasses
from chatterbox_opt.checkpoints import weight_cache
default = weight_cache.default
weight_cache.default = lambda **options: dataclasses.replace(default(**options), min_bytes=0)
from chatterbox_opt.cli.main import main
main()
"""
ARGUMENTS = ["synth", "Hello there.", "--model", "pico", "--dtype", "int8", "--seed", "1"]
CACHES = ("VOICE_CACHE", "WEIGHT_CACHE")
WARNINGS = ("compiled kernels in", "the cached weights", "cached voice")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "random bytes": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a flipped bit": flip,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a directory": replace_by_directory,
    "a pipe": replace_by_pipe,
}


class Machine:
    """A directory with caches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.caches = {f"CHATTERBOX_{name}": directory / name.lower() for name in CACHES}
        self.caches["NUMBA_CACHE_DIR"] = directory / "numba"

    def speak(self) -> tuple[bytes, list[str], float]:
        """The wav, the warnings, and the seconds that it took."""
        start = time.monotonic()
        env = os.environ | {name: str(path) for name, path in self.caches.items()}
        command = [sys.executable, "-c", COMMAND, *ARGUMENTS, "--voice", str(SAMPLE), "-o", "a.wav"]
        done = subprocess.run(
            command, cwd=self.directory, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        warnings = [line for line in lines if line.startswith("warning: ")]
        audio = self.directory / "a.wav"
        content = audio.read_bytes()
        audio.unlink()
        return content, warnings, time.monotonic() - start

    def files(self) -> list[Path]:
        return [p for cache in self.caches.values() for p in cache.rglob("*") if p.is_file()]


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory) -> tuple[Machine, bytes]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    audio, warnings, _ = machine.speak()
    assert not warnings
    return machine, audio


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_every_file_of_every_cache_is_damaged(undamaged, tmp_path, damage):
    machine = Machine(tmp_path / "machine")
    shutil.copytree(undamaged[0].directory, machine.directory)
    files = machine.files()
    assert len({path.suffix for path in files}) == len(WARNINGS), files
    for path in files:
        damage(path)
    audio, warnings, slow = machine.speak()
    print(*warnings, f"{len(files)} files, {slow:.1f} s", sep="\n")
    assert audio == undamaged[1]
    for start in WARNINGS:
        assert any(line.startswith(f"warning: {start}") for line in warnings), start
    audio, warnings, fast = machine.speak()
    print(*warnings, f"again: {fast:.1f} s", sep="\n")
    assert audio == undamaged[1]
    assert not warnings
    assert sorted(machine.files()) == sorted(files)
