"""Files appear completely or not at all; what killed processes left is removed, nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from helpers.batch_process import TESTS

from chatterbox_opt.utils import atomic_file
from chatterbox_opt.utils.atomic_file import PART, atomic_write, remove_stale, temporary_directory

# begins to write a file and a directory, says so, and waits
WRITER = """
import sys, time
from pathlib import Path
from chatterbox_opt.utils.atomic_file import atomic_write, temporary_directory
here = Path(sys.argv[1])
with atomic_write(here / "a") as part, temporary_directory(here) as directory:
    part.write_text("half")
    (directory / "b").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def parts(directory) -> list[str]:
    return [path.name for path in directory.iterdir() if PART.fullmatch(path.name)]


def test_parts_of_a_live_process_stay_and_of_a_dead_one_go(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=TESTS.parent, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"writing\n"
        assert len(parts(tmp_path)) == 2
        with atomic_write(tmp_path / "c") as part:
            part.write_text("whole")
        assert len(parts(tmp_path)) == 2, "of a live process"
    finally:
        process.kill()
        process.communicate()
    assert len(parts(tmp_path)) == 2, "nobody was there to remove them"
    with atomic_write(tmp_path / "c", sweep=False):
        pass
    assert len(parts(tmp_path)) == 2
    with atomic_write(tmp_path / "c"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_files_of_others_stay(tmp_path):
    kept = [".mine.part", "a.wav.part", ".chatterbox-.part", f"chatterbox-{'0' * 16}.part"]
    kept += [f".chatterbox-{'G' * 16}.part", f".{'0' * 16}.part", f"x.chatterbox-{'0' * 16}.part"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / "target").touch()
    (tmp_path / f".chatterbox-{'1' * 16}.part").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / f".chatterbox-{'2' * 16}.part")
    before = sorted(tmp_path.iterdir())
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / f".chatterbox-{'3' * 16}.part").touch()
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    remove_stale(tmp_path / "missing")
    remove_stale(tmp_path / "target")


def test_a_failure_removes_the_part_and_keeps_the_target(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError), atomic_write(tmp_path / "a") as part:
        part.write_text("new")
        raise ValueError
    with pytest.raises(ValueError), temporary_directory(tmp_path) as directory:
        (directory / "b").touch()
        raise ValueError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_temporary_directory_can_be_renamed(tmp_path):
    with temporary_directory(tmp_path) as directory:
        (directory / "b").touch()
        directory.rename(tmp_path / "there")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["there", "there/b"]


def test_a_file_taken_for_stale_before_its_lock_is_made_again(tmp_path, monkeypatch):
    lock, tries = atomic_file._lock, []

    def steal(descriptor):
        tries.append(parts(tmp_path))
        if len(tries) == 1:
            return False  # another process holds the lock
        if len(tries) == 2:
            (tmp_path / tries[-1][0]).unlink()  # another process has removed it
        return lock(descriptor)

    monkeypatch.setattr(atomic_file, "_lock", steal)
    with atomic_write(tmp_path / "a", sweep=False) as part:
        part.write_text("new")
    assert len(tries) == 3
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "new")]


@pytest.mark.parametrize(("age", "left"), [(10, 1), (100_000, 0)])
def test_without_locks_a_part_is_stale_after_a_day(tmp_path, monkeypatch, age, left):
    monkeypatch.setattr(atomic_file, "_lock", lambda descriptor: None)
    part = tmp_path / f".chatterbox-{'0' * 16}.part"
    part.touch()
    os.utime(part, (part.stat().st_mtime - age,) * 2)
    with atomic_write(tmp_path / "a"):
        pass
    assert len(parts(tmp_path)) == left


def test_threads_leave_each_other_alone(tmp_path):
    def write(number):
        for i in range(20):
            with atomic_write(tmp_path / f"{number}-{i}") as part:
                part.write_text("whole")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.read_text() for p in tmp_path.iterdir()) == ["whole"] * 80
