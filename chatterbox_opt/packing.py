"""Matrices laid out for the processor: oneDNN's blocked bfloat16.

Knows one layer and its layout. Knows nothing of the model around it.

A step of T3 multiplies two rows with every matrix. PyTorch's plain bfloat16 product takes 56 to 74
ms for all of them on two cores with AMX, the same as float32 does; over oneDNN's own layout it
takes 43. The layout cannot be read by other operations: a stage that changes its precision unpacks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 2  # the layout is tuned for so many rows; it serves any number


class PackedLinear(nn.Module):
    """``nn.Linear`` without bias over a packed bfloat16 matrix."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.data, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], bfloat16."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return out

    def unpacked(self) -> nn.Linear:
        """The plain layer again, with the same values."""
        weight = self.packed.to_dense()
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        return plain


def supported() -> bool:
    """Whether this processor and this torch have bfloat16 products over packed matrices."""
    if not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(module: nn.Module) -> None:
    """Replace every bias-free bfloat16 linear layer inside ``module`` by a packed one."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear) or child.bias is not None:
                continue
            if child.weight.dtype == torch.bfloat16:
                setattr(parent, name, PackedLinear(child))


def unpack(module: nn.Module) -> bool:
    """Put plain layers back; return whether there were packed ones."""
    found = False
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, child.unpacked())
                found = True
    return found
