"""The keys and values of voices, which are kept from text to text, change nothing but the time."""

from __future__ import annotations

import pytest
import torch
from helpers.gpt2 import TINY_GPT2, gpt2_prompt, upstream_gpt2
from helpers.t3 import prefill, prefilled, prompt_for

from chatterbox_opt import Sampling
from chatterbox_opt.models.t3.conditioning import KeptConditionings
from chatterbox_opt.models.t3.convert import t3_from_upstream
from chatterbox_opt.models.t3.kv_cache import StaticKVCache
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.models.t3.ragged_kv_cache import RaggedKVCache

SAMPLING = Sampling(seed=1, max_tokens=8)


@pytest.fixture
def t3():
    return t3_from_upstream(upstream_gpt2(TINY_GPT2).state_dict(), TINY_GPT2, torch.float32)


@pytest.fixture
def runs(monkeypatch):
    """The lengths of the voices whose keys and values were computed, in their order."""
    from chatterbox_opt.models.t3.model import T3

    compute, lengths = T3._run_conditioning, []

    def counted(self, prompt, exaggeration):
        out = compute(self, prompt, exaggeration)
        lengths.append(out.shape[3])
        return out

    monkeypatch.setattr(T3, "_run_conditioning", counted)
    return lengths


@pytest.mark.parametrize("kind", [StaticKVCache, RaggedKVCache])
def test_kept_or_not_every_bit_is_the_same(t3, runs, kind):
    def run(prompt):
        cache = kind(num_seqs=1, rows_per_seq=1, shape=t3.kv_shape, like=t3.like)
        with torch.inference_mode():
            logits, length = prefill(t3, prompt, cache, more=1)
            counters = (torch.tensor([value]) for value in (7, 1, length))
            return logits, t3.step(*counters, cache, 128)

    one = gpt2_prompt(TINY_GPT2, 3)
    other = Prompt(gpt2_prompt(TINY_GPT2, 5).text_tokens, one.speaker, one.speech_tokens)
    new = [run(one), run(other)]
    assert runs == [1 + TINY_GPT2.prompt_tokens]
    t3.kept.clear()
    again = [run(other), run(one), run(other)]
    assert len(runs) == 2
    for found, expected in zip(again, (new[1], new[0], new[1]), strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_another_voice_and_another_precision_are_not_the_kept_one(t3, runs):
    one, other = (gpt2_prompt(TINY_GPT2, number) for number in (3, 4))
    with torch.inference_mode():
        first = prefilled(t3, one, 1)
        prefilled(t3, Prompt(one.text_tokens, other.speaker, one.speech_tokens), 1)
        prefilled(t3, Prompt(one.text_tokens, one.speaker, other.speech_tokens), 1)
        assert len(runs) == 3
        t3.set_precision(torch.bfloat16)
        assert not t3.kept.nbytes
        assert prefilled(t3, one, 1).dtype == torch.bfloat16
        assert len(runs) == 4 and first.dtype == torch.float32


def test_the_emotion_belongs_to_what_is_kept(engine, runs):
    with engine.pipeline.placement("t3") as t3, torch.inference_mode():
        t3.kept.clear()
        prompt = prompt_for(engine, "Hello.")
        outputs = [prefilled(t3, prompt, 2, emotion) for emotion in (0.5, 0.9, 0.5)]
    assert len(runs) == 2
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


def test_memory_is_bounded_and_the_least_recently_used_goes_first():
    kept, computed = KeptConditionings(max_bytes=3 * 40), []

    def get(key, size=10):
        def compute():
            computed.append(key)
            return torch.full((size,), float(key))

        tensor = kept.get(key, compute)
        assert tensor[0] == key and kept.nbytes <= 120
        return tensor

    for key in (1, 2, 3, 1, 4, 1, 3, 2):
        get(key)
    assert computed == [1, 2, 3, 4, 2]
    assert len(get(9, size=31)) == 31, "one that is too large is not kept"
    assert not kept.nbytes


def test_an_engine_frees_them(load, runs, monkeypatch):
    """When it is closed, and when there is no memory left; not between requests."""
    with load() as engine:
        t3 = engine.pipeline.placement.module("t3")
        expected = engine.synthesize("Hello.", None, SAMPLING).samples
        assert t3.kept.nbytes and len(runs) == 1
        engine.synthesize("Hello again.", None, SAMPLING)
        assert len(runs) == 1
        step, failed = type(t3).step, []

        def broken(self, *args):
            if not failed:
                failed.append(self.kept.nbytes)
                raise torch.OutOfMemoryError("by this test")
            return step(self, *args)

        monkeypatch.setattr(type(t3), "step", broken)
        assert (engine.synthesize("Hello.", None, SAMPLING).samples == expected).all()
        assert failed[0] and len(runs) == 2
    assert not t3.kept.nbytes
