"""From a request to its state: the text in chunks, the voice, the seed, when parts are given out.

Responsible for what is checked before a request is added. Not responsible for texts (texts.py) or
for work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.config.speaking_rate import combined
from chatterbox_opt.engine import texts
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.sequence import Capacity, RequestState, put_progress
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.request import CHUNK, Observer, Request, VoiceSource, voice_name
from chatterbox_opt.sampling import Sampling, for_model
from chatterbox_opt.script.cast import member_of
from chatterbox_opt.script.reader import script_of
from chatterbox_opt.script.spans import Script
from chatterbox_opt.text.chunking import Chunk
from chatterbox_opt.text.detection import resolve
from chatterbox_opt.utils.arguments import instance
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.words.support import check_timestamps

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RequestStates:
    """Makes the states of an engine's requests.

    Attributes:
        config: of the model.
        voices: finds or computes a voice.
        hops: of low latency; None: the backend is plain Chatterbox, which gives out no tokens.
        tags: sounds in square brackets that the model has a token for.
    """

    config: ModelConfig
    voices: VoiceLibrary
    hops: HopSchedule | None
    tags: frozenset[str] = frozenset()

    def voice(self, source: VoiceSource) -> Voice:
        """As ``Engine.voice``."""
        return source if isinstance(source, Voice) else self.voices.voice(voice_name(source))

    def of(
        self,
        request: Request,
        capacity: Capacity,
        guard: Guard | None = None,
        observe: Observer | None = None,
    ) -> RequestState:
        """The state of a request before its first step.

        Raises:
            InputError: an argument of another type; no low latency; a language or a sampling
                parameter that the model does not have.
            TextError, VoiceError: no word to say, no such voice.
        """
        instance("request", request, Request)
        script, language = self._read(request)
        chunks = self._chunks(request, script, language)
        state = self._state(request, chunks, 0, capacity, guard, observe)
        return self._with_words(state, script) if request.timestamps else state

    def of_chunk(
        self,
        request: Request,
        chunk: Chunk,
        number: int,
        capacity: Capacity,
        guard: Guard | None = None,
        observe: Observer | None = None,
    ) -> RequestState | None:
        """The state for one chunk of a text that arrives; None if the model can read none of it.

        Args:
            request: with everything but the text.
            number: of the chunk in the text.
        """
        request = replace(request, text=chunk.source)
        try:
            chunks = self._chunks(request, *self._read(request))
        except TextError as error:
            log.warning("%r is left out: %s", chunk.source[:40], error)
            return None
        chunks[-1] = replace(chunks[-1], pause=chunk.pause)
        return self._state(request, chunks, number, capacity, guard, observe)

    def _read(self, request: Request) -> tuple[Script, str | None]:
        """The text of a request in spans, and its language."""
        language = resolve(request.language, request.text, self.config)
        return script_of(request, language), language

    def _chunks(self, request: Request, script: Script, language: str | None) -> list[Chunk]:
        """The script of a request in chunks, each at its own rate."""
        for hit in script.hits:
            log.info("lexicon: '%s' is read as '%s'", hit.written, hit.text)
        chunks = texts.script_chunks(script, self.config, language, self.tags)
        rates = {one.voice: member_of(request.cast, one.voice).rate for one in chunks}
        return [
            replace(one, rate=combined(one.rate, combined(rates[one.voice], request.rate)))
            for one in chunks
        ]

    def _speaker(self, name: str | None, request: Request) -> tuple[Voice, Sampling]:
        """The voice and the sampling parameters of chunks that have a voice of this name."""
        member, config = member_of(request.cast, name), self.config
        knobs: dict[str, Any] = dict(member.sampling)
        sampling = replace(request.sampling, **knobs)
        filled = for_model(sampling, config.sampling_defaults, config.missing_knobs)
        return self.voice(request.voice if member.voice is None else member.voice), filled

    def _with_words(self, state: RequestState, script: Script) -> RequestState:
        """The state, told which words are to be timed.

        Raises:
            InputError: they cannot be timed.
        """
        if self.hops is None:
            raise InputError("plain Chatterbox has no word times: unset DISABLE_OPTIMIZATION")
        for sequence in state.sequences:
            check_timestamps(self.config, sequence.chunk.language)
        state.alignment_heads = self.config.alignment_heads
        found = texts.written_words(script, [s.chunk for s in state.sequences], self.config)
        for sequence, words in zip(state.sequences, found, strict=True):
            sequence.written = words
        return state

    def _state(
        self,
        request: Request,
        chunks: list[Chunk],
        first: int,
        capacity: Capacity,
        guard: Guard | None,
        observe: Observer | None,
    ) -> RequestState:
        instance("guard", guard, Guard, optional=True)
        instance("observe", observe, Callable, optional=True)
        request = request.with_seed()
        speakers = {one.voice: self._speaker(one.voice, request) for one in chunks}
        on_progress = None if observe is None else put_progress
        seed = request.sampling.seed or 0
        state = RequestState(request.id, seed, capacity, guard, on_progress)
        if request.latency != CHUNK:
            if self.hops is None:
                raise InputError("plain Chatterbox has no low latency: unset DISABLE_OPTIMIZATION")
            chosen = request.latency
            state.hops = chosen if isinstance(chosen, HopSchedule) else self.hops
        state.first_chunk = first
        for chunk in chunks:
            state.add_chunks([chunk], *speakers[chunk.voice])
        return state
