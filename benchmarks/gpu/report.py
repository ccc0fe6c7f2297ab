"""The report of a run: python -m benchmarks.gpu.report RESULTS.jsonl NAME

Writes NAME.md and a copy of the lines, NAME.jsonl. Responsible for headings and markdown; table.py
converts lines to rows of the main table. Figures that were not measured stay empty.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import kinds, results, table
from benchmarks.gpu.measuring.modes import GRAPH_TRITON
from benchmarks.gpu.results import Line
from benchmarks.gpu.table import Values, read_gb_s, values
from chatterbox_opt.bench.report import COLUMNS, value_at
from chatterbox_opt.config.model_config import TOKEN_RATE

TOP = 8  # kernels shown of a trace
Section = Callable[[Sequence[Line]], list[str]]
KeyPath = str | tuple[str, ...]  # a key, or keys of nested dicts


def markdown(lines: Sequence[Line]) -> str:
    """All sections that have figures."""
    latest = table.latest(lines)
    parts = ["\n".join(_machine(latest)), "\n".join(_table(latest))]
    for title, section in SECTIONS:
        if content := section(latest):
            parts.append("\n".join([f"## {title}", "", *content]))
    return "\n\n".join(part for part in parts if part) + "\n"


def grid(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A markdown table, or nothing if there are no rows."""
    body = [[cell(value) for value in row] for row in rows]
    if not body:
        return []
    all_rows = [list(headings), ["---"] * len(headings), *body]
    return ["| " + " | ".join(row) + " |" for row in all_rows]


