"""The runner without a model: order, resuming, failures, verification, manifest, joined file."""

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
from helpers.fake_engine import FakeEngine, manifest_lines, run_batch, tasks_of

from chatterbox_opt import Result, Sampling
from chatterbox_opt.audio import containers
from chatterbox_opt.batch import job_file, manifest, resuming, verify
from chatterbox_opt.batch import runner as batch_runner
from chatterbox_opt.batch.joining import join as batch_join
from chatterbox_opt.batch.joining.join import Pauses
from chatterbox_opt.batch.runner import BatchRunner
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.request import Piece
from chatterbox_opt.script.lexicon import Lexicon

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_files_manifest_and_events(tmp_path):
    events: list[batch_runner.Event] = []
    summary = run_batch(tmp_path, tasks_of(["One.", "Two words."]), events=events)
    assert [e.status for e in summary.entries.values()] == ["done", "done"]
    assert (summary.skipped, summary.left, summary.failed(), summary.stopped) == (0, 0, [], None)
    first, second = manifest_lines(tmp_path)
    assert (first["id"], first["file"], first["seed"], first["attempts"]) == ("1", "1.wav", 1, 1)
    assert second["duration"] == pytest.approx(0.1)
    assert second["size"] == (tmp_path / "2.wav").stat().st_size
    assert second["seconds"] == 0.5
    assert [e.kind for e in events] == ["begin", "item", "item", "end"]
    assert [e.share for e in events] == pytest.approx([0, 4 / 14, 1, 1])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1.wav", "2.wav", "manifest.jsonl", "manifest.lock"
    ]  # fmt: skip


def test_resuming_processes_new_changed_failed_and_missing_items_only(tmp_path):
    lines = ["One.", "Two.", "bad", "Four.", "Five."]
    summary = run_batch(tmp_path, tasks_of(lines))
    [failed] = summary.failed()
    assert (failed.id, failed.error) == ("3", "it is bad: mend it")
    lines[1], lines[2] = "Two, but other.", "Good."
    (tmp_path / "4.wav").unlink()
    (tmp_path / "5.wav").write_bytes(b"half")
    fake = FakeEngine()
    summary = run_batch(tmp_path, tasks_of([*lines, "Six."]), fake)
    assert fake.ids == ["2", "3", "4", "5", "6"]
    assert (summary.skipped, summary.failed()) == (1, [])
    fake = FakeEngine()
    assert run_batch(tmp_path, tasks_of([*lines, "Six."]), fake).skipped == 6
    assert not fake.ids
    run_batch(tmp_path, tasks_of(lines, voices="another"), fake := FakeEngine())
    assert len(fake.ids) == 5, "another voice is another result"
    run_batch(tmp_path, tasks_of(lines, voices="another", made_by="n"), fake := FakeEngine())
    assert len(fake.ids) == 5, "another model too"
    run_batch(
        tmp_path, tasks_of(lines, voices="another", made_by="n"), fake := FakeEngine(), reset=True
    )
    assert len(fake.ids) == 5
    assert len(manifest_lines(tmp_path)) == 5, "--force forgets"


# written by the version before the package had folders
MANIFEST_OF_EARLIER_VERSION = """\
{"id": "1", "text": "830b4291cf437fe9eda4acf3", "settings": "f7a52baafddd6b2a2031689e", "status": "done", "file": "0001.wav", "size": 524, "duration": 0.01, "seconds": 0.5, "seed": 7, "attempts": 1, "faults": [], "error": "", "time": "2026-11-28T07:52:29+00:00"}
{"id": "2", "text": "f49520ce686dbfc75fb02fc2", "settings": "f7a52baafddd6b2a2031689e", "status": "done", "file": "0002.wav", "size": 524, "duration": 0.01, "seconds": 0.5, "seed": 7, "attempts": 1, "faults": [], "error": "", "time": "2026-11-28T07:52:29+00:00"}
"""


