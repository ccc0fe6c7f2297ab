"""Sampling: logits to tokens, one row per sequence, in tensor operations only.

Responsible for CFG, penalties, filters and the draw. Not responsible for the model or for text.

Order of operations and all rounding are those of upstream's two loops (its t3.py), so the same
generator state gives the same token as upstream:

    T3.inference         CFG, repetition penalty, temperature, min-p, (top-k,) top-p, draw
    T3.inference_turbo   temperature, top-k, top-p, repetition penalty, draw

Top-k, which upstream's first one does not have, comes before top-p.
Every sampling parameter is a tensor with a row per sequence, and no value is read back to the
host: a captured step can be replayed with other parameters and seeds. On a CPU, where nothing is
captured, row_sampler.py is faster and leaves only a few rows to this module.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.sampling import Sampling

NOT_FINITE = -1  # returned instead of a token when the logits contain NaN or Inf
UNFORCED = -1  # in ``DecodeState.token_buffer``: no token is forced at this position


class SamplingTensors:
    """The sampling parameters of ``rows`` sequences.

    Attributes:
        values: float32 [rows, 6]; the properties are its columns, [rows, 1] each.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def allocate(cls, rows: int, device: torch.device | str = "cpu") -> SamplingTensors:
        """Allocate ``rows`` rows with the default parameters."""
        tensors = cls(torch.empty(rows, 6, device=device))
        for row in range(rows):
            tensors.set(row, Sampling())
        return tensors

    def set(self, row: int, sampling: Sampling) -> None:
        """Write one sequence's parameters."""
        values = (
            sampling.cfg_weight,
            sampling.repetition_penalty,
            sampling.temperature,
            sampling.min_p,
            1 - sampling.top_p,  # in double precision, as upstream subtracts it
            sampling.top_k,
        )
        self.values[row] = to_device(torch.tensor(values), self.values.device)

    def slice(self, first: int, last: int) -> SamplingTensors:
        """Rows ``first`` to ``last``, sharing memory."""
        return SamplingTensors(self.values[first:last])

    @property
    def cfg_weight(self) -> Tensor:
        """Classifier-free guidance weight."""
        return self.values[:, 0:1]

    @property
    def repetition_penalty(self) -> Tensor:
        """Above 1 makes generated tokens less likely."""
        return self.values[:, 1:2]

    @property
    def temperature(self) -> Tensor:
        """0 is greedy."""
        return self.values[:, 2:3]

    @property
    def min_p(self) -> Tensor:
        """Minimum probability, relative to the most likely token's."""
        return self.values[:, 3:4]

    @property
    def tail(self) -> Tensor:
        """1 - top_p: the probability mass outside the nucleus."""
        return self.values[:, 4:5]

    @property
    def top_k(self) -> Tensor:
        """Number of most likely tokens to sample from; 0 is all."""
        return self.values[:, 5:6]


def apply_cfg(logits: Tensor, cfg_weight: Tensor) -> Tensor:
    """Combine conditional and unconditional rows (classifier-free guidance).

    cond + w * (cond - uncond), Ho & Salimans 2022 in upstream's form.

    Args:
        logits: [rows, V], returned as they are; or [2 rows, V]: cond, uncond, cond, uncond, ...
        cfg_weight: [rows, 1].

    Returns:
        [rows, V].
    """
    rows = len(cfg_weight)
    if len(logits) == rows:
        return logits
    cond, uncond = logits.unflatten(0, (rows, 2)).unbind(1)
    return cond + cfg_weight * (cond - uncond)


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make tokens of the history less likely (Keskar et al. 2019, CTRL): [rows, V] both.

    Args:
        logits: float32.
        seen: bool, true for every id in the history, the start token included.
        penalty: [rows, 1]; positive logits are divided by it, negative ones multiplied.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def filter_logits(logits: Tensor, params: SamplingTensors, *, needs_sort: bool) -> Tensor:
    """Set unlikely logits to -inf: min-p (Nguyen et al. 2024), top-k (Fan et al. 2018), then top-p
    (Holtzman et al. 2020).

    Args:
        logits: float32 [rows, V].
        needs_sort: some row has a top_p or a top_k; otherwise the full-vocabulary sort is skipped.
            A row that has neither is the same with the sort and without.
    """
    probabilities = torch.softmax(logits, dim=-1)
    threshold = params.min_p * probabilities.amax(dim=-1, keepdim=True)
    logits = logits.masked_fill(probabilities < threshold, -torch.inf)
    if needs_sort:
        rank = torch.arange(logits.shape[-1], 0, -1, device=logits.device)  # 1 is the likeliest
        logits = _filter_sorted(logits, params, lambda _: rank > params.top_k)
    return logits