def cell(value: Any) -> str:
    """A value in a table: four digits, empty if not measured."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(cell, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "/").replace("\n", " ")


def columns(rows: Iterable[Mapping[str, Any]], paths: Mapping[str, KeyPath]) -> list[str]:
    """A table with a column for each heading in ``paths``."""
    return grid(list(paths), [[_at(row, path) for path in paths.values()] for row in rows])


def _at(value: Any, path: KeyPath) -> Any:
    for key in (path,) if isinstance(path, str) else path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _machine(lines: Sequence[Line]) -> list[str]:
    gpus = values(lines, kinds.GPU)
    text = ["# " + (gpus[0]["name"] if gpus else "Unknown GPU"), ""]
    if gpus:
        gpu = gpus[0]
        capability = ".".join(map(str, gpu["capability"]))
        text.append(
            f"Compute capability {capability}, {gpu['sm_count']} SMs, torch {gpu['torch']}, "
            f"CUDA {gpu['cuda']}. Random weights at full size."
        )
    read = read_gb_s(lines)
    if read is not None:
        text.append(f"Reads {read:,.0f} GB/s of random numbers (median, CUDA events).")
    return text


def _table(lines: Sequence[Line]) -> list[str]:
    rows = table.rows(lines)
    if not rows:
        return []
    used = [c for c in COLUMNS if any(value_at(row, c[1]) is not None for row in rows)]
    cells = [[_figure(row, *column) for column in used] for row in rows]
    note = (
        "The same forced tokens in all rows; medians of the runs after warming up; ~ marks rows "
        "whose runs differ by more than 15 %. *x standard*: relative to float32, eager, with "
        "PyTorch ops. Loading and memory are of a process's first mode only."
    )
    return [*grid([heading for heading, _, _ in used], cells), "", note]


def _figure(row: Mapping[str, Any], heading: str, path: str, form: str) -> str:
    """As ``chatterbox-opt bench`` formats it, but seconds with three digits: they are shorter."""
    value = value_at(row, path)
    if value is None:
        return ""
    if path == "name":
        return f"{value} ~" if row["noisy"] else str(value)
    return f"{value:.3g}" if heading.endswith(" s") else form.format(value)


def _ceilings(lines: Sequence[Line]) -> list[str]:
    rows: list[list[Any]] = [
        [f"{name}, {one['bytes'] / 2**20:,.0f} MiB", one["gb_per_second"], "GB/s"]
        for name in (kinds.READ, kinds.COPY, kinds.HOST_COPY)
        for one in values(lines, name)
    ]
    for one in values(lines, kinds.GEMM):
        size = one["size"]
        rows.append([f"GEMM, {one['dtype']}, {size} x {size}", one["tflops"], "TFLOPS"])
    for one in values(lines, kinds.GRAPH):
        rows.append([f"small kernel in a CUDA graph of {one['kernels']}", one["us_each"], "us"])
    rows += [["kernel launch on the host", one["us"], "us"] for one in values(lines, kinds.LAUNCH)]
    return grid(["what", "best", "unit"], rows)


def _checks(lines: Sequence[Line]) -> list[str]:
    rows = []
    for one in values(lines, kinds.CHECK):
        rest = {key: value for key, value in one.items() if key not in ("name", "good")}
        rows.append(
            [
                one["name"],
                one["good"] or "**NO**",
                "; ".join(f"{k} {cell(v)}" for k, v in rest.items()),
            ]
        )
    return grid(["check", "good", "figures"], rows)


def _latency(lines: Sequence[Line]) -> list[str]:
    rows = []
    for what in (kinds.LATENCY, kinds.FIRST_AUDIO, kinds.STREAM):
        measured = [one for one in values(lines, what) if not one["warm"]]
        if measured:
            seconds, tokens = [one["seconds"] for one in measured], measured[0]["tokens"]
            median, audio = statistics.median(seconds), tokens / TOKEN_RATE
            times = audio / median if what == kinds.LATENCY else None
            rows.append(
                [what, measured[0]["dtype"], audio, median, min(seconds), max(seconds), times]
            )
    headings = ["what", "dtype", "s of audio", "median s", "min", "max", "x real time"]
    return grid(headings, rows)


def _steps(lines: Sequence[Line]) -> list[str]:
    headings: dict[str, KeyPath] = {
        "step": "step",
        "requests": "requests",
        "us": ("us", "median"),
        "min": ("us", "min"),
        "max": ("us", "max"),
        "host us": "host_us",
    }
    text = columns(values(lines, kinds.STEP), headings)
    for one in values(lines, kinds.TRAFFIC):
        if one["parts"] is None:
            continue
        parts = [{"part": name} | figures for name, figures in one["parts"].items()]
        total: dict[str, Any] = {"part": "all", "us": sum(part["us"] for part in parts)}
        total["bytes"] = sum(part["bytes"] or 0 for part in parts)
        total["gb_per_second"] = total["bytes"] / total["us"] / 1e3 if total["us"] else None
        headings = {"part": "part", "us": "us", "bytes": "bytes", "GB/s": "gb_per_second"}
        text += ["", f"{one['step']}, by part:", "", *columns([*parts, total], headings)]
    return text


def _kernels(lines: Sequence[Line]) -> list[str]:
    text: list[str] = []
    headings: dict[str, KeyPath] = {name: name for name in ("kernel", "calls", "us_each", "us")}
    for one in values(lines, kinds.KERNELS):
        device_ms, launches = cell(one["device_ms"]), cell(one["launches"])
        text += [f"{one['of']}: {device_ms} ms on the GPU, {launches} launches", ""]
        text += [*columns(one["top"][:TOP], headings), ""]
    return text[:-1]


def _lengths(lines: Sequence[Line]) -> list[str]:
    rendering = columns(
        values(lines, kinds.RENDERING),
        {"s of audio": "audio_seconds", "mode": "mode", "dtype": "dtype"}
        | {"flow s": "flow", "vocoder s": "vocoder"},
    )
    prefill = columns(
        values(lines, kinds.PREFILL),
        {"characters": "characters", "eager s": "eager", "CUDA graph s": "graph"},
    )
    steps: dict[str, KeyPath] = {"flow steps": "steps", "tokens": "tokens"}
    flow = columns(values(lines, kinds.FLOW), steps | {"s": ("seconds", "median")})
    parts = [part for part in (rendering, prefill, flow) if part]
    return [line for part in parts for line in (*part, "")][:-1]


def _batches(lines: Sequence[Line]) -> list[str]:
    common: dict[str, KeyPath] = {"engine": "overrides", "batch size": "requests", "run": "run"}
    rate: dict[str, KeyPath] = {"T3 tok/s": "t3_tokens_per_second", "peak MiB": "peak_mib"}
    t3 = columns(values(lines, kinds.BATCH_T3), common | rate)
    extra: dict[str, KeyPath] = {"rendering": "rendering", "s": "seconds"}
    extra |= {"x real time": "realtime_x"}
    all_stages = columns(values(lines, kinds.BATCH), common | extra | rate)
    parts = [part for part in (t3, all_stages) if part]
    return [line for part in parts for line in (*part, "")][:-1]


def _linear(lines: Sequence[Line]) -> list[str]:
    """The default tile, the best one, cuBLAS and the best CUDA kernel, by matrix."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in values(lines, kinds.LINEAR):
        default = one.get("tile") == "default"
        kernel = "Triton, default" if default else f"{one['by']}, best"
        key = (one.get("matrix"), one.get("rows"), one.get("dtype", "torch.bfloat16"), kernel)
        if "us" in one and (key not in best or one["us"] < best[key]["us"]):
            best[key] = one
    rows = [
        [*key[:2], key[2].removeprefix("torch."), key[3], one["us"], one["gb_per_second"]]
        + [one.get("tile") if "best" in key[3] else None]
        for key, one in best.items()
    ]
    return grid(["matrix", "rows", "weights", "kernel", "us", "GB/s", "tile"], rows)


