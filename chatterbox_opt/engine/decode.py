"""The decode loop of the t3 stage: speech tokens of one sequence or of a continuous batch.

Continuous batching: a fixed number of slots, each with its own position, sampling parameters,
history and generator. A sequence that ends frees its slot at once, and a step costs nearly the same
for one slot as for many. A sequence's tokens do not depend on the rest of the batch. Everything
that differs between two steps is a tensor in a static buffer (decode_state.py), so a step can be
captured once and replayed (cuda_graphs.py). The ``DecodeBackend`` determines how a step runs and
how often the host reads tokens back.

Responsible for steps, the backends that run them, and when a sequence ends. Not responsible for
audio, files or retries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from chatterbox_opt.errors import NumericsError, TextError
from chatterbox_opt.models.t3 import fused_step, int8_step
from chatterbox_opt.models.t3.decode_state import (
    DecodeOutput,
    DecodeRequest,
    DecodeState,
    PrefillFn,
)
from chatterbox_opt.models.t3.fused_step import FusedStep
from chatterbox_opt.models.t3.int8_step import Int8Step
from chatterbox_opt.models.t3.kv_cache import KVCache, StaticKVCache, round_up_kv_len
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.models.t3.ragged_kv_cache import RaggedKVCache
from chatterbox_opt.models.t3.sampler import NOT_FINITE
from chatterbox_opt.runtime.cuda import GeneratorState, generator_state, restore_generator

StepFn = Callable[[Tensor, Tensor, Tensor, KVCache, int], Tensor]  # T3.step, or a compiled one


class DecodeStep(Protocol):
    """Token in, next token out, for the first ``count`` slots over ``kv_len`` positions."""

    def __call__(self, slots: DecodeState, count: int, kv_len: int, /, *, needs_sort: bool) -> None:
        """Update the slots' buffers."""
        ...


def eager_step(forward: StepFn) -> DecodeStep:
    """The step around the model's ``forward``, in PyTorch operations.

    It only uses tensors in static buffers: nothing is read back, and shapes depend only on
    ``count``, ``kv_len`` and ``needs_sort``.
    """

    def step(slots: DecodeState, count: int, kv_len: int, /, *, needs_sort: bool) -> None:
        # steps continue after a sequence's end until the readback: keep positions in the cache
        position = slots.position[:count].clamp(max=kv_len - 1)
        logits = forward(
            slots.last_token[:count], slots.num_generated[:count], position, slots.cache, kv_len
        )
        slots.logits[: count * slots.rows_per_seq].copy_(logits)
        slots.sample_next(0, count, needs_sort=needs_sort)

    return step


def fastest_step(backend: DecodeBackend, t3: T3) -> DecodeStep:
    """The fastest step that this backend can run with the current weights."""
    if backend.forward is None and backend.fused and fused_step.supports(t3):
        return FusedStep(t3)
    return eager_step(backend.forward or t3.step)


def prefill_fn(t3: T3) -> PrefillFn:
    """The model's prefill into the slots' static buffers; reads nothing back."""

    def prefill(slots: DecodeState, prefix: Tensor) -> None:
        logits = t3.prefill(prefix, slots.prefill_last, slots.cache, slots.prefill_slot)
        slots.logits.unflatten(0, (slots.count, slots.rows_per_seq))[slots.prefill_slot] = logits

    return prefill


