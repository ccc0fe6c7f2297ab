"""oneDNN's matrix product over its own blocked weight layout.

Responsible for one product and whether this build of PyTorch has it; not responsible for packing
(layers/linear_onednn.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` through oneDNN: [..., in] and [out, in], blocked or plain, to [..., out].

    A plain matrix must be contiguous: with other strides oneDNN runs its reference code, 500 times
    slower.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def supported() -> bool:
    """Whether this PyTorch has the product, and this CPU the vectors that it is written for."""
    if not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
