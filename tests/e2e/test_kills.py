"""Commands killed at random moments: the next one succeeds, nothing of ours is left over, and
nothing of the user's is touched.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.common import SAMPLE

from chatterbox_opt.batch import manifest
from chatterbox_opt.checkpoints import registry, weight_cache
from chatterbox_opt.config.config_file import CONFIG_FILE

pytestmark = pytest.mark.slow
# each command is a fork of a process that has done the imports, during which nothing is written
SERVER = """
import json, os, pathlib, sys, tempfile
import torch
import chatterbox_opt.batch.runner, chatterbox_opt.checkpoints.random_weights as random_weights
import chatterbox_opt.cli.application, chatterbox_opt.engine.build, chatterbox_opt.engine.engine
torch.set_num_threads(1)  # OpenMP's threads would be missing in a fork
with tempfile.TemporaryDirectory() as scratch:  # imports upstream's classes
    random_weights.make(pathlib.Path(scratch) / "model", "tiny", 0)
for line in sys.stdin:
    if line == "wait\\n":
        print(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]), flush=True)
    elif command := os.fork():
        print(command, flush=True)
    else:
        break
else:
    sys.exit()
code, sys.argv, errors = json.loads(line)
os.dup2(os.open(os.devnull, os.O_RDWR), 0)
os.dup2(0, 1)
os.dup2(os.open(errors, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
exec(code)
"""
COMMAND = "from chatterbox_opt.cli.main import main; main()"
KILLS = int(os.environ.get("KILLS", "5"))  # of each command
MINE = ("mine.wav", ".mine.part", "mine.part", f".{'a' * 16}.part")  # files of the user
# converts a part that is large enough to be cached, without a large checkpoint, and uses it
CONVERT = """
import sys, torch
from chatterbox_opt.checkpoints import registry, weight_cache
tensors = {f"{i}": torch.full((1 << 20,), float(i)) for i in range(64)}
for convert in (lambda: tensors, dict):
    cache, checkpoint = weight_cache.default(), registry.locate(sys.argv[1])
    cached = cache.tensors(checkpoint, "t3", "bfloat16", convert)
    assert all(torch.equal(cached[name], tensor) for name, tensor in tensors.items())
"""
WEIGHTS = f"weight_cache/{weight_cache.SUBFOLDER}"


def files(directory: Path) -> set[str]:
    paths = (path for path in directory.rglob("*") if not path.is_dir())
    return {str(path.relative_to(directory)) for path in paths}


class Place:
    """A directory with files of the user, in which a command is killed."""

    def __init__(self, directory: Path, folders: tuple[str, ...] = ()) -> None:
        self.directory, self.chance = directory, random.Random(directory.name)
        self.errors = directory.with_suffix(".errors")
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

    @contextmanager
    def commands(self) -> Iterator[None]:
        """While it lasts, commands can be started; the environment is that of its beginning."""
        with subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=self.directory, env=self.env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as server:  # fmt: skip
            assert server.stdin is not None and server.stdout is not None
            self.requests, self.replies = server.stdin, server.stdout
            yield
            server.stdin.close()

    def start(self, args: list[str], code: str) -> int:
        """Start a command; return the process id."""
        line = json.dumps([code, ["chatterbox-opt", *args], str(self.errors)])
        print(line, file=self.requests, flush=True)
        return int(self.replies.readline())

    def end(self) -> int:
        """Wait until the command ends; return the exit code, negative if it was killed."""
        print("wait", file=self.requests, flush=True)
        return int(self.replies.readline())

    def run(self, args: list[str], code: str) -> None:
        self.start(args, code)
        assert self.end() == 0, self.errors.read_text()

    def parts(self) -> bool:
        """Whether there is a temporary file or directory of ours."""
        return any(
            name.startswith(".chatterbox-")
            for _, *names in os.walk(self.directory)
            for name in (*names[0], *names[1])
        )

    def kill(self, args: list[str], code: str, seconds: float) -> bool:
        """Kill at a random moment of the time that the command takes, or soon after the first
        temporary file is there; whether it still ran."""
        start, command = time.monotonic(), self.start(args, code)
        if self.chance.random() < 0.5:
            time.sleep(self.chance.uniform(0, 1.05) * seconds)
        else:
            while time.monotonic() - start < seconds and not self.parts():
                time.sleep(0.001)
            time.sleep(self.chance.random() ** 4 * 0.5 * seconds)
        os.kill(command, signal.SIGKILL)  # a zombie, if it has ended
        return self.end() < 0

    def kill_often(
        self,
        args: list[str],
        expected: set[str] | Callable[[], set[str]],
        before: Callable[[], None] = lambda: None,
        code: str = COMMAND,
    ) -> None:
        with self.commands():
            self._kill_often(args, expected, before, code)

    def _kill_often(
        self,
        args: list[str],
        expected: set[str] | Callable[[], set[str]],
        before: Callable[[], None],
        code: str,
    ) -> None:
        for _ in range(2):  # the second is as the later ones
            before()
            start = time.monotonic()
            self.run(args, code)
        seconds, tries, killed, parts = time.monotonic() - start, 0, 0, 0
        while killed < KILLS and tries < 3 * KILLS:
            before()
            tries += 1
            killed += self.kill(args, code, seconds)
            parts += self.parts()
            self.run(args, code)
            assert all(path.read_bytes() == path.name.encode() for path in self.mine)
            mine = {str(path.relative_to(self.directory)) for path in self.mine}
            found = files(self.directory) - mine
            assert found == (expected if isinstance(expected, set) else expected())
        name = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split()[0]
        print(
            f"{name}: {killed} of {tries} killed, {parts} left a temporary file; a run takes {seconds:.2f} s",
            flush=True,
        )
        assert killed >= KILLS


def test_models_make(tmp_path):
    place = Place(tmp_path)
    target = tmp_path / "model"
    expected = {f"model/{name}" for name in (*registry.FILES, CONFIG_FILE)}
    remove = lambda: shutil.rmtree(target, ignore_errors=True)
    place.kill_often(["models", "make", "model"], expected, remove)
    place.kill_often(["models", "make", "model", "--seed", "1"], expected)


def test_voices_add(tmp_path):
    place = Place(tmp_path)
    for extension in ("wav", "flac"):
        shutil.copy(SAMPLE, tmp_path / f"sample.{extension}")
    expected = {"sample.wav", "sample.flac", "voices/anna.flac"}

    def older() -> None:
        (tmp_path / "voices").mkdir(exist_ok=True)
        shutil.copy(SAMPLE, tmp_path / "voices" / "anna.wav")

    place.kill_often(["voices", "add", "anna", "sample.flac"], expected, older)


def test_synth(tiny, tmp_path):
    place = Place(tmp_path)
    args = ["Hello there.", "--model", str(tiny), "--max-tokens", "60", "--seed", "1"]
    place.kill_often(["synth", *args, "--no-cache", "-o", "a.wav"], {"a.wav"})


def test_batch_with_renames_metadata_and_a_joined_file(tiny, tmp_path):
    place = Place(tmp_path, ("out",))
    lines = [f"This is line {number}." for number in range(12)]

    def edit() -> None:  # inserted, changed and reordered lines
        place.chance.shuffle(lines)
        lines[place.chance.randrange(len(lines))] = f"Another {place.chance.random()}."
        (tmp_path / "job.txt").write_text("\n".join(lines))

    args = ["--model", str(tiny), "--out-dir", "out", "--max-tokens", "9", "--cfm-steps", "1",
            "--retries", "0", "--seed", "5", "--metadata", "csv", "--split", "lines"]  # fmt: skip
    command = ["batch", "job.txt", *args, "--join", "book.wav", "--prune"]
    own = {f"out/{number:04d}.wav" for number in range(1, 13)} | {"job.txt", "book.wav"}
    own |= {f"out/{name}" for name in ("metadata.csv", manifest.FILE, manifest.LOCK)}
    place.kill_often(command, own | {"out/manifest.journal"}, edit)
    place.kill_often([*command, "--force"], own | {"out/manifest.journal"}, edit)


def test_join(tiny, tmp_path):
    place = Place(tmp_path, ("out",))
    (tmp_path / "job.txt").write_text("One line.\nAnother line.\n" * 20)
    args = ["--model", str(tiny), "--out-dir", "out", "--max-tokens", "9", "--cfm-steps", "1",
            "--retries", "0", "--split", "lines", "--join", "book.wav"]  # fmt: skip
    own = {f"out/{number:04d}.wav" for number in range(1, 41)} | {"job.txt", "book.wav"}
    own |= {f"out/{name}" for name in (manifest.FILE, manifest.LOCK, "manifest.journal")}
    remove = lambda: (tmp_path / "book.wav").unlink(missing_ok=True)
    place.kill_often(["batch", "job.txt", *args], own, remove)


def test_weight_conversion(tiny, tmp_path):
    place = Place(tmp_path, ("weight_cache", WEIGHTS))
    found = lambda: {str(p.relative_to(tmp_path)) for p in (tmp_path / WEIGHTS).glob("*-t3-*.pt")}

    def remove() -> None:
        for name in found():
            (tmp_path / name).unlink()

    place.kill_often([str(tiny)], found, remove, CONVERT)
    assert len(found()) == 1


def test_first_compile(tmp_path):
    place = Place(tmp_path, ("numba",))
    place.env["NUMBA_CACHE_DIR"] = str(tmp_path / "numba")
    command = ["synth", "Hi.", "--model", "pico", "--dtype", "int8", "-o", "a.wav"]
    command += ["--seed", "1", "--no-cache"]
    kernels = lambda: {str(p.relative_to(tmp_path)) for p in (tmp_path / "numba").glob("*/*")}

    def remove() -> None:
        for path in (tmp_path / "numba").glob("*/"):
            shutil.rmtree(path)

    with place.commands():
        place.run(command, COMMAND)
    expected = {"a.wav", *kernels()}
    assert all(name.endswith(".kernel") for name in expected - {"a.wav"})
    place.kill_often(command, expected, remove)