class DecodeBackend(Protocol):
    """How steps and prefills are run.

    Attributes:
        steps_per_sync: steps between two readbacks of tokens. With 1 the host waits for each token;
            with more, the next steps run during the readback, and tokens generated after a
            sequence's end are dropped.
        forward: a compiled ``T3.step``, or None.
        fused: steps use our Triton kernels where they support the model (fused_step.py).
        kv_cache: torch.int8 keys and values in a static cache, or None for T3's dtype.
    """

    steps_per_sync: int
    forward: StepFn | None
    fused: bool
    kv_cache: torch.dtype | None

    def slots(self, t3: T3, count: int, rows_per_seq: int) -> DecodeState:
        """Buffers for ``count`` sequences, uninitialized; those returned before become invalid."""
        ...

    def prefill(self, t3: T3) -> PrefillFn:
        """The prefill with the current weights."""
        ...

    def step(self, t3: T3) -> DecodeStep:
        """The step with the current weights; called again whenever they may have moved."""
        ...

    def readback(self, tokens: Tensor) -> Callable[[], list[list[int]]]:
        """Start copying int64 [n, m] to the host; the returned function waits for the copy."""
        ...


class EagerBackend:
    """Launches every step from Python; works on every device."""

    steps_per_sync = 1

    def __init__(
        self,
        forward: StepFn | None = None,
        *,
        fused: bool = False,
        kv_cache: torch.dtype | None = None,
    ) -> None:
        """Run steps eagerly.

        Args:
            forward, fused, kv_cache: see ``DecodeBackend``.
        """
        self.forward, self.fused, self.kv_cache = forward, fused, kv_cache
        self._int8_step: Int8Step | None = None

    def slots(self, t3: T3, count: int, rows_per_seq: int) -> DecodeState:
        """With a static KV cache if steps are compiled or run on a GPU, else with a ragged one."""
        shape, like = t3.kv_shape, t3.like
        cache: KVCache
        self._int8_step = None
        if like.device.type == "cpu" and self.forward is None:
            if int8_step.supports(t3):
                self._int8_step, like = Int8Step(t3), like.to(int8_step.KV_DTYPE)
            cache = RaggedKVCache(num_seqs=count, rows_per_seq=rows_per_seq, shape=shape, like=like)
        else:
            cache = StaticKVCache(
                num_seqs=count,
                rows_per_seq=rows_per_seq,
                shape=shape,
                like=like,
                dtype=self.kv_cache,
            )
        return DecodeState(t3, count, cache)

    def prefill(self, t3: T3) -> PrefillFn:
        return prefill_fn(t3)

    def step(self, t3: T3) -> DecodeStep:
        return eager_step(self._int8_step) if self._int8_step else fastest_step(self, t3)

    def readback(self, tokens: Tensor) -> Callable[[], list[list[int]]]:
        return tokens.tolist


@dataclass(slots=True)
class _RunningSequence:
    """The host's view of a slot in use.

    Attributes:
        max_tokens: it is truncated at this length.
        position: of its last token in the KV cache.
        late_readback: a readback covers several steps, so tokens may be drawn after the end.
        unread: tokens drawn since the last readback.
        generator_states: the generator's state after each draw of an unread token.
    """

    request: DecodeRequest
    max_tokens: int
    position: int
    late_readback: bool
    unread: int = 1
    tokens: list[int] = field(default_factory=list)
    generator_states: deque[GeneratorState] = field(default_factory=deque)

    def prepare(self, slots: DecodeState, slot: int) -> None:
        """Draw the random numbers of the next token."""
        if self.request.sampling.temperature == 0:
            return
        slots.noise[slot].exponential_(generator=self.request.generator)
        if self.late_readback:
            self.generator_states.append(generator_state(self.request.generator))

    def append(self, tokens: Sequence[int], stop: int) -> DecodeOutput | None:
        """Append tokens in the order they were drawn; return the output if the sequence has ended.

        Its generator is then reset to its state after the last of them, as if no extra tokens had
        been drawn.
        """
        for token in tokens:
            after = self.generator_states.popleft() if self.generator_states else None
            output = self._append(token, stop)
            if output is not None:
                if self.generator_states and after is not None:
                    restore_generator(self.request.generator, after)
                return output
        return None

    def _append(self, token: int, stop: int) -> DecodeOutput | None:
        if token == NOT_FINITE:
            message = f"t3 produced NaN or Inf at token {len(self.tokens)}"
            return DecodeOutput(self.request, error=NumericsError(message))
        if token == stop:
            return DecodeOutput(self.request, tuple(self.tokens))
        self.tokens.append(token)
        self.request.on_token(len(self.tokens))
        if len(self.tokens) == self.max_tokens:
            return DecodeOutput(self.request, tuple(self.tokens), truncated=True)
        return None


