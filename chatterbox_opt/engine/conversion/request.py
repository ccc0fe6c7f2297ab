"""What is to be converted: a recording, a voice, and how.

Responsible for this value. Not responsible for reading the recording (states.py); imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Audio, VoiceSource
from chatterbox_opt.sampling import Sampling, chosen, seeded
from chatterbox_opt.utils import arguments


@dataclass(frozen=True, slots=True)
class Conversion:
    """One recording that is to have another voice.

    Attributes:
        id: returned with the result.
        source: a path of an audio file or a pipe, or ``Audio``; of any length.
        voice: as of ``Request``.
        seed, cfm_steps: as of ``Sampling``; None: drawn, and the model's own number.

    Raises:
        InputError: a value of another type or out of range.
    """

    id: str
    source: Audio | str | os.PathLike[str]
    voice: VoiceSource = None
    seed: int | None = None
    cfm_steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Audio):
            if len(shape := self.source.samples.shape) != 1:
                raise InputError(f"source has samples of shape {list(shape)}; give mono, [n]")
        else:
            object.__setattr__(self, "source", arguments.name_or_path("source", self.source))
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """The parameters that a conversion has; it draws no tokens."""
        return chosen({"seed": self.seed, "cfm_steps": self.cfm_steps})

    def with_seed(self) -> Conversion:
        """The same conversion with a seed, drawn if it has none."""
        return replace(self, seed=seeded(self.sampling).seed)
