"""The benchmark on tiny weights: real processes, the report's shape, quality, comparison."""

from __future__ import annotations

import csv
import io
import json
import math
import multiprocessing
import subprocess
import sys

import pytest
import torch
from helpers import fake_graph_capture
from helpers.common import ROOT, assert_close
from helpers.fake_graph_capture import capture_graphs
from typer.testing import CliRunner

from chatterbox_opt.bench import backends, cold_start, report, roofline, row_process
from chatterbox_opt.bench import runner as bench_runner
from chatterbox_opt.bench.backends import OptimizedTarget
from chatterbox_opt.bench.timing import BenchJob, forced_tokens
from chatterbox_opt.cli.application import app
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ChatterboxOptError, InputError, ProfileError


@pytest.fixture(scope="module", autouse=True)
def small_roofline():
    """The roofline's figures are of no interest here, and slow to measure at its own sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "SMALL_READ", 1 << 20)
        patch.setattr(roofline, "SMALL_GEMM", 64)
        yield


@pytest.fixture(scope="module")
def forked_rows():
    """Processes of rows are forks of one that has done the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([row_process.__name__, "chatterbox_opt.engine.build"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_process.multiprocessing, "get_context", lambda method: context)
        yield


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory, forked_rows):
    """One run of the command with every output."""
    home = tmp_path_factory.mktemp("bench")
    files = {kind: home / f"out.{kind}" for kind in ("output", "csv", "markdown")}
    args = ["bench", "--model", str(tiny), "--rows", "float32,bfloat16", "--profile", "memory-limited",
            "--seconds", "0.4", "--runs", "2"]  # fmt: skip
    for kind, path in files.items():
        args += [f"--{kind}", str(path)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return result.output, files


def test_the_report_has_its_documented_shape(measured):
    output, files = measured
    found = json.loads(files["output"].read_text())
    facts = found["card"]
    assert facts["read_gb_s"] > 0
    assert set(facts["gemm_gflops"]) == {"float32", "bfloat16"}
    assert facts["made_weights"] is True
    assert [row["name"] for row in found["rows"]] == ["float32", "bfloat16", "memory-limited"]
    for row in found["rows"]:
        for _, path, _ in report.COLUMNS:
            if path.startswith("cold_"):
                assert row[path] is None, "measured only with --cold"
            elif path not in ("peak_vram_mib", "vs_upstream.synthesis", "quality.wer"):
                assert report.value_at(row, path) is not None, path
        assert row["audio_seconds"] == pytest.approx(0.4)
        assert row["realtime_x"] == pytest.approx(row["audio_seconds"] / row["synthesis_seconds"])
        assert row["vs_upstream"] is None
        assert row["peak_rss_mib"] > 100
        assert row["quality"]["wer"] is None
        assert row["plan"].startswith("device cpu")
        assert any("scaled_dot_product" in name for name in row["attention_kernels"])
    assert found["rows"][0]["vs_standard"] == {"t3": 1, "flow": 1, "vocoder": 1, "synthesis": 1}
    assert "float32" in output
    assert "GB/s" in output


def test_attention_kernels_by_name():
    ran = [
        "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64, 64>, true>(args)",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::Params)",
        "decode_attention_kernel",
        "void at::native::elementwise_kernel<128, 2>(int)",
        "aten::linear",
    ]
    assert backends.attention_among(ran) == [
        "decode_attention_kernel",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80",
        "pytorch_flash::flash_fwd_splitkv_kernel",
    ]


def test_the_report_has_quality_next_to_speed(measured):
    rows = {
        row["name"]: row["quality"] for row in json.loads(measured[1]["output"].read_text())["rows"]
    }
    assert rows["float32"] == {
        "top1": 1.0,
        "kl": 0.0,
        "log_mel_cosine": pytest.approx(1.0),
        "wer": None,
    }
    assert 0 < rows["bfloat16"]["kl"] < 0.1 or "bfloat16" in probe.probe("cpu").unsupported
    assert 0.9 < rows["bfloat16"]["log_mel_cosine"] <= 1
    assert rows["memory-limited"]["kl"] == 0, "float16 is downgraded to float32 on a CPU"


