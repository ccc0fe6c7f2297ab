"""What users and files contain is shown, and does not control the terminal."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil

import pytest
from helpers.common import SAMPLE
from helpers.fuzz import examples
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chatterbox_opt.cli import application, usage
from chatterbox_opt.cli.terminal import console, tables
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.printable import JOINERS, message_line, printable, printable_json

HOSTILE = "a\x1b[2J\x9bK\r\n\x07\u202eb\u2066\u2028\ud800c[/x]"
SHOWN = r"a\x1b[2J\x9bK\r\n\x07\u202eb\u2066\u2028\ud800c[/x]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("café “quoted” — 東京 \U0001f469\u200d\U0001f680", None),  # an emoji of two parts
        ("\u0645\u06cc\u200c\u062e", None),  # a word with a zero-width non-joiner
        ("\x7f\ufeff\u200b\xad", r"\x7f\ufeff\u200b\xad"),
        ("a\tb", r"a\tb"),
        ("a\xa0b", None),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown):
    assert printable(text) == (text if shown is None else shown)


@examples(100)
@given(text=st.text())
def test_any_text_is_one_line_that_is_printable_again(text):
    line = printable(text)
    assert line.encode() or not text
    assert len(line.splitlines()) <= 1
    assert printable(line) == line
    assert all(c.isprintable() or c in JOINERS or c.isspace() for c in line) or not line.isascii()
    document = json.dumps({"a": text}, indent=1, ensure_ascii=False)
    assert json.loads(printable_json(document)) == {"a": text}
    assert len(printable_json(document).splitlines()) == 3


def test_a_long_message_keeps_its_beginning_and_its_end():
    line = message_line(f"'a.csv' has\n{'x' * 1_000_000}: use another")
    assert line.startswith("'a.csv' has xxx")
    assert line.endswith("xxx: use another")
    assert len(line) < 2100


@pytest.mark.parametrize("terminal", [True, False])
def test_every_line_of_the_reporter_is_escaped(terminal):
    reporter, printed = console.Reporter(verbose=True), io.StringIO()
    reporter.console = Console(file=printed, force_terminal=terminal, soft_wrap=True, width=200)
    reporter.status(HOSTILE)
    reporter.detail(HOSTILE)
    reporter.warn(HOSTILE)
    reporter.table([(HOSTILE, HOSTILE)])
    reporter.step(HOSTILE, rare=True)
    reporter.end_step()
    with reporter.progress():
        reporter.step(HOSTILE)
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", printed.getvalue())  # Rich's own
    assert shown.count(SHOWN) >= 6
    assert "\x1b[2J" not in printed.getvalue()
    assert not set("\x07\x9b\u202e\u2066\u2028\ud800") & set(printed.getvalue())


def test_tables_and_json_are_escaped(capsys):
    tables.show(["name"], [[HOSTILE]])
    tables.paragraph(HOSTILE)
    console.print_json({"name": HOSTILE})
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 2
    assert not set("\x1b\x9b\u202e\u2028\ud800") & set(printed)


def raises(error):
    def work():
        raise error

    return work


def test_an_error_is_escaped_and_one_line(capsys):
    assert application._exit_code(raises(InputError(f"'{HOSTILE}' is wrong"))) == 2
    application._unexpected(ValueError, ValueError(HOSTILE), None)
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 2
    assert printed.count(r"a\x1b[2J\x9bK") == 2


def test_an_end_of_file_in_a_command_is_no_interruption(monkeypatch):
    """click takes an EOFError for Ctrl-D at a prompt."""

    def work(self, ctx):
        raise EOFError("Ran out of input")

    monkeypatch.setattr(usage.TyperGroup, "invoke", work)
    monkeypatch.setattr("sys.argv", ["chatterbox-opt", "doctor"])
    with pytest.raises(EOFError, match="Ran out of input"):
        application._exit_code(application._run)


def test_a_full_disk_names_the_file_that_is_written(capsys, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "source.wav", None, "target.wav")

    assert application._exit_code(full) == 1
    assert capsys.readouterr().err == "error: No space left on device: 'target.wav'\n"
    from typer.testing import CliRunner

    monkeypatch.setattr("chatterbox_opt.audio.files.read_reference", lambda *_: None)  # librosa
    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setenv("CHATTERBOX_VOICES", str(tmp_path))
    result = CliRunner().invoke(application.app, ["voices", "add", "anna", str(SAMPLE)])
    assert f"was not saved in {tmp_path} (No space left on device)" in str(result.exception)
