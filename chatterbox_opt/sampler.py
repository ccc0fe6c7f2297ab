"""Logits to a token. Tensors only: knows nothing of the model, of text or of requests.

Order of operations, and every rounding, as upstream's loop (t3.py, ``T3.inference``): CFG,
repetition penalty, temperature, min-p, top-p, softmax, draw. So the same generator state gives
the same token as upstream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox_opt.sampling import Sampling

NOT_FINITE = -1  # returned in place of a token when the logits hold NaN or infinity


def guide(logits: Tensor, cfg_weight: float) -> Tensor:
    """Combine rows under classifier-free guidance: [2, V] (cond, uncond) or [1, V] to [1, V].

    cond + w * (cond - uncond), Ho & Salimans 2022 in upstream's form.
    """
    if logits.shape[0] == 1:
        return logits
    cond, uncond = logits[0:1], logits[1:2]
    return cond + cfg_weight * (cond - uncond)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens already said less likely (Keskar et al. 2019, CTRL): [1, V] both.

    Args:
        logits: float32.
        seen: bool, true for every id in the history, the start token included.
        penalty: positive logits are divided by it, negative ones multiplied.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def truncate(logits: Tensor, min_p: float, top_p: float) -> Tensor:
    """Set unlikely logits to -inf: min-p (Nguyen et al. 2024), then top-p (Holtzman et al. 2020).

    At ``top_p = 1`` the nucleus is everything, and the full-vocabulary sort is skipped.
    """
    probabilities = torch.softmax(logits, dim=-1)
    threshold = min_p * probabilities.amax(dim=-1, keepdim=True)
    logits = logits.masked_fill(probabilities < threshold, -torch.inf)
    if top_p < 1.0:
        ascending, order = torch.sort(logits, descending=False, dim=-1)
        outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        outside[..., -1] = False
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return logits


def sample(
    logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None
) -> Tensor:
    """Draw the next token.

    Args:
        logits: [rows, V] of the last position, any float dtype; rows as ``guide`` wants them.
        seen: bool [1, V], see ``penalise``.
        generator: on the logits' device; one draw is consumed, none at temperature 0.

    Returns:
        int64 [1]: the token, or ``NOT_FINITE``. No value is read back to the host.
    """
    logits = guide(logits.float(), sampling.cfg_weight)
    finite = torch.isfinite(logits).all()
    logits = torch.where(
        finite, logits, torch.zeros_like(logits)
    )  # a draw from NaN kills a CUDA context
    logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        token = logits.argmax(dim=-1)
    else:
        logits = truncate(logits / sampling.temperature, sampling.min_p, sampling.top_p)
        probabilities = torch.softmax(logits, dim=-1)
        token = torch.multinomial(probabilities, 1, generator=generator).view(-1)
    return torch.where(finite, token, torch.full_like(token, NOT_FINITE))
