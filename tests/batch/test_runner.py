"""The runner without a model: order, resume, failures, verification, the manifest and the book."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.fake_engine import Fake, go, lines_of, work

from chatterbox_opt import Result, Sampling
from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch import job_file, manifest, verify
from chatterbox_opt.batch import join as batch_join
from chatterbox_opt.batch import runner as batch_runner
from chatterbox_opt.batch.runner import BatchRunner
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.request import Piece

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_files_manifest_and_events(tmp_path):
    events: list[batch_runner.Event] = []
    summary = go(tmp_path, work(["One.", "Two words."]), events=events)
    assert [e.status for e in summary.entries.values()] == ["done", "done"]
    assert (summary.skipped, summary.left, summary.failed(), summary.stopped) == (0, 0, [], None)
    first, second = lines_of(tmp_path)
    assert (first["id"], first["file"], first["seed"], first["attempts"]) == ("1", "1.wav", 1, 1)
    assert second["duration"] == pytest.approx(0.1)
    assert second["size"] == (tmp_path / "2.wav").stat().st_size
    assert second["seconds"] == 0.5
    assert [e.kind for e in events] == ["begin", "item", "item", "end"]
    assert [e.share for e in events] == pytest.approx([0, 4 / 14, 1, 1])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1.wav", "2.wav", "manifest.jsonl", "manifest.lock"
    ]  # fmt: skip


def test_resume_does_what_is_new_changed_failed_or_gone_and_nothing_else(tmp_path):
    lines = ["One.", "Two.", "bad", "Four.", "Five."]
    summary = go(tmp_path, work(lines))
    [failed] = summary.failed()
    assert (failed.id, failed.error) == ("3", "it is bad: mend it")
    lines[1], lines[2] = "Two, but other.", "Good."
    (tmp_path / "4.wav").unlink()
    (tmp_path / "5.wav").write_bytes(b"half")
    fake = Fake()
    summary = go(tmp_path, work([*lines, "Six."]), fake)
    assert fake.ids == ["2", "3", "4", "5", "6"]
    assert (summary.skipped, summary.failed()) == (1, [])
    fake = Fake()
    assert go(tmp_path, work([*lines, "Six."]), fake).skipped == 6
    assert not fake.ids
    go(tmp_path, work(lines, voices="another"), fake := Fake())
    assert len(fake.ids) == 5, "another voice is another result"
    go(tmp_path, work(lines, voices="another", made_by="n"), fake := Fake())
    assert len(fake.ids) == 5, "another model too"
    go(tmp_path, work(lines, voices="another", made_by="n"), fake := Fake(), anew=True)
    assert len(fake.ids) == 5
    assert len(lines_of(tmp_path)) == 5, "--force forgets"


def test_a_file_that_another_item_was_written_over_is_made_again(tmp_path):
    one, two = work(["One.", "Two."])
    go(tmp_path, [one])
    taken = batch_runner.Task(two.item, one.file, two.text, two.settings)
    go(tmp_path, [taken])
    assert go(tmp_path, [one], fake := Fake()).skipped == 0
    assert fake.ids == ["1"]


def test_fail_fast_and_stop(tmp_path):
    summary = go(tmp_path, work(["One.", "bad", "Three."]), fail_fast=True)
    assert (len(summary.entries), summary.left) == (2, 1)
    with manifest.open_manifest(tmp_path, anew=True) as noted:
        running = BatchRunner(noted, work(["a", "b", "c"]), lambda event: None)

        def speak(requests):
            for result in Fake()(requests):
                running.stop()  # a signal while the first is in work
                yield result

        summary = running.run(speak)
    assert (list(summary.entries), summary.left) == (["1"], 2)


@pytest.mark.parametrize("tail", [b'{"id": "2", "te', b"\0" * 50, b"\xff\xfe", b'{"id"'])
def test_a_torn_last_line_is_put_right(tmp_path, tail, caplog):
    go(tmp_path, work(["One.", "Two."]))
    path = tmp_path / "manifest.jsonl"
    whole = path.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    path.write_bytes(first + tail)
    go(tmp_path, work(["One.", "Two."]), fake := Fake())
    assert fake.ids == ["2"]
    assert [line["id"] for line in lines_of(tmp_path)] == ["1", "2"]
    assert "half a line" in caplog.text
    path.write_bytes(path.read_bytes()[:-1])  # only the line's end was lost
    assert go(tmp_path, work(["One.", "Two."])).skipped == 2
    assert path.read_bytes().endswith(b"\n")


def test_damage_in_the_middle_costs_only_its_lines(tmp_path):
    go(tmp_path, work(["One.", "Two.", "Three."]))
    path = tmp_path / "manifest.jsonl"
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0\0\n[]\n{}\n\n" + third + b'{"id": [], "text": 1}\n')
    go(tmp_path, work(["One.", "Two.", "Three."]), fake := Fake())
    assert fake.ids == ["2"]


def test_a_clock_that_goes_backwards_is_harmless(tmp_path, monkeypatch):
    times = iter(f"20{year}-01-01T00:00:00+00:00" for year in (30, 25, 20, 15, 10))
    monkeypatch.setattr(manifest, "_now", lambda: next(times))
    go(tmp_path, work(["bad", "Two."]))
    go(tmp_path, work(["Good.", "Two."]))
    assert go(tmp_path, work(["Good.", "Two."])).skipped == 2


def test_a_second_run_says_so_and_a_dead_ones_lock_does_not_matter(tmp_path):
    (tmp_path / "manifest.lock").write_text("4711")
    (tmp_path / f".{'0' * 16}.part").write_text("half")
    (tmp_path / ".mine.part").write_text("kept")
    with manifest.open_manifest(tmp_path):
        assert not list(tmp_path.glob(".0*")), "what a killed run left goes"
        assert (tmp_path / ".mine.part").exists()
        with (
            pytest.raises(InputError, match="another run is working"),
            manifest.open_manifest(tmp_path),
        ):
            pass
    with manifest.open_manifest(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="it is a file"), manifest.open_manifest(tmp_path / "file"):
        pass


def fill_after(monkeypatch, blocks: int) -> None:
    """From then on the disk is full for sound; the manifest's short lines still fit."""
    written = [0]
    plain = audio_files.Sink.write

    def write(self, wave):
        written[0] += 1
        if written[0] > blocks:
            raise FULL
        plain(self, wave)

    monkeypatch.setattr(audio_files.Sink, "write", write)


