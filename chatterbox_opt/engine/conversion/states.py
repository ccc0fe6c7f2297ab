"""From a recording to the state of its request: tokens in windows, the voice, the seed.

Responsible for what is checked before a conversion is added, and for the tokenizer while it is
needed. Not responsible for work.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from chatterbox_opt.audio import speech
from chatterbox_opt.audio.speech import Speech
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.config.plan import Plan
from chatterbox_opt.engine.conversion.request import Conversion
from chatterbox_opt.engine.sequence import Capacity, RequestState
from chatterbox_opt.engine.windows import Seams, spans
from chatterbox_opt.errors import first_line
from chatterbox_opt.models.speech_tokenizer import TOKENIZER_RATE, SpeechTokenizer
from chatterbox_opt.request import Audio, VoiceSource
from chatterbox_opt.runtime.cuda import is_out_of_memory
from chatterbox_opt.runtime.offload import NONE
from chatterbox_opt.runtime.own_thread import in_own_thread
from chatterbox_opt.sampling import for_model, seeded
from chatterbox_opt.text.chunking import Chunk
from chatterbox_opt.utils.arguments import instance
from chatterbox_opt.utils.steps import announce
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices.library import load_speech_tokenizer

log = logging.getLogger(__name__)


class ConversionStates:
    """Makes the states of an engine's conversions."""

    def __init__(
        self, checkpoint: Checkpoint, voice: Callable[[VoiceSource], Voice], plan: Plan
    ) -> None:
        """Start without the tokenizer.

        Args:
            voice: finds or computes one.
            plan: the tokenizer runs on a GPU that has memory for all stages, else on the CPU.
        """
        on_gpu = plan.device == "cuda" and plan.offload == NONE
        self._checkpoint, self._voice = checkpoint, voice
        self._device = torch.device(plan.device if on_gpu else "cpu")
        self._tokenizer: SpeechTokenizer | None = None
        self._lock = threading.Lock()

    def of(self, conversion: Conversion, capacity: Capacity) -> RequestState:
        """The state of a conversion before its first step; reads the recording.

        Raises:
            InputError: a parameter that the model does not have.
            VoiceError: no such voice; the recording cannot be used.
            WeightsError: the tokenizer's weights are missing or damaged.
        """
        instance("conversion", conversion, Conversion)
        config = self._checkpoint.config
        sampling = for_model(conversion.sampling, config.sampling_defaults, config.missing_knobs)
        sampling = seeded(sampling)
        voice = self._voice(conversion.voice)
        heard = _speech(conversion.source)
        tokens = in_own_thread(lambda: self._tokens(heard))
        state = RequestState(conversion.id, sampling.seed or 0, capacity)
        windows = spans(len(tokens))
        state.seams = Seams(windows, heard.length)
        state.add_chunks([Chunk("")] * len(windows), voice, sampling)
        for sequence, (first, last) in zip(state.sequences, windows, strict=True):
            sequence.given_tokens = tuple(tokens[first:last])
        return state

    def release(self) -> None:
        """Free the tokenizer; the next conversion loads it again."""
        self._tokenizer = None

    def _tokens(self, heard: Speech) -> list[int]:
        announce("recording to tokens")
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = load_speech_tokenizer(self._checkpoint)
                self._move(self._tokenizer, self._device)
            try:
                return self._tokenizer.tokens(heard.wave)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            log.warning("recordings become tokens on the CPU from now on (%s)", reason)
            self._device = torch.device("cpu")
            self._move(self._tokenizer, self._device)
            return self._tokenizer.tokens(heard.wave)

    def _move(self, tokenizer: SpeechTokenizer, device: torch.device) -> None:
        try:
            tokenizer.to(device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            tokenizer.to("cpu")
            self._device = torch.device("cpu")


def _speech(source: Audio | str | os.PathLike[str]) -> Speech:
    """What is heard in a recording; what is odd in it is logged."""
    if isinstance(source, Audio):
        samples = np.ascontiguousarray(source.samples, dtype=np.float32)[:, None]
        heard = speech.resampled(samples, source.sample_rate, TOKENIZER_RATE, "the audio")
        name = "the audio"
    else:
        heard, name = speech.read_speech(Path(source), TOKENIZER_RATE), os.fspath(source)
    if heard.remark:
        log.warning("'%s': %s", name, heard.remark)
    return heard
