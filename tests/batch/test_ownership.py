"""A batch replaces files of earlier runs, killed ones included, and no others."""

from __future__ import annotations

import json
import os

import pytest
from helpers.fake_engine import FakeEngine, manifest_lines, tasks_of

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch import journal, manifest, resuming
from chatterbox_opt.batch.journal import Journal, Note
from chatterbox_opt.batch.runner import BatchRunner, Summary
from chatterbox_opt.errors import InputError

LINES = ["One.", "Two two.", "Three three three."]


class Killed(BaseException):
    """As if the process had been killed."""


def run(directory, lines, *, overwrite=False, force=False, also=()) -> Summary:
    """As the command does it."""
    items = tasks_of(lines)
    files = None if overwrite else [*(item.file for item in items), *also]
    with resuming.open_directory(directory, files, force=force) as held:
        for file in also:
            held.start(file, journal.OUTPUT)
            (directory / file).write_bytes(b"output")
        return BatchRunner(held, items, lambda event: None).run(FakeEngine())


def refused(directory, lines, also=()) -> str:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="--overwrite") as caught:
        run(directory, lines, also=also)
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert before == after, "nothing was changed"
    return str(caught.value)


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()} - {manifest.FILE, manifest.LOCK}


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_files_of_others_are_refused_before_any_work(tmp_path, kind):
    mine = tmp_path / "2.wav"
    if kind == "file":
        mine.write_bytes(b"mine")
    elif kind == "directory":
        mine.mkdir()
    else:
        mine.symlink_to(tmp_path / "elsewhere.wav")
        if kind == "link":
            (tmp_path / "elsewhere.wav").write_bytes(b"mine")
    assert "2.wav' would be replaced" in refused(tmp_path, LINES)
    assert manifest.FILE not in os.listdir(tmp_path), "no trace in somebody's directory"
    assert run(tmp_path, LINES[:1]).failed() == [], "no file of these is in the way"
    assert "2.wav" in refused(tmp_path, LINES), "with a manifest too"
    if kind != "directory":
        assert run(tmp_path, LINES, overwrite=True).failed() == []
        assert run(tmp_path, LINES, force=True).failed() == [], "now it is ours"


def test_the_first_few_names_are_listed(tmp_path):
    for number in range(1, 6):
        (tmp_path / f"{number}.wav").touch()
    message = refused(tmp_path, ["a"] * 9)
    assert message.count(".wav") == 3 and "' and 2 more would be replaced" in message


def test_files_of_any_earlier_run_may_be_replaced(tmp_path):
    run(tmp_path, LINES)
    run(tmp_path, ["Another."])  # its 2.wav and 3.wav have no item
    run(tmp_path, ["Other.", "words.", "now."])
    (tmp_path / "1.wav").write_bytes(b"damaged")
    assert run(tmp_path, ["Other.", "words.", "now."]).skipped == 2
    run(tmp_path, LINES, force=True)
    assert names(tmp_path) == {"1.wav", "2.wav", "3.wav"}


def test_force_keeps_what_is_known_of_files(tmp_path):
    run(tmp_path, LINES)
    run(tmp_path, LINES[:1], force=True)
    assert len(manifest_lines(tmp_path)) == 1
    with manifest.open_manifest(tmp_path) as held:
        assert resuming.stale_files(held, tasks_of(LINES[:1])) == ["2.wav", "3.wav"]
    (tmp_path / "2.wav").write_bytes(b"replaced by the user")
    with manifest.open_manifest(tmp_path) as held:
        assert resuming.stale_files(held, tasks_of(LINES[:1])) == ["3.wav"], "never deleted"
    summary = run(tmp_path, LINES)
    assert (summary.skipped, summary.failed()) == (1, []), "nothing forgotten counts as done"
    assert names(tmp_path) == {"1.wav", "2.wav", "3.wav"}, "the journal has nothing to say"


def test_a_forced_run_that_is_refused_forgets_nothing(tmp_path):
    run(tmp_path, LINES)
    (tmp_path / "4.wav").touch()
    with pytest.raises(InputError):
        run(tmp_path, [*LINES, "Four."], force=True)
    assert run(tmp_path, LINES).skipped == 3