def test_the_files(measured):
    _, files = measured
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [row["name"] for row in rows] == ["float32", "bfloat16", "memory-limited"]
    assert float(rows[0]["flow_seconds"]) > 0
    table = [line for line in files["markdown"].read_text().splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.slow
def test_cold_starts_are_whole_processes(tiny, tmp_path):
    args = ["bench", "--model", str(tiny), "--rows", "bfloat16", "--profile", "cpu",
            "--seconds", "0.4", "--runs", "1", "--cold"]  # fmt: skip
    files = [word for kind in ("output", "csv") for word in (f"--{kind}", str(tmp_path / kind))]
    result = CliRunner().invoke(app, [*args, *files])
    assert result.exit_code == 0, result.output
    assert "cold s" in result.output
    for row in json.loads((tmp_path / "output").read_text())["rows"]:
        assert set(cold_start.FIGURES) <= set(row)
        assert row["cold_seconds"] > row["cold_audio_seconds"] > 0.05
        assert row["cold_first_seconds"] > 0
        assert row["cold_spread"] == 0, "one run"
        assert row["cold_vs_upstream"] is None, "upstream was not measured"
    lines = list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text())))
    assert float(lines[0]["cold_seconds"]) > 0


def test_cold_starts_are_compared_with_upstream(monkeypatch):
    """Programs alternate; ours starts twice with the same cache, and each run has a new one."""
    started = []

    def run(name, command, environment):
        started.append((name, environment.get("CHATTERBOX_WEIGHT_CACHE")))
        return {"upstream": 20.0, "float32": 5.0, "mine": 4.0}[name]

    monkeypatch.setattr(cold_start, "_run", run)
    monkeypatch.setattr(cold_start, "_length", lambda output: {"audio": 3.0})
    monkeypatch.setattr(cold_start, "_upstream_command", lambda job, output: [])
    names = ["upstream", "float32", "mine"]
    found = cold_start.measure(BenchJob("x", runs=2), names, lambda line: None)
    assert [f["cold_vs_upstream"] for f in found] == [1, 4, 5]
    assert [f["cold_first_seconds"] for f in found] == [None, 5, 4]
    one_run = ["upstream", "float32", "float32", "mine", "mine"]
    assert [name for name, _ in started] == one_run * 2
    caches = [cache for _, cache in started if cache]
    assert caches[0::2] == caches[1::2]
    assert len(set(caches)) == 4


def test_a_failed_cold_start_is_an_error_with_its_message(tmp_path):
    job = BenchJob(str(tmp_path), "cpu", tokens=(1,), runs=1)
    with pytest.raises(ChatterboxOptError, match="row float32: its cold start failed.*lacks ve"):
        cold_start.measure(job, ["float32"], lambda line: None)


def test_compare(measured, tmp_path):
    _, files = measured
    new = json.loads(files["output"].read_text())
    lines, worse = report.compare(new, new, 0.0)
    assert lines
    assert not worse
    old = json.loads(files["output"].read_text())
    old["rows"][0]["flow_seconds"] /= 2
    lines, worse = report.compare(new, old, 0.5)
    assert worse
    assert [line[:2] for line in lines if line[-1] == "WORSE"] == [["float32", "flow_seconds"]]
    old["rows"][0]["flow_seconds"] *= 4
    assert not report.compare(new, old, 0.1)[1], "faster is not worse"
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(InputError, match="not a report"):
        report.read(tmp_path / "no.json")
    with pytest.raises(InputError, match="cannot be read"):
        report.read(tmp_path / "missing.json")


@pytest.mark.parametrize("kind", ["tiny", "turbo"])
def test_all_rows_decode_the_same_tokens_in_the_real_loop(kind, request):
    """The returned logits are those at each forced token, with guidance and without."""
    model = str(request.getfixturevalue(kind))
    job = BenchJob(model, "cpu", tokens=forced_tokens(0.4))
    ours = OptimizedTarget(job, "float32")
    quality = ours.quality()
    config, tokens = ours.engine.checkpoint.config, len(job.tokens)
    assert quality["logits"].shape == (tokens, config.t3.speech_vocab)
    assert quality["mel"].shape == (80, 2 * (tokens + len(config.silence)))
    assert len(quality["logits"].unique(dim=0)) == tokens
    other = BenchJob(model, "cpu", tokens=(*job.tokens[:5], 17, *job.tokens[6:]))
    changed = OptimizedTarget(other, "float32").quality()["logits"]
    assert_close(changed[:6], quality["logits"][:6], atol=1e-6)
    assert (changed[6] - quality["logits"][6]).abs().max() > 1e-2


