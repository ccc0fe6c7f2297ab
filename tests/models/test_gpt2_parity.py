"""T3 over GPT-2 (Turbo, Nano): in float32 on the CPU, our tokens are upstream's tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.common import assert_close
from helpers.gpt2 import (
    NARROW_GPT2,
    TINY_GPT2,
    forced_logits,
    gpt2_prompt,
    greedy_turbo_tokens,
    turbo_hyperparameters,
    turbo_tokens,
    upstream_gpt2,
    upstream_prefix,
)
from helpers.t3 import decode_all, eager_backend, prefill, prefilled, sequence_of

from chatterbox_opt.config.model_config import NANO, TURBO, T3Config
from chatterbox_opt.engine.decoding.decode import DecodeBatch, EagerBackend, eager_step
from chatterbox_opt.errors import TextError, WeightsError
from chatterbox_opt.models.t3 import convert
from chatterbox_opt.models.t3.kv_cache import StaticKVCache
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.sampling import Sampling

TEXTS = range(24)
TURBO_KNOBS = {"top_k": 1000, "top_p": 0.95, "repetition_penalty": 1.2}
KNOBS = [
    {},
    {"top_k": 0},
    {"top_p": 1.0},
    {"top_k": 0, "top_p": 1.0},
    {"top_k": 5, "top_p": 0.5},
    {"top_k": 9000},
    {"repetition_penalty": 1.0},
    {"repetition_penalty": 2.5, "top_p": 0.8},
    {"repetition_penalty": 0.7},
]
TEMPERATURES = (0.8, 1.0, 1.6)


# of the pairs of a text and a case, every n-th: each text with some cases, and the reverse
FEW, MANY = 3, pytest.param(1, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def config():
    return TINY_GPT2


@pytest.fixture(scope="module")
def upstream(config):
    return upstream_gpt2(config)


@pytest.fixture(scope="module")
def t3(upstream, config):
    return convert.t3_from_upstream(upstream.state_dict(), config, torch.float32)


def sampling(knobs, **more) -> Sampling:
    """Turbo's knobs, with those of chatterbox at their defaults: they must have no effect."""
    return Sampling(**(TURBO_KNOBS | knobs | more))


def tokens_of(t3, prompt, params, **more) -> list[int]:
    [output] = decode_all(t3, [sequence_of(prompt, params, **more)], rows_per_seq=1)
    assert output.error is None
    return list(output.tokens)


@pytest.mark.parametrize("shape", [TURBO.t3, NANO.t3], ids=["turbo", "nano"])
def test_names_and_shapes_are_upstreams_at_full_size(shape, monkeypatch):
    from chatterbox.models.t3 import T3
    from chatterbox.models.t3.llama_configs import GPT2_MEDIUM_CONFIG, LLAMA_CONFIGS

    sized = {"hidden_size": shape.width, "n_embd": shape.width, "n_head": shape.heads}
    sized |= {"n_layer": shape.layers}
    monkeypatch.setitem(LLAMA_CONFIGS, "sized", GPT2_MEDIUM_CONFIG | sized)
    with torch.device("meta"):
        upstream = T3(turbo_hyperparameters(shape, "sized")).state_dict()
        ours = convert.make_t3(shape).state_dict()
    names, unused = convert.t3_upstream_names(shape), convert.unused_names(shape)
    assert {n for group in names.values() for n in group} | unused == set(upstream)
    assert set(names) == set(ours)
    for our_name, (name,) in names.items():
        assert sorted(ours[our_name].shape) == sorted(upstream[name].shape)


def test_prefix_equals_upstreams(t3, upstream, config):
    for prompt in (gpt2_prompt(config, i) for i in TEXTS):
        prefix = torch.cat((t3.embed_conditioning(prompt, 0.5), t3.embed(prompt, 1)), dim=1)
        expected = upstream_prefix(upstream, prompt)
        assert_close(prefix, expected + upstream.tfmr.wpe.weight[: expected.shape[1]], atol=1e-6)


