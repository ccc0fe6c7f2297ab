"""Attention over all frames: PyTorch's fused kernel, or what serves a processor better.

Knows one attention. Knows nothing of the layers around it.

On a processor the fused kernel multiplies through MKL: 85 GFLOPS on one EPYC core, in bfloat16 as
in float32. In bfloat16 a kernel of our own (bf16_ops.py) takes a third of its time where the
processor has the instruction. Else oneDNN multiplies, one head at a time: its scores are small
enough for the caches, and for glibc to use their memory again. Those of all heads cost more in
page faults than in products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.kernels.cpu import bf16_ops, onednn


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017), heads side by side in the result.

    Args:
        q, k, v: [rows, heads, frames, head_dim], of one dtype and the same strides.
        mask: bool [rows, 1, 1, frames], which frames may be attended to, the first ones of each
            row; None for all.

    Returns:
        [rows, frames, heads * head_dim].
    """
    if bf16_ops.supports(q, k, v) and q.shape[-1] in bf16_ops.HEADS:
        return bf16_ops.attention(q, k, v, mask)
    if not _multiplies(q):
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return fused.transpose(1, 2).flatten(2)
    rows, heads, frames, head_dim = q.shape
    q, k, v = q.contiguous() * head_dim**-0.5, k.contiguous(), v.contiguous()
    attended = q.new_empty(rows, frames, heads, head_dim)
    for row in range(rows):
        hidden = None if mask is None else ~mask[row, 0]
        for i in range(heads):
            attended[row, :, i] = _head(q[row, i], k[row, i], v[row, i], hidden)
    return attended.flatten(2)


def _multiplies(q: Tensor) -> bool:
    """Whether products serve: not on a card, and not in training, for oneDNN's know no gradient.

    Not with Intel's AMX either: there MKL is quick, and the fused kernel ahead in both precisions.
    """
    if q.device.type != "cpu" or q.requires_grad:
        return False
    known = q.dtype in (torch.float32, torch.bfloat16) and onednn.supported()
    return known and not torch.cpu._is_amx_tile_supported()


def _head(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """One head, all matrices [frames, head_dim]; ``hidden`` is bool [1, frames]."""
    scores = _product(q, k)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    return _product(torch.softmax(scores, dim=-1), v.T)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x [n, k] and y [m, k] to [n, m]; in bfloat16 PyTorch takes oneDNN itself."""
    return onednn.product(x, y.contiguous()) if x.dtype == torch.float32 else x @ y.T