def test_a_directory_of_an_earlier_version_is_resumed(tmp_path):
    (tmp_path / "manifest.jsonl").write_text(MANIFEST_OF_EARLIER_VERSION)
    job = "One line.\nAnother — naïve.\n".encode()
    default = Sampling(seed=7, temperature=0.5)
    model_key = "tiny float32 float32 None marked"
    files = ["0001.wav", "0002.wav"]
    for file, line in zip(files, manifest_lines(tmp_path), strict=True):
        (tmp_path / file).write_bytes(bytes(line["size"]))

    def prepared(sampling):
        items = job_file.read("a.txt", job, sampling, "anna").items
        return resuming.prepare(items, files, model_key, lambda voice: f"key of {voice}")

    assert run_batch(tmp_path, prepared(default), fake := FakeEngine()).skipped == 2
    assert not fake.ids
    run_batch(tmp_path, prepared(dataclasses.replace(default, top_k=5)), fake := FakeEngine())
    assert fake.ids == ["1", "2"]


def test_a_file_overwritten_by_another_item_is_synthesized_again(tmp_path):
    one, two = tasks_of(["One.", "Two."])
    run_batch(tmp_path, [one])
    taken = dataclasses.replace(two, file=one.file)
    run_batch(tmp_path, [taken])
    assert run_batch(tmp_path, [one], fake := FakeEngine()).skipped == 0
    assert fake.ids == ["1"]


def test_fail_fast_and_stop(tmp_path):
    summary = run_batch(tmp_path, tasks_of(["One.", "bad", "Three."]), fail_fast=True)
    assert (len(summary.entries), summary.left) == (2, 1)
    with manifest.open_manifest(tmp_path, reset=True) as noted:
        running = BatchRunner(noted, tasks_of(["a", "b", "c"]), lambda event: None)

        def speak(requests):
            for result in FakeEngine()(requests):
                running.stop()  # a signal while the first is in work
                yield result

        summary = running.run(speak)
    assert (list(summary.entries), summary.left) == (["1"], 2)


@pytest.mark.parametrize("tail", [b'{"id": "2", "te', b"\0" * 50, b"\xff\xfe", b'{"id"'])
def test_a_partial_last_line_is_removed(tmp_path, tail, caplog):
    run_batch(tmp_path, tasks_of(["One.", "Two."]))
    path = tmp_path / "manifest.jsonl"
    whole = path.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    path.write_bytes(first + tail)
    run_batch(tmp_path, tasks_of(["One.", "Two."]), fake := FakeEngine())
    assert fake.ids == ["2"]
    assert [line["id"] for line in manifest_lines(tmp_path)] == ["1", "2"]
    assert "partial line" in caplog.text
    path.write_bytes(path.read_bytes()[:-1])  # only the line break was lost
    assert run_batch(tmp_path, tasks_of(["One.", "Two."])).skipped == 2
    assert path.read_bytes().endswith(b"\n")


def test_damaged_lines_do_not_affect_others(tmp_path):
    run_batch(tmp_path, tasks_of(["One.", "Two.", "Three."]))
    path = tmp_path / "manifest.jsonl"
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0\0\n[]\n{}\n\n" + third + b'{"id": [], "text": 1}\n')
    run_batch(tmp_path, tasks_of(["One.", "Two.", "Three."]), fake := FakeEngine())
    assert fake.ids == ["2"]


def test_a_clock_that_goes_backwards_is_harmless(tmp_path, monkeypatch):
    times = iter(f"20{year}-01-01T00:00:00+00:00" for year in (30, 25, 20, 15, 10))
    monkeypatch.setattr(manifest, "_now", lambda: next(times))
    run_batch(tmp_path, tasks_of(["bad", "Two."]))
    run_batch(tmp_path, tasks_of(["Good.", "Two."]))
    assert run_batch(tmp_path, tasks_of(["Good.", "Two."])).skipped == 2


