"""Captions: cues that can be read, and files that other programs read."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.batch import job_file
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.words import caption_files
from chatterbox_opt.words.cues import LINES, LONGEST, WIDTH, cues_of
from chatterbox_opt.words.word import Timeline, Word, joined


def timed(text: str, chunk: int = 0, start: float = 0.0, pause: float = 0.05) -> list[Word]:
    words = []
    for word in text.split():
        words.append(Word(word, round(start, 3), round(start + 0.3, 3), chunk))
        start += 0.3 + pause
    return words


def shown(words: list[Word]) -> list[list[str]]:
    return [[" ".join(w.text for w in line) for line in cue.lines] for cue in cues_of(words)]


def test_a_cue_is_a_sentence_and_a_line_is_short():
    words = timed(
        "Hello there, Dr. Lee. The quick brown fox jumps over the lazy dog, and the dog does not mind."
    )
    assert shown(words) == [
        ["Hello there, Dr. Lee."],
        ["The quick brown fox jumps over the", "lazy dog, and the dog does not mind."],
    ]  # fmt: skip


def test_a_cue_ends_at_a_pause_and_at_the_end_of_a_chunk():
    words = [*timed("one two"), *timed("three four.", start=2.0), *timed("five", 1, 4.0)]
    assert shown(words) == [["one two"], ["three four."], ["five"]]


def test_a_long_word_goes_over_several_lines():
    address = "https://example.com/" + "a" * 150
    words = [Word("See", 0, 0.5), Word(address, 0.5, 5.5), Word("now.", 5.5, 6)]
    cues = list(cues_of(words))
    assert (
        "".join(w.text for cue in cues for line in cue.lines for w in line) == f"See{address}now."
    )
    assert [cue.start for cue in cues] == sorted(cue.start for cue in cues)


texts = st.lists(
    st.text(alphabet="abc.,!?<>&é-日…'\"", min_size=1, max_size=60), min_size=1, max_size=80
)


@given(texts, st.lists(st.floats(0, 3), min_size=80, max_size=80))
def test_all_words_are_shown_once_in_lines_that_fit(parts, gaps):
    words, now = [], 0.0
    for number, (text, gap) in enumerate(zip(parts, gaps, strict=False)):
        words.append(Word(text, round(now, 3), round(now + 0.2, 3), number // 30))
        now += 0.2 + gap
    cues = list(cues_of(words))
    assert all(len(cue.lines) <= LINES for cue in cues)
    lines = [line for cue in cues for line in cue.lines]
    assert all(len(" ".join(w.text for w in line)) <= WIDTH for line in lines)
    assert "".join(w.text for line in lines for w in line) == "".join(w.text for w in words)
    assert all(cue.end - cue.start <= LONGEST + 0.5 for cue in cues)
    assert all(a.end <= b.start + 1e-3 for a, b in zip(cues, cues[1:], strict=False))


@pytest.mark.parametrize("extension", [".srt", ".vtt"])
@given(texts)
def test_our_own_reader_reads_what_is_written(extension, parts):
    """The job reader is lenient; so the form is checked, too."""
    words = timed(" ".join(["Well", *parts]))
    content = caption_files._WRITERS[extension](words, None)
    cues = [block for block in content.split("\n\n") if "-->" in block]
    mark = "," if extension == ".srt" else r"\."
    clock = rf"\d\d+:\d\d:\d\d{mark}\d{{3}}"
    first = [block.split("\n")[1 if extension == ".srt" else 0] for block in cues]
    assert len(cues) == len(list(cues_of(words)))
    assert all(re.fullmatch(rf"{clock} --> {clock}", line) for line in first)
    job_file.read(f"a{extension}", content.encode(), Sampling())


def test_srt():
    words = [*timed("It is 5 --> 6."), *timed("Yes.", 1, 3661.5)]
    assert caption_files.to_srt(words) == (
        "1\n00:00:00,000 --> 00:00:01,700\nIt is 5 → 6.\n\n2\n01:01:01,500 --> 01:01:01,800\nYes.\n"
    )


def test_vtt_has_the_times_of_words():
    words = timed("Black & white <b>.")
    assert caption_files.to_vtt(words) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.350\n"
        "Black <00:00:00.350>&amp; <00:00:00.700>white <00:00:01.050>&lt;b&gt;.\n"
    )


def test_json():
    words = [Word("naïve", 0.1, 0.25), Word("7:45", 1.0, 2.0, 1)]
    assert json.loads(caption_files.to_json(words)) == [
        {"text": "naïve", "start": 0.1, "end": 0.25, "chunk": 0},
        {"text": "7:45", "start": 1.0, "end": 2.0, "chunk": 1},
    ]
    assert json.loads(caption_files.to_json([])) == []


def test_abbreviations_of_a_language():
    words = timed("Das ist z. B. gut. Ja.")
    found = [[" ".join(w.text for w in line) for line in cue.lines] for cue in cues_of(words, "de")]
    assert found == [["Das ist z. B. gut."], ["Ja."]]
    for language in ("no", "auto", "ko", None):
        assert list(cues_of(words, language))


def test_a_file_that_would_be_the_same_is_left_alone(tmp_path):
    target = tmp_path / "a.vtt"
    caption_files.write_captions(str(target), timed("naïve"))
    before = target.stat()
    caption_files.write_captions(str(target), timed("naïve"))
    assert target.stat().st_mtime_ns == before.st_mtime_ns and target.stat().st_ino == before.st_ino


def test_a_pipe_and_a_device_are_written_to(tmp_path):
    """Under a name that leads there: a device must not be replaced by a file."""
    pipe, device = tmp_path / "pipe", tmp_path / "full.srt"
    os.mkfifo(pipe)
    (tmp_path / "a.json").symlink_to(pipe)
    device.symlink_to("/dev/full")
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    caption_files.write_captions(str(tmp_path / "a.json"), timed("one"))
    reader.join(timeout=10)
    assert json.loads(got[0])[0]["text"] == "one" and pipe.is_fifo()
    with pytest.raises(OutputError, match="No space left"):
        caption_files.write_captions(str(device), timed("one"))
    assert Path("/dev/full").is_char_device()


def test_files_are_written_completely_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.srt"
    target.write_text("old")
    link = tmp_path / "link.srt"
    link.symlink_to(target)
    caption_files.write_captions(str(link), timed("new"))
    assert link.is_symlink() and "new" in target.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OutputError, match="No space"):
        caption_files.write_captions(str(target), timed("newer"))
    assert "newer" not in target.read_text() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("path", ["a.txt", "a", "-", "", "no/such/a.srt", "folder.vtt"])
def test_wrong_targets(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.vtt").mkdir()
    with pytest.raises(InputError):
        caption_files.check_target(path)


class Piece:
    def __init__(self, duration, ends_chunk, *words):
        self.duration, self.ends_chunk, self.words = duration, ends_chunk, words


def test_pieces_are_joined():
    """Two parts of a chunk, silence, a whole chunk."""
    one, two = Word("one", 0.1, 1.4), Word("two", 0.0, 0.5, 1)
    pieces = [Piece(1.0, False), Piece(0.7, True, one), Piece(0.3, True), Piece(1.0, True, two)]
    assert joined(pieces) == (one, Word("two", 2.0, 2.5, 1))
    timeline = Timeline()
    for piece in pieces:
        timeline.add(piece)
    assert tuple(timeline.words) == joined(pieces)
