"""Caption files of a batch, without a model: names, resuming, the joined file."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import soundfile
from helpers.fake_engine import FakeEngine, manifest_lines, run_batch, tasks_of
from typer.testing import CliRunner

from chatterbox_opt import Result, Word
from chatterbox_opt.batch import descriptions, manifest, resuming
from chatterbox_opt.batch.descriptions import METADATA, CaptionFormat, caption_name
from chatterbox_opt.batch.joining.join import Pauses, join
from chatterbox_opt.batch.joining.timestamps import write_item_captions, write_joined_captions
from chatterbox_opt.batch.journal import OUTPUT
from chatterbox_opt.batch.metadata import Metadata, write_metadata
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.batch import outputs
from chatterbox_opt.cli.batch.options import FileOptions, JoinOptions
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.request import Piece

LINES = ["One two.", "Three.", "Four five six."]


class TimedEngine(FakeEngine):
    """A tenth of a second of silence, half a second a word, 0.4 s of silence; chunks of two words."""

    def __call__(self, requests):
        for request in requests:
            self.asked.append(request)
            words, pieces = request.text.split(), []
            for chunk, first in enumerate(range(0, len(words), 2)):
                part = words[first : first + 2]
                wave = np.zeros(round((0.5 + 0.5 * len(part)) * SAMPLE_RATE), np.float32)
                wave[SAMPLE_RATE // 10 : -SAMPLE_RATE * 4 // 10] = 0.1
                times = [Word(w, 0.1 + i / 2, 0.6 + i / 2, chunk) for i, w in enumerate(part)]
                timed = tuple(times) if request.timestamps else ()
                pieces.append(Piece(wave, " ".join(part), 1, {"t3": 0.5}, words=timed))
            yield Result(request.id, 1, tuple(pieces))


def test_words_are_in_the_manifest_and_in_a_file_for_each_item(tmp_path):
    summary = run_batch(tmp_path, tasks_of(LINES), TimedEngine(), timestamps=True)
    assert manifest_lines(tmp_path)[2]["words"] == [
        ["Four", 0.1, 0.6, 0], ["five", 0.6, 1.1, 0], ["six.", 1.6, 2.1, 1]
    ]  # fmt: skip
    for form in CaptionFormat:  # of a run that is done, in any format
        with manifest.open_manifest(tmp_path) as noted:
            assert write_item_captions(noted, summary.entries.values(), form) == 3
            assert noted.owns(f"1.{form.value}") and (tmp_path / f"3.{form.value}").is_file()
    assert json.loads((tmp_path / "2.json").read_text()) == [
        {"text": "Three.", "start": 0.1, "end": 0.6, "chunk": 0}
    ]
    assert (tmp_path / "1.srt").read_text() == "1\n00:00:00,100 --> 00:00:01,100\nOne two.\n"


def test_without_the_option_there_are_none(tmp_path):
    run_batch(tmp_path, tasks_of(LINES), engine := TimedEngine())
    assert not any(request.timestamps for request in engine.asked)
    assert all(line["words"] == [] for line in manifest_lines(tmp_path))


def test_items_of_a_run_without_words_are_made_again_and_others_are_not(tmp_path):
    run_batch(tmp_path, tasks_of(LINES[:2]), TimedEngine())
    run_batch(tmp_path, tasks_of(LINES), engine := TimedEngine(), timestamps=True)
    assert engine.ids == ["1", "2", "3"]
    for timestamps in (True, False):
        run_batch(tmp_path, tasks_of(LINES), engine := TimedEngine(), timestamps=timestamps)
        assert engine.ids == []
    moved = tasks_of(["New.", *LINES])
    summary = run_batch(tmp_path, moved, engine := TimedEngine(), timestamps=True)
    assert engine.ids == ["1"] and summary.entries["4"].words[0][0] == "Four"


def test_a_renamed_file_replaces_none_without_words(tmp_path):
    run_batch(tmp_path, tasks_of(["One two."]), TimedEngine(), timestamps=True)
    run_batch(tmp_path, tasks_of(["One two.", "Three."]), TimedEngine())
    without = (tmp_path / "2.wav").read_bytes()
    items = tasks_of(["New.", "One two."])
    run_batch(tmp_path, items, engine := TimedEngine(), timestamps=True)
    assert engine.ids == ["1"], "the second is renamed"
    with manifest.open_manifest(tmp_path) as held:
        [stale] = resuming.stale_files(held, items)
    assert (tmp_path / stale).read_bytes() == without


def run_with_captions(directory, lines, *, form=CaptionFormat.VTT):
    """A run with captions of every item, and with metadata."""
    entries = run_batch(directory, tasks_of(lines), TimedEngine(), timestamps=True).entries
    with manifest.open_manifest(directory) as noted:
        write_item_captions(noted, entries.values(), form)
        noted.start(METADATA, OUTPUT)
        write_metadata(directory, entries.values(), Metadata.CSV)


def captions_in(directory, suffix=".vtt"):
    """The words of each caption file."""
    return {
        path.stem: re.sub("<[^>]*>", "", path.read_text().split("\n")[3])
        for path in sorted(directory.glob(f"*{suffix}"))
    }


def test_captions_of_a_deleted_line_are_listed_and_pruned(tmp_path):
    run_with_captions(tmp_path, LINES)
    (tmp_path / "mine.vtt").write_text("of the user")
    with manifest.open_manifest(tmp_path) as noted:
        for name in ("book.flac", "book.vtt"):  # joined
            noted.start(name, OUTPUT)
            (tmp_path / name).write_bytes(b"x")
        stale = resuming.stale_files(noted, tasks_of(LINES[:2]))
        assert stale == ["3.vtt", "3.wav"]
        noted.prune(stale)
    assert sorted(path.name for path in tmp_path.glob("*.vtt")) == [
        "1.vtt",
        "2.vtt",
        "book.vtt",
        "mine.vtt",
    ]
    assert not (tmp_path / METADATA).exists(), "it named the file that was deleted"


@pytest.mark.parametrize("killed", [None, 1, 3, 5, 8])
def test_captions_move_with_their_audio(tmp_path, monkeypatch, killed):
    run_with_captions(tmp_path, LINES)
    before = captions_in(tmp_path)
    lines = ["New.", *LINES]
    if killed is not None:
        done, replace = [], resuming.os.replace

        def some(old, new):
            if len(done) == killed:
                raise KeyboardInterrupt
            done.append(new)
            replace(old, new)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(resuming.os, "replace", some)
            run_batch(tmp_path, tasks_of(lines), TimedEngine())
    run_batch(tmp_path, tasks_of(lines), engine := TimedEngine())  # without captions
    assert engine.ids == ["1"]
    assert captions_in(tmp_path) == {"2": before["1"], "3": before["2"], "4": before["3"]}
    assert not (tmp_path / METADATA).exists(), "it named other files"
    with manifest.open_manifest(tmp_path) as noted:
        assert [noted.owns(f"{n}.vtt") for n in range(1, 5)] == [False, True, True, True]
        assert not resuming.stale_files(noted, tasks_of(lines))


def test_captions_of_audio_that_is_replaced_are_removed(tmp_path):
    run_with_captions(tmp_path, LINES)
    run_batch(tmp_path, tasks_of([*LINES[:2], "Another."]), TimedEngine())
    assert list(captions_in(tmp_path)) == ["1", "2"] or "3~" in str(captions_in(tmp_path))
    assert not (tmp_path / "3.vtt").exists()


def test_captions_move_over_no_file_of_the_user(tmp_path):
    run_with_captions(tmp_path, LINES[:1])
    (tmp_path / "2.vtt").write_text("of the user")
    run_batch(tmp_path, tasks_of(["New.", *LINES[:1]]), TimedEngine())
    assert (tmp_path / "2.vtt").read_text() == "of the user"
    assert not (tmp_path / "1.vtt").exists()


def test_every_form_of_captions_is_known():
    assert {f".{form.value}" for form in CaptionFormat} == set(descriptions.CAPTIONS)


@pytest.mark.parametrize(("timed", "expected"), [(False, ["film.srt"]), (True, [])])
def test_a_film_has_no_captions_of_the_joined_file(tmp_path, timed, expected):
    files = FileOptions(out_dir=tmp_path, timestamps=CaptionFormat.SRT)
    joining = JoinOptions(joined_file=str(tmp_path / "film.wav"), timed=timed)
    found = outputs.other_files(files, joining, ["1.wav"])
    assert sorted(found) == sorted(["1.srt", "film.wav", *expected])


@pytest.mark.parametrize("keep_silence", [False, True])
def test_the_joined_file(tmp_path, keep_silence):
    items = tasks_of(LINES)
    entries = run_batch(tmp_path, items, TimedEngine(), timestamps=True).entries
    target = str(tmp_path / "book.flac")
    joined = join(items, entries, tmp_path, target, Pauses(0.5, 1.5, keep_silence))
    captions = caption_name(target, CaptionFormat.JSON)
    write_joined_captions(captions, items, entries, joined)
    words = json.loads((tmp_path / "book.json").read_text())
    assert [word["text"] for word in words] == " ".join(LINES).split()
    assert [word["chunk"] for word in words] == [0, 0, 1, 2, 2, 3]
    wave, _ = soundfile.read(target)
    for word in words:
        assert 0 <= word["start"] < word["end"] <= joined.seconds
        inside = wave[
            round((word["start"] + 0.02) * SAMPLE_RATE) : round((word["end"] - 0.02) * SAMPLE_RATE)
        ]
        assert len(inside) and np.abs(inside).min() > 0.05, "where it is heard"


def test_damaged_words_make_an_item_new(tmp_path):
    run_batch(tmp_path, tasks_of(LINES[:1]), TimedEngine(), timestamps=True)
    path = tmp_path / "manifest.jsonl"
    [line] = manifest_lines(tmp_path)
    for words in (
        [["One", 0.1]],
        [["One", float("nan"), 1, 0]],
        [[1, 0, 1, 0]],
        "One",
        [["One", 0, 1, 0.5]],
    ):
        path.write_text(
            json.dumps(dataclasses.asdict(manifest.Entry(**line)) | {"words": words}) + "\n"
        )
        run_batch(tmp_path, tasks_of(LINES[:1]), engine := TimedEngine(), timestamps=True)
        assert engine.ids == ["1"], words


def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch, turbo):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("Hello.\n")

    def refused(*more: str) -> str:
        command = ["batch", "lines.txt", "--out-dir", "out", "--timestamps", "srt", *more]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 or isinstance(done.exception, Exception)
        return str(done.exception)

    assert "no word times" in refused("--model", str(turbo))
    assert "--join a file" in refused("--model", "pico", "--join", "-")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0001.srt").write_text("somebody's")
    assert "would be replaced" in refused("--model", "pico")
    assert (tmp_path / "out" / "0001.srt").read_text() == "somebody's"
