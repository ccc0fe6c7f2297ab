"""The small commands: voices, models, profiles, doctor. Parse, call, print.

Knows options and tables. Heavy imports live inside the commands.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.bench import chart, report
from chatterbox_opt.cli import console
from chatterbox_opt.config import hardware
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils import atomic_file


def bench(
    model: Annotated[
        Optional[str],
        typer.Option(help="A model; else the real weights, or random ones."),
    ] = None,
    rows: Annotated[
        Optional[str], typer.Option(help="Comma-separated: upstream, float32, bfloat16, ...")
    ] = None,
    profile: Annotated[
        Optional[list[str]], typer.Option(help="One more row: a profile; may be given again.")
    ] = None,
    device: Annotated[str, typer.Option(help=", ".join(hardware.DEVICES))] = hardware.AUTO,
    seconds: Annotated[float, typer.Option(help="Sound that every row makes.")] = 5.0,
    runs: Annotated[int, typer.Option(help="Measured runs of each row, after a warm-up.")] = 3,
    words: Annotated[Optional[str], typer.Option("--text", help="The text of the prefill.")] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Time whole processes too, from start to wav.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny random weights: a trial.")] = False,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the report.")] = None,
    csv_file: Annotated[Optional[Path], typer.Option("--csv", help="Write the rows.")] = None,
    markdown_file: Annotated[
        Optional[Path], typer.Option("--markdown", help="Write the table.")
    ] = None,
    plot: Annotated[Optional[Path], typer.Option(help="Draw a chart: .png or .svg.")] = None,
    compare: Annotated[Optional[Path], typer.Option(help="An older --json report.")] = None,
    tolerance: Annotated[float, typer.Option(help="How much worse a figure may be.")] = 0.1,
) -> None:
    """Measure this machine: plain Chatterbox, and each of our configurations beside it."""
    old = report.read(compare) if compare else None
    files = [file for file in (json_file, csv_file, markdown_file, plot) if file]
    if plot:
        chart.check(plot)
    for file in files:
        audio_files.check_writable(str(file))
    if not (0 < seconds <= 100 and 1 <= runs <= 100):
        raise InputError("give --seconds from above 0 to 100 and --runs from 1 to 100")
    talk = console.Reporter()
    console.be_quiet()
    os.environ.setdefault("TQDM_DISABLE", "1")  # upstream's own bars, in the rows' processes
    from chatterbox_opt.bench import backends
    from chatterbox_opt.bench import runner as bench_runner

    chosen = bench_runner.choose_rows(rows, profile or [], device, tiny=quick)
    with bench_runner.weights(model, tiny=quick, on_progress=talk.say) as directory:
        job = backends.BenchJob(
            str(directory),
            device,
            words or backends.SENTENCE,
            backends.forced_tokens(min(seconds, 2.0) if quick else seconds),
            min(runs, 2) if quick else runs,
            cold,
        )
        measured = bench_runner.measure(job, chosen, talk.say)
    for line in report.machine_lines(measured):
        print(line)
    console.table(*report.cells(measured))
    forms = (json.dumps(measured, indent=1), report.csv_text(measured), report.markdown(measured))
    for target, content in zip((json_file, csv_file, markdown_file), forms, strict=True):
        if target:
            with atomic_file.atomic_write(target) as part:
                part.write_text(content + "\n" * (not content.endswith("\n")), encoding="utf-8")
    if plot:
        chart.draw(measured, plot)
    if old:
        lines, worse = report.compare(measured, old, tolerance)
        console.table(("row", "figure", "old", "new", "change", ""), lines)
        raise typer.Exit(1 if worse else 0)
