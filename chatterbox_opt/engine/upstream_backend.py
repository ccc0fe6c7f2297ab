"""Plain Chatterbox behind the same call, for DISABLE_OPTIMIZATION and for comparison.

Knows upstream's own model object and its ``generate``. Knows nothing of our stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Iterator
from typing import Any

import torch

from chatterbox_opt.audio.watermark import STDOUT_LOCK
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.config.model_config import SAMPLE_RATE, TOKEN_RATE, ModelConfig
from chatterbox_opt.engine.sequence import REQUEST_ERRORS, AudioOutput, ChunkRequest, NextChunk
from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.voice import Voice


class UpstreamBackend:
    """One ``ChatterboxTTS`` that speaks chunks."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: torch.device) -> UpstreamBackend:
        """Load as upstream loads.

        Raises:
            InputError: the checkpoint's shapes are not those that upstream's code has built in.
        """
        config = checkpoint.config
        if dataclasses.replace(config, random_weights=False) != ModelConfig():
            raise InputError(
                f"plain Chatterbox cannot load '{checkpoint.name}', whose shapes are not its own: "
                "unset DISABLE_OPTIMIZATION"
            )
        from chatterbox.tts import ChatterboxTTS

        with (
            STDOUT_LOCK,
            contextlib.redirect_stdout(io.StringIO()),
        ):  # PerTh announces itself on stdout
            return cls(ChatterboxTTS.from_local(checkpoint.directory, device.type), device)

    def close(self) -> None:
        """Let go of the model."""
        self.model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def speak(
        self, take: NextChunk, slots: int = 1, *, guided: bool = True
    ) -> Iterator[tuple[ChunkRequest, AudioOutput | Exception]]:
        """Speak lines one by one; see ``Pipeline.speak``, whose other arguments have no meaning
        here."""
        while (request := take()) is not None:
            try:
                yield request, self._say(request)
            except REQUEST_ERRORS as error:
                yield request, error

    def _say(self, request: ChunkRequest) -> AudioOutput:
        """Speak one chunk with upstream's ``generate``; it owns its sampling loop and its bars.

        Its watermark is always on.

        Raises:
            InputError: a knob that upstream cannot do.
        """
        sampling = request.sampling
        usual, fixed = Sampling(), ("max_tokens", "cfm_steps", "top_k")
        if 0 in (sampling.temperature, sampling.cfg_weight) or any(
            getattr(sampling, knob) != getattr(usual, knob) for knob in fixed
        ):
            raise InputError(
                "plain Chatterbox cannot do temperature 0, cfg_weight 0, top_k, or other than "
                f"{usual.max_tokens} max_tokens and {usual.cfm_steps} cfm_steps: "
                "unset DISABLE_OPTIMIZATION"
            )
        self.model.conds = upstream_conditionals(
            request.voice.to(self.device), sampling.exaggeration
        )
        devices = [self.device] if self.device.type == "cuda" else []
        start = time.perf_counter()
        with torch.random.fork_rng(devices):
            torch.manual_seed(request.seed)
            wave = self.model.generate(
                request.chunk.source,
                repetition_penalty=sampling.repetition_penalty,
                min_p=sampling.min_p,
                top_p=sampling.top_p,
                exaggeration=sampling.exaggeration,
                cfg_weight=sampling.cfg_weight,
                temperature=sampling.temperature,
            )
        samples = wave[0].numpy()
        tokens = round(len(samples) / SAMPLE_RATE * TOKEN_RATE)
        request.on_token(tokens)
        return AudioOutput(samples, tokens, {"upstream": time.perf_counter() - start})


def upstream_conditionals(voice: Voice, exaggeration: float) -> Any:
    """Upstream's ``Conditionals`` from a Voice, fresh: its inference writes into what it gets."""
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
