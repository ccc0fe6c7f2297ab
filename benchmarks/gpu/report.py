"""The lines of a run as a report: python -m benchmarks.gpu.report RESULTS.jsonl NAME

Writes NAME.md (for people) and NAME.jsonl (the lines themselves). Knows headings and markdown;
which lines make the table's rows is table.py's. Figures that were not measured stay empty.
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
from benchmarks.gpu.measuring.modes import GRAPH_OWN
from benchmarks.gpu.results import Line
from benchmarks.gpu.table import Values, read_gb_s, values
from chatterbox_opt.bench.report import COLUMNS, value_at
from chatterbox_opt.config.model_config import TOKEN_RATE

TOP = 8  # kernels of a trace that are shown
Section = Callable[[Sequence[Line]], list[str]]
Path_ = str | tuple[str, ...]  # a key, or keys one in the other


def markdown(lines: Sequence[Line]) -> str:
    """All sections that have figures."""
    found = table.latest(lines)
    parts = ["\n".join(_machine(found)), "\n".join(_table(found))]
    for title, section in SECTIONS:
        if made := section(found):
            parts.append("\n".join([f"## {title}", "", *made]))
    return "\n\n".join(part for part in parts if part) + "\n"


def grid(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A markdown table, or nothing if there are no rows."""
    body = [[cell(value) for value in row] for row in rows]
    if not body:
        return []
    every = [list(headings), ["---"] * len(headings), *body]
    return ["| " + " | ".join(row) + " |" for row in every]


def cell(value: Any) -> str:
    """A value in a table: four digits, nothing for what was not measured."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(cell, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "/").replace("\n", " ")


def columns(rows: Iterable[Mapping[str, Any]], asked: Mapping[str, Path_]) -> list[str]:
    """A table of some keys of each value, by heading."""
    return grid(list(asked), [[_at(row, path) for path in asked.values()] for row in rows])


def _at(value: Any, path: Path_) -> Any:
    for key in (path,) if isinstance(path, str) else path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _machine(lines: Sequence[Line]) -> list[str]:
    gpus = values(lines, kinds.GPU)
    made = ["# " + (gpus[0]["name"] if gpus else "A GPU whose name was not noted"), ""]
    if gpus:
        one = gpus[0]
        capability = ".".join(map(str, one["capability"]))
        made.append(
            f"Compute capability {capability}, {one['processors']} processors, torch "
            f"{one['torch']}, CUDA {one['cuda']}. Random weights of the true shapes."
        )
    read = read_gb_s(lines)
    if read is not None:
        made.append(f"Reads {read:,.0f} GB/s of random numbers (median, by events).")
    return made


def _table(lines: Sequence[Line]) -> list[str]:
    rows = table.rows(lines)
    if not rows:
        return []
    used = [one for one in COLUMNS if any(value_at(row, one[1]) is not None for row in rows)]
    made = [[_figure(row, *column) for column in used] for row in rows]
    note = (
        "The same forced tokens in all rows; medians of the runs after warming up; ~ marks rows "
        "whose runs differ by more than 15 %. *x standard*: against float32 launched with "
        "PyTorch's operations. Loading and memory are of a process's first mode only."
    )
    return [*grid([heading for heading, _, _ in used], made), "", note]


def _figure(row: Mapping[str, Any], heading: str, path: str, form: str) -> str:
    """As ``chatterbox-opt bench`` has it; seconds are shorter here and have three digits."""
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
        rows.append([f"product, {one['dtype']}, {one['side']} a side", one["tflops"], "TFLOPS"])
    for one in values(lines, kinds.GRAPH):
        rows.append([f"kernel in a graph of {one['kernels']}", one["us_each"], "us"])
    rows += [["launch by the host", one["us"], "us"] for one in values(lines, kinds.LAUNCH)]
    return grid(["what", "at best", "unit"], rows)


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


def _whole(lines: Sequence[Line]) -> list[str]:
    rows = []
    for what in (kinds.WHOLE, kinds.FIRST_AUDIO):
        measured = [one for one in values(lines, what) if not one["warm"]]
        if measured:
            seconds, tokens = [one["seconds"] for one in measured], measured[0]["tokens"]
            median, audio = statistics.median(seconds), tokens / TOKEN_RATE
            times = audio / median if what == kinds.WHOLE else None
            rows.append(
                [what, measured[0]["dtype"], audio, median, min(seconds), max(seconds), times]
            )
    headings = ["what", "dtype", "s of sound", "median s", "min", "max", "x real time"]
    return grid(headings, rows)


def _steps(lines: Sequence[Line]) -> list[str]:
    asked: dict[str, Path_] = {
        "step": "step",
        "requests": "requests",
        "us": ("us", "median"),
        "min": ("us", "min"),
        "max": ("us", "max"),
        "host us": "host_us",
    }
    made = columns(values(lines, kinds.STEP), asked)
    for one in values(lines, kinds.TRAFFIC):
        if one["parts"] is None:
            continue
        parts = [{"part": name} | figures for name, figures in one["parts"].items()]
        total: dict[str, Any] = {"part": "all", "us": sum(part["us"] for part in parts)}
        total["bytes"] = sum(part["bytes"] or 0 for part in parts)
        total["gb_per_second"] = total["bytes"] / total["us"] / 1e3 if total["us"] else None
        asked = {"part": "part", "us": "us", "bytes": "bytes", "GB/s": "gb_per_second"}
        made += ["", f"{one['step']}, by part:", "", *columns([*parts, total], asked)]
    return made


def _kernels(lines: Sequence[Line]) -> list[str]:
    made: list[str] = []
    asked: dict[str, Path_] = {name: name for name in ("kernel", "calls", "us_each", "us")}
    for one in values(lines, kinds.KERNELS):
        told = (
            f"{one['of']}: {cell(one['device_ms'])} ms on the GPU, {cell(one['launches'])} launches"
        )
        made += [told, "", *columns(one["top"][:TOP], asked), ""]
    return made[:-1]


def _lengths(lines: Sequence[Line]) -> list[str]:
    sound = columns(
        values(lines, kinds.SOUND),
        {"s of sound": "audio_seconds", "mode": "mode", "dtype": "dtype"}
        | {"flow s": "flow", "vocoder s": "vocoder"},
    )
    prefill = columns(
        values(lines, kinds.PREFILL),
        {"characters": "characters", "launched s": "launched", "replayed s": "replayed"},
    )
    steps: dict[str, Path_] = {"flow steps": "steps", "tokens": "tokens"}
    flow = columns(values(lines, kinds.FLOW), steps | {"s": ("seconds", "median")})
    parts = [part for part in (sound, prefill, flow) if part]
    return [line for part in parts for line in (*part, "")][:-1]


def _batches(lines: Sequence[Line]) -> list[str]:
    common: dict[str, Path_] = {"engine": "overrides", "at once": "requests", "turn": "turn"}
    rate: dict[str, Path_] = {"T3 tok/s": "t3_tokens_per_second", "peak MiB": "peak_mib"}
    alone = columns(values(lines, kinds.BATCH_T3), common | rate)
    more: dict[str, Path_] = {"sound made": "sound", "s": "seconds", "x real time": "realtime_x"}
    whole = columns(values(lines, kinds.BATCH), common | more | rate)
    parts = [part for part in (alone, whole) if part]
    return [line for part in parts for line in (*part, "")][:-1]


def _products(lines: Sequence[Line]) -> list[str]:
    """The planned tile, the best one, cuBLAS and the best of plain CUDA, by matrix."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in values(lines, kinds.PRODUCT):
        planned = one.get("tile") == "as planned"
        by = "own, as planned" if planned else f"{one['by']}, the best"
        key = (one.get("matrix"), one.get("rows"), one.get("dtype", "torch.bfloat16"), by)
        if "us" in one and (key not in best or one["us"] < best[key]["us"]):
            best[key] = one
    rows = [
        [*key[:2], key[2].removeprefix("torch."), key[3], one["us"], one["gb_per_second"]]
        + [one.get("tile") if "best" in key[3] else None]
        for key, one in best.items()
    ]
    return grid(["matrix", "rows", "weights", "by", "us", "GB/s", "tile"], rows)


