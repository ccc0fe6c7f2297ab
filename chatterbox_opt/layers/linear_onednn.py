"""Linear layers on a CPU over oneDNN's blocked weight layout, float32 and bfloat16.

Responsible for these layers and for swapping them in and out of a module; not responsible for the
model around them.

PyTorch multiplies float32 matrices through MKL, which on CPUs not made by Intel leaves half of the
arithmetic unused: 99 GFLOPS on one EPYC core where oneDNN reaches 220. With few rows it leaves
three quarters of the memory bandwidth unused: 194 ms for a decode step, oneDNN 44 ms. Other
operations cannot read the blocked layout: a stage that changes its precision swaps plain layers in
first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chatterbox_opt.kernels.cpu import onednn
from chatterbox_opt.kernels.cpu.onednn import product

BLOCKED_ROWS = 1024  # number of rows the layout is tuned for; any number works


class OneDnnLinear(nn.Module):
    """``nn.Linear`` over a matrix in oneDNN's blocked layout."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(plain.weight.data, BLOCKED_ROWS)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return product(x, self.blocked, self.bias)

    def plain(self) -> nn.Linear:
        """An ``nn.Linear`` with the same values."""
        return plain_linear(self.blocked.to_dense(), self.bias)


def plain_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer that shares these tensors, [out, in] and [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def use_onednn(module: nn.Module) -> None:
    """Replace every float32 or bfloat16 linear layer inside ``module``."""
    for parent, name, child in submodules_with_parent(module):
        if isinstance(child, nn.Linear) and child.weight.dtype in (torch.float32, torch.bfloat16):
            setattr(parent, name, OneDnnLinear(child))


def use_plain(module: nn.Module) -> bool:
    """Replace blocked layers by plain ones; return whether there were any."""
    replaced = False
    for parent, name, child in submodules_with_parent(module):
        if isinstance(child, OneDnnLinear):
            setattr(parent, name, child.plain())
            replaced = True
    return replaced


def submodules_with_parent(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """All submodules, as (parent, name in the parent, child)."""
    return [(p, name, c) for p in module.modules() for name, c in p.named_children()]


PACKED_ROWS = 2  # number of rows the layout is tuned for; any number works


class PackedBf16Linear(nn.Module):
    """``nn.Linear`` over a bfloat16 matrix in oneDNN's layout for few rows.

    Attributes:
        bias: bfloat16, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Pack ``weight`` [out, in] of any float dtype; no reference to it is held."""
        super().__init__()
        self.bias = None if bias is None else bias.bfloat16()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), PACKED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], bfloat16."""
        return onednn.product(x, self.packed, self.bias)

    def plain(self) -> nn.Linear:
        """An ``nn.Linear`` with the same values."""
        return plain_linear(self.packed.to_dense(), self.bias)

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors from which ``from_state_tensors`` restores this layer."""
        bias = {} if self.bias is None else {"bias": self.bias}
        return {"bfloat16": self.packed.to_dense()} | bias

    @classmethod
    def from_state_tensors(cls, stored: Mapping[str, Tensor]) -> PackedBf16Linear:
        """Restore a layer from ``state_tensors``."""
        return cls(stored["bfloat16"], stored.get("bias"))
