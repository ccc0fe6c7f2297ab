"""Sampling on a CPU: row by row, with values read on the host.

Responsible for the same tokens as sampler.py in a third to a half of its time. Not responsible for
what the parameters mean, which is explained there.

On a CPU an operation over one row of the vocabulary costs less than its dispatch, and sampler.py,
which may not read a value, must do all of them for all rows. Here a row does only what its
parameters ask for, only the most likely tokens are sorted, and what needs no reduction in float32
is done by NumPy, whose dispatch is cheaper. Reductions are PyTorch's: their order decides the last
bit, and with it the token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chatterbox_opt.models.t3.sampler import NOT_FINITE, SamplingTensors

Floats = npt.NDArray[np.float32]


def sample_rows(
    logits: Tensor, seen: Tensor, params: SamplingTensors, noise: Tensor, *, turbo: bool = False
) -> Tensor:
    """``sampler.sample`` of tensors on a CPU: int64 [rows]."""
    per_row = logits.float().unflatten(0, (len(noise), -1)).numpy()
    inputs = zip(per_row, seen.numpy(), params.values.tolist(), noise.numpy(), strict=True)
    return torch.tensor([_sample_row(*row, turbo=turbo) for row in inputs])


def _sample_row(
    logits: Floats, seen: npt.NDArray[np.bool_], values: list[float], noise: Floats, *, turbo: bool
) -> int:
    """Sample one token.

    Args:
        logits: float32 [1, V], or [2, V] with CFG.
        seen, noise: [V].
        values: a row of ``SamplingTensors.values``.
    """
    cfg_weight, penalty, temperature, min_p, tail, top_k = values
    row: Floats = logits[0].copy()
    if len(logits) == 2:
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found below
            row += np.float32(cfg_weight) * (row - logits[1])
    if not np.isfinite(row).all():
        return NOT_FINITE
    if not turbo:
        _penalize(row, np.flatnonzero(seen), penalty)
    if temperature > 0:
        row /= np.float32(temperature)
    elif not turbo:
        return int(row.argmax())
    if not turbo and min_p > 0:
        probabilities = _softmax(row)
        row[probabilities < np.float32(min_p) * probabilities.max()] = -np.inf
    if top_k > 0 or tail > 0:
        kept = _most_likely(row, int(top_k), tail, ties=turbo)
        filtered = np.full_like(row, -np.inf)
        filtered[kept] = row[kept]
        row = filtered
    if turbo:
        _penalize(row, np.flatnonzero(seen), penalty)
        if temperature == 0:
            return int(row.argmax())
    return int((_softmax(row) / noise).argmax())


def _softmax(row: Floats) -> Floats:
    result: Floats = torch.from_numpy(row).softmax(0).numpy()
    return result


def _penalize(row: Floats, ids: npt.NDArray[np.int64], penalty: float) -> None:
    """``sampler.apply_repetition_penalty`` to those ids, in place."""
    values, factor = row[ids], np.float32(penalty)
    row[ids] = np.where(values < 0, values * factor, values / factor)


def _most_likely(row: Floats, top_k: int, tail: float, *, ties: bool) -> npt.NDArray[np.int64]:
    """The ids that top-k, then top-p leave.

    Args:
        top_k: 0 keeps all.
        tail: 1 - top_p; 0 keeps all.
        ties: all tokens as likely as the ``top_k``-th stay.
    """
    likeliest = torch.from_numpy(row)
    values, ids = likeliest.topk(min(top_k or len(row), len(row)))
    if ties and (count := np.count_nonzero(row >= values[-1].item())) > len(values):
        values, ids = likeliest.topk(count)
    if tail > 0:
        # in ascending order, as upstream adds; the most likely token always stays
        sums = values.flip(0).softmax(0).cumsum(0)
        removed = int((sums[:-1] <= tail).sum())
        ids = ids[: len(ids) - removed]
    return ids.numpy()
