"""The engine: text, voice and knobs in, sound out. Start reading here.

Composes the parts and owns the one loop: for every chunk of the text, t3, flow and vocoder
(pipeline.py), then the watermark, then the pause. Whole files and streams collect it. Knows
plans, models and the voice store; knows nothing of command lines, files to write or printing.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chatterbox_opt import hardware, loading, models, plan, voice_store, weight_cache
from chatterbox_opt.audio import check_reference, read_reference
from chatterbox_opt.errors import ChatterboxOptError, InputError, SilenceError
from chatterbox_opt.guard import Guard, Take
from chatterbox_opt.models import Checkpoint
from chatterbox_opt.pipeline import OnToken, Pipeline, Spoken
from chatterbox_opt.plan import Plan
from chatterbox_opt.sampling import Sampling, chunk_seed
from chatterbox_opt.shapes import SAMPLE_RATE
from chatterbox_opt.speech import Audio, Observer, Piece, Progress, Request, Result, join
from chatterbox_opt.text import Chunk, split
from chatterbox_opt.upstream import Upstream
from chatterbox_opt.voice import Voice, from_conditionals
from chatterbox_opt.voice_store import VoiceStore
from chatterbox_opt.watermark import Watermark
from chatterbox_opt.weight_cache import WeightCache

log = logging.getLogger(__name__)
ATTEMPTS = 3  # further seeds for a chunk of which the model says nothing
Wave = npt.NDArray[np.float32]
# one request's failure, not the batch's; torch, numpy and file systems have their own kinds
FAILURES = (ChatterboxOptError, RuntimeError, ValueError, LookupError, OSError, MemoryError)


class Engine:
    """A loaded model on a device. Use it as a context manager, or call ``close``.

    Engines share nothing: several may live in one process. One engine serves one thread at a time.

    Usage:
        with Engine.load() as engine:
            audio = engine.synthesize("Hello.", engine.voice("speaker.wav"), Sampling(seed=7))
    """

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        speaker: Pipeline | Upstream,
        store: VoiceStore,
        watermark: Watermark | None,
    ) -> None:
        self.plan = plan
        self.checkpoint = checkpoint
        self._speaker = speaker
        self._store = store
        self._watermark = watermark
        self._voices: dict[str, Voice] = {}

    @classmethod
    def load(
        cls,
        model: str = models.DEFAULT,
        profile: str = hardware.AUTO,
        *,
        device: str = hardware.AUTO,
        overrides: Mapping[str, str] | None = None,
        store: VoiceStore | None = None,
        watermark: bool = True,
        weights: WeightCache | None = None,
    ) -> Engine:
        """Find the weights, make a plan for this machine and load.

        Args:
            model: "chatterbox" (downloaded once), or a directory in upstream's file format.
            profile: a shipped profile's name, a YAML file, or "auto" (looks at the card).
            device: "auto", "cuda", "mps" or "cpu".
            overrides: ``dtype``, ``compile``, ``offload``; they win over environment and profile.
            store: where voices are kept; None takes the platform's cache directory.
            watermark: mark all sound with PerTh, as upstream does.
            weights: where converted weights are kept; None takes the platform's cache directory.

        Raises:
            InputError: unknown model, profile, key or value.
            WeightsError: weights missing or damaged.
            DeviceError: the device is not there.
        """
        how = plan.resolve(profile, hardware.probe(device), overrides)
        mark = Watermark() if watermark and how.optimized else None  # before 3 GB are fetched
        checkpoint = models.locate(model)
        if checkpoint.shapes.made:
            log.warning("'%s' holds random values: what it says is noise", model)
        speaker: Pipeline | Upstream
        if how.optimized:
            speaker = loading.load_pipeline(checkpoint, how, weights or weight_cache.default())
        else:
            speaker = Upstream.load(checkpoint, torch.device(how.device))
            if not watermark:
                log.warning("plain Chatterbox always leaves its watermark")
        return cls(
            how,
            checkpoint,
            speaker,
            store or VoiceStore(voice_store.default_directory()),
            mark,
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and the device's memory; the engine cannot speak any more."""
        self._speaker.close()
        self._voices.clear()

    def voice(self, source: str | os.PathLike[str] | None = None) -> Voice:
        """Return a Voice: computed on first sight of a recording, from the cache afterwards.

        Args:
            source: an audio file, a name saved with ``chatterbox-opt voices add``, the name of a
                voice that comes with the model, or None for the model's own voice.

        Raises:
            VoiceError: not found, not audio, too short, silent.
        """
        if source is None:
            return self._own_voice()
        shipped = self.checkpoint.voices()
        path = self._store.find(os.fspath(source), shipped)
        if path in shipped.values():
            return self._shipped_voice(path)
        check_reference(path)
        key = voice_store.content_key(path, self.checkpoint.voice_identity)
        if key not in self._voices:
            self._voices[key] = self._store.load(key) or self._computed(path, key)
        return self._voices[key]

    def _own_voice(self) -> Voice:
        path = self.checkpoint.path(models.CONDITIONALS)
        if not path.is_file():
            raise InputError(
                f"'{self.checkpoint.name}' has no voice of its own; give one with --voice"
            )
        if models.CONDITIONALS not in self._voices:
            self._voices[models.CONDITIONALS] = from_conditionals(path)
        return self._voices[models.CONDITIONALS]

    def _shipped_voice(self, path: Path) -> Voice:
        if path.name not in self._voices:
            self._voices[path.name] = loading.load_voice(path)
        return self._voices[path.name]

    def _computed(self, path: Path, key: str) -> Voice:
        wave = read_reference(path)
        # the encoders stay on the processor and go when done: 0.5 GB that a known voice never needs
        encoders = loading.load_encoders(self.checkpoint)
        voice = encoders.encode(wave, self.checkpoint.shapes.t3.prompt_tokens)
        self._store.save(key, voice)
        return voice

    def pieces(
        self,
        text: str,
        voice: Voice | None = None,
        sampling: Sampling | None = None,
        observe: Observer | None = None,
        guard: Guard | None = None,
    ) -> Iterator[Piece]:
        """Speak a text of any length, chunk by chunk: the primitive that all else collects.

        Args:
            voice: from ``engine.voice``; None is the model's own.
            sampling: knobs; without a seed a new one is drawn.
            observe: called at every speech token.
            guard: finds runaways, cut-offs and loops, and has such a chunk spoken again.

        Raises:
            TextError: nothing to speak.
            DeviceError, NumericsError: after all fallbacks.
        """
        voice, sampling = voice or self.voice(), sampling or Sampling()
        seed, chunks = _seed(sampling), self._chunks(text)
        for i, chunk in enumerate(chunks):
            on_token = _reporter(observe, i, chunks)
            say = self._speech_of(chunk, voice, sampling, (seed, i), on_token)
            yield self._piece(chunk, guard.best(chunk.text, say) if guard else Take(say(0)))

    def _chunks(self, text: str) -> list[Chunk]:
        if not self.checkpoint.shapes.spelled:
            return split(text)
        from chatterbox_opt.spoken import spell_out  # only the built-in model needs its library

        return split(text, spell=spell_out)

    def _speech_of(
        self,
        chunk: Chunk,
        voice: Voice,
        sampling: Sampling,
        seed: tuple[int, int],
        on_token: OnToken,
    ) -> Callable[[int], Spoken]:
        """A function from an attempt's number to the chunk's sound, each with seeds of its own."""

        def say(attempt: int) -> Spoken:
            return _until_said(
                seed,
                lambda drawn: self._speaker.say(chunk, voice, sampling, drawn, on_token),
                first=attempt * (ATTEMPTS + 1),
            )

        return say

    def _piece(self, chunk: Chunk, take: Take) -> Piece:
        spoken = take.spoken
        wave, seconds = spoken.wave, dict(spoken.seconds)
        if self._watermark:
            wave, seconds["watermark"] = _timed(self._watermark.apply, wave)
        silence = np.zeros(round(chunk.pause * SAMPLE_RATE), dtype=np.float32)
        samples = np.concatenate((wave, silence))
        return Piece(samples, chunk.text, spoken.tokens, seconds, take.faults, take.attempts)

    def stream(
        self, text: str, voice: Voice | None = None, sampling: Sampling | None = None
    ) -> Iterator[Wave]:
        """Yield float32 [n_i] at 24 kHz as they are ready; joined they are ``synthesize``'s."""
        return (piece.samples for piece in self.pieces(text, voice, sampling))

    def synthesize(
        self,
        text: str,
        voice: Voice | None = None,
        sampling: Sampling | None = None,
        observe: Observer | None = None,
    ) -> Audio:
        """Speak a text of any length and return it whole. Arguments and errors as ``pieces``."""
        sampling = sampling or Sampling()
        seed = _seed(sampling)
        pieces = list(self.pieces(text, voice, replace(sampling, seed=seed), observe))
        return join(pieces, seed)

    def batch(self, requests: Iterable[Request], guard: Guard | None = None) -> Iterator[Result]:
        """Speak many texts; yield results as they finish, each with its request's id.

        A request that fails gives its error as a value and does not end the others. Requests are
        drawn as there is room for them, so a generator that ends early ends the batch with
        nothing half done.

        Args:
            guard: as ``pieces``.
        """
        for request in requests:
            yield self._result(request, guard)

    def _result(self, request: Request, guard: Guard | None) -> Result:
        sampling, voice = seeded(request.sampling), request.voice
        seed = _seed(sampling)
        try:
            if not isinstance(voice, Voice):
                voice = self.voice(voice)
            pieces = tuple(self.pieces(request.text, voice, sampling, guard=guard))
        except FAILURES as error:
            return Result(request.id, seed, error=error)
        return Result(request.id, seed, pieces)

    def speech_tokens(
        self, text: str, voice: Voice | None = None, sampling: Sampling | None = None
    ) -> Tensor:
        """Run only t3: int64 [T] on the processor, stop token removed, chunks joined.

        Raises:
            InputError: plain upstream is in force, which does not give its tokens out.
        """
        if not isinstance(self._speaker, Pipeline):
            raise InputError("plain Chatterbox gives no tokens out: unset DISABLE_OPTIMIZATION")
        voice, sampling = voice or self.voice(), sampling or Sampling()
        seed = _seed(sampling)
        chunks = enumerate(self._chunks(text))
        return torch.cat([self._tokens(c, voice, sampling, (seed, i)) for i, c in chunks])

    def _tokens(
        self, chunk: Chunk, voice: Voice, sampling: Sampling, seed: tuple[int, int]
    ) -> Tensor:
        speaker, voice = cast(Pipeline, self._speaker), voice.to(self._speaker.device)

        def say(seed: int) -> Tensor:
            generator = torch.Generator(speaker.device).manual_seed(seed)
            return speaker.speech_tokens(chunk.text, voice, sampling, generator, _ignore)[0]

        return _until_said(seed, say)


Said = TypeVar("Said")


def _until_said(seed: tuple[int, int], say: Callable[[int], Said], first: int = 0) -> Said:
    """Ask again, with another seed each time, while the model stops before it says anything."""
    last = first + ATTEMPTS
    for attempt in range(first, last):
        try:
            return say(chunk_seed(*seed, attempt))
        except SilenceError as error:
            log.warning("%s (asking again)", error)
    return say(chunk_seed(*seed, last))


def seeded(sampling: Sampling) -> Sampling:
    """The same knobs with a seed, drawn if there was none."""
    return replace(sampling, seed=_seed(sampling))


def _seed(sampling: Sampling) -> int:
    return secrets.randbits(32) if sampling.seed is None else sampling.seed


def _reporter(observe: Observer | None, i: int, chunks: list[Chunk]) -> OnToken:
    if observe is None:
        return _ignore
    return lambda tokens: observe(Progress(i, len(chunks), len(chunks[i].text), tokens))


def _ignore(tokens: int) -> None:
    """Nobody watches."""


def _timed(work: Callable[[Wave], Wave], wave: Wave) -> tuple[Wave, float]:
    start = time.perf_counter()
    return work(wave), time.perf_counter() - start
