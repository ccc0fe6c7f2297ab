"""Continuous batching: a sequence's tokens do not depend on the rest of the batch."""

from __future__ import annotations

import copy
import random
from collections import deque

import pytest
import torch
from helpers.common import SAMPLE
from helpers.t3 import (
    TEXTS,
    decode_all,
    eager_backend,
    prompt_for,
    sequence_of,
    utterance,
    varied_requests,
    varied_sampling,
)

from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.engine.decoding.decode import DecodeBatch, EagerBackend, eager_step
from chatterbox_opt.engine.sequence import Sequence
from chatterbox_opt.errors import NumericsError, TextError
from chatterbox_opt.models.t3 import decode_state
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.models.t3.sampler import SamplingTensors
from chatterbox_opt.sampling import Sampling


@pytest.fixture(scope="module")
def t3(tiny):
    """In plain matrices: oneDNN's layout cannot be traced."""
    return loader.load_t3(registry.locate(str(tiny)), torch.float32)


@pytest.fixture(scope="module")
def alone(engine, t3) -> list[list[int]]:
    return [decode_all(t3, [one])[0].tokens for one in varied_requests(engine)]


@pytest.mark.parametrize("slots", [1, 2, 5, 12])
def test_tokens_do_not_depend_on_the_batch(engine, t3, alone, slots):
    """Sampling parameters, seeds and lengths differ; free slots are refilled while others run."""
    together = decode_all(t3, varied_requests(engine), slots=slots)
    assert [outputs.tokens for outputs in together] == alone
    assert len(set(map(tuple, alone))) == len(alone), "or equal tokens would prove nothing"


def test_tokens_do_not_depend_on_the_order(engine, t3, alone):
    order = list(range(len(TEXTS)))
    random.Random(0).shuffle(order)
    together = decode_all(t3, varied_requests(engine, order), slots=4)
    assert [outputs.tokens for outputs in together] == [alone[i] for i in order]


@pytest.mark.parametrize("steps_per_sync", [2, 7])
def test_late_readback_changes_nothing(engine, t3, alone, steps_per_sync):
    """Extra tokens after an end are dropped, and extra steps stay inside the buffers.

    The generator is reset to its state after the last token: the flow goes on drawing from it.
    """
    often, rarely = (
        decode_all(t3, varied_requests(engine), slots=3, backend=eager_backend(steps_between))
        for steps_between in (1, steps_per_sync)
    )
    assert [outputs.tokens for outputs in rarely] == alone
    for one, other in zip(often, rarely, strict=True):
        states = [outputs.generator.get_state() for outputs in (one, other)]
        assert torch.equal(*states)


def test_each_sequence_uses_its_own_voice(engine, t3):
    other = engine.voice(SAMPLE)
    ids = prompt_for(engine, TEXTS[0]).text_tokens

    def both() -> list[Sequence]:
        mine = utterance(engine, TEXTS[0], varied_sampling(2))
        prompt = Prompt(ids, other.speaker, other.prompt)
        return [mine, sequence_of(prompt, varied_sampling(2))]

    together = [outputs.tokens for outputs in decode_all(t3, both(), slots=2)]
    assert together == [decode_all(t3, [one])[0].tokens for one in both()]
    assert together[0] != together[1]


def test_forced_tokens_are_generated_and_end(engine, t3):
    outputs = [
        utterance(engine, "hello.", varied_sampling(1), forced_tokens=(5, 9, 5)) for _ in range(2)
    ]
    outputs.append(utterance(engine, "hello.", varied_sampling(0)))
    one, two, free = decode_all(t3, outputs, slots=3)
    assert one.tokens == two.tokens == [5, 9, 5]
    assert (
        free.tokens == decode_all(t3, [utterance(engine, "hello.", varied_sampling(0))])[0].tokens
    )


def test_on_token_is_called_for_every_token(engine, t3):
    counts: list[int] = []
    sampling = Sampling(seed=3, max_tokens=6)
    one = utterance(
        engine, "hello.", sampling, on_progress=lambda _, seen: counts.append(seen.tokens)
    )
    assert counts == list(range(1, len(decode_all(t3, [one])[0].tokens) + 1))


