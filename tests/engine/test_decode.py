"""Many utterances side by side: each says what it says alone, whatever its neighbours are."""

from __future__ import annotations

import copy
import random
from collections import deque

import pytest
import torch
from helpers.common import SAMPLE
from helpers.t3 import TEXTS, knobs, looking, prompt_for, say_all, some, utterance

from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.engine.decode import EagerBackend, decode, eager_step
from chatterbox_opt.errors import NumericsError, TextError
from chatterbox_opt.models.t3 import decode_state
from chatterbox_opt.models.t3.decode_state import DecodeRequest, DecodeState
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.models.t3.sampler import SamplingTensors
from chatterbox_opt.sampling import Sampling


@pytest.fixture(scope="module")
def t3(tiny):
    """In plain matrices: oneDNN's layout is no memory that a trace can follow."""
    return loader.load_t3(registry.locate(str(tiny)), torch.float32)


@pytest.fixture(scope="module")
def alone(engine, t3) -> list[tuple[int, ...]]:
    return [say_all(t3, [one])[0].tokens for one in some(engine)]


@pytest.mark.parametrize("slots", [1, 2, 5, 12])
def test_tokens_do_not_depend_on_the_company(engine, t3, alone, slots):
    """Different knobs, seeds and lengths share the steps; slots are refilled in mid-flight."""
    together = say_all(t3, some(engine), slots=slots)
    assert [said.tokens for said in together] == alone
    assert len(set(alone)) == len(alone), "or equal tokens would prove nothing"


def test_tokens_do_not_depend_on_the_order(engine, t3, alone):
    order = list(range(len(TEXTS)))
    random.Random(0).shuffle(order)
    together = say_all(t3, some(engine, order), slots=4)
    assert [said.tokens for said in together] == [alone[i] for i in order]


@pytest.mark.parametrize("steps_per_sync", [2, 7])
def test_looking_rarely_changes_nothing(engine, t3, alone, steps_per_sync):
    """What was drawn after an end is dropped, and steps after an end stay inside their tables.

    The generator too is left as the last token left it: the flow goes on drawing from it.
    """
    often, rarely = (
        say_all(t3, some(engine), slots=3, way=looking(steps_between))
        for steps_between in (1, steps_per_sync)
    )
    assert [said.tokens for said in rarely] == alone
    for one, other in zip(often, rarely, strict=True):
        states = [said.utterance.generator.get_state() for said in (one, other)]
        assert torch.equal(*states)


def test_another_voice_is_another_matter(engine, t3):
    other = engine.voice(SAMPLE)
    ids = prompt_for(engine, TEXTS[0]).text_tokens

    def both() -> list[DecodeRequest]:
        mine = utterance(engine, TEXTS[0], knobs(2))
        prompt = Prompt(ids, other.speaker, other.prompt)
        theirs = DecodeRequest(
            prompt, knobs(2), torch.Generator().manual_seed(2), lambda count: None
        )
        return [mine, theirs]

    together = [said.tokens for said in say_all(t3, both(), slots=2)]
    assert together == [say_all(t3, [one])[0].tokens for one in both()]
    assert together[0] != together[1]


def test_a_script_is_said_and_ends(engine, t3):
    said = [utterance(engine, "hello.", knobs(1), forced_tokens=(5, 9, 5)) for _ in range(2)]
    said.append(utterance(engine, "hello.", knobs(0)))
    one, two, free = say_all(t3, said, slots=3)
    assert one.tokens == two.tokens == (5, 9, 5)
    assert free.tokens == say_all(t3, [utterance(engine, "hello.", knobs(0))])[0].tokens


def test_tokens_are_told_as_they_are_said(engine, t3):
    heard: list[int] = []
    prompt, sampling = prompt_for(engine, "hello."), Sampling(seed=3, max_tokens=6)
    one = DecodeRequest(prompt, sampling, torch.Generator().manual_seed(3), heard.append)
    assert heard == list(range(1, len(say_all(t3, [one])[0].tokens) + 1))


def test_a_text_that_is_too_long_fails_alone(engine, t3, alone):
    said = some(engine)
    said.insert(3, utterance(engine, "word " * 1000, knobs(0)))
    together = say_all(t3, said, slots=4)
    assert isinstance(together.pop(3).error, TextError)
    assert [one.tokens for one in together] == alone


@pytest.mark.parametrize("steps_per_sync", [1, 4])
@pytest.mark.parametrize("static", [False, True])
def test_numbers_that_are_not_finite_stay_in_their_slot(engine, t3, alone, static, steps_per_sync):
    """One row's cache is spoiled; its slot is used again by others, who must not notice."""
    spoiled = utterance(engine, "hello.", Sampling(seed=1, max_tokens=300))
    queue = deque([spoiled, *some(engine)])
    steps, plain = 0, eager_step(t3.step)

    def step(slots, count, span, *, ranked):
        nonlocal steps
        steps += 1
        if steps == 5:
            keys = slots.cache.keys[0, :2] if static else slots.cache._strips[0][0][0]
            keys[..., 3, :] = torch.nan
        plain(slots, count, span, ranked=ranked)

    way = looking(steps_per_sync, step, static=static)
    said = decode(t3, way.slots(t3, 2, 2), lambda: queue.popleft() if queue else None, way)
    found = {one.utterance: one for one in said}
    assert isinstance(found.pop(spoiled).error, NumericsError)
    assert [one.tokens for one in found.values()] != []
    assert sorted(one.tokens for one in found.values()) == sorted(alone)


