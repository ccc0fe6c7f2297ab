"""The card's kernels tried before they are trusted.

Knows what they should give for a few numbers. Knows nothing of what is done if they do not.
Imports Triton, as kernels.py does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt import kernels


def right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give here what PyTorch gives; tried in the forms that ask the most."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    weight, scales, by = drawn(16, 64), torch.full((16,), 0.1, device=device), drawn(64)
    for rows in (2, kernels.SMALLEST_TILE):
        x, residual = drawn(rows, 64), drawn(rows, 8)
        found = kernels.linear(x, weight, norm=(by, 1e-5), gated=True, residual=residual)
        gate, up = F.linear(F.rms_norm(x, (64,), by, 1e-5), weight).chunk(2, dim=-1)
        if not _alike(found, F.silu(gate) * up + residual):
            return False
        whole = (16 * weight).round().to(torch.int8)
        if not _alike(kernels.linear(x, whole, scales), F.linear(x, 0.1 * whole.to(dtype))):
            return False
    keys, values = drawn(1, 1, 2 * kernels.KEYS, 64), drawn(1, 1, 2 * kernels.KEYS, 64)
    qkv, last = drawn(1, 192), kernels.KEYS + 1
    q, k, v = qkv.view(3, 1, 1, 1, 64)
    behind = torch.cat((keys[:, :, :last], k), 2), torch.cat((values[:, :, :last], v), 2)
    expected = F.scaled_dot_product_attention(q, behind[0], behind[1]).view(1, 64)
    still, places = (drawn(1, 64) * 0 + 1, drawn(1, 64) * 0), torch.tensor([last], device=device)
    if not _alike(kernels.attend(qkv, still, keys, values, places), expected):
        return False
    logits, seen = drawn(2, 100), torch.zeros(1, 100, dtype=torch.bool, device=device)
    logits[:, 7], logits[:, 8], seen[:, 8] = 8.0, 9.0, True  # which the penalty makes the second
    knobs = torch.tensor([[0.5, 2.0, 0.8, 0.9, 0.0, 0.0]], device=device)
    found = kernels.sample(logits, seen, knobs, torch.ones(1, 100, device=device), -1)
    return found.tolist() == [7]


def _alike(found: Tensor, expected: Tensor) -> bool:
    scale = expected.float().abs().max().clamp(min=1.0)
    return bool((found.float() - expected.float()).abs().max() < 0.03 * scale)
