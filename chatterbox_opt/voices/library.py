"""Recordings and names to Voices, each computed once.

Knows the store, the model's own voices and the encoders. Knows nothing of engines or requests.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from chatterbox_opt import voice
from chatterbox_opt.audio.files import check_reference, read_reference
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.reader import Tensors, fill
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.models import voice_encoders
from chatterbox_opt.utils.skip_init import skip_init
from chatterbox_opt.voice import Voice, from_conditionals
from chatterbox_opt.voices import library as voice_library
from chatterbox_opt.voices import store as voice_store
from chatterbox_opt.voices.store import VoiceStore

KEPT = 64  # in memory, of some 200 KB each; the store has them all


class VoiceLibrary:
    """The voices that one model can speak with."""

    def __init__(self, checkpoint: Checkpoint, store: VoiceStore) -> None:
        self._checkpoint, self._store = checkpoint, store
        self._kept: dict[str, Voice] = {}

    def clear(self) -> None:
        """Forget what is in memory."""
        self._kept.clear()

    def voice(self, source: str | os.PathLike[str] | None = None) -> Voice:
        """Return a Voice: computed on first sight of a recording, from the cache afterwards.

        Args:
            source: an audio file, a name saved with ``chatterbox-opt voices add``, the name of a
                voice that comes with the model, or None for the model's own voice.

        Raises:
            VoiceError: not found, not audio, too short, silent.
        """
        path, key = self._found(source)
        if key not in self._kept:
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._read(path, key)
        return self._kept[key]

    def _found(self, source: str | os.PathLike[str] | None) -> tuple[Path, str]:
        """A file, and what its voice is kept under."""
        if source is None:
            path = self._checkpoint.path(registry.CONDITIONALS)
            if not path.is_file():
                raise InputError(
                    f"'{self._checkpoint.name}' has no voice of its own; give one with --voice"
                )
            return path, registry.CONDITIONALS
        shipped = self._checkpoint.voices()
        path = self._store.find(os.fspath(source), shipped)
        if path in shipped.values():
            return path, path.name
        check_reference(path)
        return path, voice_store.content_key(path, self._checkpoint.voice_identity)

    def _read(self, path: Path, key: str) -> Voice:
        if key == registry.CONDITIONALS:
            return from_conditionals(path)
        if key == path.name:
            return voice_library.load_voice(path)
        return self._store.load(key) or self._computed(path, key)

    def _computed(self, path: Path, key: str) -> Voice:
        wave = read_reference(path)
        # the encoders stay on the processor and go when done: 0.5 GB that a known voice never needs
        encoders = voice_library.load_encoders(self._checkpoint)
        voice = encoders.encode(wave, self._checkpoint.config.t3.prompt_tokens)
        self._store.save(key, voice)
        return voice


log = logging.getLogger(__name__)


def load_encoders(checkpoint: Checkpoint) -> voice_encoders.Encoders:
    """Read the encoders of a new voice in float32 (about 0.5 GB at the true shapes)."""
    config = checkpoint.config
    with skip_init():
        encoders = voice_encoders.Encoders(config.voice, config.t3.speaker)
    s3gen = Tensors(checkpoint.path(registry.S3GEN))
    reader = Tensors(checkpoint.path(registry.VOICE_ENCODER))
    known = set(encoders.voice_encoder.state_dict())
    if unknown := sorted(set(reader) - known):
        raise WeightsError(f"the voice encoder has an unknown tensor {unknown[0]}: wrong file?")
    parts = ("tokenizer.", "speaker_encoder.")
    named = {name: s3gen[name] for name in s3gen if name.startswith(parts)}
    fill(encoders, named | {f"voice_encoder.{n}": reader[n] for n in reader}, "the voice encoders")
    return encoders


def load_voice(path: Path) -> voice.Voice:
    """Read a named voice that comes with a checkpoint; stored in half precision, used in float32.

    Raises:
        WeightsError: damaged.
    """
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in Tensors(path).items()}
    try:
        return voice.from_tensors(tensors)
    except KeyError as error:
        raise WeightsError(f"{path} is not a voice ({error}): get it again") from error