@pytest.mark.parametrize("static", [False, True])
def test_numbers_that_are_not_finite_are_not_left_where_a_slot_moved_from(engine, t3, static):
    """The last slot fills a gap while it is being spoiled: who enters in its old place reads on."""
    short = utterance(engine, "no!", Sampling(seed=2, max_tokens=6))
    spoiled = utterance(engine, "hello.", Sampling(seed=1, max_tokens=300))
    for seed in range(5, 50):  # until one says enough: another torch makes other weights
        knobs = Sampling(seed=seed, max_tokens=30)
        [expected] = say_all(t3, [utterance(engine, "one.", knobs)])
        if len(expected.tokens) > 6:
            break
    late = utterance(engine, "one.", knobs)
    queue = deque([short, spoiled, late])
    steps, plain = 0, eager_step(t3.step)

    def step(slots, count, span, *, ranked):
        nonlocal steps
        steps += 1
        if steps == 9:  # under way while the host learns that the short one has ended
            keys = slots.cache.keys[0, 2:4] if static else slots.cache._strips[1][0][0]
            keys[..., -20:, :] = keys[..., 3:9, :] = torch.nan
        plain(slots, count, span, ranked=ranked)

    way = looking(4, step, static=static)
    said = decode(t3, way.slots(t3, 2, 2), lambda: queue.popleft() if queue else None, way)
    found = {one.utterance: one for one in said}
    assert isinstance(found[spoiled].error, NumericsError)
    assert len(found[short].tokens) == 6
    assert found[late].tokens == expected.tokens and len(expected.tokens) > 6


def test_a_late_line_is_taken_when_there_is_room(engine, t3, alone):
    """``take`` may have nothing now and something later: what was said decides what is next."""
    utterances = some(engine)
    queue = deque(utterances[:1])
    heard, way = [], EagerBackend()
    for said in decode(t3, way.slots(t3, 2, 2), lambda: queue.popleft() if queue else None, way):
        heard.append(said.tokens)
        if len(heard) < len(utterances):
            queue.append(utterances[len(heard)])
    assert heard == alone


def test_bfloat16_rows_do_not_depend_on_the_company(engine, tiny):
    """Half precision rounds each row by itself too, on one machine with one kernel."""
    half = loader.load_t3(registry.locate(str(tiny)), torch.bfloat16)
    together = say_all(half, some(engine), slots=3)
    again = say_all(half, some(engine), slots=3)
    assert [said.tokens for said in together] == [said.tokens for said in again]


STATIC = ("last_token", "num_generated", "position", "logits", "seen", "noise", "token_buffer")


def buffers(slots: DecodeState) -> list[torch.Tensor]:
    """All tensors that a step reads or writes, the weights left out."""
    cached = [slots.cache.keys, slots.cache.values, slots.knobs.values]
    return [getattr(slots, name) for name in STATIC] + cached


def over(slots: DecodeState, tensors: list[torch.Tensor]) -> DecodeState:
    """The same slots over other buffers."""
    made = copy.copy(slots)
    for name, tensor in zip(STATIC, tensors, strict=False):
        setattr(made, name, tensor)
    made.cache = copy.copy(slots.cache)
    made.cache.keys, made.cache.values = tensors[-3], tensors[-2]
    made.knobs = SamplingTensors(tensors[-1])
    return made


class TestTrace:
    """The step is shown capture-safe: traced once, replayed over the static buffers.

    ``make_fx`` on the processor freezes Python numbers and refuses ``.item()``, as a CUDA graph's
    capture does. Two traces for the two lengths of the cache that are met; all else is a tensor.
    """

    @staticmethod
    def replaying(t3, traced: dict):
        from torch.fx.experimental.proxy_tensor import make_fx

        plain = eager_step(t3.step)

        def step(slots: DecodeState, count: int, span: int, *, ranked: bool) -> None:
            key, static = (count, span, ranked, slots.cache.capacity), buffers(slots)
            if key not in traced:

                def body(*tensors):
                    plain(over(slots, tensors), count, span, ranked=ranked)
                    return tensors

                copies = [tensor.clone() for tensor in static]  # tracing runs the step once
                traced[key] = make_fx(body)(*copies)
            traced[key](*static)

        return step

    def test_replayed_tokens_are_the_eager_ones(self, engine, t3, alone):
        traced: dict = {}
        step = self.replaying(t3, traced)
        found = [
            say_all(t3, [one], way=looking(step=step, static=True))[0].tokens
            for one in some(engine)
        ]
        assert found == alone
        assert len(traced) <= 4, "knobs, voices, texts and seeds changed; the program did not"

    def test_replayed_in_company_too(self, engine, t3, alone):
        traced: dict = {}
        together = say_all(
            t3, some(engine), slots=3, way=looking(4, self.replaying(t3, traced), static=True)
        )
        assert [said.tokens for said in together] == alone

    def test_a_step_that_looks_at_a_value_cannot_be_traced(self, engine, t3, monkeypatch):
        """Guards the tests above: the tracer would have noticed."""

        def peeking(*args, **kwargs):
            drawn = sample(*args, **kwargs)
            return drawn if int(drawn[0]) else drawn

        sample = decode_state.sample
        monkeypatch.setattr(decode_state, "sample", peeking)
        with pytest.raises(Exception, match="item|data-dependent|untracked|concrete"):
            say_all(t3, some(engine)[:1], way=looking(step=self.replaying(t3, {}), static=True))
