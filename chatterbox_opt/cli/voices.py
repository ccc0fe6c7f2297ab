"""The commands ``voices``: named reference recordings and computed voices.

Responsible for their options and output. Not responsible for storing voices (voices/store.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli import console, options
from chatterbox_opt.errors import InputError

voices = typer.Typer(help="Name voices, so that --voice anna works.", no_args_is_help=True)


@voices.command("list")
def voices_list(voice_cache: options.VoiceCache = None) -> None:
    """List saved voices, and those that come with a model."""
    store = options.voice_store_at(voice_cache)
    rows = [(name, str(path)) for name, path in store.names().items()]
    for model in registry.BUILT_IN:
        rows += [(name, f"comes with --model {model}") for name in registry.shipped_voices(model)]
    console.table(("voice", "recording"), rows)
    print(f"{store.computed()} computed in {store.directory}", file=sys.stderr)


@voices.command("add")
def voices_add(name: str, file: Path, voice_cache: options.VoiceCache = None) -> None:
    """Save a copy of a recording under a name, replacing an earlier one."""
    audio_files.read_reference(file)
    print(f"{name} -> {options.voice_store_at(voice_cache).add(name, file)}", file=sys.stderr)


@voices.command("remove")
def voices_remove(name: str, voice_cache: options.VoiceCache = None) -> None:
    """Delete a saved voice."""
    options.voice_store_at(voice_cache).remove(name)


@voices.command("clear")
def voices_clear(
    voice_cache: options.VoiceCache = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete all saved and computed voices."""
    store = options.voice_store_at(voice_cache)
    if not yes and not sys.stdin.isatty():
        raise InputError(
            "stdin is not a terminal; pass --yes to delete all voices without confirmation"
        )
    if not yes and not typer.confirm(f"Delete all voices in {store.directory}?", err=True):
        raise typer.Exit(1)
    print(f"{store.clear()} files removed from {store.directory}", file=sys.stderr)
