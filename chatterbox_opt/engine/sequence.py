"""A sequence (one chunk from text to audio) and its request: the engine's only per-text state.

Responsible for this state, for the seed of each attempt, and for which errors fail one request
only. Not responsible for changing it: scheduler.py, decoder.py and renderer.py do.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Values
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from chatterbox_opt.audio.silence import Trimmer
from chatterbox_opt.errors import ChatterboxOptError, without_frames
from chatterbox_opt.request import Metrics, Piece, Progress, Result
from chatterbox_opt.sampling import Sampling, chunk_seed
from chatterbox_opt.text.chunking import Chunk
from chatterbox_opt.utils.event_queue import EventQueue
from chatterbox_opt.utils.wave import Wave

if TYPE_CHECKING:
    from concurrent.futures import Future

    import torch

    from chatterbox_opt.config.hop_schedule import HopSchedule
    from chatterbox_opt.engine.quality import Guard
    from chatterbox_opt.engine.windows import Seams
    from chatterbox_opt.models.t3.model import Prompt
    from chatterbox_opt.runtime.cuda import GeneratorState
    from chatterbox_opt.voice import Voice
    from chatterbox_opt.words.written import WrittenWord

log = logging.getLogger(__name__)
# The errors that fail one request and not its batch: our own, and those that torch, numpy,
# tokenizers and file systems raise. RuntimeError includes torch.OutOfMemoryError and the errors of
# CUDA and torch.compile. Nearly all of ``Exception``, enumerated so that programming errors
# (TypeError, AttributeError, NameError, AssertionError) are not caught: no retry repairs them, and
# they must not be reported as a request's failure. ImportError and ArithmeticError are not caught
# either.
REQUEST_ERRORS = (ChatterboxOptError, RuntimeError, ValueError, LookupError, OSError, MemoryError)

Event: TypeAlias = "tuple[RequestState, Progress | Piece | Result]"
OnProgress: TypeAlias = "Callable[[RequestState, Progress], None]"


class Status(Enum):
    """Where a sequence is; the last three are final."""

    WAITING = "waiting"
    DECODING = "decoding"
    RENDERING = "rendering"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DecodeMode(Enum):
    """How a sequence is decoded. After failures it moves down this list (decoder.py)."""

    BATCHED = "batched with the backend of the plan"
    EAGER = "batched with eager steps"
    ALONE = "alone with eager steps"
    FLOAT32 = "alone with eager steps in float32"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a backend allocates for a request; never changes the output.

    Attributes:
        slots: the maximum number of sequences decoded at once.
        use_cfg: cfg_weight may be above 0, which needs a second row per sequence.
        group: sequences that wait for each other to be rendered together, at most; 1 waits for
            none.
    """

    slots: int = 1
    use_cfg: bool = True
    group: int = 1


