"""A benchmark's report: as a table, as files, compared with an older one.

Responsible for the columns and their units. Not responsible for measuring; imports no torch. The
report is plain data, ``{"card": {...}, "rows": [...], "failed": {...}}``: ``card`` has the facts of
the machine (roofline.py), missing figures are None, and ``failed`` maps rows that could not be
measured to the reason. Reports are files that are compared later, so their keys do not change.

``shares`` has the part of the total that each stage takes, and ``limit`` the largest: "t3 62%".

A row's ``cold_*`` figures come from ``--cold`` (cold_start.py) and are None without it. They time
whole processes, from the command to the finished wav: ``cold_seconds`` with the caches of an
earlier start, ``cold_first_seconds`` without (None for upstream, which has no caches),
``cold_spread`` is the range of the former divided by its median, ``cold_audio_seconds`` the length
of the wav, and ``cold_vs_upstream`` the speedup over upstream's example.

A report of ``--stream`` (streaming.py) has ``"kind": "stream"`` and other columns: a row is a
number of streams at once, or a speed of arriving text, with one latency.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatterbox_opt.errors import InputError

STAGES = ("prefill", "decode", "flow", "vocoder", "watermark")  # of a run
COLUMNS: tuple[tuple[str, str, str], ...] = (  # heading, path in the row, format
    ("row", "name", "{}"),
    ("T3 tok/s", "t3_tokens_per_second", "{:.1f}"),
    ("of ceiling", "t3_share_of_ceiling", "{:.0%}"),
    ("prefill s", "prefill_seconds", "{:.2f}"),
    ("+ voice s", "voice_seconds", "{:.2f}"),
    ("flow s", "flow_seconds", "{:.2f}"),
    ("vocoder s", "vocoder_seconds", "{:.2f}"),
    ("watermark s", "watermark_seconds", "{:.2f}"),
    ("total s", "synthesis_seconds", "{:.2f}"),
    ("limit", "limit", "{}"),
    ("x real time", "realtime_x", "{:.2f}"),
    ("x chatterbox-tts", "vs_upstream.synthesis", "{:.2f}"),
    ("x standard", "vs_standard.synthesis", "{:.2f}"),
    ("cold 1st s", "cold_first_seconds", "{:.1f}"),
    ("cold s", "cold_seconds", "{:.1f}"),
    ("cold x chatterbox-tts", "cold_vs_upstream", "{:.2f}"),
    ("load s", "load_seconds", "{:.1f}"),
    ("RSS MiB", "peak_rss_mib", "{:.0f}"),
    ("VRAM MiB", "peak_vram_mib", "{:.0f}"),
    ("top-1", "quality.top1", "{:.1%}"),
    ("KL", "quality.kl", "{:.1e}"),
    ("mel cosine", "quality.log_mel_cosine", "{:.5f}"),
    ("WER", "quality.wer", "{:.1%}"),
)
STREAM = "stream"
STREAM_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("row", "name", "{}"),
    ("first s", "first_audio_seconds", "{:.3f}"),
    ("p95 s", "first_audio_p95_seconds", "{:.3f}"),
    ("silence", "leading_silence_seconds", "{:.3f}"),
    ("after text s", "after_text_seconds", "{:.3f}"),
    ("interval s", "piece_interval_seconds", "{:.3f}"),
    ("p95 of it", "piece_interval_p95_seconds", "{:.3f}"),
    ("x real time", "realtime_x", "{:.2f}"),
    ("play s", "playback_start_seconds", "{:.3f}"),
    ("underruns", "underruns", "{}"),
    ("buffer s", "smallest_prebuffer_seconds", "{:.2f}"),
    ("audio s", "audio_seconds", "{:.1f}"),
    ("streams", "measured_streams", "{}"),
)
STREAM_MAIN = ("name", "first_audio_seconds", "first_audio_p95_seconds", "leading_silence_seconds",
               "realtime_x", "playback_start_seconds", "underruns",
               "smallest_prebuffer_seconds")  # fmt: skip
# of the table that fits a terminal of 80 columns; memory is the GPU's where there is one
MAIN = ("name", "t3_tokens_per_second", "synthesis_seconds", "limit", "realtime_x",
        "vs_upstream.synthesis", "cold_seconds", "peak_vram_mib", "peak_rss_mib")  # fmt: skip
MEMORIES = ("peak_rss_mib", "peak_vram_mib")
GAP = 2  # between columns
COMPARISON = ("row", "figure", "old", "new", "change", "verdict")
# higher is better; for the others lower is
HIGHER_IS_BETTER = ("t3_tokens_per_second", "realtime_x")
COMPARED = (
    *HIGHER_IS_BETTER,
    *(f"{stage}_seconds" for stage in ("prefill", "flow", "vocoder", "synthesis", "load")),
    "cold_seconds",
    "peak_rss_mib",
)
STREAM_COMPARED = (
    "realtime_x",
    "first_audio_seconds",
    "first_audio_p95_seconds",
    "playback_start_seconds",
)


MACHINE_FACTS = {
    "device",
    "cores",
    "instructions",
    "torch",
    "read_gb_s",
    "gemm_gflops",
    "ceiling_tokens_per_second",
    "t3_weights_per_step",
    "made_weights",
}


def total_seconds(lap: Mapping[str, float]) -> float:
    """Of a run's seconds by stage; without its voice, which many texts may have in common."""
    return sum(lap[stage] for stage in STAGES)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Follow a dotted path; None where it ends early."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def columns(report: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Heading, path in a row, and format of each column."""
    return STREAM_COLUMNS if report.get("kind") == STREAM else COLUMNS