def _attention(lines: Sequence[Line]) -> list[str]:
    made: list[str] = []
    for what in (kinds.ATTENTION, kinds.FLOW_ATTENTION):
        rows: Values = values(lines, what)
        keys = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            made += [f"{what}, us:", "", *columns(rows, {key: key for key in keys}), ""]
    return made[:-1]


def _profiles(lines: Sequence[Line]) -> list[str]:
    asked: dict[str, Path_] = {"profile": "name", "peak MiB": "peak_mib", "taken MiB": "taken_mib"}
    asked |= {"s of each turn": "seconds", "graphs recorded": "recorded"}
    return columns(values(lines, kinds.PROFILE), asked)


def _host(lines: Sequence[Line]) -> list[str]:
    return columns(values(lines, kinds.HOST), {"what": "what", "us of the host": "us"})


def _speech(lines: Sequence[Line]) -> list[str]:
    names = ("device", "dtype", "text", "seconds", "seconds_exact", "difference", "loudness")
    return columns(values(lines, kinds.SPEECH), {name: name for name in names})


def _endings(lines: Sequence[Line]) -> list[str]:
    names = ("name", "exit", "cut", "seconds")
    made = columns(values(lines, kinds.STAGE), {name: name for name in names})
    skipped = [f"{one['name']}: no time was left" for one in values(lines, kinds.SKIPPED)]
    failed = [
        f"{line.stage}, {line.value['part']}: {cell(line.value['error'])}"
        for line in lines
        if line.what == kinds.FAILED
    ]
    rest = [f"- {line}" for line in (*skipped, *failed)]
    return [*made, "", *rest] if rest else made


SECTIONS: tuple[tuple[str, Section], ...] = (
    ("Checks", _checks),
    (f"What a person waits for ({GRAPH_OWN})", _whole),
    ("What the GPU does at best", _ceilings),
    ("A decode step", _steps),
    ("By length", _lengths),
    ("Many at once", _batches),
    ("Products", _products),
    ("Attention", _attention),
    ("Memory and time by profile", _profiles),
    ("The host", _host),
    ("Kernels by the profiler", _kernels),
    ("Speech of the built-in model", _speech),
    ("How the stages ended", _endings),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and write both files; the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("name", type=Path, help="of the files, without an ending")
    asked = parser.parse_args(arguments)
    text = markdown(results.read(asked.results))
    asked.name.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{asked.name}.md").write_text(text, encoding="utf-8")
    shutil.copyfile(asked.results, f"{asked.name}.jsonl")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
