"""Logits to tokens, a row for each utterance. Tensors only: knows nothing of the model or of text.

Order of operations, and every rounding, as upstream's loop (its t3.py, ``T3.inference``): CFG,
repetition penalty, temperature, min-p, top-p, softmax, draw. So the same generator state gives the
same token as upstream. Top-k, which upstream has not, comes before top-p. Every knob is a tensor
with a row for each utterance, and no value is read back to the host: a step that was captured once
serves all later knobs and seeds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.sampling import Sampling

NOT_FINITE = -1  # returned in place of a token when the logits hold NaN or infinity


class SamplingTensors:
    """What each of ``rows`` utterances asks of the sampler.

    Attributes:
        values: float32 [rows, 6]; the properties are its columns, [rows, 1] each.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def room(cls, rows: int, device: torch.device | str = "cpu") -> SamplingTensors:
        """Room for so many utterances, all of them with the usual knobs."""
        made = cls(torch.empty(rows, 6, device=device))
        for row in range(rows):
            made.set(row, Sampling())
        return made

    def set(self, row: int, sampling: Sampling) -> None:
        """Write one utterance's knobs."""
        asked = (
            sampling.cfg_weight,
            sampling.repetition_penalty,
            sampling.temperature,
            sampling.min_p,
            1 - sampling.top_p,  # in double precision, as upstream subtracts it
            sampling.top_k,
        )
        self.values[row] = to_device(torch.tensor(asked), self.values.device)

    def slice(self, first: int, last: int) -> SamplingTensors:
        """Rows ``first`` to ``last``, sharing memory."""
        return SamplingTensors(self.values[first:last])

    @property
    def cfg_weight(self) -> Tensor:
        """Strength of the guidance."""
        return self.values[:, 0:1]

    @property
    def repetition_penalty(self) -> Tensor:
        """Above 1 discourages what was said."""
        return self.values[:, 1:2]

    @property
    def temperature(self) -> Tensor:
        """0 is greedy."""
        return self.values[:, 2:3]

    @property
    def min_p(self) -> Tensor:
        """Share of the likeliest token's probability."""
        return self.values[:, 3:4]

    @property
    def tail(self) -> Tensor:
        """1 - top_p: the probability that the nucleus leaves out."""
        return self.values[:, 4:5]

    @property
    def top_k(self) -> Tensor:
        """How many of the likeliest tokens are kept; 0 keeps all."""
        return self.values[:, 5:6]


def apply_cfg(logits: Tensor, cfg_weight: Tensor) -> Tensor:
    """Combine conditional and unconditional rows under classifier-free guidance.

    cond + w * (cond - uncond), Ho & Salimans 2022 in upstream's form.

    Args:
        logits: [rows, V], nothing to guide; or [2 rows, V]: cond, uncond, cond, uncond, ...
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
    """Make tokens already said less likely (Keskar et al. 2019, CTRL): [rows, V] both.

    Args:
        logits: float32.
        seen: bool, true for every id in the history, the start token included.
        penalty: [rows, 1]; positive logits are divided by it, negative ones multiplied.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def filter_logits(logits: Tensor, knobs: SamplingTensors, *, ranked: bool) -> Tensor:
    """Set unlikely logits to -inf: min-p (Nguyen et al. 2024), top-k (Fan et al. 2018), then top-p
    (Holtzman et al. 2020).

    Args:
        logits: float32 [rows, V].
        ranked: some row has a top_p or a top_k; otherwise the full-vocabulary sort is skipped. A
            row that has neither is the same with the sort and without.
    """
    probabilities = torch.softmax(logits, dim=-1)
    threshold = knobs.min_p * probabilities.amax(dim=-1, keepdim=True)
    logits = logits.masked_fill(probabilities < threshold, -torch.inf)
    if ranked:
        ascending, order = torch.sort(logits, descending=False, dim=-1)
        rank = torch.arange(logits.shape[-1], 0, -1, device=logits.device)  # 1 is the likeliest
        beyond = (rank > knobs.top_k) & (knobs.top_k > 0)
        ascending = ascending.masked_fill(beyond, -torch.inf)
        outside = beyond | (ascending.softmax(dim=-1).cumsum(dim=-1) <= knobs.tail)
        outside[..., -1] = False
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return logits


def sample(
    logits: Tensor, seen: Tensor, knobs: SamplingTensors, noise: Tensor, *, ranked: bool
) -> Tensor:
    """Choose the next token of each row.

    The draw is the exponential race: the largest p / e with e from Exp(1) falls on each token with
    its probability p. It is what ``torch.multinomial`` does for one draw, with the numbers coming
    from outside, so that every row has a generator of its own.

    Args:
        logits: [rows or 2 rows, V] of the last position, any float dtype; see ``apply_cfg``.
        seen: bool [rows, V], see ``apply_repetition_penalty``.
        noise: float32 [rows, V], fresh from Exp(1); not looked at where the temperature is 0.
        ranked: see ``filter_logits``.

    Returns:
        int64 [rows]: the tokens, or ``NOT_FINITE``. No value is read back to the host.
    """
    logits = apply_cfg(logits.float(), knobs.cfg_weight)
    finite = torch.isfinite(logits).all(dim=-1)
    logits = apply_repetition_penalty(logits, seen, knobs.repetition_penalty)
    greedy = logits.argmax(dim=-1)
    still = knobs.temperature == 0
    spread = logits / torch.where(still, torch.ones_like(knobs.temperature), knobs.temperature)
    kept = filter_logits(spread, knobs, ranked=ranked)
    drawn = (torch.softmax(kept, dim=-1) / noise).argmax(dim=-1)
    token = torch.where(still[:, 0], greedy, drawn)
    return torch.where(finite, token, torch.full_like(token, NOT_FINITE))
