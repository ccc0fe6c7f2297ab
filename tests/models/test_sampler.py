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
from chatterbox_opt.models.t3 import row_sampler
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.row_sampler import RowSampler
from chatterbox_opt.models.t3.sampler import (
    NOT_FINITE,
    UNFORCED,
    SamplingTensors,
    apply_cfg,
    apply_repetition_penalty,
    filter_logits,
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


needs_rows = pytest.mark.skipif(not row_sampler.supports(), reason="no compiled sampler here")
KNOBS = [
    {},
    {"top_k": 7},
    {"top_p": 0.6},
    {"top_p": 0.01},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 999},
    {"top_k": 10**9},
    {"min_p": 0},
    {"min_p": 1},
    {"min_p": 0.3, "top_k": 3},
    {"repetition_penalty": 0.4},
]


def slots_for(logits, params, *, limit=3):
    """The rest of a state's buffers: history, noise, tokens and counters."""
    rows = len(params.values)
    seen = torch.zeros(rows, logits.shape[-1], dtype=torch.bool)
    noise = torch.empty(seen.shape).exponential_(generator=torch.Generator().manual_seed(3))
    counters = tuple(torch.zeros(rows, dtype=torch.long) for _ in range(3))
    return seen, params, noise, torch.full((rows, limit), UNFORCED), counters


def drawn(logits, seen, params, noise, *, turbo=False):
    """The compiled sampler's tokens, and the rows that it leaves to PyTorch."""
    *_, buffer, counters = slots_for(logits, params)
    rows = RowSampler(logits, seen.clone(), params, noise, buffer, counters, start=0, turbo=turbo)
    undecided = rows(0, len(seen))
    tokens = buffer[:, 0]
    assert tokens[undecided].eq(UNFORCED).all() and not counters[1][undecided].any()
    return tokens, undecided


@needs_rows
@pytest.mark.parametrize(("turbo", "tied"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("guided", [False, True])
def test_row_by_row_the_same_tokens_are_sampled(turbo, tied, temperature, guided):
    """As PyTorch does with a sort of all rows: every filter, and none, in one batch."""
    random = torch.Generator().manual_seed(1)
    # top_p may leave any of equally likely tokens out, top_k leaves all or none of them
    samplings = [knobs for knobs in KNOBS if not (tied and "top_p" in knobs)]
    rows, params = len(samplings), SamplingTensors.allocate(len(samplings))
    for row, given in enumerate(samplings):
        params.set(row, Sampling(temperature=temperature, **given))
    sampled, left = set(), []
    for row in LOGITS:
        logits = row + torch.randn(rows * (2 if guided else 1), 200, generator=random) / 2
        logits = (logits * 4).round() / 4 if tied else logits
        seen = torch.rand(rows, 200, generator=random) < 0.2
        noise = torch.empty(rows, 200).exponential_(generator=random)
        expected = sample(logits, seen, params, noise, needs_sort=True, turbo=turbo)
        tokens, undecided = drawn(logits, seen, params, noise, turbo=turbo)
        assert all(tokens[i] == expected[i] for i in range(rows) if i not in undecided)
        sampled.update(expected.tolist())
        left += undecided
    assert len(sampled) > 50
    assert len(left) < 0.02 * rows * len(LOGITS)


@needs_rows
def test_what_depends_on_rounding_is_left_to_pytorch():
    """Two tokens that are as likely, a threshold that one of them meets exactly, infinite noise of
    a row: never a guess."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    seen, noise = torch.zeros(1, 4, dtype=torch.bool), torch.ones(1, 4)

    def undecided(noise=noise, logits=logits, **given):
        params = SamplingTensors.allocate(1)
        params.set(0, Sampling(**{"min_p": 0, "repetition_penalty": 1, **given}))
        return drawn(logits, seen, params, noise)[1]

    second = torch.tensor([[1e9, 1.0, 1.0 + 1e-7, 1e9]])
    assert undecided(second) == [0], "a draw between two"
    assert undecided(second, temperature=0) == []
    assert undecided(torch.tensor([[1e9, 1.0, 1.1, 1e9]])) == []
    assert undecided(torch.zeros(1, 4)) == [0]
    assert undecided(min_p=torch.tensor(-1.0).exp().item(), temperature=1) == [0]
    assert undecided(top_k=2) == [0], "one of two"
    assert undecided(top_k=3) == undecided(top_k=1) == []
    likely = logits[0].softmax(0)
    assert undecided(top_p=(likely[0] + likely[1] / 2).item(), temperature=1) == [0], "one of two"
    assert undecided(top_p=likely[:3].sum().item(), temperature=1) == [0], "on the edge"
    assert undecided(top_p=0.9, temperature=1) == []
    assert undecided(logits=logits * 1e38, temperature=0.01) == [0], "infinite logits"


@needs_rows
@pytest.mark.parametrize("turbo", [False, True])
def test_what_is_stored_with_a_token_is_what_tensor_operations_store(turbo):
    """Forced tokens, logits that are not finite, the end of the buffer, and rows in between."""
    params = SamplingTensors.allocate(5)
    states = []
    for compiled in (True, False):
        logits = LOGITS[:5, 0].clone()
        logits[2, 7] = torch.nan
        seen, _, noise, buffer, counters = slots_for(logits, params)
        seen[:, 3] = True
        buffer[1, 0], buffer[2, 1], counters[2][:] = 9, 8, 40
        state = object.__new__(DecodeState)
        state.logits, state.seen, state.sampling_tensors = logits, seen, params
        state.noise, state.token_buffer, state.rows_per_seq = noise, buffer, 1
        state.last_token, state.num_generated, state.position = counters
        state.turbo, state.start = turbo, 3
        state._row_sampler = state._compiled_sampler() if compiled else None
        for _ in range(4):
            state.sample_next(0, 4, needs_sort=False)
        states.append((seen, buffer, *counters, state.latest(4, 1)))
        assert not counters[1][4], "a row that was not asked for"
    for ours, theirs in zip(*states, strict=True):
        assert torch.equal(ours, theirs)
    assert states[0][1][2].tolist() == [NOT_FINITE, 8, NOT_FINITE]


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
    """The difference of two infinities is no number."""
    logits = LOGITS[:2, 0].clone()
    logits[:, 5] = bad
    params = SamplingTensors.allocate(1)
    seen = torch.zeros(1, 200, dtype=torch.bool)
    assert sample(logits, seen, params, torch.ones(1, 200), needs_sort=False).item() == NOT_FINITE
    if row_sampler.supports():
        assert drawn(logits, seen, params, torch.ones(1, 200)) == (torch.tensor([NOT_FINITE]), [])


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
    if row_sampler.supports():
        assert drawn(logits, seen, params, torch.ones(1, 200)) == (torch.tensor([NOT_FINITE]), [])


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
