"""Batches in real processes: killed, interrupted, and with invalid rows."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from helpers.batch_process import (
    BATCH_COMMAND,
    QUICK,
    TESTS,
    listen_to_ctrl_c,
    noted_lines,
    run_command,
)
from helpers.common import SAMPLE
from helpers.fake_engine import FakeEngine, tasks_of
from rich.console import Console

from chatterbox_opt.batch import manifest
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.batch.runner import BatchRunner, Event, Summary
from chatterbox_opt.cli.batch import progress as batch_progress
from chatterbox_opt.cli.terminal import console

# a run whose speech is made up: no torch, so that it can be killed often
FAKE = """
import sys, time
from pathlib import Path
from helpers.fake_engine import FakeEngine, run_batch, tasks_of
fake = FakeEngine()
def speak(requests):
    for result in fake(requests):
        time.sleep(0.01)
        yield result
summary = run_batch(Path(sys.argv[1]), tasks_of(f"Line {i}." for i in range(int(sys.argv[2]))), speak)
sys.exit(bool(summary.failed() or summary.left))
"""


def check_whole(directory: Path, count: int) -> None:
    """Every item has one "done" line and its file; the directory contains nothing else."""
    lines = noted_lines(directory)
    assert sorted(int(line["id"]) for line in lines) == list(range(1, count + 1)), "none twice"
    for line in lines:
        assert line["status"] == "done"
        info = soundfile.info(directory / line["file"])
        assert info.duration == pytest.approx(line["duration"], abs=0.001)
        assert (directory / line["file"]).stat().st_size == line["size"]
    files = {line["file"] for line in lines} | {manifest.FILE, manifest.LOCK}
    assert {path.name for path in directory.iterdir()} == files


def kill_and_resume(
    command: list[str], out: Path, cwd: Path, *, items: int, kills: int, step: float
) -> None:
    """Kill at random times throughout the job: up to two items of ``step`` seconds after a few
    more are in the manifest, or during start-up. There is work left for each kill, however fast
    the machine is."""
    chance = random.Random(1)
    for number in range(1, kills + 1):
        before = len(noted_lines(out))
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        due = items * number // (kills + 1) - before
        more, deadline = chance.randrange(max(1, min(5, due + 1))), time.monotonic() + 120
        while len(noted_lines(out)) < before + more and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 2 * step))
        assert process.poll() is None, "it must still be running when it is killed"
        process.kill()
        process.wait()
        after = noted_lines(out)
        assert len(after) >= before + more, "entries are not lost"
        for line in after:
            assert (out / line["file"]).stat().st_size == line["size"]
    assert subprocess.run(command, cwd=cwd).returncode == 0


@pytest.mark.parametrize(
    ("items", "kills"), [(40, 5), pytest.param(200, 50, marks=pytest.mark.slow)]
)
def test_a_kill_loses_at_most_the_item_in_flight(tmp_path, items, kills):
    command = [sys.executable, "-c", FAKE, str(tmp_path / "out"), str(items)]
    kill_and_resume(command, tmp_path / "out", TESTS, items=items, kills=kills, step=0.02)
    check_whole(tmp_path / "out", items)


@pytest.mark.slow
def test_fifty_kills_of_two_hundred_items_then_one_resume(tiny, tmp_path):
    (tmp_path / "job.txt").write_text("".join(f"This is line {i}.\n" for i in range(200)))
    args = ["job.txt", "--model", str(tiny), *QUICK, "-q", "--out-dir"]
    command = [*BATCH_COMMAND, *args, "out"]
    kill_and_resume(command, tmp_path / "out", tmp_path, items=200, kills=50, step=0.06)
    check_whole(tmp_path / "out", 200)
    assert run_command(*args, "uninterrupted", cwd=tmp_path).returncode == 0
    for line in noted_lines(tmp_path / "out"):
        killed, uninterrupted = (
            tmp_path / name / line["file"] for name in ("out", "uninterrupted")
        )
        assert killed.read_bytes() == uninterrupted.read_bytes()


def test_a_full_disk_ends_the_run(tmp_path):
    """The error comes from the system, while libsndfile writes a file."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", FAKE, str(out), "9"]

    def limit_file_size() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    full = subprocess.run(command, cwd=TESTS, preexec_fn=limit_file_size, capture_output=True)
    assert full.returncode == 1, full.stderr.decode()
    assert "Traceback" not in full.stderr.decode()
    assert [line["status"] for line in noted_lines(out)] == ["failed", "failed"]
    assert {path.name for path in out.iterdir()} == {manifest.FILE, manifest.LOCK}
    assert subprocess.run(command, cwd=TESTS).returncode == 0
    assert len(list(out.glob("*.wav"))) == 9


