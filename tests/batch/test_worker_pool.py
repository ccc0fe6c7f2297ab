"""A batch by several processes: the same results, whoever dies. Most of it with made-up speech."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.batch_process import COMMAND, QUICK, TESTS, batch, listen_to_ctrl_c, noted
from helpers.fake_engine import go, lines_of, work
from helpers.fake_worker_engine import MadeUp, gone, lives, pool

from chatterbox_opt import Request, Sampling
from chatterbox_opt.batch.local_workers import ProcessWorkers, split_resources
from chatterbox_opt.batch.worker_pool import Pool
from chatterbox_opt.errors import ChatterboxOptError, TextError, WeightsError, WorkerError


def requests(*texts: str) -> list[Request]:
    return [Request(str(i), text, None, Sampling(seed=i)) for i, text in enumerate(texts)]


def test_all_come_back_once_and_errors_are_values(tmp_path):
    speech = MadeUp(tmp_path, width=3)
    asked = requests(*"abcdefghij", "bad", "odd")
    with pool(speech) as speak:
        results = {result.id: result for result in speak(iter(asked))}
        assert sorted(results) == sorted(request.id for request in asked)
        assert isinstance(results["10"].error, TextError)
        assert isinstance(results["11"].error, ChatterboxOptError)
        assert str(results["11"].error) == "Odd: 1 and 2", "in words, as without workers"
        alone = {result.id: result for result in speech.speak(iter(asked[:10]))}
        for id, result in alone.items():
            assert (results[id].audio().samples == result.audio().samples).all()
        assert [r.id for r in speak(iter(asked[:1]))] == ["0"], "a pool is called again and again"
        assert speech.loaded(2), "each loads once, however quickly one alone has done all"
    assert gone(speech.processes())


def test_only_as_many_are_drawn_as_there_is_room_for(tmp_path):
    drawn: list[str] = []

    def feed():
        for request in requests(*["x"] * 40):
            drawn.append(request.id)
            yield request

    with pool(MadeUp(tmp_path, width=2)) as speak:
        for finished, _ in enumerate(speak(feed())):
            assert len(drawn) <= finished + 1 + 2 * 2 + 2


@pytest.mark.parametrize("width", [1, 3])
def test_what_a_killed_worker_had_is_done_by_others(tmp_path, width, caplog):
    """It is killed again and again from outside; nothing is lost and nothing comes twice."""
    speech = MadeUp(tmp_path, width=width, pause=0.02)
    asked = requests(*["some words"] * 60)
    found = []
    with pool(speech, 3) as speak:
        for result in speak(iter(asked)):
            found.append(result)
            if len(found) in (5, 20, 21, 40):
                os.kill(next(p for p in reversed(speech.processes()) if lives(p)), signal.SIGKILL)
    assert sorted(int(result.id) for result in found) == list(range(60))
    assert all(result.error is None for result in found)
    assert "a worker died (SIGKILL (out of memory?))" in caplog.text
    assert gone(speech.processes())


@pytest.mark.parametrize(("width", "count"), [(1, 1), (1, 2), (3, 2)])
def test_an_item_that_kills_fails_alone(tmp_path, width, count):
    speech = MadeUp(tmp_path, width=width)
    asked = requests("a", "b", "killer", "c", "d", "twice", "e", "f", "g")
    with pool(speech, count) as speak:
        results = {result.id: result for result in speak(iter(asked))}
    assert len(results) == len(asked)
    assert [id for id, result in results.items() if result.error] == ["2"]
    assert isinstance(results["2"].error, WorkerError)
    assert "3 workers died of it, the last one alone with it (SIGKILL" in str(results["2"].error)


def test_an_engine_that_dies_of_everything_is_given_up(tmp_path):
    speech = MadeUp(tmp_path)
    with pool(speech) as speak, pytest.raises(WorkerError, match="12 workers died in a row"):
        list(speak(iter(requests(*["killer"] * 30))))
    assert len(speech.processes()) <= 14
    assert gone(speech.processes())


def test_what_cannot_load_says_why(tmp_path):
    with (
        pool(MadeUp(tmp_path, fault="weights")) as speak,
        pytest.raises(WeightsError, match="again"),
    ):
        speak.wait()
    speech = MadeUp(tmp_path, fault="killed")
    with pool(speech) as speak, pytest.raises(WorkerError, match="no worker can load .SIGKILL"):
        speak.wait()
    assert gone(speech.processes())


def test_one_that_cannot_load_is_left_out(tmp_path, caplog):
    with pool(MadeUp(tmp_path, fault="late", pause=0.05)) as speak:
        assert len(list(speak(iter(requests(*["x"] * 40))))) == 40
    assert "is left out: the file is damaged: get it again" in caplog.text


def test_when_the_last_one_cannot_load_again_the_batch_says_why(tmp_path):
    with pool(MadeUp(tmp_path, fault="late"), 1) as speak:
        summary = go(tmp_path / "out", work(["Good.", "killer"]), speak)
    assert isinstance(summary.stopped, WeightsError)
    assert (list(summary.entries), summary.left) == (["1"], 1)


def test_a_warning_of_all_while_they_load_is_shown_once(tmp_path, caplog):
    with pool(MadeUp(tmp_path), 3) as speak:
        speak.wait()
        assert MadeUp(tmp_path).loaded(3)
        deadline = time.monotonic() + 60
        while "it is made up" not in caplog.text and time.monotonic() < deadline:
            list(speak(iter(requests("x"))))
        list(speak(iter(requests(*["x"] * 20))))
    assert caplog.text.count("it is made up") == 1


def test_a_batch_by_a_pool_notes_what_a_batch_alone_notes(tmp_path):
    lines = ["One.", "bad", "Three.", "odd", *(f"Line {i}." for i in range(20))]
    speech = MadeUp(tmp_path)
    go(tmp_path / "alone", work(lines), speech.speak)
    with pool(speech, 3) as speak:
        summary = go(tmp_path / "pool", work(lines), speak)
    assert len(summary.failed()) == 2
    alone, together = (
        {line["id"]: line | {"time": ""} for line in lines_of(tmp_path / name)}
        for name in ("alone", "pool")
    )
    assert alone == together
    for path in (tmp_path / "alone").glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "pool" / path.name).read_bytes()


def test_a_batch_ends_well_when_workers_keep_dying(tmp_path):
    with pool(MadeUp(tmp_path), 1) as speak:
        summary = go(tmp_path / "out", work(["Good.", *["killer"] * 9]), speak)
    assert isinstance(summary.stopped, WorkerError)
    assert summary.entries["1"].status == "done"
    assert summary.left > 0


# what a person's run of a pool is, in a process that can be killed
RUN = """
import signal, sys
from pathlib import Path
from helpers.fake_engine import go, work
from helpers.fake_worker_engine import MadeUp, pool
if __name__ == "__main__":
    with pool(MadeUp(Path(sys.argv[1]), width=2, pause=float(sys.argv[2])), 3) as speak:
        go(Path(sys.argv[1]) / "out", work([sys.argv[3]] * 500), speak)
