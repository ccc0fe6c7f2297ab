"""Write measured figures into the documentation; ``make bench`` calls this.

    python benchmarks/readme.py benchmarks/results/NAME.json

The report's full table goes to docs/benchmarks.md, between the two markers there. The short table
of README.md is regenerated from the reports of ``MACHINES``. Every figure in them is in a file
under benchmarks/results/ (a test compares them).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from chatterbox_opt.bench.report import markdown, read

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BENCH = ("<!-- bench: start -->\n", "<!-- bench: end -->\n")  # docs/benchmarks.md
PERFORMANCE = ("<!-- performance: start -->\n", "<!-- performance: end -->\n")  # README.md
MACHINES = {  # report in README.md -> name of its machine
    "epyc-vnni-2-cores": "2-core EPYC (VNNI)",
    "xeon-amx-2-cores": "2-core Xeon (AMX)",
}
ROWS = {  # row of a report -> configuration
    "upstream": "chatterbox-tts 0.1.7",
    "float32": "float32 (exact)",
    "bfloat16": "bfloat16",
    "int8": "int8 (default)",
}
BATCHED = "whole, 12 at once"  # row of a -batch report: up to 12, of as many requests as it says
HEADINGS = ("Machine", "Configuration", "x real time", "x chatterbox-tts", "Memory")


def performance() -> str:
    """The short table: speed of a single request and of a batch, and peak memory. Both are compared
    with chatterbox-tts's single request, as it has no batches."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for name, machine in MACHINES.items():
        rows = {row["name"]: row for row in _report(name)["rows"]}
        for row, configuration in ROWS.items():
            lines.append((machine, configuration, *_figures(rows[row])))
        batch = _report(f"{name}-batch")["rows"]
        [batched] = batch[BATCHED]
        speed = batched["realtime_x"]
        ratio = speed / rows["upstream"]["realtime_x"]
        label = f"int8, batch of {batched['requests']}"
        lines.append((machine, label, f"{speed:.2f}", f"{ratio:.1f}", "-"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _report(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return report


def _figures(row: dict[str, Any]) -> tuple[str, str, str]:
    memory = row["peak_rss_mib"] / 1024
    return f"{row['realtime_x']:.2f}", f"{row['vs_upstream']['synthesis']:.1f}", f"{memory:.1f} GiB"


def between(document: Path, markers: tuple[str, str]) -> str:
    """The text between two markers of a document."""
    return document.read_text(encoding="utf-8").split(markers[0])[1].split(markers[1])[0]


def replace(document: Path, markers: tuple[str, str], content: str) -> None:
    """Replace the text between two markers of a document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(markers[0])
    _, _, after = rest.partition(markers[1])
    document.write_text(before + markers[0] + content + markers[1] + after, encoding="utf-8")


def main() -> None:
    """Write both tables."""
    source = Path(sys.argv[1])
    table = f"From `benchmarks/results/{source.name}`:\n\n{markdown(read(source))}"
    replace(ROOT / "docs" / "benchmarks.md", BENCH, table)
    replace(ROOT / "README.md", PERFORMANCE, "\n" + performance() + "\n")


if __name__ == "__main__":
    main()
