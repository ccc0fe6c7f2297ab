"""Speech tokens of one utterance or of many side by side: the one loop of the t3 stage.

Knows steps, how they are run and when an utterance ends. Knows nothing of sound, of files, or of
why something is said.

Continuous batching: a fixed number of slots, each with its own position, knobs, history and
generator; an utterance that ends makes room at once, and a step costs nearly the same for one slot
as for many. What an utterance says does not depend on its neighbours. Everything that differs
between two steps is a tensor in a static buffer (decode_state.py), so a step can be captured once and
replayed (cuda_graphs.py). How a step is run, and how often the host looks at the tokens, is a ``DecodeBackend``.
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

    def __call__(self, slots: DecodeState, count: int, kv_len: int, *, needs_sort: bool) -> None:
        """Change the slots' buffers."""
        ...


def eager_step(forward: StepFn) -> DecodeStep:
    """The step around the model's ``forward``.

    The whole of it is tensors in static buffers: nothing is read back, and nothing but ``count``,
    ``kv_len`` and ``needs_sort`` shapes it.
    """

    def step(slots: DecodeState, count: int, kv_len: int, *, needs_sort: bool) -> None:
        # a slot that ended may be stepped further: its position must stay inside what is read
        position = slots.position[:count].clamp(max=kv_len - 1)
        logits = forward(
            slots.last_token[:count], slots.num_generated[:count], position, slots.cache, kv_len
        )
        slots.logits[: count * slots.rows_per_seq].copy_(logits)
        slots.sample_next(0, count, needs_sort=needs_sort)

    return step


def fastest_step(backend: DecodeBackend, t3: T3) -> DecodeStep:
    """The step of this way for the weights as they are now."""
    if backend.forward is None and backend.fused and fused_step.supports(t3):
        return FusedStep(t3)
    return eager_step(backend.forward or t3.step)


def prefill_fn(t3: T3) -> PrefillFn:
    """The model's prefill, in the slots' buffers; tensors only, as a step."""

    def prefill(slots: DecodeState, prefix: Tensor) -> None:
        logits = t3.prefill(prefix, slots.prefill_last, slots.cache, slots.prefill_slot)
        slots.logits.unflatten(0, (slots.count, slots.rows_per_seq))[slots.prefill_slot] = logits

    return prefill


class DecodeBackend(Protocol):
    """How steps and prefills are run.

    Attributes:
        steps_per_sync: steps between two looks at the tokens. With 1 the host looks before it goes on;
            with more, the next steps are under way while it looks, and what was drawn after an
            end is dropped.
        forward: a compiled ``T3.step``, or None.
        fused: steps run by kernels of our own where those serve (fused_step.py).
        kv_cache: torch.int8 keys and values in a static cache, or None for T3's dtype.
    """

    steps_per_sync: int
    forward: StepFn | None
    fused: bool
    kv_cache: torch.dtype | None

    def slots(self, t3: T3, count: int, rows_per_seq: int) -> DecodeState:
        """Buffers for ``count`` utterances, in any state; those given out last are void."""
        ...

    def prefill(self, t3: T3) -> PrefillFn:
        """The prefill for the weights as they are now."""
        ...

    def step(self, t3: T3) -> DecodeStep:
        """The step for the weights as they are now; asked for anew when they may have moved."""
        ...

    def readback(self, tokens: Tensor) -> Callable[[], list[list[int]]]:
        """Start to bring int64 [n, m] to the host; what is returned waits for them."""
        ...


class EagerBackend:
    """Every step goes through Python; right everywhere."""

    steps_per_sync = 1

    def __init__(
        self,
        forward: StepFn | None = None,
        *,
        fused: bool = False,
        kv_cache: torch.dtype | None = None,
    ) -> None:
        """Take a compiled ``T3.step``, or none.

        Args:
            fused, kv_cache: see ``DecodeBackend``.
        """
        self.forward, self.fused, self.kv_cache = forward, fused, kv_cache
        self._integers: Int8Step | None = None

    def slots(self, t3: T3, count: int, rows_per_seq: int) -> DecodeState:
        """See ``DecodeBackend``; what is compiled, or runs far from the host, wants a static cache."""
        shape, like = t3.kv_shape, t3.like
        cache: KVCache
        self._integers = None
        if like.device.type == "cpu" and self.forward is None:
            if int8_step.supports(t3):
                self._integers, like = Int8Step(t3), like.to(int8_step.KV_DTYPE)
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
        """See ``DecodeBackend``."""
        return prefill_fn(t3)

    def step(self, t3: T3) -> DecodeStep:
        """See ``DecodeBackend``."""
        return eager_step(self._integers) if self._integers else fastest_step(self, t3)

    def readback(self, tokens: Tensor) -> Callable[[], list[list[int]]]:
        """See ``DecodeBackend``."""
        return tokens.tolist