def test_logits_of_prefill_and_steps_equal_upstreams(t3, upstream, config):
    for number in range(4):
        prompt = gpt2_prompt(config, number)
        tokens = torch.randint(
            6561, (20,), generator=torch.Generator().manual_seed(number)
        ).tolist()
        expected = forced_logits(upstream, prompt, tokens)
        assert expected.std() > 1
        with torch.inference_mode():
            cache = StaticKVCache(num_seqs=1, rows_per_seq=1, shape=t3.kv_shape, like=t3.like)
            logits, length = prefill(t3, prompt, cache, more=len(tokens))
            assert_close(logits, expected[:1], atol=1e-4)
            for i, token in enumerate(tokens):
                counters = (torch.tensor([value]) for value in (token, i + 1, length + i))
                logits = t3.step(*counters, cache, cache.capacity)
                assert_close(logits, expected[i + 1 : i + 2], atol=1e-4)


@pytest.mark.parametrize("every", [FEW, MANY])
def test_greedy_tokens_equal_upstreams(t3, upstream, config, every):
    different = set()
    for number, (i, knobs) in itertools.product(TEXTS, enumerate(KNOBS)):
        if (number + i) % (3 * every):
            continue
        prompt = gpt2_prompt(config, number)
        params = sampling(knobs, temperature=0, max_tokens=16)
        expected = greedy_turbo_tokens(upstream, prompt, max_tokens=16, **(TURBO_KNOBS | knobs))
        assert tokens_of(t3, prompt, params) == expected, (number, knobs)
        different.add(tuple(expected))
    assert len(different) > len(TEXTS) // 2


@pytest.mark.parametrize("every", [FEW, MANY])
def test_sampled_tokens_equal_upstreams_for_the_same_seed(t3, upstream, config, every):
    cases = list(itertools.product(KNOBS, TEMPERATURES))
    for number, (seed, case) in itertools.product(TEXTS, enumerate(cases)):
        if (number + seed) % (9 * every):
            continue
        knobs = TURBO_KNOBS | case[0] | {"temperature": case[1]}
        prompt = gpt2_prompt(config, number)
        expected = turbo_tokens(upstream, prompt, seed=seed, max_tokens=16, **knobs)
        params = sampling(knobs, seed=seed, max_tokens=16)
        assert tokens_of(t3, prompt, params) == expected, (number, knobs)


def test_a_narrow_model_equals_upstreams():
    """Another width, number of heads and table, as Nano's to Turbo's; head_dim is the same."""
    config = NARROW_GPT2
    upstream = upstream_gpt2(config)
    t3 = convert.t3_from_upstream(upstream.state_dict(), config, torch.float32)
    for number in range(4):
        prompt, knobs = gpt2_prompt(config, number), {"temperature": 0.8, "max_tokens": 12}
        knobs |= TURBO_KNOBS | KNOBS[number]
        expected = turbo_tokens(upstream, prompt, seed=number, **knobs)
        assert tokens_of(t3, prompt, Sampling(seed=number, **knobs)) == expected
        with torch.inference_mode():
            logits = prefilled(t3, prompt, 1)
        assert_close(logits, forced_logits(upstream, prompt, [])[:1], atol=1e-4)


def test_guidance_emotion_and_min_p_have_no_effect(t3, config):
    """The command line and the engine refuse them; the history and the draws do not change."""
    prompt, outputs = gpt2_prompt(config, 1), []
    for knobs in ({}, {"cfg_weight": 3}, {"exaggeration": 2}, {"min_p": 0.9}):
        params = sampling(knobs, seed=5, max_tokens=12, temperature=1.6)
        outputs.append(tokens_of(t3, prompt, params))
        two_rows = decode_all(t3, [sequence_of(prompt, params)], rows_per_seq=2)
        outputs.append(list(two_rows[0].tokens))
    assert all(tokens == outputs[0] for tokens in outputs)
    assert set(config.missing_knobs) == {"cfg_weight", "exaggeration", "min_p"}
    assert not config.has_cfg
    assert not T3Config().missing_knobs and T3Config().has_cfg


def test_defaults_are_upstreams():
    import inspect

    from chatterbox.tts_turbo import ChatterboxTurboTTS

    theirs = inspect.signature(ChatterboxTurboTTS.generate).parameters
    ours = Sampling(**TURBO.t3.sampling_defaults)
    for knob in ("top_k", "top_p", "temperature", "repetition_penalty", *TURBO.t3.missing_knobs):
        assert getattr(ours, knob) == theirs[knob].default
    assert ours.max_tokens == 1 + 1000
    assert not T3Config().sampling_defaults


