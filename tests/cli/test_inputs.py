"""No command replaces what it reads, under whatever name, and whatever --overwrite says."""

from __future__ import annotations

import os
import shutil

import pytest
from helpers.common import SAMPLE
from typer.testing import CliRunner

from chatterbox_opt.batch import executors
from chatterbox_opt.cli import inputs
from chatterbox_opt.cli.application import app
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError

CUE = "1\n00:00:01,000 --> 00:00:02,000\nHello.\n"


def content_of(directory) -> dict:
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs a command that must be refused before any work; returns the message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATTERBOX_VOICES", str(tmp_path / "saved"))
    monkeypatch.setattr(EngineSpec, "load", None)
    monkeypatch.setattr(executors, "open_executor", None)
    shutil.copy(SAMPLE, "v.flac")
    (tmp_path / "saved").mkdir()
    shutil.copy(SAMPLE, "saved/anna.flac")
    (tmp_path / "film.srt").write_text(CUE)
    (tmp_path / "cast.yaml").write_text("Anna: v.flac\n")
    shutil.copy("cast.yaml", "cast.json")
    (tmp_path / "text.srt").write_text("Hello.")
    (tmp_path / "rows.csv").write_text("text,voice\nHello.,o/0001.flac\n")
    (tmp_path / "metadata.csv").write_text("text\nHello.\n")
    (tmp_path / "manifest.jsonl").write_text('{"text": "Hello."}\n')
    (tmp_path / "marked.txt").write_text("[voice:v.flac] Hello.\n")
    os.symlink("v.flac", "link.flac")
    os.link("v.flac", "hard.flac")
    (tmp_path / "o").mkdir()
    shutil.copy(SAMPLE, "o/0001.flac")

    def run(*args: str) -> str:
        before = content_of(tmp_path)
        result = CliRunner().invoke(app, [*args, "--model", "pico"])
        assert isinstance(result.exception, InputError), result.output
        assert content_of(tmp_path) == before and not (tmp_path / "new").exists()
        return str(result.exception)

    return run


@pytest.mark.parametrize(
    "args",
    [
        ["Hello.", "--voice", "v.flac", "-o", "v.flac"],
        ["Hello.", "--voice", "v.flac", "-o", "./o/../v.flac"],
        ["Hello.", "--voice", "v.flac", "-o", "link.flac"],
        ["Hello.", "--voice", "link.flac", "-o", "hard.flac"],
        ["Hello.", "--voice", "anna", "-o", "saved/anna.flac"],
        ["--file", "text.srt", "-o", "a.wav", "--timestamps", "text.srt"],
        ["Anna: Hello.", "--cast", "cast.yaml", "-o", "v.flac"],
        ["Anna: Hello.", "--cast", "cast.json", "--timestamps", "cast.json"],
        ["[voice:v.flac] Hello.", "--markup", "-o", "v.flac"],
    ],
    ids=" ".join,
)
def test_synth_keeps_what_it_reads(refused, args):
    assert "which is read: give the output another name" in refused("synth", *args)


@pytest.mark.parametrize(
    "args",
    [
        ["film.srt", "--join", "film.flac", "--timestamps", "srt"],
        ["film.srt", "--join", "film.flac", "--timestamps", "srt", "--out-dir", "o"],
        ["film.srt", "--join", "v.flac", "--voice", "v.flac"],
        ["film.srt", "--join", "saved/anna.flac", "--voice", "anna"],
        ["film.srt", "--voice", "o/0001.flac", "--format", "flac", "--out-dir", "o"],
        ["rows.csv", "--format", "flac", "--out-dir", "o"],
        ["metadata.csv", "--metadata", "csv", "--out-dir", "."],
        ["manifest.jsonl", "--out-dir", "."],
        ["marked.txt", "--markup", "--join", "v.flac"],
        ["film.srt", "--cast", "cast.yaml", "--join", "v.flac"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("overwrite", [["--overwrite"], []], ids=["overwrite", ""])
def test_batch_keeps_what_it_reads(refused, args, overwrite):
    message = refused("batch", "--out-dir", "new", *args, *overwrite)
    assert "which is read: give the output another name" in message


def test_standard_input_is_a_file_where_the_shell_opened_one(tmp_path):
    path = tmp_path / "text.srt"
    path.write_text("Hello.")
    before = os.dup(0)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.dup2(descriptor, 0)
        with pytest.raises(InputError, match="would replace standard input"):
            inputs.check_kept(["-"], [str(path)])
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(descriptor)


def test_streams_and_what_is_not_there_replace_nothing(tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    inputs.check_kept(
        ["-", None, pipe, "/dev/null", "missing"], ["-", None, pipe, "/dev/null", "missing"]
    )


def test_prune_keeps_a_recording_that_a_row_reads(tmp_path, monkeypatch):
    """A voice that an earlier run made, in the directory that is pruned."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voices.csv").write_text(
        "id,text\nanna,The sun is warm today.\nbert,The rain is cold.\n"
    )
    (tmp_path / "lines.csv").write_text("id,text,voice\none,Hello.,out/anna.wav\n")
    for job in (["voices.csv"], ["lines.csv", "--prune"]):
        args = ["batch", *job, "--out-dir", "out", "--model", "pico", "--device", "cpu"]
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, result.output
    assert "1 files of earlier runs deleted: bert.wav" in result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["anna.wav", "one.wav"]
