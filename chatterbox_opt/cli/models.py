"""The commands ``models``: known models, random checkpoints, the weight cache.

Responsible for their options and output. Not responsible for files or downloads (checkpoints/).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from chatterbox_opt.checkpoints import hub, registry, weight_cache
from chatterbox_opt.cli import console, options, tables
from chatterbox_opt.config.model_config import read_config
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.printable import printable

models = typer.Typer(help="List models, make a random one, clear the weight cache.")


@models.callback(invoke_without_command=True)
def models_root(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List models, make a random one, clear the weight cache."""
    options.list_by_default(context, models_list, as_json=as_json)


@models.command("list")
def models_list(
    as_json: options.AsJson = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="List the files with their size and SHA-256."),
    ] = False,
) -> None:
    """List known models and where they are."""
    found = [(name, origin, _location(name)) for name, origin in registry.available().items()]
    if as_json:
        entries: list[dict[str, Any]] = []
        for name, origin, path in found:
            entry = {"model": name, "source": origin, "location": path and str(path)}
            more = {"revision": _revision(name), "files": _files(name, path)} if verbose else {}
            entries.append({**entry, **more})
        console.print_json(entries)
        return
    rows = [
        (name, origin, tables.short_path(path) if path else "not downloaded yet")
        for name, origin, path in found
    ]
    console.table(("model", "source", "location"), rows)
    if not verbose:
        return
    for name, _, path in found:
        revision = _revision(name)
        print(f"\n{name}" + (f" at {revision}" if revision else ""))
        for file in _files(name, path):
            size = f"{file['size']:,} bytes" if file["size"] is not None else "absent"
            print(f"  {file['name']:<20} {size:>20}  {file['state']}")
            print(f"    {file['sha256'] or ''}".rstrip())


def _revision(name: str) -> str | None:
    snapshot = registry.on_hub(name)
    return snapshot.revision if snapshot else None


def _files(name: str, directory: Path | None) -> list[dict[str, Any]]:
    """Name, size, SHA-256 and state of a model's files; of those that are not here, the pinned."""
    snapshot = registry.on_hub(name)
    pins = snapshot.pins if snapshot else {}
    files: list[dict[str, Any]] = []
    for file in registry.FILES:
        pin = pins.get(file)
        path = directory / file if directory else None
        if path is None or not path.is_file():
            size, digest, state = (pin.size, pin.sha256, "to download") if pin else (None,) * 3
        else:
            size, digest = path.stat().st_size, hub.sha256(path)
            state = _state(pin, digest)
        files.append({"name": file, "size": size, "sha256": digest, "state": state})
    return files


def _state(pin: hub.Pin | None, digest: str) -> str:
    if pin is None:
        return "present"
    return "as released" if digest == pin.sha256 else "NOT as released"


def _location(name: str) -> Path | None:
    snapshot = registry.on_hub(name)
    return hub.in_cache(snapshot) if snapshot else registry.built_in(name)


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
    size: Annotated[
        str, typer.Option(help="tiny (11 MB, for tests) or full (3 GB, true shapes).")
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same values.")] = 0,
) -> None:
    """Write random weights in upstream's format.

    They are for speed tests: the output is noise.
    """
    if size not in ("tiny", "full"):
        raise InputError(f"size is '{size}'; known: tiny, full")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"'{directory}' is a file; pass a directory")
    if (
        any((directory / n).exists() for n in registry.FILES)
        and not read_config(directory).random_weights
    ):
        raise InputError(f"'{directory}' holds weights of another origin; choose another directory")
    warnings.simplefilter("ignore")
    from chatterbox_opt.checkpoints.random_weights import make

    with console.Reporter().waiting(f"making {size} random weights"):
        make(directory, size, seed)
    print(
        printable(f"made {size} weights of random values in {directory}: their output is noise"),
        file=sys.stderr,
    )
