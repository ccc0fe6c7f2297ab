"""The flow's bfloat16 operations on a processor that has the instructions: by code of our own.

Knows tensors and what flow_bf16.py wants of them. Knows nothing of the layers around. Whoever
calls asks ``supports`` first, and has PyTorch's operation for all else.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.kernels.cpu import openmp

BLOCK = 64  # frames are padded to a multiple of it
HEADS = (32, 64)  # dimensions of a head that attention is written for


def supports(*tensors: Tensor) -> bool:
    """Whether these, of what goes into one of this module's functions, are for it.

    Training is not: they know no gradient. Nor is a processor where numba is missing, or has
    nowhere to keep what it compiles.
    """
    fit = (x.device.type == "cpu" and x.dtype == torch.bfloat16 for x in tensors)
    if not all(fit) or any(x.requires_grad for x in tensors):
        return False
    return not _unsupported_reason()


@functools.cache
def _unsupported_reason() -> str:
    if not torch.cpu._is_avx512_bf16_supported():
        return "no bfloat16"
    return openmp.selftest(_selftest_failed)


def _selftest_failed() -> str:
    from chatterbox_opt.kernels.cpu import amx, llvm

    if amx.AMX and not torch.cpu._init_amx():  # whatever PyTorch thinks of this processor
        return "the system does not lend AMX"
    # without its tiles ours takes longer than PyTorch's on a processor that has AMX
    if not llvm.BFLOAT16 or (torch.cpu._is_amx_tile_supported() and not amx.AMX):
        return "numba compiles for less than this processor"
    x = torch.linspace(-2, 2, 3 * 2 * HEADS[0]).bfloat16().view(1, 3, 2, HEADS[0]).transpose(1, 2)
    wide = x.float()
    found, exact = attention(x, x, x, None), F.scaled_dot_product_attention(wide, wide, wide)
    layer = nn.LayerNorm(HEADS[0], device="cpu", dtype=torch.bfloat16)
    near = (
        torch.allclose(found.float(), exact.transpose(1, 2).flatten(2), atol=0.05),
        torch.allclose(layer_norm(layer, x).float(), layer(x).float(), atol=0.05),
    )
    return "" if all(near) else "attention or norms are wrong here"


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """See ``attention.attend``; head_dim is one of ``HEADS``."""
    compiled = _code()
    assert q.stride() == k.stride() == v.stride(), "one layout"
    assert q.stride(-1) == 1 and q.shape[-1] in HEADS, "whole heads"
    rows, heads, frames, head_dim = q.shape
    padded = frames + -frames % BLOCK
    visible = torch.full((rows,), frames, device="cpu") if mask is None else mask.flatten(1).sum(1)
    keys = q.new_empty(rows * heads, padded, head_dim)
    values = q.new_empty(rows * heads, BLOCK, padded)
    attended = q.new_empty(rows, frames, heads, head_dim)
    task = openmp.torch_openmp().task(compiled.ATTENTION)
    task["rows"], task["heads"], task["frames"], task["head_dim"] = q.shape
    task["row"], task["head"], task["frame"], _ = q.stride()
    openmp.set_pointers(
        task, q=q, k=k, v=v, visible=visible, out=attended, keys=keys, values=values
    )
    openmp.torch_openmp().run(compiled.attention.address, task.ctypes.data)
    return attended.flatten(2)


def layer_norm(layer: nn.LayerNorm, x: Tensor, *, mish: bool = False) -> Tensor:
    """Layer norm over the last axis of ``x``, and Mish after it: the same shape."""
    return _normed(layer, x.contiguous(), None, mish=mish)


def add_layer_norm(layer: nn.LayerNorm, x: Tensor, more: Tensor) -> Tensor:
    """Add ``more`` to ``x`` where it lies, then as ``layer_norm``; both in one piece."""
    return _normed(layer, x, more.contiguous(), mish=False)


def _normed(layer: nn.LayerNorm, x: Tensor, more: Tensor | None, *, mish: bool) -> Tensor:
    assert x.is_contiguous(), "in one piece"
    compiled, out = _code(), torch.empty_like(x)
    task = openmp.torch_openmp().task(compiled.NORM)
    task["width"], task["eps"], task["mish"] = x.shape[-1], layer.eps, mish
    task["rows"] = x.numel() // x.shape[-1]
    openmp.set_pointers(task, x=x, weight=layer.weight, bias=layer.bias, out=out)
    if more is not None:
        openmp.set_pointers(task, more=more)
    openmp.torch_openmp().run(compiled.norm.address, task.ctypes.data)
    return out


def _code() -> ModuleType:
    from chatterbox_opt.kernels.cpu import flow_bf16  # numba is only needed here

    return flow_bf16