@dataclass(slots=True)
class _Running:
    """The host's view of a slot in work.

    Attributes:
        surplus: what is drawn is not heard at once, and may be beyond the end.
    """

    utterance: DecodeRequest
    bound: int
    position: int
    surplus: bool
    fresh: int = 1  # tokens drawn since the last look
    tokens: list[int] = field(default_factory=list)
    drawn: deque[GeneratorState] = field(default_factory=deque)  # of the generator, after each draw

    def prepare(self, slots: DecodeState, slot: int) -> None:
        """Draw the random numbers of the next token."""
        if self.utterance.sampling.temperature == 0:
            return
        slots.noise[slot].exponential_(generator=self.utterance.generator)
        if self.surplus:
            self.drawn.append(generator_state(self.utterance.generator))

    def hear(self, drawn: Sequence[int], stop: int) -> DecodeOutput | None:
        """Take tokens in the order they were drawn; return what was said if it has ended.

        Then the generator is as it was after the last of them, whatever was drawn beyond.
        """
        for token in drawn:
            after = self.drawn.popleft() if self.drawn else None
            output = self._ended(token, stop)
            if output is not None:
                if self.drawn and after is not None:
                    restore_generator(self.utterance.generator, after)
                return output
        return None

    def _ended(self, token: int, stop: int) -> DecodeOutput | None:
        if token == NOT_FINITE:
            where = f"t3 gave numbers that are not finite at token {len(self.tokens)}"
            return DecodeOutput(self.utterance, error=NumericsError(where))
        if token == stop:
            return DecodeOutput(self.utterance, tuple(self.tokens))
        self.tokens.append(token)
        self.utterance.on_token(len(self.tokens))
        if len(self.tokens) == self.bound:
            return DecodeOutput(self.utterance, tuple(self.tokens), truncated=True)
        return None


class _Readback:
    """The tokens drawn since the last look, on their way to the host."""

    def __init__(
        self, slots: DecodeState, speaking: list[_Running], backend: DecodeBackend
    ) -> None:
        """Start copying; what is drawn from now on is for the next look."""
        self._counts = [one.fresh for one in speaking]
        for one in speaking:
            one.fresh = 0
        self._arrived = backend.readback(slots.latest(len(speaking), max(self._counts)))

    def drawn(self) -> list[list[int]]:
        """Wait for them; those of each slot."""
        rows = zip(self._arrived(), self._counts, strict=True)
        return [row[len(row) - count :] for row, count in rows]


@torch.inference_mode()
def decode(
    t3: T3, slots: DecodeState, take: Callable[[], DecodeRequest | None], backend: DecodeBackend
) -> Iterator[DecodeOutput]:
    """Say what ``take`` gives until it gives nothing and all is said; yield each as it ends.

    Args:
        slots: from ``backend``.
        take: asked whenever a slot is free; None if there is nothing (for now).
    """
    speaking: list[_Running] = []
    # weights move only while others are at work: whoever gives lines, or gets what was said
    step, stale = backend.step(t3), False
    while True:
        while len(speaking) < slots.count and (utterance := take()) is not None:
            slot, stale = len(speaking), True
            try:
                length = slots.prefill(
                    slot, utterance, t3, backend.prefill(t3), backend.steps_per_sync
                )
            except TextError as error:
                yield DecodeOutput(utterance, error=error)
                continue
            bound = t3.max_tokens(utterance.sampling)
            speaking.append(_Running(utterance, bound, length, surplus=backend.steps_per_sync > 1))
            speaking[slot].prepare(slots, slot)
            slots.sample_next(slot, slot + 1, needs_sort=utterance.sampling.truncates)
        if not speaking:
            return
        if stale:
            step, stale = backend.step(t3), False
        look = _Readback(slots, speaking, backend)
        if backend.steps_per_sync > 1:
            _advance(slots, speaking, step, backend.steps_per_sync)
        ended = _collect(slots, speaking, look, t3.config.stop_speech)
        stale = bool(ended)
        yield from ended
        if backend.steps_per_sync == 1 and not ended:
            _advance(slots, speaking, step, 1)


def _collect(
    slots: DecodeState, speaking: list[_Running], look: _Readback, stop: int
) -> list[DecodeOutput]:
    """Take out what has ended."""
    drawn, ended = look.drawn(), []
    for slot in reversed(range(len(speaking))):
        output = speaking[slot].hear(drawn[slot], stop)
        if output is None:
            continue
        ended.append(output)
        last = speaking.pop()
        if slot < len(speaking):  # the last one fills the gap: slots in work stay together
            slots.move(len(speaking), slot)
            speaking[slot] = last
    return ended


def _advance(
    slots: DecodeState, speaking: list[_Running], step: DecodeStep, steps_per_sync: int
) -> None:
    """Run ``steps_per_sync`` steps without looking."""
    needs_sort = any(one.utterance.sampling.truncates for one in speaking)
    for _ in range(steps_per_sync):
        for slot, one in enumerate(speaking):
            one.prepare(slots, slot)
            one.position += 1
            one.fresh += 1
            slots.cache.reserve(slot, one.position)
        kv_len = round_up_kv_len(max(one.position for one in speaking))
        step(slots, len(speaking), kv_len, needs_sort=needs_sort)
