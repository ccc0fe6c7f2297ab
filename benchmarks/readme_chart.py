"""Draw the README's bar chart, light and dark, from a committed report.

    python benchmarks/readme_chart.py benchmarks/results/epyc-vnni-2-cores.json

The drawing is that of ``chatterbox-opt bench --plot``; this script chooses rows, names and colors.
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


def chosen(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the rows above only, under the names above."""
    rows = [row | {"name": ROWS[row["name"]]} for row in report["rows"] if row["name"] in ROWS]
    card = report["card"]
    device = f"{card['device']}, {card['cores']} cores ({card['instructions']}): shorter is faster"
    return report | {"rows": rows, "card": card | {"device": device}}


def style(theme: str) -> dict[str, Any]:
    """Matplotlib's settings for a theme."""
    ink, paper = INK[theme], PAPER[theme]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return dict.fromkeys(inked, ink) | dict.fromkeys(papered, paper) | {"font.size": 11}


def main() -> None:
    """Write docs/images/speed-light.png and speed-dark.png."""
    report = chosen(read(Path(sys.argv[1])))
    IMAGES.mkdir(parents=True, exist_ok=True)
    for theme in INK:
        with matplotlib.rc_context(style(theme)):
            draw(report, IMAGES / f"speed-{theme}.png")


if __name__ == "__main__":
    main()
