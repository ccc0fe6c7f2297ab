"""Turns recordings and voice names into Voices; each is computed once.

Responsible for the voices of one model: its own, those that come with it, and new recordings, with
a cache in memory over the one on disk (voices/store.py). Not responsible for engines or requests.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from chatterbox_opt import voice as voice_module
from chatterbox_opt.audio import recordings
from chatterbox_opt.audio.files import decode_reference
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.reader import Tensors, fill
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.models.speech_tokenizer import SpeechTokenizer
from chatterbox_opt.models.voice_encoders import Encoders
from chatterbox_opt.runtime.own_thread import in_own_thread
from chatterbox_opt.utils.skip_init import skip_init
from chatterbox_opt.utils.steps import announce
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices.store import VoiceStore, content_key

log = logging.getLogger(__name__)

MAX_CACHED = 64  # Voices in memory, about 200 KB each; the store holds all of them


class VoiceLibrary:
    """The voices that are available to one model."""

    def __init__(self, checkpoint: Checkpoint, store: VoiceStore) -> None:
        self._checkpoint, self._store = checkpoint, store
        self._cached: dict[str, Voice] = {}
        self._looking_up = threading.Lock()  # never held while something is loaded or computed
        # by key: a voice that two threads need is computed once
        self._making: dict[str, threading.Lock] = {}
        self._encoding = threading.Lock()  # one recording at a time: the encoders have 0.5 GB

    def clear(self) -> None:
        """Drop the Voices in memory; the store keeps its own."""
        with self._looking_up:
            self._cached.clear()

    def voice(self, source: str | os.PathLike[str] | None = None) -> Voice:
        """Return a Voice: computed the first time a recording is used, cached afterwards.

        Args:
            source: an audio file or a pipe, a name saved with ``chatterbox-opt voices add``, the
                name of a voice that comes with the model, or None for the model's own voice.

        Raises:
            VoiceError: not found, not audio, too short, silent; see ``audio.files``.
            InputError: None was passed and the model has no voice of its own.
        """
        if source is None:
            return self._once(registry.CONDITIONALS, self._own)
        shipped = self._checkpoint.voices()
        path = self._store.find(os.fspath(source), shipped)
        if path in shipped.values():
            return self._once(path.name, lambda: self._fitting(load_voice(path), path))
        with recordings.regular_file(path) as file:
            key = content_key(file, self._checkpoint.voice_identity)
            return self._once(key, lambda: self._recorded(file, key, path))

    def _once(self, key: str, load: Callable[[], Voice]) -> Voice:
        """The Voice in memory; loaded the first time, for which only those wait who need it."""
        with self._looking_up:
            if (voice := self._cached.get(key)) is not None:
                return voice
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._looking_up:
                voice = self._cached.get(key)
            try:
                return voice or self._kept(key, load())
            finally:
                with self._looking_up:
                    self._making.pop(key, None)

    def _kept(self, key: str, voice: Voice) -> Voice:
        with self._looking_up:
            if len(self._cached) >= MAX_CACHED:
                del self._cached[next(iter(self._cached))]  # the oldest
            self._cached[key] = voice
        return voice

    def _own(self) -> Voice:
        path = self._checkpoint.conditionals
        if not path.is_file():
            raise InputError(
                f"'{self._checkpoint.name}' has no voice of its own; pass a reference "
                "recording (--voice FILE on the command line)"
            )
        return self._fitting(voice_module.from_conditionals(path), path)

    def _fitting(self, voice: Voice, path: Path) -> Voice:
        try:
            voice_module.check(voice, self._checkpoint.config)
        except ValueError as error:
            raise WeightsError(
                f"{path} is not a voice of '{self._checkpoint.name}' ({error}): "
                "delete it and get it again"
            ) from error
        return voice

    def _recorded(self, file: Path, key: str, path: Path) -> Voice:
        """The Voice of a recording, from the store or computed; logs what is odd in either case.

        Args:
            file: the recording, or a copy of what the pipe ``path`` sent.
        """
        name = path.stem
        if name in self._checkpoint.voices() and self._store.names().get(name) == path:
            log.warning(
                f"the saved voice '{name}' hides the model's own; to rename it: chatterbox-opt "
                f"voices add {name}-2 '{path}', then chatterbox-opt voices remove {name}"
            )
        voice, remark = self._store.load(key) or self._encode_next(file, key, path)
        if remark:
            log.warning("'%s': %s", path, remark)
        return voice

    def _encode_next(self, file: Path, key: str, path: Path) -> tuple[Voice, str]:
        with self._encoding:
            return self._encode(file, key, path)

    def _encode(self, file: Path, key: str, path: Path) -> tuple[Voice, str]:
        announce(f"computing the voice of '{path.name}', once")
        config = self._checkpoint.config
        reference = decode_reference(file, str(path), config.reference)
        # the encoders run on the CPU and are freed here: 0.5 GB that a cached voice never needs
        encoders = load_encoders(self._checkpoint)
        voice = in_own_thread(
            lambda: encoders.encode(reference.wave, config.t3.prompt_tokens, config.reference)
        )
        self._store.save(key, voice, reference.remark)
        return voice, reference.remark


def load_encoders(checkpoint: Checkpoint) -> Encoders:
    """Load the encoders of a new voice in float32 (about 0.5 GB at full size).

    A checkpoint that only converts may have no voice encoder.
    """
    config, speaks = checkpoint.config, checkpoint.voice_encoder.is_file()
    with skip_init():
        encoders = Encoders(config.voice, config.t3.speaker, speaks=speaks)
    s3gen = Tensors(checkpoint.s3gen)
    parts = ("tokenizer.", "speaker_encoder.")
    tensors = {name: s3gen[name] for name in s3gen if name.startswith(parts)}
    if speaks:
        voice_encoder = Tensors(checkpoint.voice_encoder)
        known = set(encoders.voice_encoder.state_dict())
        if unknown := sorted(set(voice_encoder) - known):
            raise WeightsError(f"the voice encoder has an unknown tensor {unknown[0]}: wrong file?")
        tensors |= {f"voice_encoder.{name}": voice_encoder[name] for name in voice_encoder}
    fill(encoders, tensors, "the voice encoders")
    return encoders


def load_speech_tokenizer(checkpoint: Checkpoint) -> SpeechTokenizer:
    """Load the encoder that turns recordings into speech tokens, in float32 (0.5 GB at full size).

    Raises:
        WeightsError: its tensors are missing or of another shape.
    """
    with skip_init():
        tokenizer = SpeechTokenizer(checkpoint.config.voice)
    s3gen = Tensors(checkpoint.s3gen)
    tensors = {name: s3gen[name] for name in s3gen if name.startswith("tokenizer.")}
    fill(tokenizer, tensors, "the speech tokenizer")
    return tokenizer


def load_voice(path: Path) -> Voice:
    """Load a named voice that comes with a checkpoint; stored in fp16, returned in float32.

    Raises:
        WeightsError: damaged.
    """
    try:
        if (size := path.stat().st_size) > voice_module.MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        tensors = {n: t.float() if t.is_floating_point() else t for n, t in Tensors(path).items()}
        voice = voice_module.from_tensors(tensors)
        voice_module.check(voice)
        return voice
    except (KeyError, ValueError, OSError) as error:
        raise WeightsError(f"{path} is not a voice ({error}): get it again") from error
