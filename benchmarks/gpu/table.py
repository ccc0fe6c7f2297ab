"""The lines of a run as rows with the columns of ``chatterbox-opt bench``.

Responsible for which lines make a row. A figure that was not measured is absent; none is estimated
or copied from another row. Not responsible for markdown (report.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.kinds import BEGUN, LOADED, READ, RUN, STAGE
from benchmarks.gpu.measuring.modes import EAGER_PYTORCH, GRAPH_TRITON, MODES
from benchmarks.gpu.results import Line
from chatterbox_opt.bench.backends import STANDARD, UPSTREAM
from chatterbox_opt.bench.roofline import steps_per_second
from chatterbox_opt.bench.runner import add_ratios, row_figures

DTYPES = ("float16", "int8", "bfloat16", "float32")
Values = list[dict[str, Any]]


def latest(lines: Sequence[Line]) -> list[Line]:
    """The lines without those of earlier runs of the same stage."""
    begun = {line.stage: i for i, line in enumerate(lines) if line.what == BEGUN}
    ended = {line.value["name"]: i for i, line in enumerate(lines) if line.what == STAGE}
    return [
        line
        for i, line in enumerate(lines)
        if i >= begun.get(line.stage, 0) and (line.what != STAGE or ended[line.value["name"]] == i)
    ]


def values(lines: Sequence[Line], what: str) -> Values:
    """The values of the lines of a kind."""
    return [line.value for line in lines if line.what == what]


def read_gb_s(lines: Sequence[Line]) -> float | None:
    """GB/s of the largest bandwidth test."""
    reads = values(lines, READ)
    return max(reads, key=lambda one: one["bytes"])["gb_per_second"] if reads else None


def rows(lines: Sequence[Line]) -> Values:
    """Rows as in a report of ``chatterbox-opt bench``, by mode and dtype, upstream first."""
    runs: dict[tuple[str, str], Values] = {}
    for one in values(lines, RUN):
        if not one["warm"]:
            runs.setdefault((one["row"], one["dtype"]), []).append(one)
    order = [(UPSTREAM, STANDARD), *((mode, dtype) for dtype in DTYPES for mode in MODES)]
    table = [_row(key, runs[key], lines) for key in order if key in runs]
    add_ratios(table, "vs_upstream", name_of(UPSTREAM, STANDARD))
    add_ratios(table, "vs_standard", name_of(EAGER_PYTORCH, STANDARD))
    return table


def name_of(row: str, dtype: str) -> str:
    """A row's name in the table."""
    return row if row == UPSTREAM else f"{row}, {dtype}"


def _row(key: tuple[str, str], runs: Values, lines: Sequence[Line]) -> dict[str, Any]:
    row = row_figures([one["seconds"] for one in runs], runs[0]["tokens"])
    row |= {"name": name_of(*key), "plan": runs[0]["plan"], "runs": len(runs)}
    row["t3_share_of_ceiling"] = _share(row["t3_tokens_per_second"], key[1], lines)
    return row | _load(key, runs, lines)


def _share(rate: float, dtype: str, lines: Sequence[Line]) -> float | None:
    read = read_gb_s(lines)
    weights = [one["weights_per_step"] for one in values(lines, RUN) if "weights_per_step" in one]
    if read is None or not weights:
        return None
    return rate / steps_per_second({"t3_weights_per_step": weights[0]}, [read])[dtype]


def _load(key: tuple[str, str], runs: Values, lines: Sequence[Line]) -> dict[str, Any]:
    """Seconds to load, and memory. A process loads once, and the memory of a mode includes that of
    previous modes: only a process's first mode has these figures."""
    row, dtype = key
    if row not in (UPSTREAM, GRAPH_TRITON):
        return {}
    loaded_row = UPSTREAM if row == UPSTREAM else None
    loaded = [
        one["seconds"]
        for one in values(lines, LOADED)
        if one["dtype"] == dtype and one.get("row") == loaded_row
    ]
    peaks = [one["peak_mib"] for one in runs if "peak_mib" in one]
    return {
        "load_seconds": loaded[0] if loaded else None,
        "peak_vram_mib": max(peaks, default=None),
    }
