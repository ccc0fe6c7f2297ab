"""The values that one chunk is while it goes through the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatterbox_opt.errors import ChatterboxOptError
from chatterbox_opt.request import Wave
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text.chunking import Chunk

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from chatterbox_opt.voice import Voice

OnToken = Callable[[int], None]
# what may go wrong with one line; torch, numpy and file systems have their own kinds
REQUEST_ERRORS = (ChatterboxOptError, RuntimeError, ValueError, LookupError, OSError, MemoryError)


@dataclass(frozen=True, slots=True, eq=False)
class ChunkRequest:
    """One chunk of text that is to be said once.

    Attributes:
        seed: of this line alone; ``sampling.seed`` is not looked at.
        on_token: told at every speech token how many there are.
    """

    chunk: Chunk
    voice: Voice
    sampling: Sampling
    seed: int
    on_token: OnToken


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """A line as speech tokens.

    Attributes:
        tokens: int64 [T] on the processor, only ids that are sound (below 6561).
        truncated: T3 came to its limit without a stop token.
        generator: in the state in which T3 left it; flow and vocoder go on drawing from it.
    """

    request: ChunkRequest
    tokens: Tensor
    truncated: bool
    generator: torch.Generator


TokenResult = TokenOutput | tuple[ChunkRequest, Exception]
NextChunk = Callable[[], ChunkRequest | None]


@dataclass(frozen=True, slots=True)
class AudioOutput:
    """One line's sound.

    Attributes:
        wave: float32 [n] in [-1, 1] at 24 kHz, without watermark.
        tokens: how many speech tokens it was made of.
        seconds: of work, by stage; its share where several were worked at together. What is worked
            at beside T3 counts in full, so that the sum may be more than passed.
        codes: the speech tokens, where they are known (plain Chatterbox gives none out).
        truncated: T3 came to its limit without a stop token.
    """

    wave: Wave
    tokens: int
    seconds: Mapping[str, float]
    codes: tuple[int, ...] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One chunk's sound, what is wrong with it, and how many attempts were made."""

    output: AudioOutput
    faults: tuple[str, ...] = ()
    attempts: int = 1
