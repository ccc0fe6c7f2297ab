"""A benchmark report as a bar chart: one stacked bar per row, annotated with its speed.

Of streams: the time to first audio, the leading silence, and what 95 % of them stay below.

Responsible for matplotlib (extra ``plot``) and the report's fields. Not responsible for
measuring: a chart of an earlier report is ``draw(report.read(path), target)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatterbox_opt.bench.report import STREAM
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.atomic_file import atomic_write

FORMATS = ("png", "svg")
# stage, fields of a row, color (Okabe and Ito 2008: distinguishable for the color-blind, and in
# grayscale)
STAGES = (
    ("t3", ("prefill_seconds", "decode_seconds"), "#0072B2"),
    ("flow", ("flow_seconds",), "#E69F00"),
    ("vocoder", ("vocoder_seconds",), "#009E73"),
    ("watermark", ("watermark_seconds",), "#999999"),
)
MIN_SHARE = 0.01  # of some bar; a stage below it in every bar is invisible, so not in the legend
TITLE_SIZE, LABEL_SIZE, NOTE_SIZE = 10, 10, 9  # points


def check(path: Path) -> None:
    """Check before any work that a chart can be drawn.

    Raises:
        InputError: an extension other than .png or .svg, or matplotlib is not installed.
    """
    from importlib.util import find_spec

    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise InputError(f"'{path}' must end in .png or .svg")
    if find_spec("matplotlib") is None:
        raise InputError('matplotlib is not installed: pip install "chatterbox-opt[plot]"')


def stage_seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage of a row; T3's decode is what the other stages leave of the total."""
    known = {name: row[name] for _, fields, _ in STAGES for name in fields if name in row}
    known["decode_seconds"] = row["synthesis_seconds"] - sum(known.values())
    return {stage: sum(known[name] for name in fields) for stage, fields, _ in STAGES}


def draw(
    report: Mapping[str, Any], path: Path, *, title: str | None = None, font_scale: float = 1.0
) -> None:
    """Write the chart; its format is the path's extension.

    Args:
        report: as measured, or from ``report.read``.
        title: None is the device's name.
        font_scale: factor of all font sizes; the figure's size stays the same.

    Raises:
        OSError: not writable.
    """
    from matplotlib.figure import Figure

    if report.get("kind") == STREAM:
        _draw_streams(report, path, title, font_scale)
        return
    rows = list(report["rows"])
    seconds = [stage_seconds(row) for row in rows]
    figure = Figure(figsize=(8, 1.3 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    # 1) stacked bars
    starts = [0.0] * len(rows)
    for stage, _, color in STAGES:
        widths = [row_seconds[stage] for row_seconds in seconds]
        visible = any(
            width >= MIN_SHARE * row["synthesis_seconds"]
            for width, row in zip(widths, rows, strict=True)
        )
        label = stage if visible else f"_{stage}"  # matplotlib leaves "_" out of the legend
        axes.barh(range(len(rows)), widths, left=starts, color=color, label=label)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    # 2) speeds at the bars' ends
    for y, row in enumerate(rows):
        axes.text(
            row["synthesis_seconds"], y, _note(row), va="center", fontsize=NOTE_SIZE * font_scale
        )
    # 3) axes, title, legend
    axes.set_yticks(
        range(len(rows)), [row["name"] + (" ~" if row["noisy"] else "") for row in rows]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, (1.1 + 0.5 * font_scale) * max(row["synthesis_seconds"] for row in rows))
    axes.tick_params(labelsize=LABEL_SIZE * font_scale)
    axes.set_xlabel(
        f"seconds for {rows[0]['audio_seconds']:.0f} s of audio", fontsize=LABEL_SIZE * font_scale
    )
    axes.set_title(title or report["card"]["device"], fontsize=TITLE_SIZE * font_scale)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside lower center",
        ncols=len(STAGES),
        frameon=False,
        fontsize=NOTE_SIZE * font_scale,
    )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as part:
        figure.savefig(part, format=path.suffix.lower().lstrip("."), dpi=150)


def _draw_streams(
    report: Mapping[str, Any], path: Path, title: str | None, font_scale: float
) -> None:
    from matplotlib.figure import Figure

    rows = report["rows"]
    figure = Figure(figsize=(8, 1.3 + 0.35 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    firsts = [row["first_audio_seconds"] for row in rows]
    silences = [row["leading_silence_seconds"] for row in rows]
    late = [row["first_audio_p95_seconds"] for row in rows]
    places = range(len(rows))
    axes.barh(places, firsts, color=STAGES[0][2], label="first audio")
    axes.barh(places, silences, left=firsts, color=STAGES[3][2], label="leading silence")
    axes.plot(late, places, "|", color="black", markersize=12, label="95 % of first audio")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.tick_params(labelsize=LABEL_SIZE * font_scale)
    axes.set_xlabel(
        "seconds from the call, or the first character", fontsize=LABEL_SIZE * font_scale
    )
    axes.set_title(title or report["card"]["device"], fontsize=TITLE_SIZE * font_scale)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside lower center", ncols=3, frameon=False, fontsize=NOTE_SIZE * font_scale
    )
    _save(figure, path)


def _note(row: Mapping[str, Any]) -> str:
    ratio = row.get("vs_upstream")
    note = f" {row['realtime_x']:.2f}x real time"
    return note + (f", {ratio['synthesis']:.1f}x chatterbox-tts" if ratio else "")
