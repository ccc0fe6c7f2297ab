"""Linear layers on the processor: oneDNN's own product over its own layout.

Knows one layer and where it can stand in. Knows nothing of the model around it.

PyTorch multiplies float32 matrices through MKL, which on processors not made by Intel leaves half
of the arithmetic unused: 99 GFLOPS on one EPYC core where oneDNN reaches 220. Where few rows wait
for a matrix it leaves three quarters of the rate of memory: 194 ms for a decode step, oneDNN
44. The layout cannot be read by other operations: a stage that changes its precision puts plain
layers back first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chatterbox_opt.kernels.cpu import onednn
from chatterbox_opt.kernels.cpu.onednn import product

BLOCKED_ROWS = 1024  # the layout is tuned for so many rows; it serves any number


class OneDnnLinear(nn.Module):
    """``nn.Linear`` over a blocked matrix."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(plain.weight.data, BLOCKED_ROWS)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return product(x, self.blocked, self.bias)

    def plain(self) -> nn.Linear:
        """The plain layer again, with the same values."""
        return plain_linear(self.blocked.to_dense(), self.bias)


def plain_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer of these very tensors, [out, in] and [out]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


def use_onednn(module: nn.Module) -> None:
    """Replace every float32 or bfloat16 linear layer inside ``module``."""
    for parent, name, child in owned_children(module):
        if isinstance(child, nn.Linear) and child.weight.dtype in (torch.float32, torch.bfloat16):
            setattr(parent, name, OneDnnLinear(child))


def use_plain(module: nn.Module) -> bool:
    """Put plain layers back; return whether there were blocked ones."""
    found = False
    for parent, name, child in owned_children(module):
        if isinstance(child, OneDnnLinear):
            setattr(parent, name, child.plain())
            found = True
    return found


def owned_children(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """All modules inside, each with its owner and its name there."""
    return [(p, name, c) for p in module.modules() for name, c in p.named_children()]


PACKED_ROWS = 2  # the layout is tuned for so many rows; it serves any number


class PackedBf16Linear(nn.Module):
    """``nn.Linear`` without bias over a packed bfloat16 matrix."""

    def __init__(self, weight: Tensor) -> None:
        """Pack ``weight`` [out, in] of any float dtype; it is not kept."""
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), PACKED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], bfloat16."""
        return onednn.product(x, self.packed)

    def matrix(self) -> Tensor:
        """The same values, bfloat16 [out, in]."""
        plain: Tensor = self.packed.to_dense()
        return plain

    def state_tensors(self) -> dict[str, Tensor]:
        """What ``from_state_tensors`` makes the same layer of."""
        return {"bfloat16": self.matrix()}

    @classmethod
    def from_state_tensors(cls, kept: Mapping[str, Tensor]) -> PackedBf16Linear:
        """The layer again."""
        return cls(kept["bfloat16"])
