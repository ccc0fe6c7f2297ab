"""Draw the README's bar chart, light and dark, from a committed report.

    python benchmarks/readme_chart.py benchmarks/results/epyc-vnni-2-cores.json

Uses the chart of ``chatterbox-opt bench --plot``; this script selects rows, names and colors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

from chatterbox_opt.bench.chart import draw
from chatterbox_opt.bench.report import read

IMAGES = Path(__file__).parent.parent / "docs" / "images"
ROWS = {  # row of the report -> label
    "upstream": "chatterbox-tts",
    "float32": "float32 (exact)",
    "bfloat16": "bfloat16",
    "int8": "int8 (default)",
}
INK = {"light": "#1f2328", "dark": "#e6edf3"}  # GitHub's text colors
PAPER = {"light": "#ffffff", "dark": "#0d1117"}  # and its backgrounds


def selected(report: dict[str, Any]) -> dict[str, Any]:
    """The report with only the rows above, under the names above."""
    rows = [row | {"name": ROWS[row["name"]]} for row in report["rows"] if row["name"] in ROWS]
    machine = report["card"]
    cores = f"{machine['cores']} cores ({machine['instructions']})"
    device = f"{machine['device']}, {cores}: shorter is faster"
    return report | {"rows": rows, "card": machine | {"device": device}}


def style(theme: str) -> dict[str, Any]:
    """Matplotlib's settings for a theme."""
    ink, paper = INK[theme], PAPER[theme]
    foreground = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    background = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return dict.fromkeys(foreground, ink) | dict.fromkeys(background, paper) | {"font.size": 11}


def main() -> None:
    """Write docs/images/speed-light.png and speed-dark.png."""
    report = selected(read(Path(sys.argv[1])))
    IMAGES.mkdir(parents=True, exist_ok=True)
    for theme in INK:
        with matplotlib.rc_context(style(theme)):
            draw(report, IMAGES / f"speed-{theme}.png")


if __name__ == "__main__":
    main()
