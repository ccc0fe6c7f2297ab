"""Inputs and outputs of the engine: requests, progress, pieces, results.

Responsible for these values. Not responsible for computing them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chatterbox_opt.voice import Voice

Wave: TypeAlias = "npt.NDArray[np.float32]"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one text, reported at every speech token.

    Attributes:
        chunk: index of the current chunk, from 0.
        chunks: number of chunks.
        characters: length of the current chunk.
        tokens: speech tokens generated for it so far.
    """

    chunk: int
    chunks: int
    characters: int
    tokens: int


Observer = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Audio of one chunk with the pause after it.

    Attributes:
        samples: float32 [n] in [-1, 1] at 24 kHz.
        text: the normalized chunk.
        tokens: number of speech tokens.
        seconds: processing time by stage (t3, flow, vocoder, watermark).
        faults: detected by a guard in the best attempt (see engine/quality.py).
        attempts: number of times that it was synthesized.
    """

    samples: Wave
    text: str
    tokens: int
    seconds: Mapping[str, float]
    faults: tuple[str, ...] = ()
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Audio:
    """Audio of a whole text.

    Attributes:
        samples: float32 [n] in [-1, 1].
        sample_rate: 24000.
        seed: reproduces the samples on the same machine and plan.
        tokens: total number of speech tokens.
        seconds: processing time by stage.
    """

    samples: Wave
    sample_rate: int
    seed: int
    tokens: int
    seconds: Mapping[str, float]

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True, slots=True)
class Request:
    """One text of a batch.

    Attributes:
        id: returned with the result.
        text: of any length.
        voice: a Voice, a source as for ``engine.voice``, or None for the model's own voice.
        sampling: parameters; without a seed one is drawn, and returned with the result.
    """

    id: str
    text: str
    voice: Voice | str | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Times of one request in seconds; None for what it has not reached.

    Attributes:
        queued: until its first chunk entered a decode slot.
        prefill: from then until its first speech token.
        first_token, first_audio, done: since it was added, until the first speech token, the first
            piece and the end.
        tokens_per_second: speech tokens by the time from the first slot to the last token.
    """

    queued: float | None = None
    prefill: float | None = None
    first_token: float | None = None
    first_audio: float | None = None
    done: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one request: pieces, or an error as a value.

    Attributes:
        id: of the request.
        seed: that was used; reproduces the samples, alone or in any batch.
        pieces: of all chunks, in order; empty if the request failed.
        error: why it failed, or None.
        metrics: its times.
    """

    id: str
    seed: int
    pieces: tuple[Piece, ...] = ()
    error: Exception | None = None
    metrics: Metrics = field(default_factory=Metrics)

    def audio(self) -> Audio:
        """The pieces joined, as returned by ``Engine.synthesize``.

        Raises:
            Exception: the request's error, if it failed.
        """
        if self.error is not None:
            raise self.error
        return join(list(self.pieces), self.seed)


# as ``Engine.batch``: results in any order
SynthesizeBatch = Callable[[Iterable[Request]], Iterator[Result]]


def join(pieces: list[Piece], seed: int) -> Audio:
    """Concatenate pieces."""
    import numpy as np  # not at the top: this module is imported for every ``--help``

    return Audio(
        samples=np.concatenate([piece.samples for piece in pieces]),
        sample_rate=SAMPLE_RATE,
        seed=seed,
        tokens=sum(piece.tokens for piece in pieces),
        seconds=total_seconds(pieces),
    )


def total_seconds(pieces: list[Piece]) -> dict[str, float]:
    """Total processing time of pieces by stage."""
    total: dict[str, float] = {}
    for piece in pieces:
        for stage, seconds in piece.seconds.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total