class _Readback:
    """The tokens drawn since the last readback, on their way to the host."""

    def __init__(
        self, slots: DecodeState, running: list[_RunningSequence], backend: DecodeBackend
    ) -> None:
        """Start copying; tokens drawn from now on belong to the next readback."""
        self._counts = [sequence.unread for sequence in running]
        for sequence in running:
            sequence.unread = 0
        self._wait = backend.readback(slots.latest(len(running), max(self._counts)))

    def tokens(self) -> list[list[int]]:
        """Wait for the copy; the tokens of each slot."""
        rows = zip(self._wait(), self._counts, strict=True)
        return [row[len(row) - count :] for row, count in rows]


@torch.inference_mode()
def decode(
    t3: T3,
    slots: DecodeState,
    next_request: Callable[[], DecodeRequest | None],
    backend: DecodeBackend,
) -> Iterator[DecodeOutput]:
    """Decode requests until there are none and all have ended; yield each as it ends.

    Args:
        slots: from ``backend``.
        next_request: called whenever a slot is free; None if there is no request (for now).
    """
    running: list[_RunningSequence] = []
    # weights can move only while the caller's code runs: in next_request, and at each yield
    step, stale = backend.step(t3), False
    while True:
        # 1) prefill new requests into free slots
        while len(running) < slots.count and (request := next_request()) is not None:
            slot, stale = len(running), True
            try:
                length = slots.prefill(
                    slot, request, t3, backend.prefill(t3), backend.steps_per_sync
                )
            except TextError as error:
                yield DecodeOutput(request, error=error)
                continue
            late = backend.steps_per_sync > 1
            running.append(_RunningSequence(request, t3.max_tokens(request.sampling), length, late))
            running[slot].prepare(slots, slot)
            slots.sample_next(slot, slot + 1, needs_sort=request.sampling.truncates)
        if not running:
            return
        if stale:
            step, stale = backend.step(t3), False
        # 2) start the readback, and run the next steps meanwhile
        readback = _Readback(slots, running, backend)
        if backend.steps_per_sync > 1:
            _advance(slots, running, step, backend.steps_per_sync)
        # 3) remove the sequences that have ended
        ended = _take_out_ended(slots, running, readback, t3.config.stop_speech)
        stale = bool(ended)
        yield from ended
        if backend.steps_per_sync == 1 and not ended:
            _advance(slots, running, step, 1)


def _take_out_ended(
    slots: DecodeState, running: list[_RunningSequence], readback: _Readback, stop: int
) -> list[DecodeOutput]:
    """Append the tokens read back; remove the sequences that have ended and return their output."""
    tokens, ended = readback.tokens(), []
    for slot in reversed(range(len(running))):
        output = running[slot].append(tokens[slot], stop)
        if output is None:
            continue
        ended.append(output)
        last = running.pop()
        if slot < len(running):  # the last one moves into the gap: used slots stay contiguous
            slots.move(len(running), slot)
            running[slot] = last
    return ended


def _advance(
    slots: DecodeState, running: list[_RunningSequence], step: DecodeStep, steps_per_sync: int
) -> None:
    """Run ``steps_per_sync`` steps without a readback."""
    needs_sort = any(sequence.request.sampling.truncates for sequence in running)
    for _ in range(steps_per_sync):
        for slot, sequence in enumerate(running):
            sequence.prepare(slots, slot)
            sequence.position += 1
            sequence.unread += 1
            slots.cache.reserve(slot, sequence.position)
        kv_len = round_up_kv_len(max(sequence.position for sequence in running))
        step(slots, len(running), kv_len, needs_sort=needs_sort)