def test_a_row_with_cuda_graphs_is_measured_as_an_eager_one(tiny):
    """Its backend syncs rarely: without special handling logits and the prefill's end are missed."""
    ours = OptimizedTarget(BenchJob(str(tiny), "cpu", tokens=forced_tokens(0.8)), "float32")
    eager = ours.quality()["logits"]
    capture_graphs(ours.engine, fake_graph_capture.record)
    assert_close(ours.quality()["logits"], eager, atol=1e-4)
    seconds = [ours.run() for _ in range(3)][-1]
    assert seconds["prefill"] > 0 and seconds["decode"] > 0


def test_closeness_has_the_documented_values():
    exact = {"logits": torch.log(torch.tensor([[0.5, 0.25, 0.25]])), "mel": torch.ones(80, 2)}
    given = {"logits": torch.log(torch.tensor([[0.25, 0.5, 0.25]])), "mel": -torch.ones(80, 2)}
    found = bench_runner.closeness(given, exact)
    assert found["top1"] == 0
    assert found["kl"] == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert found["log_mel_cosine"] == pytest.approx(-1)
    assert bench_runner.closeness({}, exact)["kl"] is None


def test_noisy_rows_are_marked():
    def laps(*decodes):
        return [dict.fromkeys(bench_runner.STAGES, 1.0) | {"decode": d} for d in decodes]

    job = BenchJob("x", tokens=tuple(range(25)))
    assert bench_runner._entry(job, laps(1.0, 1.1, 1.0), 10.0)["noisy"] is False
    assert bench_runner._entry(job, laps(1.0, 3.0, 1.0), 10.0)["noisy"] is True
    assert bench_runner._entry(job, laps(2.0), 24.0)["t3_share_of_ceiling"] == pytest.approx(0.5)


def test_forced_tokens_are_the_same_on_every_call():
    assert forced_tokens(1.0) == forced_tokens(1.0)
    assert len(forced_tokens(10)) == 250
    assert max(forced_tokens(100)) < 6561


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "float64"], "unknown row 'float64'; known: upstream, float32"),
        (["--profile", "nope"], "unknown profile 'nope'"),
        (["--seconds", "0"], "--seconds is above 0"),
        (["--output", "no/such/dir/x.json"], "make it first"),
        (["--compare", "missing.json"], "cannot be read"),
    ],
)
def test_usage_errors(args, message):
    result = CliRunner().invoke(app, ["bench", "--quick", *args])
    assert isinstance(result.exception, (InputError, ProfileError))
    assert message in str(result.exception)


def test_a_row_that_cannot_be_measured_is_an_error_with_its_reason(tiny):
    job = BenchJob(str(tiny), "cpu", tokens=forced_tokens(0.2))
    with pytest.raises(ChatterboxOptError, match="row upstream: plain Chatterbox cannot load"):
        bench_runner.measure(job, ["upstream"], lambda _: None)


class FakeRow:
    """A row without a process; "upstream" cannot load, "bfloat16" dies in its second run."""

    runs: list[str] = []
    load_seconds, dtype, plan, attention, usage = 1.0, "float32", "a plan", [], {"peak_rss_mib": 1}

    def __init__(self, job, name):
        if name == "upstream":
            raise ChatterboxOptError("row upstream: there is none")
        self.name, self.warm_ups = name, 2 if name == "+compile" else 1
        self.laps, self.reads, self.quality = [], [], {}

    def run(self):
        self.runs.append(self.name)
        if self.name == "bfloat16" and self.runs.count(self.name) == 2:
            raise ChatterboxOptError("row bfloat16 died (exit -9)")
        return dict.fromkeys(bench_runner.STAGES, 1.0)

    def finish(self):
        assert self.name != "bfloat16", "it is not used any more"

    def kill(self):
        pass


def test_rows_that_fail_are_excluded_and_the_others_continue(tiny, monkeypatch):
    monkeypatch.setattr(bench_runner, "RowProcess", FakeRow)
    monkeypatch.setattr(FakeRow, "runs", [])
    job = BenchJob(str(tiny), "cpu", tokens=forced_tokens(0.2), runs=3)
    messages = []
    found = bench_runner.measure(
        job, ["upstream", "float32", "bfloat16", "+compile"], messages.append
    )
    assert [row["name"] for row in found["rows"]] == ["float32", "+compile"]
    assert set(found["failed"]) == {"upstream", "bfloat16"}
    assert "left out: row bfloat16 died (exit -9)" in report.markdown(found)
    assert "left out: row upstream: there is none" in messages
    # CUDA graphs are captured in the second run: two warm-ups
    assert FakeRow.runs.count("float32") == 1 + 3
    assert FakeRow.runs.count("+compile") == 2 + 3
    assert FakeRow.runs.count("bfloat16") == 2


