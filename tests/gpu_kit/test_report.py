"""The report of a GPU run: a row per mode and dtype, and no figure that was not measured."""

from __future__ import annotations

import pytest

from benchmarks.gpu import kinds, report, results, table
from benchmarks.gpu.measuring import traffic
from benchmarks.gpu.measuring.modes import (
    EAGER_PYTORCH,
    EAGER_TRITON,
    GRAPH_PYTORCH,
    GRAPH_TRITON,
    MODES,
)
from benchmarks.gpu.measuring.traffic import Kernel
from benchmarks.gpu.results import Line, Results
from chatterbox_opt.bench.roofline import weights_per_step
from chatterbox_opt.config.model_config import T3Config

STAGES = ("prefill", "decode", "flow", "vocoder", "watermark")


def one_run(row, dtype, decode, **more):
    seconds = dict.fromkeys(STAGES, 0.1) | {"decode": decode, "voice": 7.0}
    value = {"row": row, "dtype": dtype, "plan": "a plan", "warm": False, "tokens": 251}
    value |= {"seconds": seconds, "peak_mib": 1000.0, "weights_per_step": 500_000_000}
    return Line("core", 0.0, "run", value | more)


MEASURED = [
    Line("ceilings", 0, "gpu", {"name": "H1", "capability": [9, 0], "sm_count": 132,
                                "torch": "2.11", "cuda": "13.0"}),
    Line("ceilings", 0, "read", {"bytes": 2 << 20, "us": 9, "gb_per_second": 9000.0}),
    Line("ceilings", 0, "read", {"bytes": 2 << 30, "us": 9, "gb_per_second": 3000.0}),
    Line("core", 0, "loaded", {"dtype": "float16", "seconds": 9.5}),
    one_run(GRAPH_TRITON, "float16", 5.0, warm=True),
    one_run(GRAPH_TRITON, "float16", 0.25),
    one_run(GRAPH_TRITON, "float16", 0.125),
    one_run(GRAPH_TRITON, "float16", 0.125),
    one_run(EAGER_TRITON, "float16", 1.0),
    one_run(EAGER_PYTORCH, "float32", 1.6),
    one_run("upstream", "float32", 9.6),
    Line("checks", 0, "check", {"name": "tokens", "good": False, "equal": 3, "of": 4}),
    Line("lab", 0, kinds.LINEAR, {"matrix": "qkv", "rows": 2, "by": "triton", "tile": "default",
                               "dtype": "torch.float16", "us": 4.0, "gb_per_second": 1500.0}),
    Line("lab", 0, kinds.LINEAR, {"matrix": "qkv", "rows": 2, "by": "triton", "tile": [4, 256],
                               "dtype": "torch.float16", "us": 3.0, "gb_per_second": 2000.0}),
    Line("lab", 0, kinds.LINEAR, {"matrix": "qkv", "rows": 2, "by": "triton", "tile": [8, 1024],
                               "dtype": "torch.float16", "error": "too large"}),
    Line("lab", 0, "failed part", {"part": "attention", "error": "RuntimeError: x | y"}),
    Line("run", 0, kinds.STAGE, {"name": "core", "exit": -9, "timed_out": True, "seconds": 130}),
    Line("run", 0, kinds.SKIPPED, {"name": "samples", "left": 3.0}),
]  # fmt: skip


def test_rows_have_the_measured_figures():
    upstream, graph, launched, standard = table.rows(MEASURED)
    assert upstream["name"] == "upstream"
    assert [graph["name"], launched["name"]] == [
        f"{m}, float16" for m in (GRAPH_TRITON, EAGER_TRITON)
    ]
    assert graph["t3_tokens_per_second"] == pytest.approx(250 / 0.125), "warm runs do not count"
    assert graph["runs"] == 3 and graph["noisy"]
    # 500 M weights of two bytes at 3 TB/s, the rate of the largest read
    assert graph["t3_share_of_ceiling"] == pytest.approx(2000 / 3000)
    assert graph["synthesis_seconds"] == pytest.approx(0.525)
    assert graph["realtime_x"] == pytest.approx(251 / 25 / 0.525)
    assert graph["vs_upstream"]["synthesis"] == pytest.approx(10.0 / 0.525)
    assert graph["vs_standard"]["t3"] == pytest.approx(1.6 / 0.125)
    assert standard["vs_standard"]["synthesis"] == 1
    assert (graph["load_seconds"], graph["peak_vram_mib"]) == (9.5, 1000.0)
    assert "load_seconds" not in launched, "its memory includes that of previous modes"


