"""The command convert: which files are written, what is refused, what is printed."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pytest
import soundfile
from helpers.common import SAMPLE
from typer.testing import CliRunner

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.cli.application import app
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import OutputError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with two recordings of 0.5 s."""
    monkeypatch.chdir(tmp_path)
    wave, rate = soundfile.read(SAMPLE, dtype="float32")
    (tmp_path / "more").mkdir()
    for name, start in (("a.wav", 24_000), ("more/a.flac", 60_000)):
        soundfile.write(name, wave[start : start + 12_000], rate)
    return tmp_path


@pytest.fixture
def convert(place, tiny, monkeypatch):
    """Runs the command over a tiny model, or over none where it must not be loaded."""

    def run(*args: str, loads: bool = True, **options):
        model = ["--model", str(tiny), "--profile", "dev", "--device", "cpu"]
        knobs = ["--no-watermark", "--cfm-steps", "1", "--voice-cache", str(place / "cache")]
        with monkeypatch.context() as patch:
            if not loads:
                patch.setattr(EngineSpec, "load_converter", None)
            return CliRunner().invoke(app, ["convert", *model, *knobs, *args], **options)

    return run


def test_one_recording_to_a_file(convert):
    result = convert("a.wav", "-o", "b.flac", "--seed", "3", "--json", "--voice", str(SAMPLE))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["input"], report["output"], report["seed"]) == ("a.wav", "b.flac", 3)
    assert (report["audio_seconds"], report["windows"], report["tokens"]) == (0.5, 1, 13)
    assert {"conversion_seconds", "realtime_x", "load_seconds", "plan"} <= set(report)
    info = soundfile.info("b.flac")
    assert (info.frames, info.samplerate) == (12_000, 24_000)
    assert "-> b.flac" in result.stderr


def test_a_directory_without_t3_is_enough(place, convert, tiny):
    directory = place / "converter"
    directory.mkdir()
    for name in ("s3gen.safetensors", "conds.pt", "config.json"):
        shutil.copy(tiny / name, directory)
    result = convert("a.wav", "-o", "b.wav", "--model", str(directory))
    assert result.exit_code == 0, result.output
    result = convert("a.wav", "-o", "c.wav", "--model", str(directory), "--voice", str(SAMPLE))
    assert result.exit_code == 0, result.output


def test_what_cannot_be_written_is_refused_or_stops_no_other(place, convert, monkeypatch):
    (place / "out" / "a.wav").mkdir(parents=True)
    refused = convert("a.wav", "--out-dir", "out", "--overwrite", loads=False)
    assert "'out/a.wav' is a directory" in str(refused.exception)
    refused = convert("a.wav", "--out-dir", "a.wav/new", loads=False)
    assert "a.wav' is no directory" in str(refused.exception)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        refused = convert("a.wav", "--out-dir", "new/deep", loads=False)
        assert "cannot be written to" in str(refused.exception)
    plain = audio_files.writer

    def writer(target, subtype):
        if "a.wav" in target:
            raise OutputError("could not write it")
        return plain(target, subtype)

    monkeypatch.setattr(audio_files, "writer", writer)
    result = convert("a.wav", "more/a.flac", "--out-dir", "new", "--json")
    assert result.exit_code == 1
    rows = {row["input"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert rows["a.wav"]["error"] == "could not write it" and "error" not in rows["more/a.flac"]


def test_several_recordings_to_a_directory(convert, place):
    """Of equal names one gets a hash; what fails is named, and the others are written."""
    (place / "bad.wav").write_bytes(b"no sound")
    names = ["a.wav", "more/a.flac", "bad.wav", "-"]
    source = (place / "a.wav").read_bytes()
    result = convert(*names, "--out-dir", "out/new", "--seed", "1", "--json", input=source)
    assert result.exit_code == 1, result.output
    rows = {row["input"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert set(rows) == set(names)
    assert "cannot be read as audio" in rows["bad.wav"]["error"]
    assert "warning: 'bad.wav' is not converted" in result.stderr
    written = sorted(os.listdir("out/new"))
    assert written[:1] == ["a.wav"] and written[-1] == "stdin.wav" and len(written) == 3
    assert [soundfile.info(f"out/new/{name}").frames for name in written] == [12_000] * 3
    first, again = (soundfile.read(f"out/new/{name}")[0] for name in ("a.wav", "stdin.wav"))
    assert np.array_equal(first, again)
    before = (place / "out/new/a.wav").stat().st_mtime_ns
    refused = convert("a.wav", "--out-dir", "out/new", loads=False)
    assert refused.exit_code and "is there already" in str(refused.exception)
    assert (place / "out/new/a.wav").stat().st_mtime_ns == before
    assert convert("a.wav", "--out-dir", "out/new", "--overwrite").exit_code == 0
    assert (place / "out/new/a.wav").stat().st_mtime_ns > before


def test_a_pipe_is_read_once(convert, place):
    os.mkfifo("pipe")
    feeder = threading.Thread(
        target=lambda: (place / "pipe").write_bytes((place / "a.wav").read_bytes())
    )
    feeder.start()
    result = convert("pipe", "-o", "out.wav")
    feeder.join()
    assert result.exit_code == 0, result.output
    assert soundfile.info("out.wav").frames == 12_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a.wav", "more/a.flac"], "2 recordings need --out-dir DIR"),
        (["a.wav", "-o", "b.wav", "--out-dir", "d"], "give one of them"),
        (["a.wav", "-o", "./a.wav"], "'./a.wav' would replace 'a.wav', which is read"),
        (["a.wav", "--out-dir", ".", "--overwrite"], "'a.wav' would replace 'a.wav', which is"),
        (["a.wav", "--voice", "more/a.flac", "-o", "more/a.flac"], "would replace 'more/a.flac'"),
        (["a.wav", "-o", "b.txt"], "has no known audio extension"),
        (["a.wav", "-o", "nowhere/b.wav"], "there is no directory"),
        (["a.wav", "-o", "-", "--json"], "cannot both go to standard output"),
        (["a.wav", "--format", "mp3"], "are for --out-dir"),
        (["a.wav", "--out-dir", "d", "--format", "aac"], "format is 'aac'; known: wav"),
        (["a.wav", "--out-dir", "a.wav"], "'a.wav' is no directory"),
        (["none.wav"], "there is no recording file 'none.wav'"),
        (["more"], "recording 'more' is a directory"),
        (["a.wav", "--voice", "none.wav"], "there is no voice file 'none.wav'"),
        (["a.wav", "--seed", "-1"], "seed is -1"),
    ],
)
def test_wrong_arguments_are_reported_before_anything_is_loaded(convert, place, args, message):
    result = convert(*args, loads=False)
    assert result.exit_code and message in str(result.exception), result.output
    assert sorted(os.listdir()) == ["a.wav", "more"]


def test_nothing_partial_is_left_behind(convert, place, monkeypatch):
    from chatterbox_opt import Engine

    shutil.copy("a.wav", "out.wav")

    def interrupted(self, conversion):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Engine, "converted_pieces", interrupted)
    before = (place / "out.wav").read_bytes()
    result = convert("more/a.flac", "-o", "out.wav")
    assert result.exit_code == 130
    assert (place / "out.wav").read_bytes() == before
    assert set(os.listdir()) == {"a.wav", "more", "out.wav"}
