"""Keys and values as int8: one float32 scale for each position of a head.

Responsible for the rounding, in PyTorch. Not responsible for where they are kept (kv_cache.py); the
decode step's kernel rounds by itself, alike (decode_attention.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., head_dim] of any float dtype as int8 and float32 scales [...]: absmax / 127.

    Halves are rounded away from zero, as the kernel in decode_attention.py does.
    """
    wide = x.float()
    scales = wide.abs().amax(dim=-1) / 127.0
    scaled = wide / torch.where(scales > 0, scales, 1.0)[..., None]
    return (scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled)).to(torch.int8), scales


def dequantize(x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """``quantize``'s numbers again, rounded to ``dtype``."""
    return (x * scales[..., None]).to(dtype)
