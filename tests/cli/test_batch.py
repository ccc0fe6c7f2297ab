"""The command batch: what it refuses, before any work and without a trace in --out-dir."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import soundfile
from helpers.fake_engine import FakeEngine
from typer.testing import CliRunner

from chatterbox_opt.batch import executors
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.config.profile import OWN_FLOW
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import DeviceError, InputError


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


# --- the output directory ---------------------------------------------------------------------


class FakeExecutor:
    """A machine without torch."""

    workers = 1

    def probe(self, device: str) -> None:
        if device == "cuda":
            raise DeviceError("no CUDA here")

    def open(self, spec):
        return nullcontext(FakeEngine())


@pytest.fixture
def fake_batch(batch, monkeypatch):
    """Runs the command with a fake engine."""
    plan = SimpleNamespace(
        precision=("fake",), flow_model=OWN_FLOW, warnings=(), reasons=(), summary=lambda: "fake"
    )

    @contextmanager
    def opened(*_):
        yield FakeExecutor()

    monkeypatch.setattr(executors, "open_executor", opened)
    monkeypatch.setattr(EngineSpec, "resolve", lambda self, detected: plan)
    return batch


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--join", "nowhere/x.wav"], "there is no directory 'nowhere'"),
        (["--join", "o/../nowhere/x.wav"], "there is no directory"),
        (["--join", "mine.wav"], "'mine.wav' would be replaced, and no earlier run in 'o'"),
        (["--join", "more"], "has no known audio extension"),
        (["--join", "more/more.wav"], "is a directory"),
        (["--device", "cuda"], "no CUDA here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refused_command_leaves_no_directory(fake_batch, tmp_path, args, problem):
    (tmp_path / "more" / "more.wav").mkdir(parents=True)
    (tmp_path / "mine.wav").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    result = fake_batch(*args)
    assert problem in str(result.exception), result.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("parts", ["x.wav", "sub/sub/x.wav"])
def test_a_joined_file_may_be_in_the_directory_that_is_made(fake_batch, tmp_path, parts):
    for _ in range(2):
        result = fake_batch("--join", f"o/{parts}")
        assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "o" / parts).frames > 0
    (tmp_path / "o" / "file").touch()
    refused = fake_batch("--join", "o/file/sub/x.wav")
    assert "there is no directory" in str(refused.exception)


def test_captions_of_a_joined_link_are_next_to_the_link(fake_batch, tmp_path):
    (tmp_path / "to").mkdir()
    os.symlink("to/x.wav", "link.wav")
    (tmp_path / "link.srt").write_text("mine")
    result = fake_batch("--join", "link.wav", "--timestamps", "srt")
    assert "'link.srt' would be replaced" in str(result.exception)
    assert not (tmp_path / "o").exists()


# --- options that were given ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Hello (laughs)."),
        (["--cast", "cast.yaml"], "ANNA: Hello (laughs)."),
        (["--cast", "cast.yaml", "--captions", "speech"], "Hello (laughs)."),
    ],
)
def test_captions_that_are_asked_for_are_taken_with_a_cast_too(batch, tmp_path, args, text):
    (tmp_path / "cast.yaml").write_text("Anna: ada\n")
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nANNA: Hello (laughs).\n")
    result = batch(*args, "--dry-run", "--json", file="a.srt")
    assert json.loads(result.stdout.splitlines()[0])["text"] == text


def test_help_shows_the_values_of_options_that_are_not_given():
    shown = " ".join(CliRunner().invoke(app, ["batch", "--help"]).output.split())
    for default in ("0.5", "1.5", "1.25", "overlap", "0.2", "auto", "speech, with --cast names"):
        assert f"[default: ({default})]" in shown