def test_a_full_disk_ends_the_run_and_the_next_goes_on(tmp_path, monkeypatch):
    lines = [f"Line {i}." for i in range(9)]
    with monkeypatch.context() as full:
        fill_after(full, 3)
        summary = go(tmp_path, work(lines), fake := Fake())
    assert isinstance(summary.stopped, OutputError)
    assert "No space left" in str(summary.stopped)
    assert len(fake.ids) == 5, "two in a row are enough to know"
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["1.wav", "2.wav", "3.wav"]
    assert not list(tmp_path.glob(".*.part"))
    summary = go(tmp_path, work(lines), fake := Fake())
    assert (summary.skipped, len(fake.ids), summary.failed()) == (3, 6, [])


def test_one_file_that_cannot_be_written_is_one_failure(tmp_path):
    (tmp_path / "2.wav").mkdir()
    summary = go(tmp_path, work(["One.", "Two.", "Three."]))
    assert [e.id for e in summary.failed()] == ["2"]
    assert summary.stopped is None


def test_a_full_disk_tears_no_line_of_the_manifest(tmp_path, monkeypatch):
    plain = os.write

    def write(descriptor, content):
        plain(descriptor, content[:10])
        raise FULL

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        summary = go(tmp_path, work(["One.", "Two."]))
    assert "No space left" in str(summary.stopped)
    assert (tmp_path / "manifest.jsonl").read_bytes() == b""
    assert go(tmp_path, work(["One.", "Two."])).failed() == []


@pytest.mark.parametrize("back", [False, True])
def test_a_directory_that_goes_away_ends_the_run(tmp_path, back):
    out = tmp_path / "out"

    def speak(requests):
        for i, result in enumerate(Fake()(requests)):
            if i == 1:
                out.rename(tmp_path / "elsewhere")
            if i == 1 and back:
                out.mkdir()  # by somebody else: our manifest is not in it
                (out / "manifest.jsonl").touch()
            yield result

    summary = go(out, work(["One.", "Two.", "Three."]), speak)
    assert isinstance(summary.stopped, OutputError)
    assert list(summary.entries) == ["1"]
    assert go(out, work(["One.", "Two.", "Three."])).failed() == []


def test_verify_speaks_again_with_other_seeds_and_keeps_the_best(tmp_path, monkeypatch):
    heard = iter([0.5, 0.3, 0.4, 0.1])
    rates = lambda self, text, waves: next(heard)
    monkeypatch.setattr(verify.Verifier, "word_error_rate", rates)
    verifier = verify.Verifier(("x",), 0.2)
    summary = go(tmp_path, work(["One.", "Two."]), fake := Fake(), verifier=verifier, retries=2)
    assert fake.ids == ["1", "1", "1", "2"]
    assert len({request.sampling.seed for request in fake.asked[:3]}) == 3
    one, two = summary.entries.values()
    assert (one.attempts, one.faults) == (3, ("word error rate 30%",))
    assert one.seed == fake.asked[1].sampling.seed, "the best, not the last"
    assert (two.attempts, two.faults) == (1, ())
    assert summary.marked() == [one]


def asr(directory: Path, code: str) -> str:
    (directory / "asr.py").write_text(f"import sys\npath = sys.argv[1]\n{code}\n")
    return f"'{sys.executable}' '{directory / 'asr.py'}'"


