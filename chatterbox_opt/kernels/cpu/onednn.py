"""oneDNN's own product over its own layout."""

from __future__ import annotations

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` through oneDNN: [..., in] and [out, in], blocked or plain, to [..., out].

    A matrix in one piece: over other strides oneDNN takes its reference code, 500 times slower.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def supported() -> bool:
    """Whether this torch has the product, and this processor the vectors that it is for."""
    if not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