def test_a_second_run_is_an_error_and_a_stale_lock_is_ignored(tmp_path):
    (tmp_path / "manifest.lock").write_text("4711")
    (tmp_path / f".{'0' * 16}.part").write_text("half")
    (tmp_path / ".mine.part").write_text("kept")
    with manifest.open_manifest(tmp_path):
        assert not list(tmp_path.glob(".0*")), "partial files of a killed run are removed"
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
    """After this many blocks the disk is full for audio; the manifest's short lines still fit."""
    written = [0]
    plain = containers.SoundfileSink.write

    def write(self, wave):
        written[0] += 1
        if written[0] > blocks:
            raise FULL
        plain(self, wave)

    monkeypatch.setattr(containers.SoundfileSink, "write", write)


def test_a_full_disk_ends_the_run_and_the_next_resumes(tmp_path, monkeypatch):
    lines = [f"Line {i}." for i in range(9)]
    with monkeypatch.context() as full:
        fill_after(full, 3)
        summary = run_batch(tmp_path, tasks_of(lines), fake := FakeEngine())
    assert isinstance(summary.stopped, OutputError)
    assert "No space left" in str(summary.stopped)
    assert len(fake.ids) == 5, "the second failure in a row ends the run"
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["1.wav", "2.wav", "3.wav"]
    assert not list(tmp_path.glob(".*.part"))
    summary = run_batch(tmp_path, tasks_of(lines), fake := FakeEngine())
    assert (summary.skipped, len(fake.ids), summary.failed()) == (3, 6, [])


def test_one_file_that_cannot_be_written_is_one_failure(tmp_path):
    (tmp_path / "2.wav").mkdir()
    summary = run_batch(tmp_path, tasks_of(["One.", "Two.", "Three."]))
    assert [e.id for e in summary.failed()] == ["2"]
    assert summary.stopped is None


def test_a_full_disk_leaves_no_partial_line_in_the_manifest(tmp_path, monkeypatch):
    plain = os.write

    def write(descriptor, content):
        plain(descriptor, content[:10])
        raise FULL

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        summary = run_batch(tmp_path, tasks_of(["One.", "Two."]))
    assert "No space left" in str(summary.stopped)
    assert (tmp_path / "manifest.jsonl").read_bytes() == b""
    assert run_batch(tmp_path, tasks_of(["One.", "Two."])).failed() == []


@pytest.mark.parametrize("back", [False, True])
def test_a_directory_that_disappears_ends_the_run(tmp_path, back):
    out = tmp_path / "out"

    def speak(requests):
        for i, result in enumerate(FakeEngine()(requests)):
            if i == 1:
                out.rename(tmp_path / "elsewhere")
            if i == 1 and back:
                out.mkdir()  # by another program: without our manifest
                (out / "manifest.jsonl").touch()
            yield result

    summary = run_batch(out, tasks_of(["One.", "Two.", "Three."]), speak)
    assert isinstance(summary.stopped, OutputError)
    assert list(summary.entries) == ["1"]
    assert run_batch(out, tasks_of(["One.", "Two.", "Three."])).failed() == []


def test_verify_retries_with_other_seeds_and_keeps_the_best(tmp_path, monkeypatch):
    rates = iter([0.5, 0.3, 0.4, 0.1])
    rate = lambda self, texts, waves, language: next(rates)
    monkeypatch.setattr(verify.Verifier, "word_error_rate", rate)
    verifier = verify.Verifier(("x",), 0.2)
    summary = run_batch(
        tmp_path, tasks_of(["One.", "Two."]), fake := FakeEngine(), verifier=verifier, retries=2
    )
    assert fake.ids == ["1", "1", "1", "2"]
    assert len({request.sampling.seed for request in fake.asked[:3]}) == 3
    one, two = summary.entries.values()
    assert (one.attempts, one.faults) == (3, ("word error rate 30%",))
    assert one.seed == fake.asked[1].sampling.seed, "the best, not the last"
    assert (two.attempts, two.faults) == (1, ())
    assert summary.with_faults() == [one]


