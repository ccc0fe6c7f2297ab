"""The engine: text, voice and sampling parameters in, audio out. Start reading here.

Responsible for composing the parts. A text is split into chunks (text/chunking.py). They wait in
the scheduler (scheduler.py) for a slot of the backend, go through T3, flow and vocoder
(pipeline.py), are retried if the output is empty or fails the quality checks (retries.py), and get
their watermark and pause. Every call, for one text or many, adds requests to the same scheduler and
collects their pieces while it is stepped (loop.py). Not responsible for command lines, files to
write or printing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.config import hardware
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.plan import Plan
from chatterbox_opt.engine import build, texts
from chatterbox_opt.engine.conversion.engine import ConvertingEngine
from chatterbox_opt.engine.conversion.states import ConversionStates
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.scheduler import Scheduler, SpeechBackend
from chatterbox_opt.engine.sequence import Capacity
from chatterbox_opt.engine.serving.arriving import ArrivingRequests
from chatterbox_opt.engine.serving.handle import RequestHandle
from chatterbox_opt.engine.serving.loop import EngineLoop
from chatterbox_opt.engine.serving.states import RequestStates
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import (
    CHUNK,
    Audio,
    Observer,
    Piece,
    Request,
    Result,
    VoiceSource,
    join,
    single_request,
)
from chatterbox_opt.runtime import cuda
from chatterbox_opt.runtime.own_thread import in_own_thread
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.script.lexicon import Lexicon
from chatterbox_opt.text.chunking import Chunk
from chatterbox_opt.utils.arguments import instance, instances, name_or_path, seconds_to_wait
from chatterbox_opt.utils.wave import Wave
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.voices.store import VoiceStore

EXAMPLE = "Hello."  # stands for a text that is not known yet


class Engine(ConvertingEngine):
    """A loaded model on a device. Use it as a context manager, or call ``close``.

    Engines share nothing: several may live in one process. Any thread may call any method; calls
    of several threads share the decode steps. ``submit`` returns at once, for many callers.

    Usage:
        with Engine.load() as engine:
            audio = engine.synthesize("Hello.", engine.voice("speaker.wav"), Sampling(seed=7))

    Attributes:
        plan: the settings it was loaded with.
        checkpoint: where the weights are.
        pipeline: the backend.
        hops: of low latency; the profile's for such a model.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        pipeline: SpeechBackend,
        voices: VoiceLibrary,
        watermark: Watermark | None,
    ) -> None:
        self.plan = plan
        self.checkpoint = checkpoint
        self.pipeline = pipeline
        self._voices = voices
        self._watermark = watermark
        # on a CPU, a thread for the watermark would compete with the stages for the cores
        scheduler = Scheduler(pipeline, watermark, overlap=plan.device != "cpu")
        self._loop = EngineLoop(scheduler)
        self.hops = plan.hop_schedule(checkpoint.config)
        hops = self.hops if isinstance(pipeline, Pipeline) else None
        tags = pipeline.decoder.tokenizer.tags if isinstance(pipeline, Pipeline) else frozenset()
        self._requests = RequestStates(checkpoint.config, voices, hops, tags)
        self._conversions = ConversionStates(checkpoint, self.voice, plan)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = registry.DEFAULT,
        profile: str | os.PathLike[str] = hardware.AUTO,
        *,
        device: str = hardware.AUTO,
        overrides: Mapping[str, str] | None = None,
        plan: Plan | None = None,
        store: VoiceStore | None = None,
        watermark: bool = True,
        weights: WeightCache | None = None,
    ) -> Engine:
        """Find the weights, make a plan for this machine and load.

        Args:
            model: "chatterbox" (downloaded once), "pico" (built in), or a directory in upstream's
                file format.
            profile: a shipped profile's name, a YAML file, or "auto" (by the GPU's memory and
                compute capability).
            device: "auto", "cuda", "mps" or "cpu".
            overrides: ``dtype``, ``compile``, ``offload``, ``kv_cache``, ``flow_model``; they
                override environment and profile.
            plan: a plan that is already resolved; ``profile``, ``device`` and ``overrides`` are
                then ignored.
            store: where voices are kept; None takes the platform's cache directory.
            watermark: mark all audio with PerTh, as upstream does.
            weights: where converted weights are kept; None takes the platform's cache directory.

        Raises:
            InputError: unknown model, profile, key or value; an argument of another type.
            WeightsError: weights missing or damaged.
            DeviceError: the device is not available.
        """
        model, profile = name_or_path("model", model), name_or_path("profile", profile)
        instance("overrides", overrides, Mapping, optional=True)
        instance("plan", plan, Plan, optional=True)
        instance("store", store, VoiceStore, optional=True)
        instance("weights", weights, WeightCache, optional=True)
        load = functools.partial(
            build.load, model, profile, device, overrides, plan, weights, watermark=watermark
        )
        return cls._of(load, store)

    def close(self) -> None:
        """End all requests, free the model and the device's memory; not to be used afterwards."""
        try:
            self._loop.close()
        finally:
            self.pipeline.close()
        self._voices.clear()
        self._conversions.release()
        if self._watermark:
            self._watermark.release()
        if self.plan.device == "cuda":
            cuda.release_memory()

    def voice(self, source: VoiceSource = None) -> Voice:
        """Return a Voice: computed for a new recording, from the cache afterwards.

        Args:
            source: an audio file, a name saved with ``chatterbox-opt voices add``, the name of a
                voice that comes with the model, None for the model's own voice, or a Voice.

        Raises:
            VoiceError: not found, not audio, too short, silent; of another type.
        """
        return self._requests.voice(source)

    def warm_up(self, *lines: str, voice: VoiceSource = None) -> None:
        """Compile kernels, capture CUDA graphs and initialize libraries before the first request.

        On a GPU, flow and vocoder are captured per audio length and T3's prefill per text length,
        each at its second call. So use the texts that will be requested, or texts of that length.

        Args:
            lines: each is synthesized twice and its audio dropped; without any, three sentences
                from short to long.
            voice: as ``pieces``.

        Raises:
            TextError, VoiceError, DeviceError, NumericsError: as ``pieces``.
        """
        requests = [one for one in texts.warm_up_requests(lines, voice) for _ in range(2)]

        def speak() -> None:
            for one in requests:
                self.synthesize(one.text, voice, one.sampling)

        in_own_thread(speak)

    def pieces(  # noqa: PLR0913 - what a sentence of a text that arrives needs
        self,
        text: str | Request | Iterable[str | None],
        voice: VoiceSource = None,
        sampling: Sampling | None = None,
        observe: Observer | None = None,
        guard: Guard | None = None,
        latency: str | HopSchedule = CHUNK,
        language: str | None = None,
        rate: float = 1.0,
        lexicon: Lexicon | None = None,
    ) -> Iterator[Piece]:
        """Synthesize a text of any length, yielding each chunk: the primitive of all other calls.

        Args:
            text: a str; a ``Request``, whose other values then count; or an iterable that yields
                the text as it is written, in pieces of any size: each sentence is spoken as soon as
                it is complete. None in it means that the writer pauses: what is there is spoken.
            voice: as for ``engine.voice``; None is the model's own.
            sampling: sampling parameters; without a seed a new one is drawn.
            observe: called for every speech token; what it raises ends the synthesis.
            guard: retries chunks in which runaways, cut-offs or loops are detected; with low
                latency it can only warn.
            latency: "chunk" yields whole chunks; "low" parts of one as soon as T3 has decoded them.
            language, rate, lexicon: as latency, see ``Request``.

        Raises:
            TextError: no word that the model can read. By the call itself, as all InputErrors.
            DeviceError, NumericsError: after all fallbacks.
        """
        if not isinstance(text, (str, bytes)) and isinstance(text, Iterable):
            request = single_request(EXAMPLE, voice, sampling, latency, language, rate, lexicon)
            return self._arriving(text, request, observe, guard)
        request = single_request(text, voice, sampling, latency, language, rate, lexicon)
        capacity = Capacity(1, request.cast is not None or request.sampling.cfg_weight > 0)
        return self._loop.pieces(self._requests.of(request, capacity, guard, observe), observe)

    def _arriving(
        self,
        text: Iterable[str | None],
        request: Request,
        observe: Observer | None,
        guard: Guard | None,
    ) -> Iterator[Piece]:
        request = replace(request, voice=self.voice(request.voice))
        capacity = Capacity(self.plan.slots)
        self._requests.of(request, capacity, guard, observe)  # errors of arguments, at once

        def submit(chunk: Chunk, number: int) -> RequestHandle | None:
            state = self._requests.of_chunk(request, chunk, number, capacity, guard, observe)
            if state is None:
                return None
            self._loop.submit(state)
            return RequestHandle(self._loop, state, observe)

        rules = texts.rules(self.checkpoint.config, request.language)
        return ArrivingRequests(text, submit, rules).pieces()

    def stream(
        self,
        text: str | Request | Iterable[str | None],
        voice: VoiceSource = None,
        sampling: Sampling | None = None,
        latency: str | HopSchedule = CHUNK,
        language: str | None = None,
        rate: float = 1.0,
    ) -> Iterator[Wave]:
        """Yield float32 [n] samples at 24 kHz as they become ready.

        With latency "chunk" they are whole chunks, and joined they equal ``synthesize``'s.
        Arguments and errors as ``pieces``.
        """
        pieces = self.pieces(text, voice, sampling, None, None, latency, language, rate)
        return (piece.samples for piece in pieces)

    def synthesize(
        self,
        text: str | Request,
        voice: VoiceSource = None,
        sampling: Sampling | None = None,
        observe: Observer | None = None,
        language: str | None = None,
        rate: float = 1.0,
    ) -> Audio:
        """Synthesize a text of any length at once. Arguments and errors as ``pieces``."""
        request = single_request(text, voice, sampling, language=language, rate=rate)
        return join(list(self.pieces(request, observe=observe)), request.sampling.seed or 0)

    def batch(self, requests: Iterable[Request], guard: Guard | None = None) -> Iterator[Result]:
        """Synthesize many texts; yield results as they finish, each with its request's id.

        The error of a request is a value in its result and does not affect the others. A request
        is taken from the iterable when a slot is free, so a generator can end the batch at any
        time; the requests that it has yielded are finished.

        Args:
            guard: as ``pieces``.

        Raises:
            InputError: something other than a Request, when it is taken from the iterable.
        """
        instance("requests", requests, Iterable)
        instance("guard", guard, Guard, optional=True)
        capacity = Capacity(self.plan.slots, group=self.pipeline.group)
        begin = functools.partial(self._requests.of, capacity=capacity, guard=guard)
        return self._loop.results(instances("request", requests, Request), begin, capacity)

    def submit(
        self,
        request: Request,
        guard: Guard | None = None,
        observe: Observer | None = None,
        timeout: float | None = None,
    ) -> RequestHandle:
        """Start a request and return at once; from any number of threads.

        One thread of the engine decodes the requests of all callers together. Who comes first does
        not change a request's audio.

        Args:
            guard, observe: as ``pieces``; ``observe`` is called by the thread that waits for the
                handle.
            timeout: seconds to wait while ``MAX_QUEUED`` requests are waiting; None waits for ever.

        Raises:
            TextError, VoiceError, InputError: as ``pieces``.
            QueueFullError: after ``timeout``.
        """
        timeout = seconds_to_wait("timeout", timeout)
        state = self._requests.of(request, Capacity(self.plan.slots), guard, observe)
        self._loop.submit(state, timeout)
        return RequestHandle(self._loop, state, observe)

    def speech_tokens(
        self,
        text: str,
        voice: VoiceSource = None,
        sampling: Sampling | None = None,
        language: str | None = None,
    ) -> Tensor:
        """Run T3 only: int64 [T] on the CPU, stop token removed, chunks joined.

        Raises:
            InputError: the backend is plain upstream, which does not return its tokens.
        """
        if not isinstance(self.pipeline, Pipeline):
            raise InputError(
                "plain Chatterbox returns no speech tokens: unset DISABLE_OPTIMIZATION"
            )
        request = single_request(text, voice, sampling, language=language)
        state = self._requests.of(request, Capacity(1))
        state.tokens_only = True
        for _ in self._loop.pieces(state):
            pass
        codes = [token for sequence in state.sequences for token in sequence.tokens]
        return torch.tensor(codes)