def test_a_row_that_dies_names_the_last_line_that_it_printed(tmp_path):
    row = object.__new__(row_process.RowProcess)
    row._printed = tmp_path / "printed"
    assert row._last_line() == ""
    row._printed.write_bytes(b"Traceback\nRuntimeError: caf\xe9\n\n")
    assert row._last_line() == ", RuntimeError: caf\ufffd"


def test_a_row_that_hangs_is_ended(tiny):
    job = BenchJob(str(tiny), "cpu", tokens=forced_tokens(0.2), timeout=0.05)
    with pytest.raises(ChatterboxOptError, match="row float32 did not reply in 0 s and was ended"):
        bench_runner.measure(job, ["float32"], lambda _: None)


def test_peak_memory_is_that_of_the_process_itself(tmp_path, monkeypatch):
    """``ru_maxrss`` of Linux begins with that of the process that started it."""
    monkeypatch.setattr(row_process, "PROC_STATUS", str(tmp_path / "status"))
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t 9999 kB\nVmHWM:\t    3072 kB\n")
    assert row_process.peak_rss_mib() == 3


@pytest.mark.slow
def test_without_the_resource_module_memory_is_not_measured(measured):
    """Windows has no ``resource``: the benchmark starts there, and shows a dash."""
    script = (
        "import sys; sys.modules['resource'] = None\n"
        "from chatterbox_opt.bench import row_process, runner\n"
        "row_process.PROC_STATUS = 'missing'\n"
        "assert row_process.peak_rss_mib() is None"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert row_process.peak_rss_mib() > 100
    found = json.loads(measured[1]["output"].read_text())
    found["rows"][0]["peak_rss_mib"] = None
    headings, lines = report.cells(found)
    assert lines[0][headings.index("RSS MiB")] == "-"
    assert report.compare(found, found, 0.1)[1] is False


def test_the_quick_trial_excludes_rows_that_cannot_load_tiny_weights():
    assert bench_runner.choose_rows(None, [], "cpu", tiny=True) == [
        "float32",
        "bfloat16",
        "int8",
        "int4",
    ]
    assert bench_runner.choose_rows(None, ["dev"], "cpu", tiny=False) == [
        "upstream",
        "float32",
        "bfloat16",
        "int8",
        "int4",
        "dev",
    ]
    assert backends.ROWS["+offload"]["offload"] == "stages"


def test_a_chart_is_drawn_from_a_report(tmp_path):
    from chatterbox_opt.bench import chart

    stored = report.read(ROOT / "benchmarks" / "results" / "xeon-amx-2-cores.json")
    for row in stored["rows"]:
        parts = chart.stage_seconds(row)
        assert sum(parts.values()) == pytest.approx(row["synthesis_seconds"])
        decoded = 25 * row["audio_seconds"] / row["t3_tokens_per_second"]
        assert parts["t3"] == pytest.approx(row["prefill_seconds"] + decoded, rel=0.02)
    chart.draw(stored, tmp_path / "speed.svg")
    drawn = (tmp_path / "speed.svg").read_text()
    assert drawn.startswith("<?xml") and len(drawn) > 5000
    assert "x chatterbox-tts" in drawn
    assert "vocoder" in drawn and "watermark" not in drawn, "no bar of it is visible"
    chart.draw(stored, tmp_path / "speed.png", title="A title", font_scale=1.5)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="must end in"):
        chart.check(tmp_path / "speed.gif")


def test_an_earlier_report_is_shown_again_whole(tmp_path):
    """--from measures nothing: every form is that of the stored report."""
    stored = ROOT / "benchmarks" / "results" / "epyc-vnni-2-cores.json"
    again, table, picture = (tmp_path / name for name in ("again.json", "table.md", "chart.svg"))
    result = CliRunner().invoke(
        app,
        ["bench", "--from", str(stored), "--output", str(again), "--markdown", str(table),
         "--plot", str(picture), "--compare", str(stored)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(again.read_text()) == json.loads(stored.read_text())
    assert table.read_text().rstrip() == report.markdown(json.loads(stored.read_text())).rstrip()
    assert "<svg" in picture.read_text()
    assert "int8" in result.output


def test_a_report_without_the_machine_is_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"rows": [{"name": "int8"}]}')
    result = CliRunner().invoke(app, ["bench", "--from", str(tmp_path / "old.json")])
    assert isinstance(result.exception, InputError)
    assert "measure again" in str(result.exception)
