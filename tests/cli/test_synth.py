"""The command synth without a model: how its text is decoded."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from chatterbox_opt.cli import synth as synth_command
from chatterbox_opt.cli.main import app

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