def filter_turbo_logits(logits: Tensor, params: SamplingTensors, *, needs_sort: bool) -> Tensor:
    """``filter_logits`` without min-p; and all tokens as likely as the ``top_k``-th stay."""
    if not needs_sort:
        return logits
    last = logits.shape[-1] - 1
    kept = (last + 1 - params.top_k.long()).clamp(0, last)  # index of the ``top_k``-th
    return _filter_sorted(logits, params, lambda ascending: ascending < ascending.gather(1, kept))


def _filter_sorted(
    logits: Tensor, params: SamplingTensors, beyond: Callable[[Tensor], Tensor]
) -> Tensor:
    """Top-k, then top-p.

    Args:
        beyond: sorted logits to bool [rows, V]: which are not among the ``top_k``.
    """
    ascending, order = torch.sort(logits, descending=False, dim=-1)
    beyond_top_k = beyond(ascending) & (params.top_k > 0)
    ascending = ascending.masked_fill(beyond_top_k, -torch.inf)
    unlikely = (ascending.softmax(dim=-1).cumsum(dim=-1) <= params.tail) & (params.tail > 0)
    removed = beyond_top_k | unlikely
    removed[..., -1] = False
    return logits.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def sample(
    logits: Tensor,
    seen: Tensor,
    params: SamplingTensors,
    noise: Tensor,
    *,
    needs_sort: bool,
    turbo: bool = False,
) -> Tensor:
    """Sample the next token of each row.

    By the exponential race: with e from Exp(1), the largest p / e falls on each token with its
    probability p. This is what ``torch.multinomial`` computes for one sample, with the random
    numbers passed in, so that every row has its own generator.

    Args:
        logits: [rows or 2 rows, V] of the last position, any float dtype; see ``apply_cfg``.
        seen: bool [rows, V], see ``apply_repetition_penalty``.
        noise: float32 [rows, V], new from Exp(1); unused where the temperature is 0.
        needs_sort: see ``filter_logits``.
        turbo: in the order of upstream's ``inference_turbo``, without CFG and min-p.

    Returns:
        int64 [rows]: the tokens, or ``NOT_FINITE``.
    """
    logits = apply_cfg(logits.float(), params.cfg_weight)
    finite = torch.isfinite(logits).all(dim=-1)
    is_greedy = params.temperature == 0
    temperature = torch.where(is_greedy, torch.ones_like(params.temperature), params.temperature)
    if turbo:
        filtered = filter_turbo_logits(logits / temperature, params, needs_sort=needs_sort)
        filtered = apply_repetition_penalty(filtered, seen, params.repetition_penalty)
        greedy = filtered.argmax(dim=-1)
    else:
        logits = apply_repetition_penalty(logits, seen, params.repetition_penalty)
        greedy = logits.argmax(dim=-1)
        filtered = filter_logits(logits / temperature, params, needs_sort=needs_sort)
    sampled = (torch.softmax(filtered, dim=-1) / noise).argmax(dim=-1)
    token = torch.where(is_greedy[:, 0], greedy, sampled)
    return torch.where(finite, token, torch.full_like(token, NOT_FINITE))
