"""The command ``bench``: measures this machine, or shows an earlier report.

Responsible for its options and for which files are written. Not responsible for measuring
(bench/runner.py) or for the formats of a report (bench/report.py, bench/chart.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.bench import chart, report
from chatterbox_opt.cli import options
from chatterbox_opt.cli.synth import hops as hops_options
from chatterbox_opt.cli.terminal import console, tables
from chatterbox_opt.config import hardware
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.profile import load_profile
from chatterbox_opt.errors import InputError
from chatterbox_opt.text import languages
from chatterbox_opt.utils import atomic_file
from chatterbox_opt.utils.quiet import silence_dependencies

RUNS, STREAM_RUNS = 3, 20  # without --runs


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """What is measured."""

    model: Annotated[
        Optional[str],
        typer.Option(help="Model, as for synth; a name that is not downloaded: random weights."),
    ] = None
    language: options.Language = None
    flow: Annotated[
        Optional[str], typer.Option(help="turbo, or DIR: a row with Turbo's two-step flow.")
    ] = None
    rows: Annotated[
        Optional[str], typer.Option(help="Comma-separated, such as upstream,float32,int8.")
    ] = None
    profile: Annotated[
        Optional[list[str]], typer.Option(help="A profile as one more row; repeatable.")
    ] = None
    device: Annotated[str, typer.Option(help=f"One of {', '.join(hardware.DEVICES)}.")] = (
        hardware.AUTO
    )
    seconds: Annotated[float, typer.Option(help="Seconds of audio per run.")] = 5.0
    runs: Annotated[
        Optional[int],
        typer.Option(help=f"Measured runs of each row: {RUNS}, or {STREAM_RUNS} streams."),
    ] = None
    text: Annotated[
        Optional[str], typer.Option(help="The text of the prefill, or of all streams.")
    ] = None
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Measure streams: time to first audio, and playback."),
    ] = False
    hops: hops_options.Hops = None
    first_steps: hops_options.FirstSteps = None
    voice_seconds: hops_options.VoiceSeconds = None
    cold: Annotated[
        bool, typer.Option("--cold", help="Also time whole processes, from start to wav.")
    ] = False
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Tiny random weights: only to try the command, in a minute or two."
        ),
    ] = False

    def check(self) -> None:
        """Raise InputError for a value out of range, or one that ``--stream`` has no use for."""
        if not (0 < self.seconds <= 100 and (self.runs is None or 1 <= self.runs <= 100)):
            raise InputError("--seconds is above 0 to 100, --runs 1 to 100")
        if self.stream and (self.rows is not None or self.cold or len(self.profile or []) > 1):
            raise InputError("--stream has its own rows: without --rows and --cold, one --profile")
        if self.stream and (self.language, self.flow) != (None, None):
            raise InputError("--language and --flow are for rows, not for --stream")
        if self.language == languages.AUTO:
            raise InputError("--language is a code here, such as de")
        if self.text is not None and not self.text.strip():
            raise InputError("--text is empty: give some words")
        if not self.stream and (self.hops, self.first_steps, self.voice_seconds) != (None,) * 3:
            raise InputError("--hops, --first-steps and --voice-seconds are for --stream")
        hops_options.hop_schedule(HopSchedule(), self.hops, self.first_steps)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How the report is printed, and where it is written."""

    as_json: options.AsJson = False
    wide: Annotated[bool, typer.Option("--wide", help="Print all figures, one per line.")] = False
    report_file: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="Write the report as JSON.")
    ] = None
    csv_file: Annotated[Optional[Path], typer.Option("--csv", help="Write the rows as CSV.")] = None
    markdown_file: Annotated[
        Optional[Path], typer.Option("--markdown", help="Write the table as Markdown.")
    ] = None
    plot: Annotated[Optional[Path], typer.Option(help="Draw a chart: .png or .svg.")] = None

    def check(self) -> None:
        """Raise InputError or OutputError for files that cannot be written."""
        if self.plot:
            chart.check(self.plot)
        for file in (self.report_file, self.csv_file, self.markdown_file, self.plot):
            if file:
                audio_files.check_writable(str(file))

    def write(self, measured: Mapping[str, Any]) -> None:
        """Write the report in every requested format."""
        formats = (
            (self.report_file, json.dumps(measured, indent=1)),
            (self.csv_file, report.csv_text(measured)),
            (self.markdown_file, report.markdown(measured)),
        )
        for target, content in formats:
            if target:
                with atomic_file.atomic_write(target) as part:
                    part.write_text(content.rstrip("\n") + "\n", encoding="utf-8")
        if self.plot:
            chart.draw(measured, self.plot)

    def show(self, measured: Mapping[str, Any]) -> None:
        """Print the machine and the rows."""
        for line in report.machine_lines(measured):
            tables.paragraph(line)
        paths = None if self.wide else report.main_columns(measured)
        blocks = [report.cells(measured, paths)]
        if self.wide or not tables.fits(*blocks[0]):
            blocks = report.blocks(measured, tables.width(), paths)
        for i, block in enumerate(blocks):
            if i:
                print()
            console.table(*block)


