"""Commands killed at random moments: the next one succeeds, nothing of ours is left over, and
nothing of the user's is touched.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.common import SAMPLE

from chatterbox_opt.batch import manifest
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config.model_config import CONFIG_FILE

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "chatterbox_opt"]
KILLS = int(os.environ.get("KILLS", "5"))  # of each command
MINE = ("mine.wav", ".mine.part", "mine.part", f".{'a' * 16}.part")  # files of the user
# converts a part that is large enough to be cached, without a large checkpoint
CONVERT = """
import sys, torch
from pathlib import Path
from chatterbox_opt.checkpoints import registry, weight_cache
cache = weight_cache.WeightCache(Path(sys.argv[2]), min_bytes=0)
tensors = {f"{i}": torch.full((1 << 20,), float(i)) for i in range(64)}
cache.tensors(registry.locate(sys.argv[1]), "t3", "bfloat16", lambda: tensors)
"""


def files(directory: Path) -> set[str]:
    paths = (path for path in directory.rglob("*") if not path.is_dir())
    return {str(path.relative_to(directory)) for path in paths}


class Place:
    """A directory with files of the user, in which a command is killed."""

    def __init__(self, directory: Path, folders: tuple[str, ...] = ()) -> None:
        self.directory, self.chance = directory, random.Random(directory.name)
        self.mine = [directory / name for name in MINE]
        # the last is an older version's name: in directories of ours it is a file of ours
        self.mine += [directory / folder / name for folder in folders for name in MINE[:-1]]
        for path in self.mine:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(path.name.encode())
        caches = ("VOICES", "VOICE_CACHE", "WEIGHT_CACHE")
        self.env = os.environ | {
            f"CHATTERBOX_{name}": str(directory / name.lower()) for name in caches
        }

    def run(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self.directory, env=self.env, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    def parts(self) -> bool:
        """Whether there is a temporary file or directory of ours."""
        folders = [self.directory, *(p for p in self.directory.iterdir() if p.is_dir())]
        return any(list(folder.glob(".chatterbox-*")) for folder in folders)

    def kill(self, command: list[str], seconds: float) -> bool:
        """Kill at a random moment of the time that the command takes, or soon after a temporary
        file is there; whether it still ran."""
        process = subprocess.Popen(
            command, cwd=self.directory, env=self.env,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if self.chance.random() < 0.5:
            time.sleep(self.chance.uniform(0.3, 1.05) * seconds)
        else:
            while process.poll() is None and not self.parts():
                time.sleep(0.001)
            time.sleep(self.chance.uniform(0, 0.05) * seconds)
        process.kill()
        return process.wait() < 0

    def kill_often(
        self,
        command: list[str],
        expected: set[str] | Callable[[], set[str]],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        before()
        start = time.monotonic()
        self.run(command)
        seconds, killed, parts = time.monotonic() - start, 0, 0
        for _ in range(KILLS):
            before()
            killed += self.kill(command, seconds)
            parts += self.parts()
            self.run(command)
            assert all(path.read_bytes() == path.name.encode() for path in self.mine)
            mine = {str(path.relative_to(self.directory)) for path in self.mine}
            found = files(self.directory) - mine
            assert found == (expected if isinstance(expected, set) else expected())
        print(f"{command[3:5]}: {killed} of {KILLS} killed, {parts} left a temporary file")


def test_models_make(tmp_path):
    place = Place(tmp_path)
    target = tmp_path / "model"
    expected = {f"model/{name}" for name in (*registry.FILES, CONFIG_FILE)}
    remove = lambda: shutil.rmtree(target, ignore_errors=True)
    place.kill_often([*COMMAND, "models", "make", "model"], expected, remove)
    place.kill_often([*COMMAND, "models", "make", "model", "--seed", "1"], expected)


def test_voices_add(tmp_path):
    place = Place(tmp_path)
    for extension in ("wav", "flac"):
        shutil.copy(SAMPLE, tmp_path / f"sample.{extension}")
    expected = {"sample.wav", "sample.flac", "voices/anna.flac"}

    def older() -> None:
        (tmp_path / "voices").mkdir(exist_ok=True)
        shutil.copy(SAMPLE, tmp_path / "voices" / "anna.wav")

    place.kill_often([*COMMAND, "voices", "add", "anna", "sample.flac"], expected, older)


def test_synth(tiny, tmp_path):
    place = Place(tmp_path)
    args = ["Hello there.", "--model", str(tiny), "--max-tokens", "60", "--seed", "1"]
    place.kill_often([*COMMAND, "synth", *args, "--no-cache", "-o", "a.wav"], {"a.wav"})


def test_batch_with_renames_metadata_and_a_joined_file(tiny, tmp_path):
    place = Place(tmp_path, ("out",))
    lines = [f"This is line {number}." for number in range(12)]

    def edit() -> None:  # inserted, changed and reordered lines
        place.chance.shuffle(lines)
        lines[place.chance.randrange(len(lines))] = f"Another {place.chance.random()}."
        (tmp_path / "job.txt").write_text("\n".join(lines))

    args = ["--model", str(tiny), "--out-dir", "out", "--max-tokens", "9", "--cfm-steps", "1",
            "--retries", "0", "--seed", "5", "--metadata", "csv", "--split", "lines"]  # fmt: skip
    command = [*COMMAND, "batch", "job.txt", *args, "--join", "book.wav", "--prune"]
    own = {f"out/{number:04d}.wav" for number in range(1, 13)} | {"job.txt", "book.wav"}
    own |= {f"out/{name}" for name in ("metadata.csv", manifest.FILE, manifest.LOCK)}
    place.kill_often(command, own | {"out/manifest.journal"}, edit)
    place.kill_often([*command, "--force"], own | {"out/manifest.journal"}, edit)


def test_weight_conversion(tiny, tmp_path):
    place = Place(tmp_path, ("weights",))

    def remove() -> None:
        for path in (tmp_path / "weights").glob("*.pt"):
            path.unlink()

    command = [sys.executable, "-c", CONVERT, str(tiny), "weights"]
    count = lambda: {str(p.relative_to(tmp_path)) for p in (tmp_path / "weights").glob("*.pt")}
    place.kill_often(command, count, remove)
    assert len(count()) == 1


def test_first_compile(tmp_path):
    place = Place(tmp_path)
    place.env["NUMBA_CACHE_DIR"] = str(tmp_path / "numba")
    command = [*COMMAND, "synth", "Hi.", "--model", "pico", "--dtype", "int8", "-o", "a.wav"]
    remove = lambda: shutil.rmtree(tmp_path / "numba", ignore_errors=True)
    place.kill_often(command, lambda: {n for n in files(tmp_path) if n not in MINE}, remove)
    assert not [name for name in files(tmp_path / "numba") if ".tmp." in name]
