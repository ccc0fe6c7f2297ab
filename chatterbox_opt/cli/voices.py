"""The commands ``voices``: saved recordings with names, and computed voices.

Responsible for their options and output. Not responsible for storing voices (voices/store.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio import recordings
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli import options
from chatterbox_opt.cli.terminal import console
from chatterbox_opt.errors import InputError, OutputError, VoiceError
from chatterbox_opt.utils.printable import printable
from chatterbox_opt.voices.store import VoiceStore

voices = typer.Typer(help="Name voices, so that --voice anna works.", no_args_is_help=True)


@voices.command("list")
def voices_list(voice_cache: options.VoiceCache = None, as_json: options.AsJson = False) -> None:
    """List saved voices, and those that come with a model."""
    store, built_in = _store(voice_cache), _built_in()
    saved = store.names()
    if as_json:
        rows = [{"name": name, "kind": "saved", "path": str(p)} for name, p in saved.items()]
        rows += [{"name": n, "kind": "built-in", "model": model} for n, model in built_in.items()]
        print(json.dumps(rows, indent=2))
        return
    hidden = {name: f" (hides the voice of {built_in[name]})" for name in saved if name in built_in}
    table = [(name, f"{path}{hidden.get(name, '')}") for name, path in saved.items()]
    table += [(name, f"comes with --model {model}") for name, model in built_in.items()]
    console.table(("voice", "recording"), table)
    _say(f"{store.computed()} computed in {store.directory}")


@voices.command("add")
def voices_add(
    name: str, file: Path, voice_cache: options.VoiceCache = None, as_json: options.AsJson = False
) -> None:
    """Save a copy of a recording under a name, replacing an earlier one."""
    store, built_in = _store(voice_cache), _built_in()
    if name in built_in:
        raise VoiceError(
            f"'{name}' is a voice of --model {built_in[name]}, which the saved one would hide; "
            f"choose another name, such as {name}-2"
        )
    with recordings.regular_file(file) as recording:
        audio_files.read_reference(recording, str(file))
        try:
            target = store.add(name, recording)
        except OSError as error:
            raise OutputError(
                f"'{name}' was not saved in {store.saved_directory} ({error.strerror}): "
                "check the free space and the permissions, or set CHATTERBOX_VOICES"
            ) from error
    _report({"name": name, "path": str(target)}, f"{name} -> {target}", as_json=as_json)


@voices.command("remove")
def voices_remove(
    name: str, voice_cache: options.VoiceCache = None, as_json: options.AsJson = False
) -> None:
    """Delete a saved voice."""
    if name in (built_in := _built_in()) and name not in _store(voice_cache).names():
        raise VoiceError(f"'{name}' comes with --model {built_in[name]}; it cannot be removed")
    path = _store(voice_cache).remove(name)
    _report({"name": name, "path": str(path)}, f"removed {name} ({path})", as_json=as_json)


@voices.command("clear")
def voices_clear(
    voice_cache: options.VoiceCache = None,
    saved: Annotated[
        bool, typer.Option("--saved", help="Delete the saved recordings too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete all computed voices; with --saved also the saved recordings."""
    store = _store(voice_cache)
    if not yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise InputError(
            "stdin is not a terminal; pass --yes to delete all voices without confirmation"
        )
    names = store.names()
    _confirm(f"Delete {store.computed()} computed voices in {store.directory}?", yes=yes)
    _say(f"{store.clear()} computed voices removed from {store.directory}")
    where = store.saved_directory
    if not saved and names:
        _say(f"{len(names)} saved voices kept in {where}; --saved deletes them")
    if saved and names:
        lost = ", ".join(names)
        _confirm(f"Delete the saved recordings in {where} too ({lost})?", yes=yes)
        _say(f"{store.clear_saved()} saved voices removed from {where}")


def _store(voice_cache: Path | None) -> VoiceStore:
    console.show_log(console.Reporter())
    return options.voice_store_at(voice_cache)


def _built_in() -> dict[str, str]:
    """Names of the voices that come with a model, and its name."""
    return {n: model for model in registry.BUILT_IN for n in registry.shipped_voices(model)}


def _confirm(question: str, *, yes: bool) -> None:
    if not yes and not typer.confirm(printable(question), err=True):
        raise typer.Exit(1)


def _report(result: dict[str, str], line: str, *, as_json: bool) -> None:
    """Print a JSON object to standard output, or a line to stderr."""
    if as_json:
        print(json.dumps(result))
    else:
        _say(line)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)
