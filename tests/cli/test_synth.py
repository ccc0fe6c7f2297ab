"""The command synth without a model: how its text is decoded; attempts, faults and warnings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.synth import command as synth_command
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import MULTILINGUAL, ModelConfig
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.request import Piece

WAVE = np.full(24_000, 0.1, dtype=np.float32)


# --- the text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Café, naïve.", "Привет", "こんにちは", "plain", "\U0001f389 yes", "é" * 500]
)
def test_utf8_that_the_locale_could_not_decode_is_decoded(text):
    undecoded = text.encode("utf-8").decode("ascii", "surrogateescape")
    assert synth_command._read_text(undecoded, None) == text
    assert synth_command._read_text(text, None) == text


def test_what_is_not_utf8_stays_as_it_is():
    for argument in ("caf\udce9", "\ud83d", "a\udcff\udcfe", "Caf\udcc3"):
        assert synth_command._read_text(argument, None) == argument


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are Unicode there")
def test_the_c_locale(tmp_path):
    """Texts that end with an error before anything is loaded."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for text, message in (("¿…?".encode(), b"no letter or digit"), (b"caf\xe9", b"not UTF-8")):
        command = [sys.executable, "-m", "chatterbox_opt", "synth", text]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_names_are_decoded_in_messages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    undecoded = "né.txt".encode().decode("ascii", "surrogateescape")
    result = CliRunner().invoke(app, ["synth", "--file", undecoded])
    assert "'né.txt' cannot be read" in str(result.exception)


# --- attempts and faults ----------------------------------------------------------------------


class FakeEngine:
    """Yields these pieces and stores the guard."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces, self.guards = pieces, []
        self.plan = FakePlan()
        self.hops = HopSchedule()
        self.checkpoint = SimpleNamespace(config=ModelConfig())
        self.languages = []

    def voice(self, source):
        return source

    def pieces(self, request, observe, guard):
        self.guards.append(guard)
        self.languages.append(request.language)
        yield from self._pieces


@dataclass(frozen=True)
class FakePlan:
    reasons = ()
    warnings = ()

    def summary(self) -> str:
        return "fake"


@pytest.fixture
def synth(tmp_path, monkeypatch):
    """Runs synth over these pieces; returns its output and the guard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")

    def run(pieces: list[Piece], *args: str):
        engine = FakeEngine(pieces)
        monkeypatch.setattr(EngineSpec, "load", lambda self: loaded(engine))
        result = CliRunner().invoke(app, ["synth", "Hello.", "--model", "pico", "--json", *args])
        assert result.exit_code == 0, result.output
        [guard] = engine.guards
        return json.loads(result.stdout), result.stderr.splitlines(), guard

    return run


@contextmanager
def loaded(engine):
    yield engine


def test_good_chunks_have_no_faults_and_no_warning(synth):
    report, lines, guard = synth([Piece(WAVE, "Hello.", 9, {}), Piece(WAVE, "Yes.", 9, {}, (), 2)])
    assert (report["attempts"], report["faults"]) == (2, [])
    assert guard == Guard(2) and not [line for line in lines if "warning" in line]
    assert soundfile.info("out.wav").duration == 2


@pytest.mark.parametrize(
    ("config", "options", "language", "warns"),
    [
        (ModelConfig(), [], None, False),
        (MULTILINGUAL, [], None, True),
        (MULTILINGUAL, ["--language", "DE"], "de", False),
    ],
)
def test_a_multilingual_model_is_told_the_language(
    tmp_path, monkeypatch, config, options, language, warns
):
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine([Piece(WAVE, "Hello.", 9, {})])
    engine.checkpoint = SimpleNamespace(config=config)
    monkeypatch.setattr(EngineSpec, "load", lambda self: loaded(engine))
    monkeypatch.setattr(registry, "known_config", lambda model, speaks=True: config)
    result = CliRunner().invoke(app, ["synth", "Hello.", "--model", "pico", *options])
    assert result.exit_code == 0, result.output
    assert engine.languages == [language]
    assert ("no language is given" in result.stderr) == warns


def test_each_faulty_chunk_is_one_line_with_the_remedy(synth):
    long = "It was a bright cold day in April, and the clocks were striking thirteen."
    pieces = [
        Piece(WAVE, long, 9, {}, ("too fast: 1.0 s for 57 letters", "silent for 2.4 s"), 3),
        Piece(WAVE, "Yes.", 9, {}),
        Piece(WAVE, "No.", 9, {}, ("repeats itself for 3.2 s",), 3),
    ]
    report, lines, _ = synth(pieces, "-q")
    assert report["attempts"] == 3
    assert report["faults"] == [
        "chunk 1: too fast: 1.0 s for 57 letters",
        "chunk 1: silent for 2.4 s",
        "chunk 3: repeats itself for 3.2 s",
    ]
    assert lines == [
        "warning: chunk 1 ('It was a bright cold day in April, and…'): the best of 3 attempts may be "
        "bad (too fast: 1.0 s for 57 letters; silent for 2.4 s): listen to it, and try another --seed "
        "or more --retries",
        "warning: chunk 3 ('No.'): the best of 3 attempts may be bad (repeats itself for 3.2 s): "
        "listen to it, and try another --seed or more --retries",
    ]
    assert soundfile.info("out.wav").duration == 3


def test_a_chunk_in_parts_is_counted_once(synth):
    parts = [Piece(WAVE, "Hi.", 9, {}, part=0, ends_chunk=False), Piece(WAVE, "Hi.", 9, {}, part=1)]
    _, lines, _ = synth([*parts, Piece(WAVE, "Ho.", 9, {}, ("odd",))])
    assert any(line.startswith("warning: chunk 2 ('Ho.')") for line in lines)


def test_the_remedy_fits_the_options(synth):
    piece = Piece(WAVE, "Hello.", 9, {}, ("no end before the limit of tokens",))
    report, lines, guard = synth(
        [piece], "--retries", "0", "--max-tokens", "20", "--temperature", "0"
    )
    assert guard == Guard(0) and report["faults"] == ["no end before the limit of tokens"]
    assert "its one attempt may be bad" in lines[-2]
    assert lines[-2].endswith("try more --max-tokens or a --temperature above 0")


def test_without_checks_there_is_no_guard(synth):
    report, _, guard = synth([Piece(WAVE, "Hello.", 9, {})], "--no-check")
    assert guard is None and (report["attempts"], report["faults"]) == (1, [])
    assert synth([Piece(WAVE, "Hello.", 9, {})], "--retries", "5")[2] == Guard(5)


@pytest.mark.parametrize("number", ["-1", "21", "many"])
def test_retries_out_of_range(number):
    result = CliRunner().invoke(app, ["synth", "Hello.", "--model", "pico", "--retries", number])
    assert result.exit_code != 0
    if number != "many":
        assert str(result.exception) == f"--retries is {number}; use 0 to 20"
