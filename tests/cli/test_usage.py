"""Help pages, hints about wrong usage, and lists as JSON."""

from __future__ import annotations

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from chatterbox_opt.cli import main as command_line
from chatterbox_opt.cli import usage
from chatterbox_opt.cli.application import app

PAGES = [[], ["synth"], ["batch"], ["convert"], ["serve"], ["bench"], ["voices"], ["models"], ["profiles"], ["doctor"],
         ["models", "make"], ["profiles", "detect"]]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help_fits_80_columns_and_is_not_cut(page):
    result = CliRunner().invoke(app, [*page, "-h"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert "Show this message and exit." in result.output
    assert max(map(len, lines)) <= 80
    cut = [line for line in lines if line.endswith("...") and not line.startswith("Usage:")]
    assert not cut


def test_commands_are_listed_in_the_order_of_use():
    group = typer.main.get_command(app)
    assert group.list_commands(None) == list(usage.COMMANDS)
    assert set(group.commands) == set(usage.COMMANDS)


def test_completion_can_be_installed():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


def error_of(args, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", ["chatterbox-opt", *args])
    hook = sys.excepthook
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    monkeypatch.setattr(sys, "excepthook", hook)
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["synth", "Hello", "world"], 'as in chatterbox-opt synth "Hello world". See'),
        (["synth", "Hello", "big", "world", "-o", "x.wav"], '"Hello big world"'),
        (["synth", "It costs", "$5"], "'It costs $5'"),
        (["synth", "-5 degrees"], 'goes last, after --, as in chatterbox-opt synth -- "-5 degrees"'),
        (["synth", "-5"], 'synth -- "-5"'),
        (["synth", "-Hello"], 'synth -- "-Hello"'),
        (["synth", "--Hello there"], 'synth -- "--Hello there"'),
        (["synth", "- one item"], 'synth -- "- one item"'),
        (["synth", "-very nice"], 'synth -- "-very nice"'),
        (["synth", "--", "-5 degrees", "--model", "pico"], "options go before the --"),
        (["synth", "hi", "--outptu", "x"], "Did you mean --output? See chatterbox-opt synth --help."),
        (["synth", "hi", "-x"], "No such option: -x. See chatterbox-opt synth --help."),
        (["synth", "hi", "-o"], "requires an argument. See chatterbox-opt synth --help."),
        (["batch", "x.txt"], "pass --out-dir DIR, or --dry-run to see what would be made"),
        (["synth", "hi", "--rate", "3"], "--rate is 3.0; give 0.5 to 2"),
        (["synth", "hi", "--rate", "nan"], "--rate is nan; give a number"),
        (["batch", "x.srt", "--dry-run", "--rate", "0.1"], "--rate is 0.1; give 0.5 to 2"),
        (["batch", "x.srt", "--dry-run", "--timed"], "--timed is for the joined file: give --join FILE"),
        (["batch", "x.srt", "--timed", "--join", "x.wav", "--stretch", "0.9"], "--stretch is 0.9; use 1 to 2"),
        (["batch", "x.srt", "--timed", "--join", "x.wav", "--keep-silence"], "drop --keep-silence"),
        (["batch", "x.srt", "--timed", "--join", "x.wav", "--pause", "1"], "drop --pause and --chapter-pause"),
        (["batch", "x.srt", "--stretch", "1.25"], "--stretch and --overrun are for --timed: add it"),
        (["batch", "x.srt", "--overrun", "overlap"], "--stretch and --overrun are for --timed: add it"),
        (["batch", "x.srt", "--pause", "0.5"], "--keep-silence are for a joined file: add --join FILE"),
        (["batch", "x.srt", "--chapter-pause", "1.5"], "are for a joined file: add --join FILE"),
        (["batch", "x.srt", "--keep-silence"], "are for a joined file: add --join FILE"),
        (["batch", "x.srt", "--join", "x.wav", "--pause", "nan"], "take 0 to 60 seconds"),
        (["batch", "x.srt", "--stretch", "nan"], "--stretch is nan; use 1 to 2"),
        (["batch", "x.srt", "--max-wer", "0.2"], "--max-wer is for --verify COMMAND: add it"),
        (["batch", "x.srt", "--alt-texts"], "--alt-texts is for .epub, .html, .htm, .xhtml: drop it"),
        (["batch", "x.txt", "--captions", "speech"], "--captions is for .srt, .vtt, .ass, .ssa: drop it"),
        (["batch", "-", "--captions", "all"], "--captions is for .srt, .vtt, .ass, .ssa: drop it"),
        (["batch", "x.csv", "--split", "auto"], "--split is for .txt: drop it"),
        (["batch", "x.txt", "--join", ""], "'' has no known audio extension"),
        (["synth", "hi", "-o", ""], "'' has no known audio extension"),
        (["synth", "hi", "--timestamps", ""], "'' is no caption file"),
        (["synth", "hi", "--stream", "--hops", ""], "--hops is ''; give numbers: 10,40,100"),
        (["convert", "x.wav", "-o", ""], "'' has no known audio extension"),
        (["convert", "x.wav", "--out-dir", "d", "--format", ""], "format is ''; known: wav"),
        (["synth", "hi", "--retries", "2", "--no-check"], "drop it, or --no-check"),
        (["synth", "hi", "--stream", "--flush-after", "1"], "--flush-after is for text that arrives"),
        (["synth", "-", "--stream", "--flush-after", "nan"], "--flush-after is nan; use 0 to 3600"),
        (["bench", "--tolerance", "nan"], "--tolerance is nan; give a value from 0"),
        (["bench", "--text", ""], "--text is empty"),
        (["bench", "--stream", "--rows", ""], "--stream has its own rows"),
        (["bench", "--rums", "3"], "Did you mean --runs, --rows or --from? See chatterbox-opt bench --help."),
        (["voices", "lst"], "Did you mean 'list'? See chatterbox-opt voices --help."),
        (["profiles", "show"], "See chatterbox-opt profiles show --help."),
        (["synht"], "Did you mean 'synth'? See chatterbox-opt --help."),
        (["models", "--json", "clear"], "--json goes after clear"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_with_a_hint(args, message, monkeypatch, capsys):
    assert message in error_of(args, monkeypatch, capsys)


def test_a_text_after_two_dashes_is_a_text(tmp_path, monkeypatch, capsys):
    args = ["synth", "--model", "no-such-model", "--", "-5 degrees"]
    assert "unknown model" in error_of(args, monkeypatch, capsys)


@pytest.mark.parametrize(
    "args", [["models"], ["models", "list"], ["profiles"], ["profiles", "list"]], ids=" ".join
)
def test_lists_as_json(args):
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == 0
    names = [next(iter(entry.values())) for entry in json.loads(result.stdout)]
    assert {"models": "pico", "profiles": "cpu"}[args[0]] in names


def test_a_profile_as_json():
    shown = json.loads(CliRunner().invoke(app, ["profiles", "show", "cpu", "--json"]).stdout)
    assert shown["t3"] == "int8"
    found = CliRunner().invoke(app, ["profiles", "detect", "--device", "cpu", "--json"])
    assert json.loads(found.stdout)["device"] == "cpu"