def asr(directory: Path, code: str) -> str:
    (directory / "asr.py").write_text(f"import sys\npath = sys.argv[1]\n{code}\n")
    return f"'{sys.executable}' '{directory / 'asr.py'}'"


def test_a_recognizer_is_called_without_a_shell(tmp_path):
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    wave = [np.zeros(2400, np.float32)]
    code = "import soundfile; assert soundfile.info(path).frames == 2400; print('Hello, there!')"
    command = asr(tmp_path, code)
    assert verify.Verifier.of(command).word_error_rate(["Hello there."], wave) == 0
    assert verify.Verifier.of(command + " {}").word_error_rate(["Hello you there."], wave) > 0.3
    injected = verify.Verifier.of(f"{command} {{}} ; touch '{tmp_path / 'owned'}' && `id` $(id)")
    assert injected.word_error_rate(["Hello there."], wave) == 0
    assert not (tmp_path / "owned").exists()
    for rate in (float("nan"), -0.1):
        with pytest.raises(InputError, match="--max-wer is .*; give a value from 0"):
            verify.Verifier.of(command, rate)
    broken = verify.Verifier.of(asr(tmp_path, "sys.exit('no model')"))
    with pytest.raises(verify.VerifierError, match="ended with 1 .no model."):
        broken.word_error_rate(["Hello."], wave)
    for command in ("no-such-program-anywhere", "'", ""):
        with pytest.raises(InputError, match="--verify"):
            verify.Verifier.of(command)


def heard(monkeypatch, transcript: str) -> verify.Verifier:
    monkeypatch.setattr(verify.Verifier, "transcribe", lambda self, waves: transcript)
    return verify.Verifier(("x",), 0)


@pytest.mark.parametrize(
    ("transcript", "is_right"),
    [("Mr. Nguyen met Jo.", True), ("Mr. win met Joanna.", True), ("Mr. Lee met Jo.", False)],
)
def test_what_was_written_and_what_was_read_are_right(tmp_path, monkeypatch, transcript, is_right):
    pytest.importorskip("jiwer")
    options = job_file.ReadOptions(markup=True, lexicon=Lexicon.of({"nguyen": "win"}))
    written = b"Mr. Nguyen met [say:Joanna]Jo[/say]."
    items = job_file.read("a.txt", written, Sampling(), options=options).items
    todo = resuming.prepare(items, ["1.wav"], "m", lambda voice: "v")
    summary = run_batch(tmp_path, todo, verifier=heard(monkeypatch, transcript))
    assert bool(summary.with_faults()) != is_right


def test_a_transcript_is_compared_in_the_language_of_its_row(tmp_path, monkeypatch):
    pytest.importorskip("jiwer")
    rows = b"text,language\nEs kostet 5 \xe2\x82\xac.,de\nEs kostet 5 \xe2\x82\xac.,en\n"
    items = job_file.read("a.csv", rows, Sampling()).items
    todo = resuming.prepare(items, ["1.wav", "2.wav"], "m", lambda voice: "v")
    verifier = heard(monkeypatch, "es kostet f\u00fcnf Euro")
    summary = run_batch(tmp_path, todo, verifier=verifier)
    assert [entry.id for entry in summary.with_faults()] == ["2"]


def test_a_language_that_is_not_told_is_detected_before_a_comparison(monkeypatch):
    pytest.importorskip("jiwer")
    verifier = heard(monkeypatch, "es kostet f\u00fcnf Euro")
    monkeypatch.setattr(verify, "detect", lambda text, known: "de")
    assert verifier.word_error_rate(["Es kostet 5 \u20ac."], [], "auto") == 0


