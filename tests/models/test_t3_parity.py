"""Accuracy level 1: in float32 on the CPU, our tokens are upstream's tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import upstream_reference
from helpers.common import assert_close
from helpers.t3 import prefilled, prompt_for, raw_tokens, rows_for
from helpers.texts import TEXTS
from helpers.upstream_reference import greedy_tokens, sampled_tokens

from chatterbox_opt.models.t3.sampler import apply_cfg
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text.normalizers import normalize

MAX_TOKENS = 24
CFG_WEIGHTS, EXAGGERATIONS = (0.5, 1.0), (0.25, 0.5, 1.0)
CASES = list(itertools.product(CFG_WEIGHTS, EXAGGERATIONS))
# each text with a third of the cases, and each case with a third of the texts; all are a slow test
every_text = pytest.mark.parametrize(
    ("text", "cases"),
    [
        *((text, range(i % 3, len(CASES), 3)) for i, text in enumerate(TEXTS)),
        *(pytest.param(text, range(len(CASES)), marks=pytest.mark.slow) for text in TEXTS),
    ],
)


def first_logits(engine, text: str, sampling: Sampling) -> torch.Tensor:
    with engine.pipeline.placement("t3") as t3, torch.inference_mode():
        prompt = prompt_for(engine, text)
        return prefilled(t3, prompt, rows_for(sampling), sampling.exaggeration)


@every_text
def test_greedy_tokens_equal_upstreams(engine, upstream, text, cases):
    text = normalize(text)
    for cfg_weight, exaggeration in (CASES[i] for i in cases):
        params = {"cfg_weight": cfg_weight, "exaggeration": exaggeration, "max_tokens": MAX_TOKENS}
        ours = raw_tokens(engine, text, Sampling(temperature=0, **params))
        assert ours == greedy_tokens(upstream, text, **params), params


@every_text
def test_sampled_tokens_equal_upstreams_for_the_same_seed(engine, upstream, text, cases):
    text = normalize(text)
    for seed, (cfg_weight, exaggeration) in ((i, CASES[i]) for i in cases):
        params = {"cfg_weight": cfg_weight, "exaggeration": exaggeration, "max_tokens": MAX_TOKENS}
        ours = raw_tokens(engine, text, Sampling(seed=seed, **params))
        assert ours == sampled_tokens(upstream, text, seed=seed, **params), params


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 1.7, "min_p": 0.0},
        {"top_p": 0.5},
        {"top_p": 0.9, "min_p": 0.0, "temperature": 2.0},
        {"min_p": 0.6},
        {"repetition_penalty": 3.0},
        {"repetition_penalty": 1.0},
    ],
)
def test_every_sampling_parameter_matches_upstream(engine, upstream, params):
    fixed = {"seed": 11, "cfg_weight": 0.5, "exaggeration": 0.5, "max_tokens": 60}
    text = normalize(TEXTS[1])
    expected = sampled_tokens(upstream, text, **fixed, **params)
    assert raw_tokens(engine, text, Sampling(**fixed, **params)) == expected


@pytest.mark.parametrize("text", TEXTS[:8])
def test_without_cfg_one_row_is_enough(engine, upstream, text):
    """cfg_weight 0 fails upstream; the reference loop runs upstream's model with one row."""
    for exaggeration in EXAGGERATIONS:
        params = {"cfg_weight": 0.0, "exaggeration": exaggeration, "max_tokens": MAX_TOKENS}
        ours = raw_tokens(engine, normalize(text), Sampling(temperature=0, **params))
        assert ours == greedy_tokens(upstream, normalize(text), **params)


def test_conditioning_parameters_change_the_logits_as_in_upstream(engine, upstream):
    """Guards the tests above: a parameter without effect on the logits would be untested."""
    text, all_logits = normalize(TEXTS[1]), []
    for cfg_weight, exaggeration in [*CASES, (0.0, 0.5)]:
        params = {"cfg_weight": cfg_weight, "exaggeration": exaggeration}
        ours = first_logits(engine, text, Sampling(**params))
        assert_close(ours, upstream_reference.first_logits(upstream, text, **params), atol=1e-5)
        all_logits.append(apply_cfg(ours, torch.tensor([[cfg_weight]])))
    for one, other in itertools.combinations(all_logits, 2):
        assert (one - other).abs().max() > 1e-3


def test_stop_token_ends_decoding_and_is_not_returned(engine, upstream):
    text, params = normalize(TEXTS[0]), {"cfg_weight": 0.5, "exaggeration": 0.5}
    stopped = []
    for seed in range(8):
        theirs = sampled_tokens(upstream, text, seed=seed, max_tokens=1000, **params)
        ours = raw_tokens(engine, text, Sampling(seed=seed, max_tokens=1000, **params))
        assert ours == theirs
        stopped.append(len(ours) < 1000)
        if stopped[-1]:
            break
    assert any(stopped), "no seed reached the stop token: the test is void"


def test_long_sequences_cross_kv_blocks(engine, upstream):
    text = normalize("word " * 55)
    params = {"cfg_weight": 0.5, "exaggeration": 0.5, "max_tokens": 150}
    ours = raw_tokens(engine, text, Sampling(temperature=0, **params))
    assert ours == greedy_tokens(upstream, text, **params)
    for seed in range(2):  # greedy output of random weights repeats, which could hide errors
        ours = raw_tokens(engine, text, Sampling(seed=seed, **params))
        assert ours == sampled_tokens(upstream, text, seed=seed, **params)


def test_rope_frequencies_equal_transformers(upstream):
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from chatterbox_opt.config.model_config import T3Config
    from chatterbox_opt.models.t3.llama import rope_frequencies

    true = LlamaRotaryEmbedding(LlamaConfig(**LLAMA_CONFIGS["Llama_520M"])).inv_freq
    assert_close(rope_frequencies(T3Config()), true, atol=0)
