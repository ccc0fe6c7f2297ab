"""Voices by the names that clients send; never a path.

Responsible for which names there are, and for uploads. Not responsible for computing a voice
(chatterbox_opt/voices).
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio import recordings
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError, TextError, VoiceError
from chatterbox_opt.script.cast import Cast, Member
from chatterbox_opt.script.reader import read
from chatterbox_opt.server.errors import StorageError
from chatterbox_opt.voices import saved_voices

OWN = "default"  # the name of a model's own voice
MAX_SILENCE = 120.0  # seconds of all pauses in a client's text
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,9}")


def voice_names(spec: EngineSpec) -> dict[str, Path | None]:
    """Names of a model's voices: its own, those that come with it, saved ones; with their files."""
    own: dict[str, Path | None] = {OWN: None}
    return own | dict(registry.shipped_voices(spec.model)) | dict(spec.store.names())


def find_voice(names: Mapping[str, Path | None], name: str | None) -> tuple[Path | None, bool]:
    """The file of a voice, None for the model's own, and whether the name is known.

    "Anna" and "anna.wav" are anna: some clients show file names, others capitals.

    Args:
        names: from ``voice_names``, which reads directories.
    """
    if not name:
        return None, True
    folded = {known.casefold(): path for known, path in names.items()}
    for wanted in (name, name.casefold(), Path(name).stem.casefold()):
        for known in (names, folded):
            if wanted in known:
                return known[wanted], True
    return None, False


def cast_of(spec: EngineSpec, text: str, language: str | None) -> Cast:
    """The voices that a text's markup names: those of a client's choice, never a path.

    Args:
        language: of the text; None: English.

    Raises:
        TextError: wrong markup, or more silence than ``MAX_SILENCE``.
        VoiceError: there is no voice of a name.
    """
    script = read(text, markup=True, language=language)
    if script.seconds > MAX_SILENCE:
        raise TextError(f"the pauses add up to more than {MAX_SILENCE:g}s: make them shorter")
    members, names = [], voice_names(spec)
    for name in script.voices:
        path, is_known = find_voice(names, name)
        if not is_known:
            known = ", ".join(names)
            raise VoiceError(f"there is no voice '{name}' for the markup; known: {known}")
        members.append(Member(name, None if path is None else str(path)))
    return Cast(tuple(members), dialogue=False)


def add_voice(spec: EngineSpec, name: str, file_name: str, content: BinaryIO) -> None:
    """Save an uploaded recording.

    Args:
        name: of the voice.
        file_name: of the recording, as the client calls it; only its extension is used.

    Raises:
        VoiceError: an impossible or taken name; not a recording that can be used.
        StorageError: the disk is full, or cannot be written to; nothing is left on it.
    """
    if not saved_voices.NAME.fullmatch(name):
        raise VoiceError(f"'{name}' is not a valid voice name; use letters, digits, - and _")
    if name.casefold() in {known.casefold() for known in voice_names(spec)}:
        raise VoiceError(f"there is a voice '{name}'; delete it first, or choose another name")
    try:
        with tempfile.TemporaryDirectory() as directory:
            suffix = Path(file_name).suffix
            part = Path(directory) / f"voice{suffix if SUFFIX.fullmatch(suffix) else ''}"
            with part.open("wb") as target:
                shutil.copyfileobj(content, target)
            _check(part, file_name)
            spec.store.add(name, part)
    except OSError as error:
        raise StorageError(error) from error


def _check(part: Path, file_name: str) -> None:
    try:
        with recordings.regular_file(part) as recording:
            audio_files.read_reference(recording, file_name)
    except VoiceError as error:
        raise VoiceError(str(error).replace(str(part), file_name)) from error


def remove_voice(spec: EngineSpec, name: str) -> None:
    """Delete a saved voice.

    Raises:
        InputError: it comes with the model.
        VoiceError: there is no such voice.
    """
    saved: Mapping[str, Path] = spec.store.names()
    if name not in saved:
        if name in voice_names(spec):
            raise InputError(f"'{name}' comes with the model; it cannot be deleted")
        raise VoiceError(f"there is no voice '{name}'")
    spec.store.remove(name)
