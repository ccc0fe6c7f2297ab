"""The flow's bfloat16 operations on a processor that has the instructions: by code of our own.

Knows tensors and what compiled_flow.py wants of them. Knows nothing of the layers around. Whoever
calls asks ``serves`` first, and has PyTorch's operation for all else.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chatterbox_opt import team

BLOCK = 64  # frames are padded to a multiple of it
HEADS = (32, 64)  # dimensions of a head that attention is written for


def serves(*tensors: Tensor) -> bool:
    """Whether these, of what goes into one of this module's functions, are for it.

    Training is not: they know no gradient. Nor is a processor with AMX, where PyTorch's own are
    quick; nor one where numba is missing, or has nowhere to keep what it compiles.
    """
    fit = (x.device.type == "cpu" and x.dtype == torch.bfloat16 for x in tensors)
    if not all(fit) or any(x.requires_grad for x in tensors):
        return False
    return _compiled() is not None


@functools.cache
def _compiled() -> ModuleType | None:
    if not torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return None
    try:
        from chatterbox_opt import compiled_flow, lanes
    except (ImportError, RuntimeError):
        return None
    return compiled_flow if lanes.BFLOAT16 else None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """See ``attention.attend``; head_dim is one of ``HEADS``."""
    compiled = _code()
    rows, heads, frames, head_dim = q.shape
    padded = frames + -frames % BLOCK
    visible = torch.full((rows,), frames) if mask is None else mask.flatten(1).sum(1)
    keys = q.new_empty(rows * heads, padded, head_dim)
    values = q.new_empty(rows * heads, BLOCK, padded)
    attended = q.new_empty(rows, frames, heads, head_dim)
    task = _task(compiled.ATTENTION)
    task["rows"], task["heads"], task["frames"], task["head_dim"] = q.shape
    task["row"], task["head"], task["frame"], _ = q.stride()
    _place(task, q=q, k=k, v=v, visible=visible, out=attended, keys=keys, values=values)
    team.of_torch().run(compiled.attention.address, task.ctypes.data)
    return attended.flatten(2)


def norm(layer: nn.LayerNorm, x: Tensor, *, mish: bool = False) -> Tensor:
    """Layer norm over the last axis of ``x``, and Mish after it: the same shape."""
    return _normed(layer, x.contiguous(), None, mish=mish)


def add_norm(layer: nn.LayerNorm, x: Tensor, more: Tensor) -> Tensor:
    """Add ``more`` to ``x`` where it lies, then as ``norm``; both in one piece."""
    return _normed(layer, x, more.contiguous(), mish=False)


def _normed(layer: nn.LayerNorm, x: Tensor, more: Tensor | None, *, mish: bool) -> Tensor:
    compiled, out = _code(), torch.empty_like(x)
    task = _task(compiled.NORM)
    task["width"], task["eps"], task["mish"] = x.shape[-1], layer.eps, mish
    task["rows"] = x.numel() // x.shape[-1]
    _place(task, x=x, weight=layer.weight, bias=layer.bias, out=out)
    if more is not None:
        _place(task, more=more)
    team.of_torch().run(compiled.norm.address, task.ctypes.data)
    return out


def _code() -> ModuleType:
    compiled = _compiled()
    assert compiled is not None, "ask serves() first"
    return compiled


def _task(kind: Any) -> Any:
    task, threads = np.zeros(1, kind), team.of_torch()
    task["number"], task["size"], task["barrier"] = threads.number, threads.size, threads.barrier
    return task


def _place(task: Any, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        task[name] = tensor.data_ptr()
