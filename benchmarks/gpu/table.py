"""The lines of a run as rows: the columns of ``chatterbox-opt bench``, where they were measured.

Knows which lines make a row. A figure that was not measured is absent; none is estimated, and none
is carried from one row to another. Knows nothing of markdown (report.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.kinds import BEGUN, LOADED, READ, RUN, STAGE
from benchmarks.gpu.measuring.modes import GRAPH_OWN, LAUNCHED_PYTORCH, MODES
from benchmarks.gpu.results import Line
from chatterbox_opt.bench import NOISY, STAGES
from chatterbox_opt.ceilings import steps_per_second
from chatterbox_opt.shapes import TOKEN_RATE
from chatterbox_opt.subjects import STANDARD, UPSTREAM

DTYPES = ("float16", "int8", "bfloat16", "float32")
Values = list[dict[str, Any]]


def latest(lines: Sequence[Line]) -> list[Line]:
    """Without what an earlier run of the same stage left in the file."""
    begun = {line.stage: i for i, line in enumerate(lines) if line.what == BEGUN}
    ended = {line.value["name"]: i for i, line in enumerate(lines) if line.what == STAGE}
    return [
        line
        for i, line in enumerate(lines)
        if i >= begun.get(line.stage, 0) and (line.what != STAGE or ended[line.value["name"]] == i)
    ]


def values(lines: Sequence[Line], what: str) -> Values:
    """What the lines of a kind say."""
    return [line.value for line in lines if line.what == what]


def read_gb_s(lines: Sequence[Line]) -> float | None:
    """GB/s of the largest read."""
    reads = values(lines, READ)
    return max(reads, key=lambda one: one["bytes"])["gb_per_second"] if reads else None


def rows(lines: Sequence[Line]) -> Values:
    """Rows as in a report of ``chatterbox-opt bench``, by mode and dtype, upstream first."""
    runs: dict[tuple[str, str], Values] = {}
    for one in values(lines, RUN):
        if not one["warm"]:
            runs.setdefault((one["row"], one["dtype"]), []).append(one)
    order = [(UPSTREAM, STANDARD), *((mode, dtype) for dtype in DTYPES for mode in MODES)]
    made = [_row(key, runs[key], lines) for key in order if key in runs]
    _add_ratios(made, "vs_upstream", name_of(UPSTREAM, STANDARD))
    _add_ratios(made, "vs_standard", name_of(LAUNCHED_PYTORCH, STANDARD))
    return made


def name_of(row: str, dtype: str) -> str:
    """A row's name in the table."""
    return row if row == UPSTREAM else f"{row}, {dtype}"


def _row(key: tuple[str, str], runs: Values, lines: Sequence[Line]) -> dict[str, Any]:
    whole = [sum(one["seconds"].values()) for one in runs]
    median = {s: statistics.median(one["seconds"][s] for one in runs) for s in STAGES}
    tokens, synthesis = runs[0]["tokens"], statistics.median(whole)
    rate = (tokens - 1) / median["decode"]
    row: dict[str, Any] = {f"{s}_seconds": median[s] for s in STAGES if s != "decode"}
    row |= {
        "name": name_of(*key),
        "plan": runs[0]["plan"],
        "runs": len(runs),
        "t3_tokens_per_second": rate,
        "t3_share_of_ceiling": _share(rate, key[1], lines),
        "synthesis_seconds": synthesis,
        "audio_seconds": tokens / TOKEN_RATE,
        "realtime_x": tokens / TOKEN_RATE / synthesis,
        "noisy": (max(whole) - min(whole)) / synthesis > NOISY,
    }
    return row | _load(key, runs, lines)


def _share(rate: float, dtype: str, lines: Sequence[Line]) -> float | None:
    read = read_gb_s(lines)
    weights = [one["weights_per_step"] for one in values(lines, RUN) if "weights_per_step" in one]
    if read is None or not weights:
        return None
    return rate / steps_per_second({"t3_weights_per_step": weights[0]}, [read])[dtype]


def _load(key: tuple[str, str], runs: Values, lines: Sequence[Line]) -> dict[str, Any]:
    """Seconds to load, and memory. A process loads once, in its first mode, and modes that come
    later find the memory of those before: only the first has these figures."""
    row, dtype = key
    if row not in (UPSTREAM, GRAPH_OWN):
        return {}
    wanted = UPSTREAM if row == UPSTREAM else None
    loaded = [
        one["seconds"]
        for one in values(lines, LOADED)
        if one["dtype"] == dtype and one.get("row") == wanted
    ]
    peaks = [one["peak_mib"] for one in runs if "peak_mib" in one]
    return {
        "load_seconds": loaded[0] if loaded else None,
        "peak_vram_mib": max(peaks, default=None),
    }


def _add_ratios(table: Values, name: str, base: str) -> None:
    reference: Mapping[str, Any] | None = next((row for row in table if row["name"] == base), None)
    for row in table:
        row[name] = reference and {
            "t3": row["t3_tokens_per_second"] / reference["t3_tokens_per_second"],
            "flow": reference["flow_seconds"] / row["flow_seconds"],
            "vocoder": reference["vocoder_seconds"] / row["vocoder_seconds"],
            "synthesis": reference["synthesis_seconds"] / row["synthesis_seconds"],
        }
