"""The commands ``models``: known models, downloads, random checkpoints, the weight cache.

Responsible for their options and output. Not responsible for files or downloads (checkpoints/).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt.checkpoints import families, hub, registry, weight_cache
from chatterbox_opt.cli import options
from chatterbox_opt.cli.options import OutputOptions, with_groups
from chatterbox_opt.cli.terminal import console, tables
from chatterbox_opt.config.config_file import CONFIG_FILE, is_random
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.printable import printable

SHOWN_LANGUAGES = 3  # more are counted
SIZES = ("tiny", "full")  # of random weights
UNPINNED = "not pinned: what the branch has when it is downloaded"
models = typer.Typer(help="List, download or make models; clear the weight cache.")


@models.callback(invoke_without_command=True)
def models_root(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List, download or make models; clear the weight cache."""
    options.list_by_default(context, models_list, as_json=as_json)


@models.command("list")
def models_list(
    as_json: options.AsJson = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="List license, revision, and files with SHA-256."),
    ] = False,
) -> None:
    """List known models, their sizes and languages, and where they are."""
    names = registry.available()
    if as_json:
        console.print_json([_entry(name, verbose=verbose) for name in names])
        return
    rows = [(name, _shown_size(name), _languages(name), _location(name)) for name in names]
    console.table(("model", "size", "languages", "location"), rows)
    if not verbose:
        return
    for name, source in names.items():
        revision = _revision(name)
        print(f"\n{name}" + (f" at {revision}" if revision else "") + f", {families.LICENSE}")
        print(f"  {source}" + ("" if _is_pinned(name) else f"\n  {UNPINNED}"))
        for file in _files(name):
            size = "size unknown" if file["size"] is None else f"{file['size']:,} bytes"
            print(f"  {file['name']:<20} {size:>20}  {file['state']}")
            print(f"    {file['sha256'] or ''}".rstrip())


def _entry(name: str, *, verbose: bool) -> dict[str, Any]:
    """What ``--json`` says of a model."""
    path, kind = registry.cached(name), registry.kind_named(name)
    entry: dict[str, Any] = {
        "model": name,
        "source": registry.available()[name],
        "location": path and str(path),
        "size": _size(name),
        "pinned": _is_pinned(name),
        "languages": list(kind.languages),
        "tags": list(kind.tags),
        "missing_knobs": list(kind.missing_knobs),
    }
    if verbose:
        revision, files = _revision(name), _files(name)
        entry |= {"license": families.LICENSE, "revision": revision, "files": files}
    return entry


def _location(name: str) -> str:
    if name in registry.BUILT_IN:
        return "built in"
    path = registry.cached(name)
    where = tables.short_path(path) if path else "not downloaded yet"
    return where if _is_pinned(name) else f"{where} (not pinned)"


def _is_pinned(name: str) -> bool:
    """Whether a commit says which files a known model has."""
    return _revision(name) != hub.MAIN


def _languages(name: str) -> str:
    codes = registry.kind_named(name).languages
    return " ".join(codes) if len(codes) <= SHOWN_LANGUAGES else f"{len(codes)} languages"


def _shown_size(name: str) -> str:
    size = _size(name)
    if size is None:
        return "unknown"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _size(name: str) -> int | None:
    """Bytes of a model's files, here or to download, if known."""
    sizes = [_bytes(path, pin) for _, path, pin in _places(name)]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _bytes(path: Path | None, pin: hub.Pin | None) -> int | None:
    return path.stat().st_size if path else pin.size if pin else None


def _revision(name: str) -> str | None:
    snapshot = registry.on_hub(name)
    return snapshot.revision if snapshot else None


def _places(name: str) -> Iterator[tuple[str, Path | None, hub.Pin | None]]:
    """A known model's files: name, path if it is here, what it must be."""
    snapshots = registry.snapshots(name)
    for snapshot in snapshots:
        directory = hub.in_cache(snapshot)
        for file in snapshot.files:
            yield file, directory and directory / file, snapshot.pins.get(file)
    for file in registry.kind_named(name).files if not snapshots else ():
        path = registry.built_in(name) / file
        yield file, path if path.is_file() else None, None


def _files(name: str) -> list[dict[str, Any]]:
    """Name, size, SHA-256 and state of a model's files; of those that are not here, the pinned."""
    files: list[dict[str, Any]] = []
    for file, path, pin in _places(name):
        digest = hub.sha256(path) if path else pin.sha256 if pin else None
        state = _state(pin, digest) if path else "to download"
        files.append({"name": file, "size": _bytes(path, pin), "sha256": digest, "state": state})
    return files


def _state(pin: hub.Pin | None, digest: str | None) -> str:
    if pin is None:
        return "present"
    return "as released" if digest == pin.sha256 else "NOT as released"


@models.command("get")
@with_groups
def models_get(
    name: Annotated[str, typer.Argument(help="Name of a model; models list has them.")],
    output: OutputOptions,
    revision: Annotated[
        Optional[str],
        typer.Option(help="Commit, branch or tag, in place of the tested one."),
    ] = None,
) -> None:
    """Download a model, with a progress bar, and print where it is.

    What is here already is not downloaded again.
    """
    reporter = output.reporter()
    output.set_up_logging(reporter)
    model = registry.at_revision(name, revision)
    for snapshot in registry.snapshots(model):
        options.announce_snapshot(snapshot, reporter)
    print(printable(str(registry.download(model))))


@models.command("clear")
def models_clear() -> None:
    """Delete converted weights.

    The next start converts them again. Downloads are kept.
    """
    cache = weight_cache.default()
    where = cache.directory or "no directory"
    print(printable(f"{cache.clear() >> 20:,} MiB removed from {where}"), file=sys.stderr)


@models.command("make")
def models_make(
    directory: Path,
    kind: Annotated[
        str, typer.Option(help=f"One of {', '.join(families.RANDOM_KINDS)}.")
    ] = families.DEFAULT,
    size: Annotated[
        str, typer.Option(help="tiny (11 MB, for tests) or full (2 to 3 GB, true shapes).")
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same values.")] = 0,
) -> None:
    """Write random weights in upstream's format.

    They are for speed tests: the output is noise.
    """
    if kind not in families.RANDOM_KINDS:
        raise InputError(f"kind is '{kind}'; known: {', '.join(families.RANDOM_KINDS)}")
    if size not in SIZES:
        raise InputError(f"size is '{size}'; known: {', '.join(SIZES)}")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"'{directory}' is a file; pass a directory")
    holds_model = any((directory / name).exists() for name in (*families.ALL_FILES, CONFIG_FILE))
    if holds_model and not is_random(directory):
        raise InputError(f"'{directory}' holds a model of another origin; choose another directory")
    warnings.simplefilter("ignore")
    from chatterbox_opt.checkpoints.random_weights import make

    with console.Reporter().waiting(f"making {size} random weights"):
        make(directory, size, seed, kind)
    print(
        printable(f"made {size} weights of random values in {directory}: their output is noise"),
        file=sys.stderr,
    )
