"""The runner of benchmarks/gpu: a crash of a stage does not affect the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from helpers.common import ROOT
from helpers.fake_gpu_kit import FakeSetting

from benchmarks.gpu import kernel_cache, kinds, results, run, schedule, setting, summary
from benchmarks.gpu.results import Results
from benchmarks.gpu.schedule import Stage

STAGES = {  # a stage's name and what it does after its first figure
    "good": "put('check', {'name': 'one', 'good': True})",
    "aborts": "os.abort()",
    "segfaults": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)",
    "waits": "time.sleep(60)",
    "breaks": "sys.exit(3)",  # as after a kernel broke the CUDA context
    "reports": "put('kernels', os.environ.get('CHATTERBOX_GPU_KERNELS'))",
    "counts": "[(put('figure', i), time.sleep(0.002)) for i in range(10**6)]",
}
FAKE = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from benchmarks.gpu.results import Results
from pathlib import Path
put = Results(Path(sys.argv[sys.argv.index("--out") + 1]) / "results.jsonl", {name!r}).put
put("pid", os.getpid())
{what}
"""


@pytest.fixture
def fake(tmp_path):
    package = tmp_path / "fakes"
    package.mkdir()
    for name, what in STAGES.items():
        (package / f"{name}.py").write_text(FAKE.format(root=str(ROOT), name=name, what=what))
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    out = tmp_path / "out"
    out.mkdir()
    return FakeSetting(out, tmp_path, tmp_path, None, "a model", "fakes", environment=path)


def lines(fake):
    return results.read(fake.out / results.FILE)


def go(fake, *stages, limit=60.0):
    return run.run(fake, [Stage(*stage) for stage in stages], limit, time.monotonic())


def test_a_crashing_stage_does_not_stop_others(fake, monkeypatch):
    """Abort, segmentation fault, hang with SIGINT ignored, timeout."""
    monkeypatch.setattr(run.processes, "GRACE", 2.0)  # a busy machine is slow to answer
    names = ["aborts", "segfaults", "hangs", "waits", "good"]
    assert not go(fake, *((name, 1, 0.7 if name in ("hangs", "waits") else 5) for name in names))
    written = lines(fake)
    assert [one.stage for one in written if one.what == "pid"] == names
    ended = {one.value["name"]: one.value for one in written if one.what == kinds.STAGE}
    assert {name: one["exit"] for name, one in ended.items()} == {
        "aborts": -signal.SIGABRT,
        "segfaults": -signal.SIGSEGV,
        "hangs": -signal.SIGKILL,
        "waits": -signal.SIGINT,
        "good": 0,
    }
    assert [name for name, one in ended.items() if one["timed_out"]] == ["hangs", "waits"]
    assert all(not alive(one.value) for one in written if one.what == "pid")


def test_a_broken_context_disables_the_triton_kernels(fake):
    go(fake, ("reports", 1, 5), ("breaks", 1, 5), ("reports", 1, 5))
    assert [one.value for one in lines(fake) if one.what == "kernels"] == [None, "false"]
    assert {"name": "Triton kernels", "off": True, "after": "breaks"} in [
        one.value for one in lines(fake) if one.what == kinds.SETUP
    ]


class WithoutWeights(FakeSetting):
    def has_weights(self):
        return False

    def weights_command(self):
        return ["false"]


def test_without_weights_only_stages_that_need_none_run(fake):
    setting_without = WithoutWeights(**{f.name: getattr(fake, f.name) for f in fields(fake)})
    stages = [Stage("good", 1, 5, weights=True), Stage("reports", 1, 5, weights=False)]
    assert not run.run(setting_without, stages, 30, time.monotonic())
    ran = [one.value["name"] for one in lines(fake) if one.what == kinds.STAGE]
    assert ran == ["reports"]


def test_a_run_keeps_its_limit_and_lists_skipped_stages(fake, monkeypatch):
    monkeypatch.setattr(run.processes, "GRACE", 0.2)
    monkeypatch.setattr(schedule, "MIN_SECONDS", 0.5)
    started = time.monotonic()
    assert not go(fake, ("waits", 1, 60), ("good", 1, 60), limit=1.0)
    assert time.monotonic() - started < 30, "the first one waits for a minute"
    assert [one.value for one in lines(fake) if one.what == "pid"], "the first one was started"
    [skipped] = [one.value for one in lines(fake) if one.what == kinds.SKIPPED]
    assert skipped["name"] == "good"


def test_a_run_without_failures_is_good(fake):
    (fake.scratch / "traces").mkdir()
    (fake.scratch / "traces" / "step.json").write_text("{}")
    assert go(fake, ("good", 1, 10))
    assert (fake.out / "traces.tar.gz").stat().st_size > 0
    assert not (fake.out / "samples.tar.gz").exists()
    text = summary.lines(lines(fake))
    assert any(line.startswith("run      stage:") and '"good"' in line for line in text)
    assert summary.wrong(lines(fake)) == []


