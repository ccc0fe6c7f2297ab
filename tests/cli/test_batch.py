"""The command batch: what it refuses, before any work and without a trace in --out-dir."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from chatterbox_opt.batch import executors
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.errors import InputError


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """Runs the command over a job of one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Hello.\n")

    def run(*args: str, file: str = "a.txt"):
        return CliRunner().invoke(app, ["batch", file, "--model", "pico", "--out-dir", "o", *args])

    return run


@pytest.fixture
def refused(batch, tmp_path, monkeypatch):
    """Runs a command that must be refused before any work; returns the message."""
    monkeypatch.setattr(executors, "open_executor", None)

    def run(*args: str, file: str = "a.txt") -> str:
        before = sorted(tmp_path.rglob("*"))
        result = batch(*args, file=file)
        assert isinstance(result.exception, InputError), result.output
        assert sorted(tmp_path.rglob("*")) == before
        return str(result.exception)

    return run


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_audio_and_events_cannot_both_go_to_standard_output(refused, output):
    message = refused("--join", output, "--json")
    assert message.endswith("cannot both go to standard output; set --join to a file")


@pytest.mark.parametrize(
    ("stdout", "problem"),
    [
        (SimpleNamespace(isatty=lambda: True), "is a terminal; pipe it (… --join - | aplay)"),
        (None, "is closed; set --join FILE"),
    ],
    ids=["terminal", "closed"],
)
def test_standard_output_that_takes_no_audio_is_refused(refused, monkeypatch, stdout, problem):
    monkeypatch.setattr(streams, "sys", SimpleNamespace(stdout=stdout))
    assert f"standard output {problem}" in refused("--join", "-")
