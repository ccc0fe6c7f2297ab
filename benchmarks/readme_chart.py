"""Draw the README's bar chart, light and dark, from a committed report.

    python benchmarks/readme_chart.py benchmarks/results/epyc-vnni-2-cores.json

The chart is that of ``chatterbox-opt bench --plot``; this script selects rows, names and colors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import readme

from chatterbox_opt.bench.chart import draw
from chatterbox_opt.bench.report import read

IMAGES = Path(__file__).parent.parent / "docs" / "images"
ROWS = readme.ROWS | {"upstream": "chatterbox-tts"}  # row of the report -> label
FONT_SCALE = 1.2
FOREGROUND = {"light": "#1f2328", "dark": "#e6edf3"}  # GitHub's text colors
BACKGROUND = {"light": "#ffffff", "dark": "#0d1117"}  # and its backgrounds


def select_rows(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the rows above only, under the names above."""
    rows = [row | {"name": ROWS[row["name"]]} for row in report["rows"] if row["name"] in ROWS]
    return report | {"rows": rows}


def title(report: dict[str, Any]) -> str:
    facts = report["card"]
    return f"{facts['device']}, {facts['cores']} cores ({facts['instructions']}): shorter is faster"


def style(theme: str) -> dict[str, Any]:
    """Matplotlib's settings for a theme."""
    foreground = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    background = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return dict.fromkeys(foreground, FOREGROUND[theme]) | dict.fromkeys(
        background, BACKGROUND[theme]
    )


def main() -> None:
    """Write docs/images/speed-light.png and speed-dark.png."""
    report = select_rows(read(Path(sys.argv[1])))
    IMAGES.mkdir(parents=True, exist_ok=True)
    for theme in FOREGROUND:
        with matplotlib.rc_context(style(theme)):
            draw(report, IMAGES / f"speed-{theme}.png", title=title(report), font_scale=FONT_SCALE)


if __name__ == "__main__":
    main()