def rows(good_voice: bool) -> str:
    cells = [{"text": f"This is row {i}.", "id": i} for i in range(1, 20)]
    cells[4]["text"] = "A \0 byte."
    cells[8]["text"] = "Five thousand characters. " * 193
    cells[9]["text"] = "?!"
    cells[16]["voice"] = str(SAMPLE) if good_voice else "damaged.wav"
    cells[17]["id"] = "../../escaped"
    return "\n".join(json.dumps(row) for row in cells)


def test_bad_rows_fail_and_all_others_succeed(tiny, tmp_path, run_forked):
    (tmp_path / "damaged.wav").write_bytes(b"RIFF" + b"x" * 100)
    job = tmp_path / "job.jsonl"
    job.write_text(rows(good_voice=False))
    args = ["job.jsonl", "--model", str(tiny), *QUICK, "--out-dir", "out", "--json"]
    first = run_forked("batch", *args, cwd=tmp_path)
    stderr = first.stderr.decode()
    assert first.returncode == 1, stderr
    assert "row 5 (id 5) failed: the text has a NUL byte" in stderr
    assert "1 pauses (nothing to say)" in stderr, "row 10"
    assert "row 17 (id 17) failed: 'damaged.wav' cannot be read as audio" in stderr
    events = [json.loads(line) for line in first.stdout.splitlines()]
    assert [e["event"] for e in events] == ["begin", *["item"] * 18, "end"]
    assert (events[-1]["done"], events[-1]["failed"], events[-1]["total"]) == (16, 2, 18)
    assert sum(e["item"]["status"] == "failed" for e in events[1:-1]) == 2
    assert len(list((tmp_path / "out").glob("*.wav"))) == 16
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.wav", "job.jsonl", "out"]
    long = next(line for line in noted_lines(tmp_path / "out") if line["id"] == "9")
    assert long["duration"] > 2.4

    job.write_text(rows(good_voice=True))
    second = run_forked("batch", *args, cwd=tmp_path)
    events = [json.loads(line) for line in second.stdout.splitlines()]
    assert second.returncode == 1
    assert [e["item"]["id"] for e in events[1:-1]] == ["5", "17"], "failed items are retried"
    assert events[-1]["skipped"] == 16


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_finishes_the_item_and_the_next_run_resumes(
    tiny, tmp_path, run_forked, number, code
):
    (tmp_path / "job.txt").write_text("This is one of many lines.\n" * 2000)
    out = tmp_path / "out"
    args = ["job.txt", "--out-dir", "out", "--model", str(tiny), *QUICK]
    process = subprocess.Popen(
        [*BATCH_COMMAND, *args], cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c
    )
    try:
        deadline = time.monotonic() + 120
        while len(noted_lines(out)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        second = run_forked("batch", *args, cwd=tmp_path)
        assert second.returncode == 2
        assert "another run is working in 'out'" in second.stderr.decode()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, stderr.decode()
    assert "stopping after the items in progress" in stderr.decode()
    assert "not reached" in stderr.decode()
    check_whole(out, len(noted_lines(out)))


def test_fail_fast_ends_with_the_failure_and_lists_only_what_was_made(tiny, tmp_path, run_forked):
    texts = ["A \0 byte.", *(f"Line {i}." for i in range(40))]
    (tmp_path / "job.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    args = ["job.jsonl", "--out-dir", "out", "--model", str(tiny), *QUICK, "--fail-fast"]
    result = run_forked("batch", *args, "--metadata", "csv", cwd=tmp_path)
    assert result.returncode == 1
    assert "not reached" in result.stderr.decode()
    made = (tmp_path / "out" / "metadata.csv").read_text().splitlines()[1:]
    assert len(made) == len(list((tmp_path / "out").glob("*.wav"))) < 40


def test_a_second_signal_stops_at_once(tmp_path):
    from chatterbox_opt.cli.batch import command as batch_command

    before = signal.getsignal(signal.SIGTERM)
    with manifest.open_manifest(tmp_path) as held:
        running = BatchRunner(held, tasks_of("abc"), lambda event: None)
        with pytest.raises(SystemExit) as caught:
            with batch_command._stoppable(running, console.Reporter(quiet=True)) as numbers:
                signal.raise_signal(signal.SIGTERM)
                assert numbers == [signal.SIGTERM]
                signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert running.run(FakeEngine()).left == 3, "it starts no new item"


def test_a_finished_job_loads_no_model_and_can_still_be_joined(tiny, tmp_path, run_forked):
    (tmp_path / "job.txt").write_text("One.\n\n\nTwo.\n")
    args = ["job.txt", "--out-dir", "out", "--model", str(tiny), *QUICK, "--format", "flac"]
    assert run_forked("batch", *args, cwd=tmp_path).returncode == 0
    again = run_forked("batch", *args, "--join", "out/book.wav", "--keep-silence", cwd=tmp_path)
    stderr = again.stderr.decode()
    assert again.returncode == 0, stderr
    assert "2 of 2 are done already" in stderr
    assert "device cpu" not in stderr, "that is printed when a model is loaded"
    pieces = [soundfile.info(tmp_path / "out" / f"000{i}.flac").duration for i in (1, 2)]
    joined = soundfile.info(tmp_path / "out" / "book.wav").duration
    assert joined == pytest.approx(sum(pieces) + 1.5, abs=0.001), "a chapter begins at Two"
    (tmp_path / "job.jsonl").write_text('{"text": "One."}\n{"text": "A \\u0000 byte."}\n')
    incomplete = run_forked("batch", "job.jsonl", *args[1:], "--join", "book.wav", cwd=tmp_path)
    assert incomplete.returncode == 1
    assert "'book.wav' is not written, 1 items are missing" in incomplete.stderr.decode()
    assert not (tmp_path / "book.wav").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.txt"], "cannot be read"),
        (["job.pdf"], "known extension"),
        (["job.csv"], "job.csv' row 1: unknown column 'words'; known: id, text"),
        (["job.txt", "--format", "aac"], "known: wav, flac, ogg, mp3"),
        (["job.txt", "--name", "../{id}"], "has a path in it"),
        (["job.txt", "--name", "{nope}"], "no field 'nope'"),
        (["job.txt", "--retries", "-1"], "--retries is -1"),
        (["job.txt", "--pause", "99"], "0 to 60"),
        (["job.txt", "--verify", "no-such-program {}"], "no program 'no-such-program'"),
        (["job.txt", "--model", "nope"], "unknown model"),
        (["job.txt", "--voice", "missing.wav"], "no voice file"),
        (["job.txt", "--temperature", "9"], "temperature is 9.0"),
    ],
)
def test_a_usage_error_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, args, message):
    from chatterbox_opt.cli.main import main

    monkeypatch.chdir(tmp_path)
    for name, content in (("job.txt", "One."), ("job.csv", "words\nOne.\n"), ("job.pdf", "x")):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "argv", ["chatterbox-opt", "batch", *args, "--out-dir", "out"])
    hook = sys.excepthook
    with pytest.raises(SystemExit) as caught:
        main()
    sys.excepthook = hook
    stderr = capsys.readouterr().err.strip()
    assert (caught.value.code, len(stderr.splitlines())) == (2, 1)
    assert message in stderr
    assert not (tmp_path / "out").exists()


