"""The end of a run in a few lines of text: what a person, or a reply that keeps little, is shown.

Knows lines. Knows nothing of tables (report.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from benchmarks.gpu.results import BEGUN, CHECK, ENDED, Line

LONG = ("product", "kernels", "triton", "attention", BEGUN, ENDED)  # are many, or long
WIDTH = 150  # characters of a value


def lines(found: Iterable[Line]) -> list[str]:
    """A line of text for each figure that is short."""
    return [
        f"{one.stage[:8]:8} {one.what[:50]}: {json.dumps(one.value, default=str)[:WIDTH]}"
        for one in found
        if not one.what.startswith(LONG)
    ]


def failed_checks(found: Sequence[Line]) -> list[str]:
    """Names of the checks that are not good."""
    return [one.value["name"] for one in found if one.what == CHECK and not one.value["good"]]
