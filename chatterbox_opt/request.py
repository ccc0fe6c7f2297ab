"""What the engine is asked for and gives back: requests, progress, pieces, results. Values only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.sampling import Sampling

if TYPE_CHECKING:
    from chatterbox_opt.voice import Voice

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
        faults: what a guard still found in it after all attempts (see quality.py).
        attempts: how often it was spoken.
    """

    samples: Wave
    text: str
    tokens: int
    seconds: Mapping[str, float]
    faults: tuple[str, ...] = ()
    attempts: int = 1


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


@dataclass(frozen=True, slots=True)
class Request:
    """One utterance of a batch.

    Attributes:
        id: comes back with the result.
        text: of any length.
        voice: a Voice, whatever ``engine.voice`` takes, or None for the model's own.
        sampling: knobs; without a seed one is drawn, and comes back with the result.
    """

    id: str
    text: str
    voice: Voice | str | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request: pieces, or an error as a value.

    Attributes:
        id: the request's.
        seed: the one used; gives the same samples again, alone or in company.
        pieces: joined they are the whole; empty if it failed.
        error: why it failed, or None.
    """

    id: str
    seed: int
    pieces: tuple[Piece, ...] = ()
    error: Exception | None = None

    def audio(self) -> Audio:
        """The whole, as ``Engine.synthesize`` gives it.

        Raises:
            Exception: the request failed; this is its error.
        """
        if self.error is not None:
            raise self.error
        return join(list(self.pieces), self.seed)


Speak = Callable[[Iterable[Request]], Iterator[Result]]  # as Engine.batch, in whatever order


def join(pieces: list[Piece], seed: int) -> Audio:
    """Pieces to the whole."""
    return Audio(
        samples=np.concatenate([piece.samples for piece in pieces]),
        sample_rate=SAMPLE_RATE,
        seed=seed,
        tokens=sum(piece.tokens for piece in pieces),
        seconds=total_seconds(pieces),
    )


def total_seconds(pieces: list[Piece]) -> dict[str, float]:
    """Sum the work of pieces, stage by stage."""
    total: dict[str, float] = {}
    for piece in pieces:
        for stage, seconds in piece.seconds.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total
