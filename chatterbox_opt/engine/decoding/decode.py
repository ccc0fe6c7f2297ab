"""The decode loop of the t3 stage: speech tokens of one sequence or of a continuous batch.

Continuous batching: a fixed number of slots, each with its own position, sampling parameters,
history and generator. A sequence that ends frees its slot at once, and a step costs nearly the same
for one slot as for many. A sequence's tokens do not depend on the rest of the batch. Everything
that differs between two steps is a tensor in a static buffer (decode_state.py), so a step can be
captured once and replayed (cuda_graphs.py). The ``DecodeBackend`` determines how a step runs and
how often the host reads tokens back.

Responsible for steps, the backends that run them, and when a sequence ends. Not responsible for
which sequences are decoded, or for failures (decoder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from chatterbox_opt.engine.sequence import Sequence, Status
from chatterbox_opt.errors import NumericsError, TextError
from chatterbox_opt.models.t3 import fused_step, int8_step
from chatterbox_opt.models.t3.decode_state import DecodeState, PrefillFn
from chatterbox_opt.models.t3.fused_step import FusedStep
from chatterbox_opt.models.t3.int8_step import Int8Step
from chatterbox_opt.models.t3.kv_cache import KVCache, StaticKVCache, round_up_kv_len
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.models.t3.ragged_kv_cache import Int8KVCache, RaggedKVCache
from chatterbox_opt.models.t3.sampler import NOT_FINITE
from chatterbox_opt.runtime.cuda import generator_state, restore_generator

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

    def prefill(slots: DecodeState, text: Tensor, conditioning: Tensor) -> None:
        logits = t3.prefill(text, slots.prefill_last, conditioning, slots.cache, slots.prefill_slot)
        by_slot = slots.logits.unflatten(0, (slots.count, slots.rows_per_seq))
        by_slot[slots.prefill_slot] = logits.to(by_slot.dtype)

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

    def release_slots(self) -> None:
        """Free the buffers that are kept for the next call of ``slots``."""
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
            quantized = int8_step.supports(t3)
            kind = Int8KVCache if quantized else RaggedKVCache
            cache = kind(num_seqs=count, rows_per_seq=rows_per_seq, shape=shape, like=like)
            slots = DecodeState(t3, count, cache)
            self._int8_step = Int8Step(t3, slots) if quantized else None
            return slots
        cache = StaticKVCache(
            num_seqs=count,
            rows_per_seq=rows_per_seq,
            shape=shape,
            like=like,
            dtype=self.kv_cache,
        )
        return DecodeState(t3, count, cache)

    def release_slots(self) -> None:
        """Does nothing: none are kept."""

    def prefill(self, t3: T3) -> PrefillFn:
        return prefill_fn(t3)

    def step(self, t3: T3) -> DecodeStep:
        return self._int8_step or fastest_step(self, t3)

    def readback(self, tokens: Tensor) -> Callable[[], list[list[int]]]:
        return tokens.tolist


class DecodeBatch:
    """The sequences in the slots of a ``DecodeState``.

    Attributes:
        running: the sequences; the index is the slot.
        state: the slots.
        backend: runs the steps.
    """

    def __init__(self, t3: T3, state: DecodeState, backend: DecodeBackend) -> None:
        """Start without sequences.

        Args:
            state: from ``backend``.
        """
        self.running: list[Sequence] = []
        self.state, self.backend, self._t3 = state, backend, t3
        self._step: DecodeStep | None = None

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return len(self.running) == self.state.count

    def has_rows_for(self, sequence: Sequence) -> bool:
        """Whether a slot has the row that guides it, if it wants one and the model can."""
        guided = sequence.sampling.cfg_weight > 0 and self._t3.config.has_cfg
        return self.state.rows_per_seq == 2 or not guided

    def weights_moved(self) -> None:
        """T3's weights may be at other addresses from now on."""
        self._step = None

    @torch.inference_mode()
    def add(self, sequence: Sequence) -> None:
        """Prefill a sequence with a prompt and a generator into a free slot; draw its first token.

        Raises:
            TextError: more text tokens than the model has positions.
        """
        slot, t3, backend = len(self.running), self._t3, self.backend
        assert sequence.prompt is not None
        sequence.position = self.state.prefill(
            slot,
            sequence.prompt,
            sequence.sampling,
            t3,
            backend.prefill(t3),
            backend.steps_per_sync,
            sequence.forced_tokens,
        )
        sequence.max_tokens = t3.max_tokens(sequence.sampling, sequence.position)
        sequence.status, sequence.unread = Status.DECODING, 1
        self._draw_noise(slot, sequence)
        self.state.sample_next(slot, slot + 1, needs_sort=sequence.sampling.truncates)
        self.running.append(sequence)
        self.weights_moved()

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Decode up to the next readback; return the sequences that have ended, out of their slots.

        An ended one has all its tokens, or an error; it is ``truncated`` without a stop token.
        """
        if self._step is None:
            self._step = self.backend.step(self._t3)
        steps = self.backend.steps_per_sync
        # 1) start the readback of the tokens drawn so far, and run the next steps meanwhile;
        # tokens drawn from now on belong to the next readback
        counts = [sequence.unread for sequence in self.running]
        for sequence in self.running:
            sequence.unread = 0
        wait = self.backend.readback(self.state.latest(len(counts), max(counts)))
        if steps > 1:
            self._advance(self._step, steps)
        # 2) wait for it; take out the sequences that have ended
        rows, ended = wait(), []
        for slot in reversed(range(len(self.running))):
            row = rows[slot]
            if self._append(self.running[slot], row[len(row) - counts[slot] :]):
                ended.append(self.running[slot])
                self._take_out(slot)
        if ended:
            self.weights_moved()  # while they are rendered
        elif steps == 1:
            self._advance(self._step, 1)
        return ended

    @torch.inference_mode()
    def remove(self, sequence: Sequence) -> None:
        """Free the slot of a running sequence."""
        self._take_out(self.running.index(sequence))

    def _take_out(self, slot: int) -> None:
        last = self.running.pop()
        if slot < len(self.running):  # the last one moves into the gap: used slots stay contiguous
            self.state.move(len(self.running), slot)
            self.running[slot] = last

    def _advance(self, step: DecodeStep, steps: int) -> None:
        """Run ``steps`` steps without a readback."""
        needs_sort = any(sequence.sampling.truncates for sequence in self.running)
        if not self.full:  # a captured step runs free slots too, and attends up to their positions
            self.state.position[len(self.running) :].zero_()
        for _ in range(steps):
            for slot, sequence in enumerate(self.running):
                self._draw_noise(slot, sequence)
                sequence.position += 1
                sequence.unread += 1
                self.state.cache.reserve(slot, sequence.position)
            kv_len = round_up_kv_len(max(sequence.position for sequence in self.running))
            step(self.state, len(self.running), kv_len, needs_sort=needs_sort)

    def _draw_noise(self, slot: int, sequence: Sequence) -> None:
        """Draw the random numbers of a slot's next token."""
        if sequence.sampling.temperature == 0:
            return
        assert sequence.generator is not None
        self.state.noise[slot].exponential_(generator=sequence.generator)
        if self.backend.steps_per_sync > 1:  # tokens may be drawn after the end
            sequence.generator_states.append(generator_state(sequence.generator))

    def _append(self, sequence: Sequence, tokens: Iterable[int]) -> bool:
        """Append tokens in the order they were drawn; return whether the sequence has ended.

        Its generator is then reset to its state after the last of them, as if no extra tokens had
        been drawn.
        """
        states = sequence.generator_states
        for token in tokens:
            after = states.popleft() if states else None
            if self._ends(sequence, token):
                if states and after is not None:
                    assert sequence.generator is not None
                    restore_generator(sequence.generator, after)
                return True
        return False

    def _ends(self, sequence: Sequence, token: int) -> bool:
        """Append a token unless it is the stop token; return whether it was the last."""
        if token == NOT_FINITE:
            message = f"t3 produced NaN or Inf at token {len(sequence.tokens)}"
            sequence.error = NumericsError(message)
        elif token != self._t3.config.stop_speech or self._ignores_stop(sequence):
            sequence.append(token)
            sequence.truncated = len(sequence.tokens) == sequence.max_tokens
            return sequence.truncated
        return True

    def _ignores_stop(self, sequence: Sequence) -> bool:
        """Whether it goes on after a stop token, as upstream's Turbo does after its first token."""
        return self._t3.turbo_sampling and not sequence.tokens


def decode(
    t3: T3, state: DecodeState, sequences: Iterable[Sequence], backend: DecodeBackend
) -> Iterator[Sequence]:
    """Decode sequences without the engine around it; yield each as it ends.

    Args:
        state: from ``backend``.
        sequences: with prompts and generators; taken when a slot is free.
    """
    batch, source = DecodeBatch(t3, state, backend), iter(sequences)
    while True:
        while not batch.full and (sequence := next(source, None)) is not None:
            try:
                batch.add(sequence)
            except TextError as error:
                sequence.fail(error)
                yield sequence
        if not batch.running:
            return
        yield from batch.step()