def kill_at(monkeypatch, function: str, number: int, target=os) -> None:
    real, left = getattr(target, function), [number]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(target, function, call)


@pytest.mark.parametrize("number", range(1, 4))
@pytest.mark.parametrize("force", [False, True])
def test_a_file_without_its_line_is_ours(tmp_path, monkeypatch, number, force):
    if force:
        run(tmp_path, [line.upper() for line in LINES])
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "tidy", lambda self: None)  # a kill runs nothing
        kill_at(patch, "append", number, manifest.Manifest)
        with pytest.raises(Killed):
            run(tmp_path, LINES, force=force)
    assert (tmp_path / f"{number}.wav").exists()
    assert run(tmp_path, LINES).failed() == []
    assert names(tmp_path) == {"1.wav", "2.wav", "3.wav"}


def test_a_name_that_was_started_and_never_written_is_not_ours(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "tidy", lambda self: None)
        kill_at(patch, "writer", 2, audio_files)
        with pytest.raises(Killed):
            run(tmp_path, LINES)
    assert "2.wav" in (tmp_path / journal.FILE).read_text()
    run(tmp_path, LINES[:1])
    (tmp_path / "2.wav").write_bytes(b"mine")
    refused(tmp_path, LINES)


def test_a_name_that_was_freed_is_not_ours(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "tidy", lambda self: None)  # killed: the journal has all names
        run(tmp_path, LINES)
    assert (tmp_path / journal.FILE).exists()
    run(tmp_path, [LINES[1], LINES[2]])  # moved to 1.wav and 2.wav
    (tmp_path / "3.wav").write_bytes(b"mine")
    assert "3.wav" in refused(tmp_path, LINES)
    run(tmp_path, ["A.", *LINES[1:2]])
    with manifest.open_manifest(tmp_path) as held:
        held.prune(resuming.stale_files(held, tasks_of(["A."])))
    assert names(tmp_path) == {"1.wav", "3.wav"}
    (tmp_path / "2.wav").write_bytes(b"mine")
    assert "2.wav" in refused(tmp_path, ["A.", "B."])
    assert run(tmp_path, ["A."]).skipped == 1


def test_a_kill_while_renaming_leaves_only_files_of_ours(tmp_path, monkeypatch):
    run(tmp_path, LINES)
    for number in range(1, 9):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "tidy", lambda self: None)
            kill_at(patch, "replace", number)
            with pytest.raises(Killed):
                run(tmp_path, ["New.", *LINES])
        skipped = run(tmp_path, ["New.", *LINES]).skipped
        assert skipped == 3 if number == 1 else skipped in (3, 4)  # a spared "New." is found
        assert run(tmp_path, LINES).skipped == 3


def test_other_files_of_ours_may_be_replaced_and_are_not_stale(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    also = ["metadata.csv", "../book.wav"]
    (tmp_path / "book.wav").write_bytes(b"mine")
    message = refused(out, LINES, also)
    assert f"'{tmp_path / 'book.wav'}' would be replaced" in message
    (tmp_path / "book.wav").unlink()
    for force in (False, True, False):
        run(out, LINES, also=also, force=force)
    assert (tmp_path / "book.wav").read_bytes() == b"output"
    with manifest.open_manifest(out) as held:
        assert resuming.stale_files(held, []) == ["1.wav", "2.wav", "3.wav"]
    (tmp_path / "book.wav").unlink()
    run(out, LINES)
    (tmp_path / "book.wav").write_bytes(b"mine")
    refused(out, LINES, also)


def test_damaged_lines_of_the_journal_are_ignored(tmp_path):
    lines = ["[]", '{"file": 1, "status": "x"}', '{"file"', "\0", json.dumps({"file": "b"})]
    (tmp_path / journal.FILE).write_text("\n".join(lines))
    kept = Journal(tmp_path)
    kept.add(Note("a", journal.STARTED))
    assert list(Journal(tmp_path).notes) == ["a"]


@pytest.mark.parametrize("name", [manifest.FILE, manifest.LOCK, journal.FILE])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_directory_or_pipe_in_place_of_our_files_is_refused(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}' is no file: remove it"):
        run(tmp_path, LINES)
