"""A run's results in a few lines of text, printed at its end.

Responsible for the most important kinds of lines. Not responsible for tables (report.py). Imports
no torch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu import kinds
from benchmarks.gpu.results import Line
from chatterbox_opt.bench.report import total_seconds

SHOWN = (  # kinds with few and short lines
    kinds.GPU,
    kinds.LATENCY,
    kinds.FIRST_AUDIO,
    kinds.STREAM,
    kinds.STEP,
    kinds.BATCH_T3,
    kinds.BATCH,
    kinds.PROFILE,
    kinds.SKIPPED,
    kinds.STAGE,
)
MAX_CHARACTERS = 130  # of a value


def lines(results: Sequence[Line]) -> list[str]:
    """Figures, rows of the table, and failures."""
    shown = [
        f"{one.stage[:8]:8} {one.what}: {json.dumps(one.value, default=str)[:MAX_CHARACTERS]}"
        for one in results
        if one.what in SHOWN and not (isinstance(one.value, dict) and one.value.get("warm"))
    ]
    return [*shown, *_rows(results), *wrong(results)]


def _rows(results: Sequence[Line]) -> list[str]:
    """Median tokens per second and total seconds, by row and dtype."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in results:
        if one.what == kinds.RUN and not one.value["warm"]:
            runs.setdefault((one.value["row"], one.value["dtype"]), []).append(one.value)
    texts = []
    for (row, dtype), values in runs.items():
        tokens = values[0]["tokens"]
        rate = statistics.median((tokens - 1) / one["seconds"]["decode"] for one in values)
        seconds = statistics.median(total_seconds(one["seconds"]) for one in values)
        texts.append(f"{row}, {dtype}: T3 {rate:.0f} tokens/s, all stages {seconds:.3f} s")
    return texts


def wrong(results: Sequence[Line]) -> list[str]:
    """Checks that are not good, and parts that failed."""
    texts = []
    for one in results:
        if one.what == kinds.CHECK and not one.value["good"]:
            texts.append(f"NOT GOOD: {one.value}"[:MAX_CHARACTERS])
        if one.what == kinds.FAILED:
            text = f"FAILED: {one.stage}, {one.value['part']}: {one.value['error']}"
            texts.append(text[:MAX_CHARACTERS])
    return texts