def main_columns(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the columns of the short table."""
    return STREAM_MAIN if report.get("kind") == STREAM else MAIN


def cells(
    report: Mapping[str, Any], paths: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted rows, without columns that are empty in all; noisy rows get a ~.

    Args:
        paths: of the columns; None takes all. If both memories are known, only the GPU's is shown.
    """
    rows = report["rows"]
    used = [c for c in columns(report) if any(value_at(row, c[1]) is not None for row in rows)]
    if paths is not None:
        used = [c for c in used if c[1] in paths]
        memories = [c for c in used if c[1] in MEMORIES]
        used = [c for c in used if c not in memories or c == memories[-1]]
    lines = []
    for row in rows:
        values = [(value_at(row, path), form) for _, path, form in used]
        line = ["-" if value is None else form.format(value) for value, form in values]
        line[0] += " ~" if row.get("noisy") else ""
        lines.append(line)
    return [heading for heading, _, _ in used], lines


def blocks(
    report: Mapping[str, Any], width: int | None, paths: Sequence[str] | None = None
) -> list[tuple[list[str], list[list[str]]]]:
    """The figures transposed: a line is a figure, a column a row of the report.

    Args:
        width: columns of the terminal; rows that do not fit next to each other follow in more
            blocks.
        paths: as of ``cells``.
    """
    headings, lines = cells(report, paths)
    widths = [max(map(len, line)) + GAP for line in lines]
    left = max(map(len, headings))
    space = sum(widths) if width is None else width - left
    groups: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if groups[-1] and sum(widths[j] for j in groups[-1]) + width > space:
            groups.append([])
        groups[-1].append(i)
    figures = list(zip(*lines, strict=True))
    return [
        (
            [headings[0], *(figures[0][i] for i in group)],
            [
                [heading, *(values[i] for i in group)]
                for heading, values in zip(headings[1:], figures[1:], strict=True)
            ],
        )
        for group in groups
    ]


def check(report: Mapping[str, Any]) -> None:
    """Check that a report can be shown.

    Raises:
        InputError: it has no facts of the machine.
    """
    if missing := MACHINE_FACTS - set(report["card"]):
        raise InputError(f"the report has no {', '.join(sorted(missing))}: measure again")


def machine_lines(report: Mapping[str, Any]) -> list[str]:
    """The machine in a few lines, and the rows that failed.

    Raises:
        InputError: as ``check``.
    """
    check(report)
    facts = report["card"]
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in facts["gemm_gflops"].items())
    ceilings = ", ".join(f"{n} {v:,.0f}" for n, v in facts["ceiling_tokens_per_second"].items())
    lines = [
        f"{facts['device']} · {facts['cores']} threads of {facts['instructions']} · "
        f"torch {facts['torch']}",
        f"reads {facts['read_gb_s']:.1f} GB/s, multiplies (GFLOPS) {rates}",
        f"T3 reads {facts['t3_weights_per_step'] / 1e6:,.0f} M weights a step: "
        f"at most {ceilings} tokens/s",
    ]
    lines += [f"left out: {reason}" for reason in report.get("failed", {}).values()]
    if facts["made_weights"]:
        lines.append("weights are random values of the same shapes: speed does not depend on them")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The machine and the table, as markdown."""
    headings, lines = cells(report)
    table = [headings, ["---"] * len(headings), *lines]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return "\n".join(f"{line}  " for line in machine_lines(report)) + f"\n\n{rows}\n"


def csv_text(report: Mapping[str, Any]) -> str:
    """All columns, values not rounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    paths = [path for _, path, _ in columns(report)]
    if report.get("kind") != STREAM:
        paths += ["cold_spread", "cold_audio_seconds", "noisy"]
    writer.writerow(paths)
    for row in report["rows"]:
        writer.writerow([value_at(row, path) for path in paths])
    return out.getvalue()


def read(path: Path) -> dict[str, Any]:
    """Read a JSON report.

    Raises:
        InputError: missing, or not a report.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all("name" in row for row in report["rows"]):
            raise KeyError("name")
        report.setdefault("card", {})  # older reports have none
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}): check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' is not a report of chatterbox-opt bench --output") from error
    return report


def compare(
    new: Mapping[str, Any], old: Mapping[str, Any], tolerance: float
) -> tuple[list[list[str]], bool]:
    """Set two reports side by side.

    Args:
        tolerance: 0.1 accepts figures that are 10 % worse.

    Returns:
        Lines of row, figure, old, new, change, verdict; and whether any is worse than tolerated.
    """
    before = {row["name"]: row for row in old["rows"]}
    lines, worse = [], False
    for row in new["rows"]:
        for name in STREAM_COMPARED if new.get("kind") == STREAM else COMPARED:
            was, now = value_at(before.get(row["name"], {}), name), value_at(row, name)
            if not was or now is None:
                continue
            change = now / was - 1
            bad = (-change if name in HIGHER_IS_BETTER else change) > tolerance
            worse |= bad
            verdict = "WORSE" if bad else ""
            lines.append([row["name"], name, f"{was:.4g}", f"{now:.4g}", f"{change:+.1%}", verdict])
    return lines, worse
