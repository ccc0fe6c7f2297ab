"""A batch by several processes: the same results, whichever dies. Mostly with a fake engine."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.batch_process import (
    BATCH_COMMAND,
    QUICK,
    TESTS,
    listen_to_ctrl_c,
    noted_lines,
)
from helpers.fake_engine import manifest_lines, run_batch, tasks_of
from helpers.fake_worker_engine import FakeWorkerEngine, all_ended, is_running, worker_pool

from chatterbox_opt import Request, Sampling
from chatterbox_opt.batch.local_workers import ProcessWorkers, split_resources
from chatterbox_opt.batch.worker_pool import READY, Message, Pool
from chatterbox_opt.errors import ChatterboxOptError, TextError, WeightsError, WorkerError


def requests(*texts: str) -> list[Request]:
    return [Request(str(i), text, None, Sampling(seed=i)) for i, text in enumerate(texts)]


def test_each_result_comes_once_and_errors_are_values(tmp_path):
    speech = FakeWorkerEngine(tmp_path, width=3)
    asked = requests(*"abcdefghij", "bad", "odd")
    with worker_pool(speech) as speak:
        results = {result.id: result for result in speak(iter(asked))}
        assert sorted(results) == sorted(request.id for request in asked)
        assert isinstance(results["10"].error, TextError)
        assert isinstance(results["11"].error, ChatterboxOptError)
        assert str(results["11"].error) == "Odd: 1 and 2", "as text, as without workers"
        alone = {result.id: result for result in speech.speak(iter(asked[:10]))}
        for id, result in alone.items():
            assert (results[id].audio().samples == result.audio().samples).all()
        assert [r.id for r in speak(iter(asked[:1]))] == ["0"], "a pool can be called repeatedly"
        assert speech.loaded(2), "each worker loads once, even if another one processes everything"
    assert all_ended(speech.processes())


def test_requests_are_drawn_when_a_slot_is_free(tmp_path):
    drawn: list[str] = []

    def feed():
        for request in requests(*["x"] * 40):
            drawn.append(request.id)
            yield request

    with worker_pool(FakeWorkerEngine(tmp_path, width=2)) as speak:
        for finished, _ in enumerate(speak(feed())):
            assert len(drawn) <= finished + 1 + 2 * 2 + 2


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_requests_of_a_killed_worker_are_requeued(tmp_path, width, caplog):
    """Killed from outside; no result is lost or duplicated.

    Twice, because a request that happens to be in work at three kills fails: it is to blame then.
    """
    speech = FakeWorkerEngine(tmp_path, width=width, pause=0.02)
    asked = requests(*["some words"] * 60)
    found = []
    with worker_pool(speech, 3) as speak:
        for result in speak(iter(asked)):
            found.append(result)
            if len(found) in (20, 21):
                os.kill(
                    next(p for p in reversed(speech.processes()) if is_running(p)), signal.SIGKILL
                )
    assert sorted(int(result.id) for result in found) == list(range(60))
    assert all(result.error is None for result in found)
    assert "a worker died (SIGKILL (out of memory?))" in caplog.text
    assert all_ended(speech.processes())


@pytest.mark.parametrize(
    ("width", "count"),
    [(3, 2), (1, 1), pytest.param(1, 2, marks=pytest.mark.slow)],
)
def test_an_item_that_crashes_workers_fails_alone(tmp_path, width, count):
    speech = FakeWorkerEngine(tmp_path, width=width)
    asked = requests("a", "b", "killer", "c", "d", "twice", "e", "f", "g")
    with worker_pool(speech, count) as speak:
        results = {result.id: result for result in speak(iter(asked))}
    assert len(results) == len(asked)
    assert [id for id, result in results.items() if result.error] == ["2"]
    assert isinstance(results["2"].error, WorkerError)
    assert "it crashed 3 workers, the last one while running alone (SIGKILL" in str(
        results["2"].error
    )


def test_an_engine_that_crashes_on_everything_ends_the_run(tmp_path):
    speech = FakeWorkerEngine(tmp_path)
    with worker_pool(speech) as speak, pytest.raises(WorkerError, match="12 workers died in a row"):
        list(speak(iter(requests(*["killer"] * 30))))
    assert len(speech.processes()) <= 14
    assert all_ended(speech.processes())


def test_a_load_error_is_raised(tmp_path):
    with (
        worker_pool(FakeWorkerEngine(tmp_path, fault="weights")) as speak,
        pytest.raises(WeightsError, match="again"),
    ):
        speak.wait()
    speech = FakeWorkerEngine(tmp_path, fault="killed")
    with (
        worker_pool(speech) as speak,
        pytest.raises(WorkerError, match="no worker can load .SIGKILL"),
    ):
        speak.wait()
    assert all_ended(speech.processes())


@pytest.mark.slow
def test_a_worker_that_cannot_load_is_not_used(tmp_path, caplog):
    with worker_pool(FakeWorkerEngine(tmp_path, fault="late", pause=0.05)) as speak:
        assert len(list(speak(iter(requests(*["x"] * 40))))) == 40
    assert "is not used: the file is damaged: get it again" in caplog.text


def test_the_load_error_of_the_last_worker_ends_the_batch(tmp_path):
    with worker_pool(FakeWorkerEngine(tmp_path, fault="late"), 1) as speak:
        summary = run_batch(tmp_path / "out", tasks_of(["Good.", "killer"]), speak)
    assert isinstance(summary.stopped, WeightsError)
    assert (list(summary.entries), summary.left) == (["1"], 1)


class ScriptedWorkers:
    """A WorkerFactory whose workers send given messages, one at each wait."""

    def __init__(self, *scripts: list[Message]) -> None:
        self.scripts = scripts
        self.order = [number for number, script in enumerate(scripts) for _ in script]

    def start(self, number: int) -> ScriptedWorker:
        return ScriptedWorker(number, iter(self.scripts[number]))

    def wait(self, ends: Sequence[int]) -> list[int]:
        return [self.order.pop()]


@dataclass
class ScriptedWorker:
    number: int
    messages: Iterator[Message]

    @property
    def ends(self) -> list[int]:
        return [self.number]

    def send(self, request: Request | None) -> None:
        pass

    def receive(self) -> Message:
        return next(self.messages)

    def close(self) -> None:
        pass


def test_a_warning_during_loading_is_shown_once(caplog):
    warning = logging.LogRecord("x", logging.WARNING, "", 0, "it is made up", None, None)
    workers = ScriptedWorkers([warning], [warning, READY, warning])
    with Pool(workers, 2) as pool:
        pool.wait()
        assert caplog.messages == ["it is made up"], "whichever worker is the first"
        for slot in (1, 0):
            list(pool._receive(pool._slots[slot]))
    assert caplog.messages == ["it is made up"] * 2, "what a worker logs later is shown each time"


def test_a_warning_of_workers_during_loading_arrives_once(tmp_path, caplog):
    with worker_pool(FakeWorkerEngine(tmp_path), 3) as speak:
        speak.wait()
        assert caplog.text.count("it is made up") == 1
        assert FakeWorkerEngine(tmp_path).loaded(3)
        list(speak(iter(requests(*["x"] * 20))))
    assert caplog.text.count("it is made up") == 1


def test_a_pool_writes_the_same_manifest_as_one_engine(tmp_path):
    lines = ["One.", "bad", "Three.", "odd", *(f"Line {i}." for i in range(20))]
    speech = FakeWorkerEngine(tmp_path)
    run_batch(tmp_path / "alone", tasks_of(lines), speech.speak)
    with worker_pool(speech, 3) as speak:
        summary = run_batch(tmp_path / "pool", tasks_of(lines), speak)
    assert len(summary.failed()) == 2
    alone, together = (
        {line["id"]: line | {"time": ""} for line in manifest_lines(tmp_path / name)}
        for name in ("alone", "pool")
    )
    assert alone == together
    for path in (tmp_path / "alone").glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "pool" / path.name).read_bytes()


def test_a_batch_ends_cleanly_when_workers_keep_crashing(tmp_path):
    with worker_pool(FakeWorkerEngine(tmp_path), 1) as speak:
        summary = run_batch(tmp_path / "out", tasks_of(["Good.", *["killer"] * 9]), speak)
    assert isinstance(summary.stopped, WorkerError)
    assert summary.entries["1"].status == "done"
    assert summary.left > 0


# a batch with a pool, in a process that can be killed
RUN = """
import signal, sys
from pathlib import Path
from helpers.fake_engine import run_batch, tasks_of
from helpers.fake_worker_engine import FakeWorkerEngine, worker_pool
if __name__ == "__main__":
    with worker_pool(FakeWorkerEngine(Path(sys.argv[1]), width=2, pause=float(sys.argv[2])), 3) as speak:
        run_batch(Path(sys.argv[1]) / "out", tasks_of([sys.argv[3]] * 500), speak)
