"""Adapters with the ``ChatterboxProvider`` interface, built on Engine.

Responsible for emotion presets. Not responsible for anything else: all calls go to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Audio, VoiceSource
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text.languages import languages_of
from chatterbox_opt.utils.arguments import shown
from chatterbox_opt.utils.closing import Closing


@dataclass(frozen=True, slots=True)
class Preset:
    """Sampling parameters of an emotion."""

    exaggeration: float
    temperature: float


DEFAULTS = Sampling()
# neutral is upstream's default; its README recommends higher exaggeration for dramatic speech,
# which also makes it faster, and lower temperatures for a steady voice
NEUTRAL = "neutral"
EMOTIONS = {
    NEUTRAL: Preset(DEFAULTS.exaggeration, 0.8),
    "calm": Preset(0.3, 0.6),
    "sad": Preset(0.35, 0.7),
    "happy": Preset(0.7, 0.8),
    "angry": Preset(0.85, 0.85),
    "excited": Preset(1.0, 0.9),
}


class OptimizedChatterboxProvider(Closing):
    """Chatterbox on the optimized engine.

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
            dtype: of T3 and flow, as ``--dtype``.
            use_compilation: use CUDA graphs for the T3 step if the device supports them.
            cpu_offload: keep the weights in host memory and move stages to the GPU one by one.
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

    def close(self) -> None:
        """Free the model."""
        self.engine.close()

    def generate(
        self,
        text: str,
        voice_path: VoiceSource = None,
        *,
        emotion: str = NEUTRAL,
        exaggeration: float | None = None,
        cfg_weight: float = DEFAULTS.cfg_weight,
        seed: int | None = None,
        language: str | None = None,
    ) -> Audio:
        """Synthesize a text.

        Args:
            voice_path: as ``Engine.voice``; None is the model's own.
            emotion: one of ``EMOTIONS``; Turbo and Nano have only "neutral".
            exaggeration: overrides the emotion's value.
            language: of the text, such as "de", for models that know several.

        Raises:
            InputError: unknown emotion or language, one that the model does not have, text without
                words, unusable recording.
        """
        sampling = sampling_for(emotion, exaggeration, cfg_weight, seed)
        missing = self.engine.checkpoint.config.missing_knobs
        if exaggeration is None and emotion != NEUTRAL and "exaggeration" in missing:
            raise InputError(
                f"emotion is '{emotion}', and this model has only '{NEUTRAL}': leave it out, or "
                "use tags such as [laugh] in the text"
            )
        return self.engine.synthesize(text, voice_path, sampling, language=language)

    def get_provider_status(self) -> dict[str, Any]:
        """Return the active settings: ``optimization_enabled`` and ``optimization_details``."""
        plan, checkpoint = self.engine.plan, self.engine.checkpoint
        details = {
            "model": checkpoint.name,
            "languages": list(languages_of(checkpoint.config)),
            "device": plan.device,
            "dtype": plan.t3.storage,
            "compilation": plan.compile,
            "cpu_offload": plan.offload != "none",
            "reasons": list(plan.reasons),
        }
        return {"optimization_enabled": plan.optimized, "optimization_details": details}


class RealChatterboxProvider(OptimizedChatterboxProvider):
    """The provider with a profile chosen from the hardware.

    The variables CHATTERBOX_DTYPE, CHATTERBOX_COMPILATION and CHATTERBOX_CPU_OFFLOAD override the
    profile; ``DISABLE_OPTIMIZATION=true`` uses plain chatterbox-tts.
    """

    def __init__(self, model: str = registry.DEFAULT, device: str = "auto") -> None:
        """Load the model with the plan for this machine. Raises as ``Engine.load``."""
        self.engine = Engine.load(model, device=device)


def sampling_for(
    emotion: str, exaggeration: float | None, cfg_weight: float, seed: int | None
) -> Sampling:
    """Sampling parameters for an emotion.

    Raises:
        InputError: an unknown emotion; the known ones are listed.
    """
    if not isinstance(emotion, str) or emotion not in EMOTIONS:
        raise InputError(f"unknown emotion {shown(emotion)}; known: {', '.join(EMOTIONS)}")
    preset = EMOTIONS[emotion]
    return Sampling(
        seed=seed,
        temperature=preset.temperature,
        cfg_weight=cfg_weight,
        exaggeration=preset.exaggeration if exaggeration is None else exaggeration,
    )
