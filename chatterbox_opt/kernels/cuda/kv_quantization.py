"""int8 quantization of keys and values: one fp32 scale for each position of a head.

Responsible for the rounding, in PyTorch. Not responsible for storing them (kv_cache.py); the decode
step's kernel has its own, equal rounding (decode_attention.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., head_dim] of any float dtype as int8 and float32 scales [...]: absmax / 127.

    Ties are rounded away from zero, as in decode_attention.py's kernel.
    """
    x_fp32 = x.float()
    scales = x_fp32.abs().amax(dim=-1) / 127.0
    scaled = x_fp32 / torch.where(scales > 0, scales, 1.0)[..., None]
    return (scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled)).to(torch.int8), scales


def dequantize(x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of ``quantize``, rounded to ``dtype``."""
    return (x * scales[..., None]).to(dtype)
