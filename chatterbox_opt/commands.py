"""The small commands: voices, models, profiles, doctor. Parse, call, print.

Knows options and tables. Heavy imports live inside the commands.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Optional

import typer

from chatterbox_opt import (
    audio,
    chart,
    console,
    hardware,
    models,
    options,
    plan,
    report,
    weight_cache,
)
from chatterbox_opt import files as files_
from chatterbox_opt.errors import InputError
from chatterbox_opt.profile import load_profile, profile_names
from chatterbox_opt.shapes import read_shapes

voices = typer.Typer(help="Name voices, so that --voice anna works.", no_args_is_help=True)
models_app = typer.Typer(
    help="List models, make a random one, forget conversions.",
    no_args_is_help=True,
)
profiles = typer.Typer(help="Show hardware profiles, or what was detected here.")


@voices.command("list")
def voices_list(voice_cache: options.Store = None) -> None:
    """List saved voices, and those that come with a model."""
    store = options.store_at(voice_cache)
    rows = [(name, str(path)) for name, path in store.names().items()]
    for model in models.BUILT_IN:
        rows += [(name, f"comes with --model {model}") for name in models.shipped_voices(model)]
    console.table(("voice", "recording"), rows)
    print(f"{store.computed()} computed in {store.directory}", file=sys.stderr)


@voices.command("add")
def voices_add(name: str, file: Path, voice_cache: options.Store = None) -> None:
    """Save a recording under a name (a copy; an older one of that name is replaced)."""
    audio.read_reference(file)
    print(f"{name} -> {options.store_at(voice_cache).add(name, file)}", file=sys.stderr)


@voices.command("remove")
def voices_remove(name: str, voice_cache: options.Store = None) -> None:
    """Forget a saved voice."""
    options.store_at(voice_cache).remove(name)


@voices.command("clear")
def voices_clear(
    voice_cache: options.Store = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget all saved and computed voices."""
    store = options.store_at(voice_cache)
    if not yes and not sys.stdin.isatty():
        raise InputError("nobody is here to ask; say --yes to forget all voices")
    if not yes and not typer.confirm(f"Forget all voices in {store.directory}?", err=True):
        raise typer.Exit(1)
    print(f"{store.clear()} files removed from {store.directory}", file=sys.stderr)


@models_app.command("list")
def models_list() -> None:
    """List known models and where they are."""
    rows = []
    for name, origin in models.available().items():
        here = models.in_cache(models.HUB[name]) if name in models.HUB else models.built_in(name)
        rows.append((name, origin, str(here) if here else "not downloaded yet"))
    console.table(("model", "from", "here"), rows)


@models_app.command("clear")
def models_clear() -> None:
    """Forget converted weights, which the next start converts again; downloads stay."""
    cache = weight_cache.default()
    where = cache.directory or "nowhere"
    print(f"{cache.clear() >> 20:,} MiB removed from {where}", file=sys.stderr)


@models_app.command("make")
def models_make(
    directory: Path,
    size: Annotated[
        str, typer.Option(help="tiny (11 MB, for tests) or full (3 GB, true shapes).")
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same values.")] = 0,
) -> None:
    """Write a checkpoint of random values in upstream's file format: noise, at true speed."""
    if size not in ("tiny", "full"):
        raise InputError(f"size is '{size}'; known: tiny, full")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"'{directory}' is a file; give a directory")
    if any((directory / n).exists() for n in models.FILES) and not read_shapes(directory).made:
        raise InputError(f"'{directory}' holds weights that were not made here; give another")
    warnings.simplefilter("ignore")
    from chatterbox_opt.random_weights import make

    make(directory, size, seed)
    print(f"made {size} weights of random values in {directory}: they speak noise", file=sys.stderr)


@profiles.callback(invoke_without_command=True)
def profiles_root(context: typer.Context) -> None:
    """Show hardware profiles, or what was detected here."""
    if context.invoked_subcommand is None:
        profiles_list()


@profiles.command("list")
def profiles_list() -> None:
    """List the shipped profiles."""
    found = [load_profile(name) for name in profile_names()]
    console.table(
        ("profile", "t3", "flow", "compute", "compile", "offload", "for"),
        (
            (p.name, p.t3, p.flow, p.compute or "same", p.compile, p.offload, p.description)
            for p in found
        ),
    )


@profiles.command("show")
def profiles_show(name: str) -> None:
    """Show one profile, shipped or your own (.yaml)."""
    found = dataclasses.asdict(load_profile(name))
    console.table(("key", "value"), ((key, str(value)) for key, value in found.items()))


@profiles.command("detect")
def profiles_detect(
    device: Annotated[str, typer.Option(help=", ".join(hardware.DEVICES))] = hardware.AUTO,
) -> None:
    """Look at this machine and say which profile auto takes, and why."""
    how = plan.resolve(hardware.AUTO, hardware.probe(device))
    rows = [
        (f.name, str(getattr(how, f.name))) for f in dataclasses.fields(how) if f.name != "reasons"
    ]
    console.table(("key", "value"), [*rows, *(("reason", reason) for reason in how.reasons)])


def doctor(voice_cache: options.Store = None) -> None:
    """Say what was found here, and what to mend."""
    from chatterbox_opt.doctor import examine

    findings = examine(options.store_at(voice_cache))
    console.table(
        ("what", "state", "found", "remedy"),
        ((f.what, "ok" if f.good else "MEND", f.found, f.remedy) for f in findings),
    )
    raise typer.Exit(0 if all(f.good for f in findings) else 1)


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
        audio.check_writable(str(file))
    if not (0 < seconds <= 100 and 1 <= runs <= 100):
        raise InputError("give --seconds from above 0 to 100 and --runs from 1 to 100")
    talk = console.Talk()
    console.be_quiet()
    os.environ.setdefault("TQDM_DISABLE", "1")  # upstream's own bars, in the rows' processes
    from chatterbox_opt import bench, subjects

    chosen = bench.choose_rows(rows, profile or [], device, tiny=quick)
    with bench.weights(model, tiny=quick, say=talk.say) as directory:
        job = subjects.Job(
            str(directory),
            device,
            words or subjects.SENTENCE,
            subjects.forced_tokens(min(seconds, 2.0) if quick else seconds),
            min(runs, 2) if quick else runs,
            cold,
        )
        measured = bench.measure(job, chosen, talk.say)
    for line in report.card_lines(measured):
        print(line)
    console.table(*report.cells(measured))
    forms = (json.dumps(measured, indent=1), report.csv_text(measured), report.markdown(measured))
    for target, content in zip((json_file, csv_file, markdown_file), forms, strict=True):
        if target:
            with files_.whole_file(target) as part:
                part.write_text(content + "\n" * (not content.endswith("\n")), encoding="utf-8")
    if plot:
        chart.draw(measured, plot)
    if old:
        lines, worse = report.compare(measured, old, tolerance)
        console.table(("row", "figure", "old", "new", "change", ""), lines)
        raise typer.Exit(1 if worse else 0)
