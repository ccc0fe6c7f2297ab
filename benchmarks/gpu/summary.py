"""The end of a run in a few lines of text: for a person, or for a reply that keeps little.

Knows the kinds of lines that matter most. Knows nothing of tables (bench/report.py), and imports no
torch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu import kinds
from benchmarks.gpu.results import Line

SHOWN = (  # kinds of short figures, of few lines each
    kinds.GPU,
    kinds.WHOLE,
    kinds.FIRST_AUDIO,
    kinds.STEP,
    kinds.BATCH_T3,
    kinds.BATCH,
    kinds.PROFILE,
    kinds.SKIPPED,
    kinds.STAGE,
)
WIDTH = 130  # characters of a value


def lines(found: Sequence[Line]) -> list[str]:
    """Rows of the table, figures in short, and what is wrong."""
    shown = [
        f"{one.stage[:8]:8} {one.what}: {json.dumps(one.value, default=str)[:WIDTH]}"
        for one in found
        if one.what in SHOWN and not (isinstance(one.value, dict) and one.value.get("warm"))
    ]
    return [*shown, *_rows(found), *wrong(found)]


def _rows(found: Sequence[Line]) -> list[str]:
    """Tokens a second and times real time, medians, by row and dtype."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in found:
        if one.what == kinds.RUN and not one.value["warm"]:
            runs.setdefault((one.value["row"], one.value["dtype"]), []).append(one.value)
    made = []
    for (row, dtype), values in runs.items():
        tokens = values[0]["tokens"]
        rate = statistics.median((tokens - 1) / one["seconds"]["decode"] for one in values)
        whole = statistics.median(sum(one["seconds"].values()) for one in values)
        made.append(f"{row}, {dtype}: T3 {rate:.0f} tokens/s, whole {whole:.3f} s")
    return made


def wrong(found: Sequence[Line]) -> list[str]:
    """Checks that are not good, and parts that failed."""
    made = []
    for one in found:
        if one.what == kinds.CHECK and not one.value["good"]:
            made.append(f"NOT GOOD: {one.value}"[:WIDTH])
        if one.what == kinds.FAILED:
            made.append(f"FAILED: {one.stage}, {one.value['part']}: {one.value['error']}"[:WIDTH])
    return made
