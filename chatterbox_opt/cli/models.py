"""The commands ``models``: known models, random checkpoints, the weight cache.

Responsible for their options and output. Not responsible for files or downloads (checkpoints/).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from chatterbox_opt.checkpoints import registry, weight_cache
from chatterbox_opt.cli import console
from chatterbox_opt.config.model_config import read_config
from chatterbox_opt.errors import InputError

models = typer.Typer(
    help="List models, make a random one, clear the weight cache.",
    no_args_is_help=True,
)


@models.command("list")
def models_list() -> None:
    """List known models and where they are."""
    rows = []
    for name, origin in registry.available().items():
        location = (
            registry.in_cache(registry.HUB[name])
            if name in registry.HUB
            else registry.built_in(name)
        )
        rows.append((name, origin, str(location) if location else "not downloaded yet"))
    console.table(("model", "source", "location"), rows)


@models.command("clear")
def models_clear() -> None:
    """Delete converted weights; the next start converts them again. Downloads are kept."""
    cache = weight_cache.default()
    where = cache.directory or "no directory"
    print(f"{cache.clear() >> 20:,} MiB removed from {where}", file=sys.stderr)


@models.command("make")
def models_make(
    directory: Path,
    size: Annotated[
        str, typer.Option(help="tiny (11 MB, for tests) or full (3 GB, true shapes).")
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same values.")] = 0,
) -> None:
    """Write random weights in upstream's file format: for speed tests, the output is noise."""
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

    make(directory, size, seed)
    print(
        f"made {size} weights of random values in {directory}: their output is noise",
        file=sys.stderr,
    )