def _attention(lines: Sequence[Line]) -> list[str]:
    text: list[str] = []
    for what in (kinds.ATTENTION, kinds.FLOW_ATTENTION):
        rows: Values = values(lines, what)
        keys = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            text += [f"{what}, us:", "", *columns(rows, {key: key for key in keys}), ""]
    return text[:-1]


def _profiles(lines: Sequence[Line]) -> list[str]:
    headings: dict[str, KeyPath] = {"profile": "name", "peak MiB": "peak_mib"}
    headings |= {"used MiB": "used_mib", "s of each run": "seconds", "graphs captured": "captures"}
    return columns(values(lines, kinds.PROFILE), headings)


def _host(lines: Sequence[Line]) -> list[str]:
    return columns(values(lines, kinds.HOST), {"what": "what", "host us": "us"})


def _speech(lines: Sequence[Line]) -> list[str]:
    names = ("device", "dtype", "text", "seconds", "seconds_exact", "difference", "loudness")
    return columns(values(lines, kinds.SPEECH), {name: name for name in names})


def _endings(lines: Sequence[Line]) -> list[str]:
    names = ("name", "exit", "timed_out", "seconds")
    text = columns(values(lines, kinds.STAGE), {name: name for name in names})
    skipped = [f"{one['name']}: no time left" for one in values(lines, kinds.SKIPPED)]
    failed = [
        f"{line.stage}, {line.value['part']}: {cell(line.value['error'])}"
        for line in lines
        if line.what == kinds.FAILED
    ]
    rest = [f"- {line}" for line in (*skipped, *failed)]
    return [*text, "", *rest] if rest else text


SECTIONS: tuple[tuple[str, Section], ...] = (
    ("Checks", _checks),
    (f"Latency ({GRAPH_TRITON})", _latency),
    ("Ceilings of the GPU", _ceilings),
    ("Decode step", _steps),
    ("By length", _lengths),
    ("Batches", _batches),
    ("Linear layers", _linear),
    ("Attention", _attention),
    ("Memory and time by profile", _profiles),
    ("Host", _host),
    ("Kernels in the profiler", _kernels),
    ("Samples of the built-in model", _speech),
    ("Exit of the stages", _endings),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and write both files; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("name", type=Path, help="of the files, without a suffix")
    parsed = parser.parse_args(arguments)
    text = markdown(results.read(parsed.results))
    parsed.name.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{parsed.name}.md").write_text(text, encoding="utf-8")
    shutil.copyfile(parsed.results, f"{parsed.name}.jsonl")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