@dataclass(frozen=True, slots=True)
class WithoutGpu(FakeSetting):
    def gpu_command(self):
        return ["sh", "-c", f"exit {setting.NO_GPU}"]


def test_without_a_gpu_the_run_ends(fake):
    without_gpu = WithoutGpu(fake.out, fake.scratch, fake.data, None, "a model", "fakes")
    assert not go(without_gpu, ("good", 1, 10))
    [line] = lines(fake)
    assert (line.value["name"], line.value["found"]) == ("gpu", False)


def test_a_killed_runner_leaves_no_child_and_complete_lines(fake, tmp_path):
    script = tmp_path / "runner.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(Path(__file__).parent)!r}]
        from pathlib import Path
        from benchmarks.gpu import run
        from benchmarks.gpu.schedule import Stage
        from helpers.fake_gpu_kit import FakeSetting
        fake = FakeSetting(Path({str(fake.out)!r}), Path({str(tmp_path)!r}), Path(), None, "x", "fakes",
                    environment={fake.environment!r})
        run.run(fake, [Stage("counts", 1, 60)], 60, time.monotonic())
        """)
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    runner = subprocess.Popen([sys.executable, script], env=environment)
    file = fake.out / results.FILE
    wait_for(lambda: file.exists() and len(lines(fake)) > 20)
    runner.kill()
    runner.wait()
    [child] = [one.value for one in lines(fake) if one.what == "pid"]
    wait_for(lambda: not alive(child))
    written = lines(fake)
    assert len(written) == len(file.read_text().splitlines()), "every line is complete"
    figures = [one.value for one in written if one.what == "figure"]
    assert figures == list(range(len(figures)))


def test_an_incomplete_line_is_skipped(tmp_path):
    path = tmp_path / results.FILE
    Results(path, "one").put("figure", {"a": 1.5, "nan": float("nan"), "path": Path("x")})
    with path.open("a") as file:
        file.write('{"stage": "one", "at": 1, "wh')
    Results(path, "two").put("figure", [2])
    first, second = results.read(path)
    assert first.value == {"a": 1.5, "nan": None, "path": "x"}
    assert (second.stage, second.value) == ("two", [2])


def test_the_stages_fit_into_the_time_limit():
    assert schedule.SETUP + sum(stage.expected for stage in schedule.STAGES) <= schedule.LIMIT
    for stage in schedule.STAGES:
        assert stage.expected < stage.limit
        assert (ROOT / "benchmarks" / "gpu" / "stages" / f"{stage.name}.py").exists()
    assert schedule.choose([]) == schedule.STAGES
    assert [stage.name for stage in schedule.choose(["samples", "core"])] == ["samples", "core"]
    with pytest.raises(ValueError, match="unknown stage 'nope'; known: ceilings"):
        schedule.choose(["nope"])


def test_packed_kernels_are_unpacked_where_triton_finds_them(tmp_path):
    """The list of a kernel's files has absolute paths, which differ after unpacking."""
    cache, unpacked = tmp_path / "tmp" / "cache", tmp_path / "unpacked"
    for key in ("KEY1", "KEY2"):
        (cache / key).mkdir(parents=True)
        files = {name: cache / key / name for name in ("gemv.cubin", "gemv.json", "gemv.ttir")}
        for name, path in files.items():
            path.write_text(key + name)
        listed = {name: str(path) for name, path in files.items()}
        (cache / key / "__grp__gemv.json").write_text(json.dumps({"child_paths": listed}))
    kernel_cache.pack(cache, tmp_path / "a.tar.xz")
    shutil.rmtree(cache)
    assert kernel_cache.unpack(tmp_path / "a.tar.xz", unpacked) == 2
    listed = json.loads((unpacked / "KEY2" / "__grp__gemv.json").read_text())["child_paths"]
    assert set(listed) == {"gemv.cubin", "gemv.json"}, "a launch loads no others"
    assert Path(listed["gemv.cubin"]).read_text() == "KEY2gemv.cubin"
    assert not list(unpacked.rglob("*.ttir"))


def test_packed_wheels_and_kernels_are_installed_once(tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "x.whl").touch()
    (wheels / setting.KERNELS).touch()
    packed = setting.Setting(tmp_path, tmp_path, tmp_path, wheels, "a model")
    monkeypatch.setattr(setting, "NEEDED", ("json", "no_such_module"))
    assert [name for name, *_ in packed.installations()] == ["wheels", "kernels"]
    for _, _, folder in packed.installations():
        folder.mkdir()
    assert [name for name, *_ in packed.installations()] == ["wheels", "kernels"], "not completed"
    for folder in ("site", "kernels"):
        (tmp_path / folder / setting.COMPLETE).touch()
    assert list(packed.installations()) == []
    assert packed.has_weights(), "of the named model"
    generated = setting.Setting(tmp_path, tmp_path, tmp_path, None, str(tmp_path / "full"))
    assert not generated.has_weights()


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.02)
