"""The values passed between the parts of the engine for one chunk: request, tokens, audio, attempt.

Responsible for these values and for which errors fail one request only. Not responsible for
computing them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from chatterbox_opt.errors import ChatterboxOptError
from chatterbox_opt.request import Wave
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text.chunking import Chunk

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from chatterbox_opt.voice import Voice

OnToken = Callable[[int], None]
# The errors that fail one request and not its batch: our own, and those that torch, numpy,
# tokenizers and file systems raise. RuntimeError includes torch.OutOfMemoryError and the errors of
# CUDA and torch.compile. Nearly all of ``Exception``, enumerated so that programming errors
# (TypeError, AttributeError, NameError, AssertionError) are not caught: no retry repairs them, and
# they must not be reported as a request's failure. ImportError and ArithmeticError are not caught
# either.
REQUEST_ERRORS = (ChatterboxOptError, RuntimeError, ValueError, LookupError, OSError, MemoryError)


@dataclass(frozen=True, slots=True, eq=False)
class ChunkRequest:
    """One attempt at one chunk of text, as requested from T3.

    Attributes:
        seed: of this attempt; ``sampling.seed`` is ignored.
        on_token: called at every speech token with the number generated so far.
    """

    chunk: Chunk
    voice: Voice
    sampling: Sampling
    seed: int
    on_token: OnToken


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """The speech tokens of a chunk request.

    Attributes:
        tokens: int64 [T] on the CPU, only ids that encode audio (below 6561).
        truncated: T3 reached its limit without a stop token.
        generator: in its state after T3; flow and vocoder continue to draw from it.
    """

    request: ChunkRequest
    tokens: Tensor
    truncated: bool
    generator: torch.Generator


TokenResult = TokenOutput | tuple[ChunkRequest, Exception]
NextChunk = Callable[[], ChunkRequest | None]


@dataclass(frozen=True, slots=True)
class AudioOutput:
    """The audio of a chunk request.

    Attributes:
        wave: float32 [n] in [-1, 1] at 24 kHz, without watermark.
        tokens: the number of speech tokens that it was rendered from.
        seconds: processing time by stage; an equal share if several were processed together.
            Rendering that overlaps with T3 counts in full, so the sum may exceed the elapsed time.
        codes: the speech tokens; empty from plain Chatterbox, which does not return them.
        truncated: T3 reached its limit without a stop token.
    """

    wave: Wave
    tokens: int
    seconds: Mapping[str, float]
    codes: tuple[int, ...] = ()
    truncated: bool = False


ChunkResult: TypeAlias = "tuple[ChunkRequest, AudioOutput | Exception]"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One chunk's audio, its faults, and how many attempts were made."""

    output: AudioOutput
    faults: tuple[str, ...] = ()
    attempts: int = 1
