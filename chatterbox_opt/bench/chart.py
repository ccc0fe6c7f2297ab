"""A benchmark report as a picture: one bar a row, its stages side by side, its speed at the end.

Knows matplotlib (extra ``plot``) and the report's fields. Knows nothing of measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.atomic_file import atomic_write

FORMATS = ("png", "svg")
# stage, field of a row, colour (Okabe and Ito 2008: told apart by colour-blind eyes, and in grey)
STAGES = (
    ("t3", ("prefill_seconds", "decode_seconds"), "#0072B2"),
    ("flow", ("flow_seconds",), "#E69F00"),
    ("vocoder", ("vocoder_seconds",), "#009E73"),
    ("watermark", ("watermark_seconds",), "#999999"),
)


def check(path: Path) -> None:
    """Say early that a chart cannot be drawn.

    Raises:
        InputError: another ending than .png or .svg, or matplotlib is not installed.
    """
    from importlib.util import find_spec

    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise InputError(f"'{path}' must end in .png or .svg")
    if find_spec("matplotlib") is None:
        raise InputError('matplotlib is not installed: pip install "chatterbox-opt[plot]"')


def stage_seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage for one row; what t3 does after its prefill is what is left."""
    known = {name: row[name] for _, fields, _ in STAGES for name in fields if name in row}
    known["decode_seconds"] = row["synthesis_seconds"] - sum(known.values())
    return {stage: sum(known[name] for name in fields) for stage, fields, _ in STAGES}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the chart; the format is the path's ending. Figures as the report has them.

    Raises:
        OSError: not writable.
    """
    from matplotlib.figure import Figure

    rows = list(report["rows"])
    seconds = [stage_seconds(row) for row in rows]
    figure = Figure(figsize=(8, 1.3 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for stage, _, colour in STAGES:
        before = [sum(list(s.values())[: list(s).index(stage)]) for s in seconds]
        axes.barh(
            range(len(rows)), [s[stage] for s in seconds], left=before, color=colour, label=stage
        )
    for place, row in enumerate(rows):
        ratio = row.get("vs_upstream")
        note = f" {row['realtime_x']:.2f}x real time"
        note += f", {ratio['synthesis']:.1f}x upstream" if ratio else ""
        axes.text(row["synthesis_seconds"], place, note, va="center", fontsize=9)
    axes.set_yticks(
        range(len(rows)), [row["name"] + (" ~" if row["noisy"] else "") for row in rows]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(row["synthesis_seconds"] for row in rows))
    axes.set_xlabel(f"seconds for {rows[0]['audio_seconds']:.0f} s of sound")
    axes.set_title(report["card"]["device"], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False, fontsize=9)
    with atomic_write(path) as part:
        figure.savefig(part, format=path.suffix.lower().lstrip("."), dpi=150)
