"""Two classes of the seed guide's shape, thin over Engine, for programs written against it.

Know emotions as presets. Know nothing of stages: everything is passed to the engine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Audio
from chatterbox_opt.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Preset:
    """What an emotion means in upstream's knobs."""

    exaggeration: float
    temperature: float


# neutral is upstream's default; its README advises higher exaggeration for drama, which also
# hurries the speech, and lower temperatures for an even voice
EMOTIONS = {
    "neutral": Preset(0.5, 0.8),
    "calm": Preset(0.3, 0.6),
    "sad": Preset(0.35, 0.7),
    "happy": Preset(0.7, 0.8),
    "angry": Preset(0.85, 0.85),
    "excited": Preset(1.0, 0.9),
}


class OptimizedChatterboxProvider:
    """Chatterbox through our engine.

    Usage:
        provider = OptimizedChatterboxProvider(device="cuda", dtype="float16")
        audio = provider.generate(text="Hello.", voice_path="speaker.wav", emotion="happy")
    """

    def __init__(
        self,
        device: str = "cuda",
        dtype: str = "float16",
        *,
        use_compilation: bool = True,
        cpu_offload: bool = False,
        model: str = registry.DEFAULT,
    ) -> None:
        """Load the model.

        Args:
            device: "cuda", "mps", "cpu" or "auto".
            dtype: of t3 and flow, as --dtype; the vocoder is float32.
            use_compilation: compile the T3 step where the device can.
            cpu_offload: stages take turns on the card.
            model: a known name, or a directory.

        Raises:
            ChatterboxOptError: see ``Engine.load``.
        """
        self.engine = Engine.load(
            model,
            "dev",
            device=device,
            overrides={
                "dtype": dtype,
                "compile": "cudagraphs" if use_compilation else "none",
                "offload": "stages" if cpu_offload else "none",
            },
        )

    def __enter__(self) -> OptimizedChatterboxProvider:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self.engine.close()

    def generate(
        self,
        text: str,
        voice_path: str | os.PathLike[str] | None = None,
        *,
        emotion: str = "neutral",
        exaggeration: float | None = None,
        cfg_weight: float = 0.5,
        seed: int | None = None,
    ) -> Audio:
        """Speak.

        Args:
            voice_path: a recording, or None for the model's own voice.
            emotion: one of ``EMOTIONS``.
            exaggeration: replaces the emotion's own.

        Raises:
            InputError: unknown emotion, text without words, unusable recording.
        """
        return self.engine.synthesize(
            text,
            self.engine.voice(voice_path),
            sampling_for(emotion, exaggeration, cfg_weight, seed),
        )

    def get_provider_status(self) -> dict[str, Any]:
        """Return what is in force: ``optimization_enabled`` and ``optimization_details``."""
        plan = self.engine.plan
        details = {
            "device": plan.device,
            "dtype": plan.t3.storage,
            "compilation": plan.compile,
            "cpu_offload": plan.offload != "none",
            "reasons": list(plan.reasons),
        }
        return {"optimization_enabled": plan.optimized, "optimization_details": details}


class RealChatterboxProvider(OptimizedChatterboxProvider):
    """The optimized provider where it can be used, plain Chatterbox where not.

    ``DISABLE_OPTIMIZATION=true`` asks for plain Chatterbox; a profile is chosen from the hardware,
    and CHATTERBOX_DTYPE, CHATTERBOX_COMPILATION and CHATTERBOX_CPU_OFFLOAD adjust it.
    """

    def __init__(self, model: str = registry.DEFAULT, device: str = "auto") -> None:
        """Load the model with the plan that fits this machine. Errors as ``Engine.load``."""
        self.engine = Engine.load(model, device=device)


def sampling_for(
    emotion: str, exaggeration: float | None, cfg_weight: float, seed: int | None
) -> Sampling:
    """Knobs for an emotion.

    Raises:
        InputError: an unknown emotion; the known ones are named.
    """
    if emotion not in EMOTIONS:
        raise InputError(f"unknown emotion '{emotion}'; known: {', '.join(EMOTIONS)}")
    preset = EMOTIONS[emotion]
    return Sampling(
        seed=seed,
        temperature=preset.temperature,
        cfg_weight=cfg_weight,
        exaggeration=preset.exaggeration if exaggeration is None else exaggeration,
    )