"""


def test_a_killed_parent_leaves_no_workers(tmp_path):
    for text in ("Quick.", "slow"):
        directory = tmp_path / text
        directory.mkdir()
        speech = FakeWorkerEngine(directory)
        parent = subprocess.Popen(
            [sys.executable, "-c", RUN, str(directory), "0.01", text], cwd=TESTS
        )
        try:
            deadline = time.monotonic() + 60
            while len(speech.noted("asked")) < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert speech.loaded(3)
            assert all(is_running(process) for process in speech.processes())
        finally:
            parent.kill()
            parent.wait()
        assert all_ended(speech.processes()), "workers exit when their pipe is closed"


def test_resources_are_divided():
    assert split_resources(3, ["0", "5"], {}) == [
        {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "0"},
    ]  # fmt: skip
    [share] = split_resources(1, [], {})
    cores = int(share["OMP_NUM_THREADS"])
    assert cores >= 1
    assert split_resources(2, [], {}) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    assert split_resources(cores * 9, [], {})[0] == {"OMP_NUM_THREADS": "1"}
    assert split_resources(2, [], {"OMP_NUM_THREADS": "7"})[1] == {"OMP_NUM_THREADS": "7"}


def test_environment_and_signals_of_the_parent_are_restored(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    before, threads = dict(os.environ), threading.active_count()
    factory = ProcessWorkers(
        FakeWorkerEngine(tmp_path), [{"OMP_NUM_THREADS": "3", "SOMETHING": "1"}]
    )
    with Pool(factory, 1) as speak:
        speak.wait()
        [process] = FakeWorkerEngine(tmp_path).processes()
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


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_files(tiny, tmp_path, run_forked):
    rows = [{"text": f"This is row {i}.", "seed": i} for i in range(6)] + [{"text": "A \0 byte."}]
    (tmp_path / "job.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    args = ["job.jsonl", "--model", str(tiny), "--max-tokens", "5", "--cfm-steps", "2", "--out-dir"]
    for count in ("1", "2"):
        done = run_forked("batch", *args, count, "--workers", count, cwd=tmp_path)
        stderr = done.stderr.decode()
        assert done.returncode == 1, stderr
        assert "row 7 (id 7) failed: the text has a NUL byte" in stderr
        assert stderr.count("noise") == 1
        assert ("2 workers" in stderr) == (count == "2")
    names = sorted(path.name for path in (tmp_path / "1").glob("*.wav"))
    assert len(names) == 6
    for path in (tmp_path / "1").glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "2").glob("*.wav")) == names
    again = run_forked("batch", *args, "2", "--workers", "1", cwd=tmp_path)
    assert b"6 of 7 are done already" in again.stderr, (
        "a job can be resumed with another number of workers"
    )


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


@pytest.mark.slow  # test_crashes.py interrupts a process without workers
def test_ctrl_c_finishes_the_items_in_flight_and_leaves_no_process(tiny, tmp_path):
    args = [*job(tmp_path, 2000), "out", "--model", str(tiny), *QUICK, "--workers", "2"]
    process = subprocess.Popen(
        [*BATCH_COMMAND, *args], cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(noted_lines(tmp_path / "out")) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = children(process.pid)
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert "stopping after the items in progress" in stderr.decode()
    assert all_ended(workers)
    lines = noted_lines(tmp_path / "out")
    assert all(line["status"] == "done" for line in lines)
    assert len({line["id"] for line in lines}) == len(lines) < 2000
    assert not list((tmp_path / "out").glob(".*.part"))


def test_a_model_that_cannot_be_loaded_is_one_line(tiny, tmp_path, run_forked):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = broken / "t3_cfg.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    args = [*job(tmp_path, 3), "out", "--model", str(broken), *QUICK, "--workers", "2"]
    done = run_forked("batch", *args, cwd=tmp_path)
    assert done.returncode == 1
    assert [line for line in done.stderr.decode().splitlines() if line.startswith("error")] == [
        done.stderr.decode().splitlines()[-1]
    ]
    assert "half downloaded" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
