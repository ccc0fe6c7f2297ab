"""Linear layers over int8 matrices for a card: integers are stored, halves are multiplied.

Knows how one matrix is rounded and kept. Knows nothing of the model around it. The processor's
integer layers (quantised.py) round the rows as well, which its instructions want; a card has
arithmetic to spare and wants only fewer bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.quantised import symmetric_scales

FEW = 64  # rows; for more, as in a prefill, arithmetic counts more than bytes, and cuBLAS is best


class WeightOnlyLinear(nn.Module):
    """``nn.Linear`` without bias, its matrix symmetric int8 with one scale for each output."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        """Round ``weight`` [out, in] of any float dtype; it is not kept."""
        super().__init__()
        wide = weight.float()
        scales = symmetric_scales(wide)
        self._keep((wide / scales[:, None]).round_().to(torch.int8), scales)

    def _keep(self, weight: Tensor, scales: Tensor) -> None:
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        if x.is_cuda and len(rows) <= FEW:
            from chatterbox_opt import decode_linear  # Triton is not everywhere

            return decode_linear.linear(rows, self.weight, self.scales).unflatten(0, x.shape[:-1])
        return F.linear(x, self.weight.to(x.dtype) * self.scales[:, None].to(x.dtype))

    def kept(self) -> dict[str, Tensor]:
        """What ``of_kept`` makes the same layer of."""
        return {"weight-only": self.weight, "scales": self.scales}

    @classmethod
    def of_kept(cls, kept: Mapping[str, Tensor]) -> WeightOnlyLinear:
        """The layer again."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._keep(kept["weight-only"], kept["scales"])
        return made