def test_a_recognizer_is_called_without_a_shell(tmp_path):
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    wave = [np.zeros(2400, np.float32)]
    code = "import soundfile; assert soundfile.info(path).frames == 2400; print('Hello, there!')"
    command = asr(tmp_path, code)
    assert verify.Verifier.of(command).word_error_rate("Hello there.", wave) == 0
    assert verify.Verifier.of(command + " {}").word_error_rate("Hello you there.", wave) > 0.3
    injected = verify.Verifier.of(f"{command} {{}} ; touch '{tmp_path / 'owned'}' && `id` $(id)")
    assert injected.word_error_rate("Hello there.", wave) == 0
    assert not (tmp_path / "owned").exists()
    broken = verify.Verifier.of(asr(tmp_path, "sys.exit('no model')"))
    with pytest.raises(verify.VerifierError, match="ended with 1 .no model."):
        broken.word_error_rate("Hello.", wave)
    for command in ("no-such-program-anywhere", "'", ""):
        with pytest.raises(InputError, match="--verify"):
            verify.Verifier.of(command)


def test_the_book_is_the_files_in_order_with_pauses(tmp_path):
    items = job_file.read("a.txt", b"One.\nTwo two.\n\nThree.", Sampling())
    todo = batch_runner.tasks(items, [f"{i.id}.flac" for i in items], "m", lambda voice: "v")
    summary = go(tmp_path, todo)
    target = tmp_path / "book.wav"
    length = batch_join.join(items, summary.entries, tmp_path, str(target), (0.25, 1.0))
    assert length == pytest.approx(0.04 + 0.25 + 0.08 + 1.0 + 0.06)
    joined, _ = soundfile.read(target)
    assert len(joined) == round(length * SAMPLE_RATE)
    [silent] = [round((0.04 + 0.25 + 0.08 + 0.5) * SAMPLE_RATE)]
    assert not joined[silent] and joined[100] == pytest.approx(0.1, abs=1e-3)
    (tmp_path / "2.flac").write_bytes(b"no")
    with pytest.raises(OutputError):
        batch_join.join(items, summary.entries, tmp_path, str(tmp_path / "other.wav"), (0.25, 1.0))
    assert not (tmp_path / "other.wav").exists()
    long = {
        id: dataclasses.replace(entry, duration=40_000.0) for id, entry in summary.entries.items()
    }
    with pytest.raises(OutputError, match="would have 33 h, too long for a wav: give .flac"):
        batch_join.join(items, long, tmp_path, str(tmp_path / "other.wav"), (0.25, 1.0))


def test_faults_say_where_and_are_not_endless(tmp_path):
    wave = np.zeros(240, np.float32)

    def speak(requests):
        for request, count in zip(requests, (1, 2, 9), strict=False):
            piece = Piece(wave, "x", 1, {"t3": 0.5}, ("too slow",), 3)
            yield Result(request.id, 0, (piece,) * count)

    one, two, nine = go(tmp_path, work("abc"), speak).entries.values()
    assert (one.faults, one.attempts) == (("too slow",), 3)
    assert two.faults == ("chunk 1: too slow", "chunk 2: too slow")
    assert (len(nine.faults), nine.faults[-1]) == (6, "4 more")


def test_errors_that_are_not_ours_say_their_kind(tmp_path):
    speak = lambda requests: (Result(r.id, 0, error=KeyError("x")) for r in requests)
    assert go(tmp_path, work("a"), speak).failed()[0].error == "KeyError: 'x'"


def rate_and_growth(directory: Path, count: int) -> tuple[float, float]:
    """Seconds of the last tenth by those of the first (of the middle of ten runs of each), and
    MiB that stay."""
    stamps: list[float] = []
    todo = work(f"Line {i}." for i in range(count))
    tracemalloc.start()
    with manifest.open_manifest(directory) as noted:
        running = BatchRunner(noted, todo, lambda event: stamps.append(time.perf_counter()))
        before = tracemalloc.get_traced_memory()[0]
        fake = Fake()
        running.run(lambda requests: fake(requests))
        fake.asked.clear()
        grown = (tracemalloc.get_traced_memory()[0] - before) / 2**20
    tracemalloc.stop()
    steps = np.diff(stamps[1:-1])
    tenth = len(steps) // 10
    return float(np.median(steps[-tenth:]) / np.median(steps[:tenth])), grown


def test_many_items_hold_their_rate_and_little_memory(tmp_path):
    slower, grown = rate_and_growth(tmp_path, 300)
    assert slower < 3, "a quadratic step would show"
    assert grown < 3


@pytest.mark.slow
def test_ten_thousand_items_hold_their_rate_and_under_50_mib(tmp_path):
    slower, grown = rate_and_growth(tmp_path, 10_000)
    assert slower < 1.1
    assert grown < 50
