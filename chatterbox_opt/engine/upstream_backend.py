"""Plain Chatterbox behind ``SpeechBackend``, for DISABLE_OPTIMIZATION and for comparison.

Responsible for upstream's model object and its ``generate``. Not responsible for our stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import torch

from chatterbox_opt.audio.watermark import STDOUT_LOCK
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.config.model_config import SAMPLE_RATE, TOKEN_RATE, ModelConfig
from chatterbox_opt.engine.sequence import REQUEST_ERRORS, Capacity, Sequence, Status
from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.utils.librosa_import import import_librosa
from chatterbox_opt.voice import Voice

NO_CONVERSION = "plain Chatterbox converts no recordings: unset DISABLE_OPTIMIZATION"


def from_local(upstream: Any, directory: Path, device: torch.device) -> Any:
    """Load one of upstream's classes by its own loader; PerTh's line on stdout is dropped."""
    with STDOUT_LOCK, contextlib.redirect_stdout(io.StringIO()):
        return upstream.from_local(directory, device.type)


class UpstreamBackend:
    """The ``SpeechBackend`` over one ``ChatterboxTTS``.

    Attributes:
        model: upstream's object; None once closed.
        device: the model's.
    """

    group = 1

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device
        self._admitted: Sequence | None = None

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: torch.device) -> UpstreamBackend:
        """Load with upstream's own loader.

        Raises:
            InputError: the checkpoint's dimensions differ from those hard-coded upstream.
        """
        config = checkpoint.config
        if dataclasses.replace(config, random_weights=False) != ModelConfig():
            raise InputError(
                f"plain Chatterbox cannot load '{checkpoint.name}', whose dimensions are not "
                "its own: unset DISABLE_OPTIMIZATION"
            )
        import_librosa()  # before chatterbox does
        from chatterbox.tts import ChatterboxTTS

        return cls(from_local(ChatterboxTTS, checkpoint.directory, device), device)

    def close(self) -> None:
        self.model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def idle(self) -> bool:
        return self._admitted is None

    @property
    def empty(self) -> bool:
        return self.idle

    @property
    def free_slots(self) -> int:
        return 1 if self.idle else 0

    def open(self, capacity: Capacity) -> None:
        """Does nothing: upstream's capacity is fixed, one sequence of two rows."""

    def admit(self, sequence: Sequence) -> bool:
        if self._admitted is not None:
            return False
        self._admitted, sequence.status = sequence, Status.DECODING
        return True

    def step(self) -> list[Sequence]:
        """Generate the admitted sequence."""
        sequence, self._admitted = self._admitted, None
        if sequence is None:
            return []
        try:
            self._generate(sequence)
        except REQUEST_ERRORS as error:
            sequence.fail(error)
        return [sequence]

    def remove(self, sequence: Sequence) -> None:
        if self._admitted is sequence:
            self._admitted = None

    def release(self) -> None:
        self._admitted = None

    def _generate(self, sequence: Sequence) -> None:
        """Run upstream's ``generate``, with its own sampling loop, progress bar and watermark.

        Raises:
            InputError: a rate or a sampling parameter that upstream does not support.
        """
        sampling = sequence.sampling
        if sequence.chunk.rate != 1:
            raise InputError("plain Chatterbox has no rate but 1: unset DISABLE_OPTIMIZATION")
        defaults, fixed = Sampling(), ("max_tokens", "cfm_steps", "top_k")
        if 0 in (sampling.temperature, sampling.cfg_weight) or any(
            getattr(sampling, name) != getattr(defaults, name) for name in fixed
        ):
            raise InputError(
                "plain Chatterbox does not support temperature 0, cfg_weight 0, top_k, or other "
                f"than {defaults.max_tokens} max_tokens and {defaults.cfm_steps} cfm_steps: "
                "unset DISABLE_OPTIMIZATION"
            )
        self.model.conds = upstream_conditionals(
            sequence.voice.to(self.device), sampling.exaggeration
        )
        devices = [self.device] if self.device.type == "cuda" else []
        ids = self.model.tokenizer.text_to_tokens(sequence.chunk.text)
        sequence.text_tokens = ids.shape[-1]
        start = time.perf_counter()
        with torch.random.fork_rng(devices):
            torch.manual_seed(sequence.seed)
            wave = self.model.generate(
                sequence.chunk.source,
                repetition_penalty=sampling.repetition_penalty,
                min_p=sampling.min_p,
                top_p=sampling.top_p,
                exaggeration=sampling.exaggeration,
                cfg_weight=sampling.cfg_weight,
                temperature=sampling.temperature,
            )
        sequence.audio = wave[0].numpy()
        sequence.add_seconds("upstream", time.perf_counter() - start)
        tokens = round(len(sequence.audio) / SAMPLE_RATE * TOKEN_RATE)
        sequence.request.on_token(sequence, tokens)


def upstream_conditionals(voice: Voice, exaggeration: float) -> Any:
    """Upstream's ``Conditionals`` of a Voice: a new object, because upstream modifies it."""
    from chatterbox.models.t3.modules.cond_enc import T3Cond
    from chatterbox.tts import Conditionals

    device = voice.speaker.device
    emotion = exaggeration * torch.ones(1, 1, 1, device=device)
    t3 = T3Cond(
        speaker_emb=voice.speaker, cond_prompt_speech_tokens=voice.prompt, emotion_adv=emotion
    )
    length = torch.tensor([voice.tokens.shape[1]], device=device)
    gen = {
        "prompt_token": voice.tokens,
        "prompt_token_len": length,
        "prompt_feat": voice.mel,
        "prompt_feat_len": None,
        "embedding": voice.xvector,
    }
    return Conditionals(t3, gen)
