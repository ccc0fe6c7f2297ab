"""The sampler against transformers' logits processors, which upstream uses."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatterbox_opt.errors import InputError
from chatterbox_opt.models.t3.row_sampler import _most_likely, sample_rows
from chatterbox_opt.models.t3.sampler import (
    NOT_FINITE,
    SamplingTensors,
    apply_cfg,
    apply_repetition_penalty,
    filter_logits,
    filter_turbo_logits,
    sample,
)
from chatterbox_opt.sampling import Sampling, chunk_seed


def draw(logits, seen, sampling, seed, *, needs_sort=False):
    """One row's token."""
    sampling_tensors, noise = SamplingTensors.allocate(1), torch.empty(1, logits.shape[-1])
    sampling_tensors.set(0, sampling)
    noise.exponential_(generator=torch.Generator().manual_seed(seed))
    return sample(logits, seen, sampling_tensors, noise, needs_sort=needs_sort)


LOGITS = torch.randn(40, 1, 200, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_min_p_and_top_p_match_transformers(min_p, top_p):
    for logits in LOGITS:
        expected = TopPLogitsWarper(top_p)(None, MinPLogitsWarper(min_p)(None, logits))
        sampling_tensors = SamplingTensors.allocate(1)
        sampling_tensors.set(0, Sampling(min_p=min_p, top_p=top_p))
        ours = filter_logits(logits, sampling_tensors, needs_sort=top_p < 1)
        assert torch.equal(torch.softmax(ours, -1), torch.softmax(expected, -1))


@pytest.mark.parametrize("top_k", [1, 7, 500])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_top_k_is_applied_between_min_p_and_top_p(top_k, top_p):
    sampling_tensors = SamplingTensors.allocate(2)
    sampling_tensors.set(0, Sampling(min_p=0.02, top_p=top_p, top_k=top_k))
    sampling_tensors.set(1, Sampling(min_p=0.02))
    for logits in LOGITS:
        likely = MinPLogitsWarper(0.02)(None, logits)
        expected = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, likely))
        ours, other_row = filter_logits(logits.repeat(2, 1), sampling_tensors, needs_sort=True)
        assert torch.equal(torch.softmax(ours, -1), torch.softmax(expected[0], -1))
        assert torch.equal(other_row, likely[0]), "top_k of one row changed another row"


KNOBS = [
    {},
    {"top_k": 7},
    {"top_p": 0.6},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 999},
    {"min_p": 0},
]


@pytest.mark.parametrize(("turbo", "tied"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("guided", [False, True])
def test_row_by_row_the_same_tokens_are_sampled(turbo, tied, temperature, guided):
    """As a CPU samples, and as a GPU does: top-k, top-p, both, and neither, in one batch."""
    random = torch.Generator().manual_seed(1)
    # top_p may leave any of equally likely tokens out, top_k leaves all or none of them
    samplings = [knobs for knobs in KNOBS if not (tied and "top_p" in knobs)]
    rows, params = len(samplings), SamplingTensors.allocate(len(samplings))
    for row, given in enumerate(samplings):
        params.set(row, Sampling(temperature=temperature, **given))
    sampled = set()
    for row in LOGITS:
        logits = row + torch.randn(rows * (2 if guided else 1), 200, generator=random) / 2
        logits = (logits * 4).round() / 4 if tied else logits
        seen = torch.rand(rows, 200, generator=random) < 0.2
        noise = torch.empty(rows, 200).exponential_(generator=random)
        expected = sample(logits, seen, params, noise, needs_sort=True, turbo=turbo)
        assert torch.equal(sample_rows(logits, seen, params, noise, turbo=turbo), expected)
        sampled.update(expected.tolist())
    assert len(sampled) > 50


@pytest.mark.parametrize("turbo", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_likeliest_are_those_of_a_sort(turbo, tied):
    params = SamplingTensors.allocate(len(KNOBS))
    for row, given in enumerate(KNOBS):
        params.set(row, Sampling(**{"min_p": 0, **given}))
    filter_all = filter_turbo_logits if turbo else filter_logits
    counts = set()
    for logits in LOGITS.expand(-1, len(KNOBS), -1):
        logits = (logits * 4).round() / 4 if tied else logits
        expected = filter_all(logits, params, needs_sort=True)
        for row, left, values in zip(logits, expected, params.values.tolist(), strict=True):
            ids = _most_likely(row.numpy(), int(values[5]), values[4], ties=turbo)
            # among equal ones any may be left out
            assert torch.equal(row[ids].sort().values, left[left > -torch.inf].sort().values)
            assert tied or set(ids) == set(left.isfinite().nonzero()[:, 0].tolist())
            counts.add(len(ids))
    assert len(counts) > 10


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 4.0])
def test_repetition_penalty_matches_transformers(penalty):
    ids = torch.tensor([[3, 7, 7, 199]])
    seen = torch.zeros(1, 200, dtype=torch.bool)
    seen[0, ids[0]] = True
    for logits in LOGITS:
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        assert torch.equal(
            apply_repetition_penalty(logits, seen, torch.tensor([[penalty]])), expected
        )


def test_cfg_of_one_row_is_the_identity():
    assert torch.equal(apply_cfg(LOGITS[0], torch.zeros(1, 1)), LOGITS[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_in_both_rows_of_guidance_are_reported(bad):
    """The difference of two infinities is no number; NumPy would warn of it."""
    logits = LOGITS[:2, 0].clone()
    logits[:, 5] = bad
    params = SamplingTensors.allocate(1)
    seen = torch.zeros(1, 200, dtype=torch.bool)
    assert sample_rows(logits, seen, params, torch.ones(1, 200)).item() == NOT_FINITE


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_reported_not_sampled(bad, temperature):
    logits = LOGITS[:2, 0].clone()
    logits[1, 5] = bad
    seen = torch.zeros(1, 200, dtype=torch.bool)
    sampling = Sampling(temperature=temperature)
    assert draw(logits, seen, sampling, 0).item() == NOT_FINITE
    params = SamplingTensors.allocate(1)
    params.set(0, sampling)
    assert sample_rows(logits, seen, params, torch.ones(1, 200)).item() == NOT_FINITE


def test_fp16_logits_are_sampled_in_float32():
    seen = torch.zeros(1, 200, dtype=torch.bool)
    half = LOGITS[0].half()
    a, b = draw(half, seen, Sampling(), 1), draw(half.float(), seen, Sampling(), 1)
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "parameter", [{"temperature": -1}, {"top_p": 0}, {"min_p": 1.1}, {"max_tokens": 0}, {"seed": -1},
             {"cfg_weight": -0.1}, {"repetition_penalty": 0}, {"exaggeration": float("nan")}]
)  # fmt: skip
def test_errors_name_the_parameter_out_of_range(parameter):
    with pytest.raises(InputError, match=next(iter(parameter))):
        Sampling(**parameter)


def test_chunk_seeds_differ_and_the_first_is_the_request_seed():
    assert chunk_seed(7, 0) == 7
    seeds = {chunk_seed(seed, i) for seed in range(50) for i in range(50)}
    assert len(seeds) == 50 * 50
