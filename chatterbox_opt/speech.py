"""What the engine gives back: progress, pieces, and the whole. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the work is: chunk ``chunk`` (from 0) of ``chunks``, of so many characters, with so
    many speech tokens said."""

    chunk: int
    chunks: int
    characters: int
    tokens: int


Observer = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """The sound of one chunk with the silence after it.

    Attributes:
        samples: float32 [n] in [-1, 1] at 24 kHz.
        text: the normalised chunk.
        tokens: speech tokens in it.
        seconds: of work, by stage (t3, flow, vocoder, watermark).
    """

    samples: Wave
    text: str
    tokens: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Audio:
    """A whole synthesis.

    Attributes:
        samples: float32 [n] in [-1, 1].
        sample_rate: 24000.
        seed: gives the same samples again, on the same machine and plan.
        tokens: speech tokens in all.
        seconds: of work, by stage.
    """

    samples: Wave
    sample_rate: int
    seed: int
    tokens: int
    seconds: Mapping[str, float]

    @property
    def duration(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / self.sample_rate


def total_seconds(pieces: list[Piece]) -> dict[str, float]:
    """Sum the work of pieces, stage by stage."""
    total: dict[str, float] = {}
    for piece in pieces:
        for stage, seconds in piece.seconds.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total
