"""What a model needs of a reference recording (upstream's ``prepare_conditionals``).

Responsible for these values. Not responsible for decoding a recording (audio/files.py) or for
computing a voice (models/voice_encoders.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from chatterbox_opt.errors import VoiceError


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """How a recording becomes a voice; the defaults are Chatterbox's (tts.py).

    Attributes:
        longer_than: seconds that a recording has to exceed; every one has 1 s or more.
        prompt_seconds: of the recording condition T3 (upstream ENC_COND_LEN).
        loudness: LUFS that the recording is brought to; None leaves it as it is.
    """

    longer_than: float = 0.0
    prompt_seconds: int = 6
    loudness: float | None = None

    @property
    def kind(self) -> str:
        """Part of the cache key of a voice; "" for Chatterbox's, whose keys never had it."""
        return "" if self == ReferenceConfig() else f"{asdict(self)}"

    def check_length(self, seconds: float, name: str) -> None:
        """Check that a recording is longer than the model needs.

        Raises:
            VoiceError: it is not; ``name`` is in the message.
        """
        if seconds <= self.longer_than:
            raise VoiceError(
                f"'{name}' lasts {seconds:.1f} s, and this model needs more than "
                f"{self.longer_than:g} s of speech: use a longer recording (10 to 15 s are best)"
            )


def turbo_reference() -> ReferenceConfig:
    """Turbo's and Nano's (tts_turbo.py)."""
    return ReferenceConfig(longer_than=5.0, prompt_seconds=15, loudness=-27.0)