def test_a_text_that_is_too_long_fails_alone(engine, t3, alone):
    outputs = varied_requests(engine)
    outputs.insert(3, utterance(engine, "word " * 1000, varied_sampling(0)))
    together = decode_all(t3, outputs, slots=4)
    assert isinstance(together.pop(3).error, TextError)
    assert [one.tokens for one in together] == alone


@pytest.mark.parametrize("steps_per_sync", [1, 4])
@pytest.mark.parametrize("static", [False, True])
def test_nan_stays_in_its_slot(engine, t3, alone, static, steps_per_sync):
    """NaN in one row's cache; the slot is reused by others, whose tokens must not change."""
    spoiled = utterance(engine, "hello.", Sampling(seed=1, max_tokens=300))
    others = varied_requests(engine)
    steps, plain = 0, eager_step(t3.step)

    def step(slots, count, kv_len, *, needs_sort):
        nonlocal steps
        steps += 1
        if steps == 5:
            keys = slots.cache.keys[0, :2] if static else slots.cache._buffers[0][0][0]
            keys[..., 3, :] = torch.nan
        plain(slots, count, kv_len, needs_sort=needs_sort)

    backend = eager_backend(steps_per_sync, step, static=static)
    decode_all(t3, [spoiled, *others], slots=2, backend=backend)
    assert isinstance(spoiled.error, NumericsError)
    assert [one.tokens for one in others] == alone


@pytest.mark.parametrize("static", [False, True])
def test_nan_is_not_left_where_a_slot_moved_from(engine, t3, static):
    """The last slot, with NaN, moves into a gap: a new sequence then uses its old position."""
    short = utterance(engine, "no!", Sampling(seed=2, max_tokens=6))
    spoiled = utterance(engine, "hello.", Sampling(seed=1, max_tokens=300))
    for seed in range(5, 50):  # until one is long enough: another torch gives other weights
        knobs = Sampling(seed=seed, max_tokens=30)
        [expected] = decode_all(t3, [utterance(engine, "one.", knobs)])
        if len(expected.tokens) > 6:
            break
    late = utterance(engine, "one.", knobs)
    steps, plain = 0, eager_step(t3.step)

    def step(slots, count, kv_len, *, needs_sort):
        nonlocal steps
        steps += 1
        if steps == 9:  # runs while the host reads that the short one has ended
            keys = slots.cache.keys[0, 2:4] if static else slots.cache._buffers[1][0][0]
            keys[..., -20:, :] = keys[..., 3:9, :] = torch.nan
        plain(slots, count, kv_len, needs_sort=needs_sort)

    backend = eager_backend(4, step, static=static)
    decode_all(t3, [short, spoiled, late], slots=2, backend=backend)
    assert isinstance(spoiled.error, NumericsError)
    assert len(short.tokens) == 6
    assert late.tokens == expected.tokens and len(expected.tokens) > 6


def test_a_late_request_is_taken_when_a_slot_is_free(engine, t3, alone):
    """Sequences come while others run, or while none does."""
    utterances, backend = varied_requests(engine), EagerBackend()
    batch, left = DecodeBatch(t3, backend.slots(t3, 2, 2), backend), deque(utterances)
    batch.add(left.popleft())
    while batch.running:
        ended = batch.step()
        if left and (ended or len(left) % 2) and not batch.full:
            batch.add(left.popleft())
    assert not left and [one.tokens for one in utterances] == alone


def test_a_removed_sequence_frees_its_slot(engine, t3, alone):
    """The first, a middle and the last slot, at the start and later; the others go on."""
    utterances, backend = varied_requests(engine), eager_backend(2)
    batch = DecodeBatch(t3, backend.slots(t3, 5, 2), backend)
    left, removed = deque(utterances), []
    for steps in range(300):
        while left and not batch.full:
            batch.add(left.popleft())
        if steps in (0, 3, 6) and len(batch.running) > 2:
            removed.append(batch.running[(0, 2, -1)[len(removed)]])
            batch.remove(removed[-1])
            assert removed[-1] not in batch.running and not batch.full
        if not batch.running:
            break
        batch.step()
    assert len(removed) == 3 and not left
    for one, tokens in zip(utterances, alone, strict=True):
        assert one.tokens == tokens[: len(one.tokens)] if one in removed else one.tokens == tokens


