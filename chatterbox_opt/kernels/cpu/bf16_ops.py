"""The flow's bfloat16 operations by our own CPU kernels: attention, layer norm, add + layer norm.

Responsible for tensors, and for whether the kernels run here; not responsible for the arithmetic
(flow_bf16.py, norm_bf16.py) or the layers around. Callers check ``supports`` first and use
PyTorch's operation for everything else.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.kernels.cpu import openmp

BLOCK = 64  # frames are padded to a multiple of it
HEAD_DIMS = (32, 64)  # sizes of a head that attention is written for


def supports(*tensors: Tensor) -> bool:
    """Whether the functions of this module can be called with these inputs.

    False in training, as the kernels have no gradient, and on CPUs where numba is missing or has no
    writable cache directory.
    """
    suitable = (x.device.type == "cpu" and x.dtype == torch.bfloat16 for x in tensors)
    if not all(suitable) or any(x.requires_grad for x in tensors):
        return False
    return not _unsupported_reason()


@functools.cache
def _unsupported_reason() -> str:
    if not torch.cpu._is_avx512_bf16_supported():
        return "this CPU has no bfloat16 instructions"
    return openmp.selftest(_selftest_failure)


def _selftest_failure() -> str:
    from chatterbox_opt.kernels.cpu import amx, llvm

    if amx.AMX and not torch.cpu._init_amx():  # whatever PyTorch reports about this CPU
        return "the operating system does not permit AMX"
    # without AMX tiles our kernels are slower than PyTorch's on a CPU that has AMX
    if not llvm.BFLOAT16 or (torch.cpu._is_amx_tile_supported() and not amx.AMX):
        return "numba does not compile for all features of this CPU"
    x = torch.linspace(-2, 2, 3 * 2 * HEAD_DIMS[0]).bfloat16().view(1, 3, 2, HEAD_DIMS[0])
    x = x.transpose(1, 2)
    wide = x.float()
    ours, exact = attention(x, x, x, None), F.scaled_dot_product_attention(wide, wide, wide)
    layer = nn.LayerNorm(HEAD_DIMS[0], device="cpu", dtype=torch.bfloat16)
    close = (
        torch.allclose(ours.float(), exact.transpose(1, 2).flatten(2), atol=0.05),
        torch.allclose(layer_norm(layer, x).float(), layer(x).float(), atol=0.05),
    )
    return "" if all(close) else "attention or layer norms give wrong results here"


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """As layers/attention.py's ``attend``; head_dim is one of ``HEAD_DIMS``."""
    from chatterbox_opt.kernels.cpu import flow_bf16  # numba is only needed here

    assert q.stride() == k.stride() == v.stride(), "q, k and v must have the same strides"
    assert q.stride(-1) == 1 and q.shape[-1] in HEAD_DIMS, "heads must be contiguous"
    rows, heads, frames, head_dim = q.shape
    padded = frames + -frames % BLOCK
    kv_lens = torch.full((rows,), frames, device="cpu") if mask is None else mask.flatten(1).sum(1)
    packed_keys = q.new_empty(rows * heads, padded, head_dim)
    packed_values = q.new_empty(rows * heads, BLOCK, padded)
    attended = q.new_empty(rows, frames, heads, head_dim)
    task = openmp.torch_openmp().new_task(flow_bf16.ATTENTION)
    task["rows"], task["heads"], task["frames"], task["head_dim"] = q.shape
    task["row_stride"], task["head_stride"], task["frame_stride"], _ = q.stride()
    openmp.set_pointers(task, q=q, k=k, v=v, kv_lens=kv_lens, out=attended)
    openmp.set_pointers(task, packed_keys=packed_keys, packed_values=packed_values)
    openmp.torch_openmp().run(flow_bf16.attention.address, task.ctypes.data)
    return attended.flatten(2)


def layer_norm(layer: nn.LayerNorm, x: Tensor, *, mish: bool = False) -> Tensor:
    """Layer norm over the last axis of ``x``, optionally followed by Mish: the same shape."""
    return _norm(layer, x.contiguous(), None, mish=mish)


def add_layer_norm(layer: nn.LayerNorm, x: Tensor, residual: Tensor) -> Tensor:
    """``x += residual`` in place, then ``layer_norm``; x must be contiguous."""
    return _norm(layer, x, residual.contiguous(), mish=False)


def _norm(layer: nn.LayerNorm, x: Tensor, residual: Tensor | None, *, mish: bool) -> Tensor:
    from chatterbox_opt.kernels.cpu import norm_bf16  # numba is only needed here

    assert x.is_contiguous(), "x must be contiguous"
    out = torch.empty_like(x)
    task = openmp.torch_openmp().new_task(norm_bf16.NORM)
    task["width"], task["eps"], task["mish"] = x.shape[-1], layer.eps, mish
    task["rows"] = x.numel() // x.shape[-1]
    openmp.set_pointers(task, x=x, weight=layer.weight, bias=layer.bias, out=out)
    if residual is not None:
        openmp.set_pointers(task, residual=residual)
    openmp.torch_openmp().run(norm_bf16.norm.address, task.ctypes.data)
    return out