@options.with_groups
def bench(
    measuring: MeasuringOptions,
    output: ReportOptions,
    earlier: Annotated[
        Optional[Path],
        typer.Option("--from", help="Show this report of --output; nothing is measured."),
    ] = None,
    compare: Annotated[
        Optional[Path], typer.Option(help="An older report; exit 1 if a figure got worse.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="How much worse a figure may be.")] = 0.1,
) -> None:
    """Measure this machine, or show an earlier report."""
    if not tolerance >= 0:  # nor if it is not a number
        raise InputError(f"--tolerance is {tolerance:g}; give a value from 0")
    old = report.read(compare) if compare else None
    output.check()
    measuring.check()
    measured = report.read(earlier) if earlier else _measure(measuring)
    report.check(measured)
    output.write(measured)
    lines, worse = report.compare(measured, old, tolerance) if old else ([], False)
    if output.as_json:
        compared = [dict(zip(report.COMPARISON, line, strict=True)) for line in lines]
        console.print_json(measured | ({"comparison": compared} if old else {}))
    else:
        output.show(measured)
        if old:
            console.table(report.COMPARISON, lines)
    raise typer.Exit(1 if worse else 0)


def _measure(measuring: MeasuringOptions) -> dict[str, Any]:
    reporter = console.Reporter()
    console.show_log(reporter)
    silence_dependencies()
    os.environ.setdefault("TQDM_DISABLE", "1")  # upstream's own bars, in the rows' processes
    reporter.step("importing PyTorch")
    measure = _measure_streams if measuring.stream else _measure_rows
    return measure(measuring, reporter.status)


def _measure_rows(
    measuring: MeasuringOptions, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    from chatterbox_opt.bench import runner, timing

    quick, model, flow = measuring.quick, measuring.model, measuring.flow
    with_flow = runner.has_flow_row(model, flow)
    rows = runner.choose_rows(
        measuring.rows, measuring.profile or [], measuring.device, tiny=quick, flow=with_flow
    )
    runs = measuring.runs or RUNS
    with (
        runner.weights(model, tiny=quick, on_progress=on_progress) as directory,
        runner.flow_weights(directory, flow, rows, on_progress) as flow_directory,
    ):
        seconds = min(measuring.seconds, 2.0) if quick else measuring.seconds
        job = timing.BenchJob(
            directory,
            measuring.device,
            measuring.text or timing.SENTENCE,
            timing.forced_tokens(seconds),
            min(runs, 2) if quick else runs,
            measuring.language,
            flow_directory,
            cold=measuring.cold,
        )
        return runner.measure(job, rows, on_progress)


def _measure_streams(
    measuring: MeasuringOptions, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    from chatterbox_opt.bench import runner, streaming

    [profile] = measuring.profile or [hardware.AUTO]
    runs = measuring.runs or STREAM_RUNS
    if profile != hardware.AUTO:
        load_profile(profile)  # an unknown one is an error before weights are made
    with runner.weights(
        measuring.model, tiny=measuring.quick, on_progress=on_progress
    ) as directory:
        text = measuring.text or streaming.TEXT
        job = streaming.StreamJob(
            str(directory),
            measuring.device,
            profile,
            text,
            runs,
            schedule=lambda default: hops_options.hop_schedule(
                default, measuring.hops, measuring.first_steps
            ),
            voice_seconds=measuring.voice_seconds,
            seconds=measuring.seconds,
        )
        if measuring.quick:
            seconds = min(measuring.seconds, 2.0)
            job = replace(job, runs=min(runs, 2), streams=(1, 2), rates=(100,), seconds=seconds)
        return streaming.measure(job, on_progress)