def test_bfloat16_rows_do_not_depend_on_the_batch(engine, tiny):
    """bfloat16 rounds each row by itself too, on one machine with one kernel."""
    half = loader.load_t3(registry.locate(str(tiny)), torch.bfloat16)
    together = decode_all(half, varied_requests(engine), slots=3)
    again = decode_all(half, varied_requests(engine), slots=3)
    assert [outputs.tokens for outputs in together] == [outputs.tokens for outputs in again]


STATIC = ("last_token", "num_generated", "position", "logits", "seen", "noise", "token_buffer")


def buffers(slots: DecodeState) -> list[torch.Tensor]:
    """All tensors that a step reads or writes, except the weights."""
    cached = [slots.cache.keys, slots.cache.values, slots.sampling_tensors.values]
    return [getattr(slots, name) for name in STATIC] + cached


def over(slots: DecodeState, tensors: list[torch.Tensor]) -> DecodeState:
    """The same slots over other buffers."""
    made = copy.copy(slots)
    for name, tensor in zip(STATIC, tensors, strict=False):
        setattr(made, name, tensor)
    made.cache = copy.copy(slots.cache)
    made.cache.keys, made.cache.values = tensors[-3], tensors[-2]
    made.sampling_tensors = SamplingTensors(tensors[-1])
    return made


class TestTrace:
    """The step can be captured: traced once, replayed over the static buffers.

    ``make_fx`` on a CPU freezes Python scalars and refuses ``.item()``, as a CUDA graph's
    capture does. Two traces, for the two KV lengths that occur; all else is a tensor.
    """

    @staticmethod
    def replaying(t3, traced: dict):
        from torch.fx.experimental.proxy_tensor import make_fx

        plain = eager_step(t3.step)

        def step(slots: DecodeState, count: int, kv_len: int, *, needs_sort: bool) -> None:
            key, static = (count, kv_len, needs_sort, slots.cache.capacity), buffers(slots)
            if key not in traced:

                def body(*tensors):
                    plain(over(slots, tensors), count, kv_len, needs_sort=needs_sort)
                    return tensors

                copies = [tensor.clone() for tensor in static]  # tracing runs the step once
                traced[key] = make_fx(body)(*copies)
            traced[key](*static)

        return step

    def test_replayed_tokens_are_the_eager_ones(self, engine, t3, alone):
        traced: dict = {}
        step = self.replaying(t3, traced)
        found = [
            decode_all(t3, [one], backend=eager_backend(step=step, static=True))[0].tokens
            for one in varied_requests(engine)
        ]
        assert found == alone
        assert len(traced) <= 4, "parameters, voices, texts and seeds changed; the trace did not"

    def test_replayed_in_a_batch_too(self, engine, t3, alone):
        traced: dict = {}
        together = decode_all(
            t3,
            varied_requests(engine),
            slots=3,
            backend=eager_backend(4, self.replaying(t3, traced), static=True),
        )
        assert [outputs.tokens for outputs in together] == alone

    def test_a_step_that_reads_a_value_back_cannot_be_traced(self, engine, t3, monkeypatch):
        """Guards the tests above: the tracer would have refused."""

        def peeking(*args, **kwargs):
            drawn = sample(*args, **kwargs)
            return drawn if int(drawn[0]) else drawn

        sample = decode_state.sample
        monkeypatch.setattr(decode_state, "sample", peeking)
        with pytest.raises(Exception, match="item|data-dependent|untracked|concrete"):
            decode_all(
                t3,
                varied_requests(engine)[:1],
                backend=eager_backend(step=self.replaying(t3, {}), static=True),
            )