def shown(*, terminal: bool, quiet: bool = False) -> str:
    talk = console.Reporter(quiet=quiet)
    stream = io.StringIO()
    talk.console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    bad = Entry("2", "", "", "failed", error="it is bad: mend it")
    doubtful = Entry("1", "", "", "done", "1.wav", duration=3.0, faults=("too slow",))
    with batch_progress.display(talk, as_json=False) as tell:
        tell(Event("begin", 4, 1, 0, 0, 0.0, 0.0, 0.0))
        tell(Event("item", 4, 1, 1, 0, 3.0, 60.0, 0.25, doubtful))
        tell(Event("item", 4, 1, 1, 1, 3.0, 120.0, 0.5, bad))
        tell(Event("end", 4, 1, 1, 1, 3.0, 120.0, 0.5))
    summary = Summary({"1": doubtful, "2": bad}, skipped=0, left=2)
    batch_progress.report(talk, summary, {"1": 3, "2": 17}, 3700)
    return stream.getvalue()


def test_the_progress_output():
    lines = shown(terminal=False)
    assert "1 of 4 are done already" in lines
    assert "[2/4] 1.wav 3.0s (too slow) · 0.02 items/s · 0.05x real time · 3:00 left" in lines
    assert "[3/4] 2 failed: it is bad: mend it" in lines
    assert "row 17 (id 2) failed: it is bad: mend it" in lines
    assert "doubtful: 1.wav" in lines
    assert "1:01:40" in lines
    assert "2 failed: it is bad" in shown(terminal=True)
    assert shown(terminal=False, quiet=True).splitlines() == [
        "warning: row 17 (id 2) failed: it is bad: mend it"
    ]