@dataclass(slots=True, eq=False)
class Sequence:
    """One chunk, from text to audio.

    Attributes:
        index: of the chunk in its request.
        attempt: the number in the seed; see ``seed``.
        prompt: text and voice on the device, while it is decoded.
        generator: one serves the three stages in order, as upstream's global one does.
        text_tokens: number of tokens of its text, once it has been admitted.
        tokens: speech tokens of this attempt.
        num_tokens: their number; of plain Chatterbox, which does not return them, an estimate.
        truncated: T3 reached its limit without a stop token.
        audio: float32 [n] in [-1, 1] at 24 kHz, without watermark.
        error: why this attempt has no audio.
        seconds: processing time by stage, of all attempts; an equal share of what was processed
            together. Rendering that overlaps with T3 counts in full.
        best: the best attempt so far, without watermark and pause.
        forced_tokens: replace the sampled ones (teacher forcing), to compare precisions.
        given_tokens: of a recording: they are rendered as they are, without T3.
        heard: the last samples of its parts without watermark, or all if they will be needed.
        trimmer: leaves out its silence next to a pause that was asked for.
        written: words of its chunk as the person wrote them, if their times are asked for.
        spans: frames of the chunk's words as T3 has read them, of this attempt.
        max_tokens, position, unread, generator_states: of its decode slot: the length at which it
            is truncated, the KV cache position of its last token, tokens drawn since the last
            readback, and the generator's state after each of them.
    """

    request: RequestState
    index: int
    chunk: Chunk
    voice: Voice
    sampling: Sampling
    status: Status = Status.WAITING
    mode: DecodeMode = DecodeMode.BATCHED
    attempt: int = 0
    prompt: Prompt | None = None
    generator: torch.Generator | None = None
    text_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    num_tokens: int = 0
    truncated: bool = False
    audio: Wave | None = None
    error: Exception | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    best: Piece | None = None
    forced_tokens: tuple[int, ...] = ()
    given_tokens: tuple[int, ...] = ()
    heard: list[Wave] = field(default_factory=list)
    trimmer: Trimmer | None = None
    written: Values[WrittenWord] = ()
    spans: list[tuple[int, int]] = field(default_factory=list)
    max_tokens: int = 0
    position: int = 0
    unread: int = 0
    generator_states: deque[GeneratorState] = field(default_factory=deque)

    @property
    def seed(self) -> int:
        """Of this attempt; follows from the request's seed, ``index`` and ``attempt``."""
        number = self.request.first_chunk + self.index
        return chunk_seed(self.request.seed, number, self.attempt)

    def restart(self, mode: DecodeMode | None = None) -> None:
        """Wait for a slot again: the same seed, hence the same tokens."""
        self.status, self.mode = Status.WAITING, mode or self.mode
        self.prompt = self.generator = self.audio = self.error = None
        self.tokens, self.spans, self.truncated, self.unread = [], [], False, 0
        self.generator_states.clear()

    def next_attempt(self, attempt: int) -> None:
        """Wait for a slot with another seed."""
        self.attempt = attempt
        self.restart(DecodeMode.BATCHED)

    def fail(self, error: Exception) -> None:
        """End this attempt; the error's frames are dropped, because they hold tensors."""
        log.debug("an attempt failed", exc_info=error)
        self.status, self.error = Status.FAILED, without_frames(error)

    def end(self, status: Status) -> None:
        """Enter a final status and free memory; only the tokens stay."""
        self.status = status
        self.prompt = self.generator = self.audio = self.best = None
        self.error = None
        self.heard.clear()
        self.generator_states.clear()

    def append(self, token: int) -> None:
        """Append a speech token and report it."""
        self.tokens.append(token)
        self.request.on_token(self, len(self.tokens))

    def trim(self, samples: Wave, *, is_last: bool) -> Wave:
        """Its next samples, or some of them, without silence next to a pause that was asked for."""
        start, end = self.chunk.lead is not None, self.chunk.is_exact
        if not (start or end):
            return samples
        self.trimmer = self.trimmer or Trimmer(start=start, end=end)
        return self.trimmer.push(samples, is_last=is_last)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add processing time."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of a sequence's sound, while T3 may still decode it.

    Attributes:
        number: of the part in its sequence.
        samples: float32 [n] at 24 kHz, without watermark.
        following: float32 [m], provisional sound after it.
        tokens: number of its speech tokens.
        is_last: the sequence ends with it.
    """

    sequence: Sequence
    number: int
    samples: Wave
    following: Wave
    tokens: int
    is_last: bool


@dataclass(slots=True, eq=False)
class RequestState:
    """A request while the engine works on it.

    Attributes:
        seed: of the whole text.
        capacity: what it needs of the backend.
        guard: retries chunks with faults; None uses the first attempt that has audio.
        on_progress: called at every speech token, in a step; must not raise.
        tokens_only: stop after T3; pieces have no samples.
        alignment_heads: of T3, that tell when words are heard; (): nobody asks for it.
        hops: when parts of its sequences are given out; None: only whole sequences are.
        first_chunk: number of its first chunk, if it is a part of a text.
        seams: joins its sequences, if they are windows of a recording.
        sequences: its chunks in order.
        events: where its pieces and then its result go.
        waiting: its sequences without a slot, retries first.
        parts: that were rendered and are not finished yet.
        finishing: pieces that get their watermark, by chunk and part.
        emitted: number of whole chunks in ``events``, and of parts of the next one.
        emitted_seconds: length of their audio.
        result: None until it has ended.
        added, admitted, first_token, decoded, first_audio, ended: ``time.perf_counter`` values,
            None until then; ``decoded`` is when its last sequence so far left T3.
    """

    id: str
    seed: int
    capacity: Capacity = field(default_factory=Capacity)
    guard: Guard | None = None
    on_progress: OnProgress | None = None
    tokens_only: bool = False
    alignment_heads: tuple[tuple[int, int], ...] = ()
    hops: HopSchedule | None = None
    first_chunk: int = 0
    seams: Seams | None = None
    sequences: list[Sequence] = field(default_factory=list)
    events: EventQueue[Event] = field(default_factory=EventQueue)
    waiting: deque[Sequence] = field(default_factory=deque)
    parts: deque[Part] = field(default_factory=deque)
    finishing: dict[tuple[int, int], Future[Piece]] = field(default_factory=dict)
    emitted: tuple[int, int] = (0, 0)
    emitted_seconds: float = 0.0
    result: Result | None = None
    added: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    first_token: float | None = None
    decoded: float | None = None
    first_audio: float | None = None
    ended: float | None = None

    def add_chunks(self, chunks: Iterable[Chunk], voice: Voice, sampling: Sampling) -> None:
        """Append one waiting sequence per chunk."""
        for chunk in chunks:
            sequence = Sequence(self, len(self.sequences), chunk, voice, sampling)
            self.sequences.append(sequence)
            self.waiting.append(sequence)

    def on_token(self, sequence: Sequence, count: int) -> None:
        """Report the number of tokens that a sequence has now."""
        sequence.num_tokens = count
        if self.first_token is None:
            self.first_token = time.perf_counter()
        if self.on_progress is not None:
            chunks, letters = len(self.sequences), len(sequence.chunk.text)
            self.on_progress(self, Progress(sequence.index, chunks, letters, count))

    def emit(self, piece: Piece) -> None:
        """Hand the next piece to the consumer."""
        if self.first_audio is None:
            self.first_audio = time.perf_counter()
        self.emitted_seconds += piece.duration
        chunks, parts = self.emitted
        self.emitted = (chunks + 1, 0) if piece.ends_chunk else (chunks, parts + 1)
        self.events.put((self, piece))

    @property
    def runs_dry(self) -> float:
        """When a caller who plays its audio from the first piece on has heard all that is there, on
        the clock of ``time.perf_counter``; before the first piece, when it was added."""
        if self.first_audio is None:
            return self.added
        return self.first_audio + self.emitted_seconds

    def end(self, error: Exception | None) -> None:
        """Hand the result to the consumer; its pieces were handed over before."""
        self.ended = time.perf_counter()
        self.result = Result(self.id, self.seed, error=error, metrics=self.metrics())
        self.events.put((self, self.result))

    def metrics(self) -> Metrics:
        """The times so far."""

        def since(begin: float | None, end: float | None) -> float | None:
            return None if begin is None or end is None else end - begin

        decoding = since(self.admitted, self.decoded)
        tokens = sum(sequence.num_tokens for sequence in self.sequences)
        return Metrics(
            queued=since(self.added, self.admitted),
            prefill=since(self.admitted, self.first_token),
            first_token=since(self.added, self.first_token),
            first_audio=since(self.added, self.first_audio),
            done=since(self.added, self.ended),
            tokens_per_second=tokens / decoding if decoding else None,
        )


def put_progress(request: RequestState, progress: Progress) -> None:
    """The ``on_progress`` that makes progress an event, for the thread that waits for events."""
    request.events.put((request, progress))