@pytest.fixture
def talkative(upstream, config):
    """A copy of upstream's model that stops early."""
    likely = upstream_gpt2(config)
    likely.speech_head.bias.data[6562] += 14
    return likely, convert.t3_from_upstream(likely.state_dict(), config, torch.float32)


def test_stop_token_ends_decoding_unless_it_is_the_first(talkative, config):
    upstream, t3 = talkative
    kinds = set()
    for seed in range(16):
        prompt, knobs = gpt2_prompt(config, seed % 8), {"top_k": 0, "top_p": 1.0}
        expected = turbo_tokens(
            upstream, prompt, seed=seed, max_tokens=20, temperature=1.6,
            repetition_penalty=1.2, **knobs,
        )  # fmt: skip
        params = sampling(knobs, seed=seed, max_tokens=20, temperature=1.6)
        assert tokens_of(t3, prompt, params) == expected
        kinds.add((expected[0] == 6562, len(expected) == 20))
    assert {(True, False), (False, False)} <= kinds, "no seed reached the cases: the test is void"


@pytest.mark.parametrize(("static", "steps_per_sync"), [(False, 1), (True, 4)])
def test_a_row_of_a_batch_equals_the_same_text_alone(t3, config, static, steps_per_sync):
    def request(i):
        return sequence_of(gpt2_prompt(config, i), requests[i])

    cases = itertools.cycle(itertools.product(KNOBS, (0.0, *TEMPERATURES)))
    requests = [
        sampling(knobs, temperature=temperature, seed=i, max_tokens=5 + 9 * i % 40)
        for i, (knobs, temperature) in zip(range(12), cases, strict=False)
    ]
    alone = [decode_all(t3, [request(i)], rows_per_seq=1)[0].tokens for i in range(12)]
    backend = eager_backend(steps_per_sync, static=static)
    if static:
        backend.step = lambda model: eager_step(model.step)
    batch = decode_all(
        t3, [request(i) for i in range(12)], slots=5, rows_per_seq=1, backend=backend
    )
    assert [list(one.tokens) for one in batch] == [list(one) for one in alone]


def test_long_sequences_end_with_the_table_of_positions(t3, upstream, config):
    prompt = gpt2_prompt(config, 2)
    prefix = t3.embed_conditioning(prompt, 0.5).shape[1] + t3.embed(prompt, 1).shape[1]
    left = config.positions - prefix
    params = sampling({}, seed=3, max_tokens=4000, temperature=1.6)
    [output] = decode_all(t3, [sequence_of(prompt, params)], rows_per_seq=1)
    assert output.truncated and len(output.tokens) == left
    expected = turbo_tokens(
        upstream, prompt, seed=3, max_tokens=left, temperature=1.6, **TURBO_KNOBS
    )
    assert list(output.tokens) == expected


def test_a_text_longer_than_the_table_is_an_error(t3, config):
    prompt = gpt2_prompt(config, 2)
    long = Prompt(
        torch.zeros(config.positions, dtype=torch.long), prompt.speaker, prompt.speech_tokens
    )
    fits = config.positions - config.prompt_tokens - 3
    with pytest.raises(TextError, match=f"the model takes {fits}"):
        t3.embed(long, 1)
    assert t3.embed(Prompt(long.text_tokens[:fits], *_voice(prompt)), 1).shape[0] == 1


def _voice(prompt):
    return prompt.speaker, prompt.speech_tokens


def test_loading_is_as_strict_as_upstreams(upstream, config):
    state = upstream.state_dict()
    matrix = "tfmr.h.0.attn.c_attn.weight"
    damaged = {
        "missing": {n: t for n, t in state.items() if n != "tfmr.wte.weight"},
        "unknown": state | {"tfmr.h.0.attn.masked_bias": torch.zeros(1)},
        r"\[64, 192\]|\[48, 144\]": state | {matrix: state[matrix].t()},
    }
    for message, tensors in damaged.items():
        with pytest.raises(WeightsError, match=message):
            convert.t3_from_upstream(tensors, config, torch.float32)


def test_slots_of_one_row_take_every_sequence(t3, config):
    backend = EagerBackend()
    batch = DecodeBatch(t3, backend.slots(t3, 2, 1), backend)
    assert batch.has_rows_for(sequence_of(gpt2_prompt(config, 0), Sampling(cfg_weight=0.5)))
