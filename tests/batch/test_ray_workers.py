"""A batch on a local Ray cluster: the same files as without Ray, even if an actor is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.batch_process import BATCH_COMMAND, noted_lines, run_command
from helpers.common import SAMPLE
from helpers.fake_engine import FakeEngine
from helpers.fake_worker_engine import is_running

from chatterbox_opt import Request, Sampling
from chatterbox_opt.batch.executors import with_voices
from chatterbox_opt.errors import VoiceError

RAY = importlib.util.find_spec("ray")
needs_ray = pytest.mark.skipif(not RAY, reason='Ray is not installed: pip install -e ".[ray]"')

# a cluster of two cores, until its stdin is closed; pytest itself must not open sockets
CLUSTER = """
import sys, ray
context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(context.address_info["address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token to the home directory
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    holder = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield holder.stdout.readline().strip(), holder.pid
    finally:
        holder.communicate()


def actors(process: int) -> list[int]:
    """The process ids of the actors below a process."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    children = [int(child) for path in lists for child in path.read_text().split()]
    found = [
        c for c in children if Path(f"/proc/{c}/cmdline").read_bytes().startswith(b"ray::_Actor")
    ]
    return found + [actor for child in children for actor in actors(child)]


@needs_ray
@pytest.mark.slow
def test_a_killed_actor_loses_nothing_and_the_files_are_the_same(
    tiny, tmp_path, cluster, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    address, holder = cluster
    rows = [{"text": f"This is row {i}, of the job.", "seed": i} for i in range(60)]
    rows[7]["voice"], rows[8]["text"], rows[9]["voice"] = str(SAMPLE), "?!", "missing.wav"
    (tmp_path / "job.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    args = ["job.jsonl", "--model", str(tiny), "--max-tokens", "12", "--no-watermark", "--out-dir"]
    with subprocess.Popen(
        [*BATCH_COMMAND, *args, "ray", "--executor", "ray", "--workers", "2", "--ray-address", address],
        cwd=tmp_path, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        while len(noted_lines(tmp_path / "ray")) < 5 and process.poll() is None:
            time.sleep(0.05)
        working = actors(holder)
        os.kill(working[0], signal.SIGKILL)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1, stderr.decode()
    assert len(working) == 2
    assert "2 workers" in stderr.decode()
    assert "a worker died" in stderr.decode()
    assert "row 9 (id 9) failed: the text has no letter or digit" in stderr.decode()
    assert "row 10 (id 10) failed: there is no voice file" in stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert not any(is_running(actor) for actor in actors(holder)), (
        "no actor is left on a cluster that was not started here"
    )
    assert run_command(*args, "alone", cwd=tmp_path).returncode == 1
    one, other = (
        {p.name: p.read_bytes() for p in (tmp_path / d).glob("*.wav")} for d in ("ray", "alone")
    )
    assert one == other
    assert len(one) == 58
    kept = (
        "id",
        "text",
        "settings",
        "status",
        "file",
        "size",
        "duration",
        "seed",
        "attempts",
        "error",
    )
    for first, second in zip(*(sorted(noted_lines(tmp_path / d), key=lambda line: int(line["id"])) for d in ("ray", "alone")), strict=True):  # fmt: skip
        assert [first[key] for key in kept] == [second[key] for key in kept]


@needs_ray
@pytest.mark.slow
def test_no_cluster_at_an_address_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "job.txt").write_text("One.")
    args = ["job.txt", "--out-dir", "out", "--model", "pico", "--executor", "ray"]
    done = run_command(*args, "--ray-address", "127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr.decode().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_ray_the_error_names_the_extra(tmp_path, monkeypatch, capsys):
    from chatterbox_opt.cli.main import main

    (tmp_path / "job.txt").write_text("One.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    args = ["batch", "job.txt", "--out-dir", "out", "--model", "pico", "--executor", "ray"]
    monkeypatch.setattr(sys, "argv", ["chatterbox-opt", *args])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as caught:
        main()
    stderr = capsys.readouterr().err.strip()
    assert (caught.value.code, len(stderr.splitlines())) == (2, 1)
    assert stderr.endswith('pip install "chatterbox-opt[ray]"')
    assert not (tmp_path / "out").exists()


def test_voices_are_sent_with_the_requests_and_a_bad_one_fails_alone():
    voices = {"a.wav": object()}

    def voice(source: str) -> object:
        if source not in voices:
            raise VoiceError("there is no such voice")
        return voices[source]

    fake = FakeEngine()
    names = [None, "a.wav", "b.wav", "a.wav", "b.wav"]
    asked = [Request(str(i), "x", name, Sampling(seed=i)) for i, name in enumerate(names)]
    results = {r.id: r for r in with_voices(fake, voice)(iter(asked))}
    assert sorted(results) == list("01234")
    assert [id for id, r in sorted(results.items()) if r.error] == ["2", "4"]
    assert [r.voice for r in fake.asked] == [None, voices["a.wav"], voices["a.wav"]]


def test_the_voice_library_returns_the_voices_of_the_engine(engine, tiny, store, tmp_path):
    from chatterbox_opt.checkpoints import registry
    from chatterbox_opt.voices import library as voice_library

    library = voice_library.VoiceLibrary(registry.locate(str(tiny)), store)
    for source in (None, str(SAMPLE)):
        ours, engines = library.voice(source), engine.voice(source)
        for name, tensor in ours.tensors().items():
            assert np.array_equal(tensor.numpy(), engines.tensors()[name].numpy())
        assert library.voice(source) is ours
    for i in range(voice_library.MAX_CACHED - 2):
        library._cached[str(i)] = ours
    assert library.voice(None) is not ours
    assert len(library._cached) == voice_library.MAX_CACHED
    with pytest.raises(VoiceError):
        library.voice(str(tmp_path / "missing.wav"))