def test_the_joined_file_has_the_files_in_order_with_pauses(tmp_path):
    items = job_file.read("a.txt", b"One.\nTwo two.\n\nThree.", Sampling()).items
    todo = resuming.prepare(items, [f"{i.id}.flac" for i in items], "m", lambda voice: "v")
    summary = run_batch(tmp_path, todo)
    target = tmp_path / "book.wav"
    made = batch_join.join(items, summary.entries, tmp_path, str(target), Pauses(0.25, 1.0))
    length = made.seconds
    assert made.starts == pytest.approx([0, 0.29, 1.37])
    assert length == pytest.approx(0.04 + 0.25 + 0.08 + 1.0 + 0.06)
    joined, _ = soundfile.read(target)
    assert len(joined) == round(length * SAMPLE_RATE)
    [silent] = [round((0.04 + 0.25 + 0.08 + 0.5) * SAMPLE_RATE)]
    assert not joined[silent] and joined[100] == pytest.approx(0.1, abs=1e-3)
    (tmp_path / "2.flac").write_bytes(b"no")
    with pytest.raises(OutputError):
        batch_join.join(
            items, summary.entries, tmp_path, str(tmp_path / "other.wav"), Pauses(0.25, 1.0)
        )
    assert not (tmp_path / "other.wav").exists()
    long = {
        id: dataclasses.replace(entry, duration=40_000.0) for id, entry in summary.entries.items()
    }
    with pytest.raises(OutputError, match="would have 33 h, too long for a wav: give .flac"):
        batch_join.join(items, long, tmp_path, str(tmp_path / "other.wav"), Pauses(0.25, 1.0))


def test_faults_name_their_chunk_and_are_limited(tmp_path):
    wave = np.zeros(240, np.float32)

    def speak(requests):
        for request, count in zip(requests, (1, 2, 9), strict=False):
            piece = Piece(wave, "x", 1, {"t3": 0.5}, ("too slow",), 3)
            yield Result(request.id, 0, (piece,) * count)

    one, two, nine = run_batch(tmp_path, tasks_of("abc"), speak).entries.values()
    assert (one.faults, one.attempts) == (("too slow",), 3)
    assert two.faults == ("chunk 1: too slow", "chunk 2: too slow")
    assert (len(nine.faults), nine.faults[-1]) == (6, "4 more")


def test_errors_of_other_libraries_have_their_type(tmp_path):
    speak = lambda requests: (Result(r.id, 0, error=KeyError("x")) for r in requests)
    assert run_batch(tmp_path, tasks_of("a"), speak).failed()[0].error == "KeyError: 'x'"


def rate_and_growth(directory: Path, count: int) -> tuple[float, float]:
    """Median time per item of the last tenth divided by that of the first, and the MiB that
    remain allocated."""
    stamps: list[float] = []
    todo = tasks_of(f"Line {i}." for i in range(count))
    tracemalloc.start()
    with manifest.open_manifest(directory) as noted:
        running = BatchRunner(noted, todo, lambda event: stamps.append(time.perf_counter()))
        before = tracemalloc.get_traced_memory()[0]
        fake = FakeEngine()
        running.run(lambda requests: fake(requests))
        fake.asked.clear()
        grown = (tracemalloc.get_traced_memory()[0] - before) / 2**20
    tracemalloc.stop()
    steps = np.diff(stamps[1:-1])
    tenth = len(steps) // 10
    return float(np.median(steps[-tenth:]) / np.median(steps[:tenth])), grown


@pytest.mark.slow
def test_many_items_keep_their_rate_and_use_little_memory(tmp_path):
    slower, grown = rate_and_growth(tmp_path, 300)
    assert slower < 3, "no quadratic step"
    assert grown < 3


@pytest.mark.slow
def test_ten_thousand_items_keep_their_rate_and_use_under_50_mib(tmp_path):
    slower, grown = rate_and_growth(tmp_path, 10_000)
    assert slower < 1.1
    assert grown < 50