def test_all_modes_have_rows_in_all_dtypes():
    lines = [one_run(mode, dtype, 1.0) for mode in MODES for dtype in table.DTYPES]
    names = [row["name"] for row in table.rows(lines)]
    assert len(names) == len(set(names)) == 16
    assert f"{GRAPH_PYTORCH}, int8" in names
    assert all(row["vs_upstream"] is None for row in table.rows(lines))
    assert all(row["t3_share_of_ceiling"] is None for row in table.rows(lines))


def test_the_report_in_markdown(tmp_path):
    written = Results(tmp_path / results.FILE, "core")
    written.put("figure", 1)
    text = report.markdown(MEASURED)
    assert text.startswith("# H1\n")
    lines = text.splitlines()
    [row] = [line for line in lines if line.startswith(f"| {GRAPH_TRITON}, float16 ~ |")]
    heading = next(line for line in lines if line.startswith("| row |"))
    assert row.count("|") == heading.count("|")
    assert "WER" not in heading, "a column that is empty in all rows is omitted"
    [other] = [line for line in lines if line.startswith(f"| {EAGER_TRITON}, float16 |")]
    assert " 9.5 " in row and " 9.5 " not in other
    assert " 0.525 |" in row, "seconds have three digits"
    assert "| tokens | **NO** | equal 3; of 4 |" in lines
    assert "| qkv | 2 | float16 | triton, best | 3 | 2000 | 4, 256 |" in lines
    assert "| core | -9 | yes | 130 |" in lines
    assert "- samples: no time left" in lines
    assert "- lab, attention: RuntimeError: x / y" in lines
    assert "## Batches" not in text


def test_an_empty_run_has_no_table(tmp_path):
    (tmp_path / "none.jsonl").touch()
    assert report.main([str(tmp_path / "none.jsonl"), str(tmp_path / "a" / "x-gpu")]) == 0
    assert "|" not in (tmp_path / "a" / "x-gpu.md").read_text()
    assert (tmp_path / "a" / "x-gpu.jsonl").read_text() == ""


def test_a_stage_that_ran_again_counts_once():
    first = [Line("core", 0, "begun", {}), one_run(GRAPH_TRITON, "float16", 1.0)]
    other = [Line("lab", 0, "begun", {}), Line("lab", 1, kinds.LINEAR, {})]
    again = [Line("core", 0, "begun", {}), one_run(GRAPH_TRITON, "float16", 0.5)]
    latest = table.latest([*first, *other, *again])
    assert [line.value["seconds"]["decode"] for line in latest if line.what == "run"] == [0.5]
    assert any(line.stage == "lab" for line in latest)
    ends = [Line("run", 0, kinds.STAGE, {"name": "core", "exit": code}) for code in (1, 0)]
    assert [line.value["exit"] for line in table.latest(ends)] == [0]


class TestTraffic:
    LAYERS = 2

    def step(self, at):
        """A step's kernels of one microsecond each, two of them for attention."""
        layer = ["gemv", "attention", "merge", "gemv", "gemm", "gemv"]
        names = ["embed_kernel", *layer * self.LAYERS, "gemv", "sample_kernel"]
        return [Kernel(name, at + i, at + i + 1) for i, name in enumerate(names)]

    def test_every_kernel_belongs_to_a_part(self):
        steps = [*self.step(0), *self.step(100)]
        assert traffic.by_part(steps, self.LAYERS, 2) == {
            "embed": 1, "qkv": 2, "attention": 4, "out": 2, "gate_up": 2, "down": 2, "head": 1,
            "sample": 1,
        }  # fmt: skip

    def test_kernels_of_something_else(self):
        assert traffic.by_part(self.step(0)[:-2], self.LAYERS, 1) is None, (
            "a linear layer is missing"
        )
        assert traffic.by_part(self.step(0), self.LAYERS, 2) is None
        assert traffic.by_part([], self.LAYERS, 1) is None
        assert traffic.by_part([Kernel("void gemm(float*)", 0, 1)], self.LAYERS, 1) is None

    def test_overlapping_kernels_count_once(self):
        """A kernel that waits for the previous one counts only from that one's end on."""
        kernels = [Kernel("a", 0, 10), Kernel("b", 2, 13), Kernel("c", 3, 12), Kernel("d", 20, 21)]
        assert traffic.exclusive(kernels) == [10, 3, 0, 1]

    def test_bytes_of_a_step(self):
        shape = T3Config()
        by_part = traffic.step_bytes(shape, 2, 2, [600, 600])
        weights = sum(size for name, size in by_part.items() if name != "attention")
        assert weights == 2 * weights_per_step(shape)
        assert by_part["attention"] == 30 * 2 * 16 * 64 * 2 * 1200
