"""Full attention over all frames: PyTorch's fused kernel, or a faster one for this CPU.

Responsible for choosing the implementation; not responsible for the layers around it.

On a CPU, PyTorch's fused kernel multiplies through MKL: 85 GFLOPS on one EPYC core, in bfloat16 as
in float32. In bfloat16 our own kernel (kernels/cpu/bf16_ops.py) takes a third of its time where the
CPU has the instruction. Otherwise oneDNN multiplies, one head at a time: one head's scores fit into
the caches, and glibc reuses their memory. The scores of all heads cost more in page faults than in
products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.kernels.cpu import bf16_ops, onednn


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017), heads concatenated in the result.

    Args:
        q, k, v: [rows, heads, frames, head_dim], of one dtype and the same strides.
        mask: bool [rows, 1, 1, frames], which frames may be attended to (a prefix of each row);
            None for all.

    Returns:
        [rows, frames, heads * head_dim].
    """
    if bf16_ops.supports(q, k, v) and q.shape[-1] in bf16_ops.HEAD_DIMS:
        return bf16_ops.attention(q, k, v, mask)
    if not _use_onednn(q):
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return fused.transpose(1, 2).flatten(2)
    rows, heads, frames, head_dim = q.shape
    q, k, v = q.contiguous() * head_dim**-0.5, k.contiguous(), v.contiguous()
    attended = q.new_empty(rows, frames, heads, head_dim)
    for row in range(rows):
        masked = None if mask is None else ~mask[row, 0]
        for i in range(heads):
            attended[row, :, i] = _one_head(q[row, i], k[row, i], v[row, i], masked)
    return attended.flatten(2)


def _use_onednn(q: Tensor) -> bool:
    """Whether to multiply with oneDNN: not on a GPU, and not in training (it has no gradient).

    Not with Intel's AMX either: there MKL is fast, and the fused kernel wins in both precisions.
    """
    if q.device.type != "cpu" or q.requires_grad:
        return False
    supported = q.dtype in (torch.float32, torch.bfloat16) and onednn.supported()
    return supported and not torch.cpu._is_amx_tile_supported()


def _one_head(q: Tensor, k: Tensor, v: Tensor, masked: Tensor | None) -> Tensor:
    """One head, all matrices [frames, head_dim]; ``masked`` is bool [1, frames]."""
    scores = _product(q, k)
    if masked is not None:
        scores.masked_fill_(masked, -torch.inf)
    return _product(torch.softmax(scores, dim=-1), v.T)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x [n, k] and y [m, k] to [n, m]; in bfloat16 PyTorch uses oneDNN by itself."""
    return onednn.product(x, y.contiguous()) if x.dtype == torch.float32 else x @ y.T