"""


def test_a_killed_parent_leaves_no_worker(tmp_path):
    for text in ("Quick.", "slow"):
        directory = tmp_path / text
        directory.mkdir()
        speech = MadeUp(directory)
        parent = subprocess.Popen(
            [sys.executable, "-c", RUN, str(directory), "0.01", text], cwd=TESTS
        )
        try:
            deadline = time.monotonic() + 60
            while len(speech.noted("asked")) < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert speech.loaded(3)
            assert all(lives(process) for process in speech.processes())
        finally:
            parent.kill()
            parent.wait()
        assert gone(speech.processes()), "they end with their pipe, whatever they do"


def test_the_shares():
    assert split_resources(3, ["0", "5"], {}) == [
        {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "0"},
    ]  # fmt: skip
    [share] = split_resources(1, [], {})
    cores = int(share["OMP_NUM_THREADS"])
    assert cores >= 1
    assert split_resources(2, [], {}) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    assert split_resources(cores * 9, [], {})[0] == {"OMP_NUM_THREADS": "1"}
    assert split_resources(2, [], {"OMP_NUM_THREADS": "7"})[1] == {"OMP_NUM_THREADS": "7"}


def test_environment_and_signals_of_the_parent_are_as_before(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    before, threads = dict(os.environ), threading.active_count()
    crew = ProcessWorkers(MadeUp(tmp_path), [{"OMP_NUM_THREADS": "3", "SOMETHING": "1"}])
    with Pool(crew, 1) as speak:
        speak.wait()
        [process] = MadeUp(tmp_path).processes()
        inherited = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        assert {b"OMP_NUM_THREADS=3", b"SOMETHING=1"} <= set(inherited)
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGTERM)
        assert [r.error for r in speak(iter(requests("it goes on")))] == [None]
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGINT) == handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert threading.active_count() == threads


def job(directory: Path, count: int) -> list[str]:
    text = "".join(f"This is line {i}, of a job.\n" for i in range(count))
    (directory / "job.txt").write_text(text)
    return ["job.txt", "--out-dir"]


def test_the_number_of_workers_does_not_change_the_files(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [{"text": f"This is row {i}.", "seed": i} for i in range(12)] + [{"text": "?!"}]
    (tmp_path / "job.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    args = ["job.jsonl", "--model", str(tiny), "--max-tokens", "5", "--cfm-steps", "2", "--out-dir"]
    for count in ("1", "2"):
        done = batch(*args, count, "--workers", count, cwd=tmp_path)
        told = done.stderr.decode()
        assert done.returncode == 1, told
        assert "row 13 (id 13) failed: the text has no letter or digit" in told
        assert told.count("noise") == 1
        assert ("2 workers" in told) == (count == "2")
    names = sorted(path.name for path in (tmp_path / "1").glob("*.wav"))
    assert len(names) == 12
    for path in (tmp_path / "1").glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "2").glob("*.wav")) == names
    again = batch(*args, "1", "--workers", "2", cwd=tmp_path)
    assert b"12 of 13 are done already" in again.stderr, "and a job goes on with another number"


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


def test_ctrl_c_finishes_what_is_in_work_and_leaves_nobody(tiny, tmp_path):
    args = [*job(tmp_path, 2000), "out", "--model", str(tiny), *QUICK, "--workers", "2"]
    process = subprocess.Popen(
        [*COMMAND, *args], cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(noted(tmp_path / "out")) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = children(process.pid)
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, told.decode()
    assert "Traceback" not in told.decode()
    assert "stopping when what is in work is finished" in told.decode()
    assert gone(workers)
    lines = noted(tmp_path / "out")
    assert all(line["status"] == "done" for line in lines)
    assert len({line["id"] for line in lines}) == len(lines) < 2000
    assert not list((tmp_path / "out").glob(".*.part"))


def test_a_model_that_cannot_be_loaded_is_one_line(tiny, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = broken / "t3_cfg.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    args = [*job(tmp_path, 3), "out", "--model", str(broken), *QUICK, "--workers", "2"]
    done = batch(*args, cwd=tmp_path)
    assert done.returncode == 1
    assert [line for line in done.stderr.decode().splitlines() if line.startswith("error")] == [
        done.stderr.decode().splitlines()[-1]
    ]
    assert "damaged or half downloaded" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
