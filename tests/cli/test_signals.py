"""Signals that end a command: at its start, at work, and while it imports."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from helpers.batch_process import TESTS
from helpers.fake_engine import tasks_of

from chatterbox_opt.batch import manifest
from chatterbox_opt.batch.runner import BatchRunner
from chatterbox_opt.cli import signals
from chatterbox_opt.cli.batch import command
from chatterbox_opt.cli.terminal import console

# sends a signal when a module is imported, or while a file is written
AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            os.kill(os.getpid(), int(sys.argv[1]))
sys.meta_path.insert(0, Finder())
from chatterbox_opt.cli.main import main
"""
AT_WORK = """
import os, signal, sys
from pathlib import Path
from chatterbox_opt.cli import application
from chatterbox_opt.cli.main import main
from chatterbox_opt.utils.atomic_file import atomic_write
def work():
    with atomic_write(Path("a")):
        exec("os.kill(os.getpid(), int(sys.argv[1]))")
application._run = work
"""
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


def run(script: str, *args: str, cwd, before=None) -> subprocess.CompletedProcess:
    def listen() -> None:
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)
        if before is not None:
            signal.signal(before, signal.SIG_IGN)

    return subprocess.run(
        [sys.executable, "-c", script + "main()", *args], cwd=cwd, preexec_fn=listen,
        capture_output=True, text=True, env={"PYTHONPATH": str(TESTS.parent)},
    )  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("script", [AT_IMPORT, AT_WORK])
def test_a_signal_leaves_no_file_and_no_traceback(tmp_path, number, script):
    result = run(script, str(int(number)), "typer", cwd=tmp_path)
    assert result.returncode == 128 + number
    assert result.stderr == ("error: interrupted\n" if number == signal.SIGINT else "")
    assert not list(tmp_path.iterdir())


def test_ignored_signals_stay_ignored(tmp_path):
    result = run(AT_WORK, str(int(signal.SIGHUP)), cwd=tmp_path, before=signal.SIGHUP)
    assert (result.returncode, result.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_a_batch_finishes_the_items_in_progress(tmp_path, number):
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
    try:
        with manifest.open_manifest(tmp_path) as held:
            runner = BatchRunner(held, tasks_of("abc"), lambda event: None)
            with pytest.raises(SystemExit) as caught:
                with command._stoppable(runner, console.Reporter(quiet=True)) as numbers:
                    signal.raise_signal(number)
                    assert numbers == [number]
                    signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert caught.value.code == 128 + number


def test_the_signals_of_windows(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.delattr(signal, "SIGQUIT")
    assert signals.ending() == [signal.SIGTERM]
