"""Turns recordings and voice names into Voices; each is computed once.

Responsible for the voices of one model: its own, those that come with it, and new recordings, with
a cache in memory over the one on disk (voices/store.py). Not responsible for engines or requests.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chatterbox_opt import voice as voice_module
from chatterbox_opt.audio.files import check_reference, decode_reference
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.reader import Tensors, fill
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.models.voice_encoders import Encoders
from chatterbox_opt.utils.skip_init import skip_init
from chatterbox_opt.utils.steps import announce
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices.store import VoiceStore, content_key

MAX_CACHED = 64  # Voices in memory, about 200 KB each; the store holds all of them


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that a Voice is read or computed from.

    Attributes:
        kind: "own" is the checkpoint's conds.pt, "shipped" a named voice that comes with it,
            "recording" an audio file.
        key: identifies the Voice in the caches.
    """

    kind: Literal["own", "shipped", "recording"]
    path: Path
    key: str


class VoiceLibrary:
    """The voices that are available to one model."""

    def __init__(self, checkpoint: Checkpoint, store: VoiceStore) -> None:
        self._checkpoint, self._store = checkpoint, store
        self._cached: dict[str, Voice] = {}
        self._lock = threading.Lock()  # a voice that two threads need is computed once

    def clear(self) -> None:
        """Drop the Voices in memory; the store keeps its own."""
        self._cached.clear()

    def voice(self, source: str | os.PathLike[str] | None = None) -> Voice:
        """Return a Voice: computed the first time a recording is used, cached afterwards.

        Args:
            source: an audio file, a name saved with ``chatterbox-opt voices add``, the name of a
                voice that comes with the model, or None for the model's own voice.

        Raises:
            VoiceError: not found, not audio, too short, silent.
            InputError: None was passed and the model has no voice of its own.
        """
        located = self._locate(source)
        with self._lock:
            if located.key not in self._cached:
                if len(self._cached) >= MAX_CACHED:
                    del self._cached[next(iter(self._cached))]  # the oldest
                self._cached[located.key] = self._load(located)
            return self._cached[located.key]

    def _locate(self, source: str | os.PathLike[str] | None) -> _Source:
        if source is None:
            path = self._checkpoint.path(registry.CONDITIONALS)
            if not path.is_file():
                raise InputError(
                    f"'{self._checkpoint.name}' has no voice of its own; pass a reference "
                    "recording (--voice FILE on the command line)"
                )
            return _Source("own", path, registry.CONDITIONALS)
        shipped = self._checkpoint.voices()
        path = self._store.find(os.fspath(source), shipped)
        if path in shipped.values():
            return _Source("shipped", path, path.name)
        check_reference(path)  # before the whole file is hashed
        key = content_key(path, self._checkpoint.voice_identity)
        return _Source("recording", path, key)

    def _load(self, source: _Source) -> Voice:
        if source.kind == "own":
            return voice_module.from_conditionals(source.path)
        if source.kind == "shipped":
            return load_voice(source.path)
        return self._store.load(source.key) or self._encode(source)

    def _encode(self, source: _Source) -> Voice:
        announce(f"computing the voice of '{source.path.name}', once")
        wave = decode_reference(source.path)
        # the encoders run on the CPU and are freed here: 0.5 GB that a cached voice never needs
        encoders = load_encoders(self._checkpoint)
        voice = encoders.encode(wave, self._checkpoint.config.t3.prompt_tokens)
        self._store.save(source.key, voice)
        return voice


def load_encoders(checkpoint: Checkpoint) -> Encoders:
    """Load the encoders of a new voice in float32 (about 0.5 GB at full size)."""
    config = checkpoint.config
    with skip_init():
        encoders = Encoders(config.voice, config.t3.speaker)
    s3gen = Tensors(checkpoint.path(registry.S3GEN))
    voice_encoder = Tensors(checkpoint.path(registry.VOICE_ENCODER))
    known = set(encoders.voice_encoder.state_dict())
    if unknown := sorted(set(voice_encoder) - known):
        raise WeightsError(f"the voice encoder has an unknown tensor {unknown[0]}: wrong file?")
    parts = ("tokenizer.", "speaker_encoder.")
    tensors = {name: s3gen[name] for name in s3gen if name.startswith(parts)}
    tensors |= {f"voice_encoder.{name}": voice_encoder[name] for name in voice_encoder}
    fill(encoders, tensors, "the voice encoders")
    return encoders


def load_voice(path: Path) -> Voice:
    """Load a named voice that comes with a checkpoint; stored in fp16, returned in float32.

    Raises:
        WeightsError: damaged.
    """
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in Tensors(path).items()}
    try:
        return voice_module.from_tensors(tensors)
    except KeyError as error:
        raise WeightsError(f"{path} is not a voice ({error}): get it again") from error
