"""Linear layers over integer matrices, for the processor: int8 and int4.

Knows how one matrix is rounded, packed and multiplied. Knows nothing of the model around it, of
packed bfloat16 (weight_layout.py) or of which layers shall be quantised. The arithmetic is in
int8_gemm.py.

A step of T3 reads every matrix to multiply a handful of rows with it, so narrower numbers are time
as well as memory. The flow multiplies thousands of rows, and bytes go twice as fast as bfloat16. No
row's result depends on the rows beside it: what a sentence sounds like does not depend on what is
spoken together with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from chatterbox_opt.kernels.cpu import openmp
from chatterbox_opt.layers import linear_onednn

LEVELS = 127  # int8 from -127 to 127, for weights and for activations
ZERO = 128  # weights are stored unsigned
GROUP = 32  # int4: columns that share a scale and a minimum
VECTOR_WIDTH, STEP, BLOCK = 16, 4, 64  # outputs of a vector, columns of a lane, outputs of a block
HALF = BLOCK // 2  # outputs of nibbles that are worked at together
TINY = 1e-30  # a row of zeros is divided by this


def symmetric_scales(matrix: Tensor) -> Tensor:
    """What int8 levels of each row of float32 [out, in] stand for, zero for zero: [out]."""
    largest = torch.maximum(matrix.amax(1), -matrix.amin(1))  # no second matrix, as abs() makes
    return (largest / LEVELS).clamp_min(TINY)


class IntegerLinear(nn.Module):
    """``nn.Linear`` over a packed matrix; rows are rounded to int8, sums are exact.

    Attributes:
        bias: float32 [out, whole blocks] or None.
        outputs, inputs: of the matrix; it is padded with zeros to whole blocks and groups.
        packed: uint8, see ``_pack``.
        scales: see ``_pack``.
    """

    BITS: ClassVar[int]
    KIND: ClassVar[str]

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Round ``weight`` [out, in] of any float dtype; it is not kept."""
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.bias = (
            None if bias is None else nn.functional.pad(bias.float(), (0, -len(bias) % BLOCK))
        )
        missing = (0, -self.inputs % GROUP, 0, -self.outputs % BLOCK)
        self.packed, self.scales = self._pack(nn.functional.pad(weight.float(), missing))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], both float32 or both bfloat16."""
        from chatterbox_opt.kernels.cpu import int8_gemm  # numba is only needed here

        rows = x.reshape(-1, self.inputs).contiguous()
        halves = x.dtype == torch.bfloat16 and self.BITS == 8
        if not (halves or x.dtype == torch.float32) or x.device.type != "cpu":
            raise TypeError(f"{self.BITS}-bit products of {x.dtype} on {x.device} are not known")
        width = self.outputs + (-self.outputs % BLOCK if halves else 0)
        out, bias = x.new_empty(len(rows), width), self.bias
        threads, matrix = openmp.torch_openmp(), self.descriptor()
        task, scratch = (
            threads.task(int8_gemm.PRODUCT),
            quantization_scratch(len(rows), self.padded),
        )
        start_task(task, len(rows), scratch)
        task["matrix"] = matrix.ctypes.data
        openmp.set_pointers(task, x=rows, out=out)
        if halves:
            bias = torch.zeros(width, dtype=torch.float32) if bias is None else bias
            task["halves"] = 1
            openmp.set_pointers(task, bias=bias)
        threads.run(int8_gemm.gemm.address, task.ctypes.data)
        if not halves and bias is not None:
            out += bias[: self.outputs]
        return out[:, : self.outputs].unflatten(0, x.shape[:-1])

    @property
    def padded(self) -> int:
        """Inputs that are stored."""
        return self.inputs + -self.inputs % GROUP

    def descriptor(self) -> Any:
        """compiled_integers.MATRIX [1], with addresses that are good as long as the layer lives."""
        from chatterbox_opt.kernels.cpu import int8_gemm

        made = np.zeros(1, int8_gemm.MATRIX)
        made["weights"], made["scales"] = self.packed.data_ptr(), self.scales.data_ptr()
        made["outputs"], made["inputs"], made["bits"] = self.outputs, self.inputs, self.BITS
        made["padded"] = self.padded
        return made

    def matrix(self) -> Tensor:
        """The rounded values, float32 [out, in]."""
        return self._unpack()[: self.outputs, : self.inputs].contiguous()

    def state_tensors(self) -> dict[str, Tensor]:
        """What ``from_state_tensors`` makes the same layer of."""
        size = torch.tensor([self.outputs, self.inputs])
        return {self.KIND: self.packed, "scales": self.scales, "size": size}

    @classmethod
    def from_state_tensors(cls, kept: Mapping[str, Tensor]) -> Self:
        """The layer again."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.outputs, made.inputs = kept["size"].tolist()
        made.bias = None  # nobody keeps one
        made.packed, made.scales = kept[cls.KIND], kept["scales"]
        return made

    def _pack(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _unpack(self) -> Tensor:
        raise NotImplementedError


class Int8Linear(IntegerLinear):
    """One scale for each output, symmetric."""

    BITS, KIND = 8, "int8"

    def _pack(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [out / BLOCK, in / STEP, BLOCK, STEP], and float32 [out]: four vectors' bytes are 4
        columns of 64 outputs."""
        scales = symmetric_scales(wide)
        codes = (wide / scales[:, None]).round_().add_(ZERO).to(torch.uint8)
        tiles = codes.view(-1, BLOCK, codes.shape[1] // STEP, STEP).transpose(1, 2)
        return tiles.contiguous(), scales

    def _unpack(self) -> Tensor:
        codes = self.packed.transpose(1, 2).reshape(-1, self.padded).float() - ZERO
        return codes * self.scales[:, None]


class Int4Linear(IntegerLinear):
    """Each ``GROUP`` columns of an output have a scale and a minimum of their own.

    value = q * scale + minimum, q from 0 to 15.
    """

    BITS, KIND = 4, "int4"

    def _pack(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [out / HALF, in / GROUP, 4, HALF, STEP], and bfloat16 [out / VECTOR_WIDTH, in / GROUP,
        2, VECTOR_WIDTH] (scales, minima): low nibbles are the first 16 columns of a group."""
        groups = wide.unflatten(1, (-1, GROUP))
        least = groups.amin(-1).bfloat16()
        scale = ((groups.amax(-1) - least.float()) / 15).clamp_min(TINY).bfloat16()
        q = (groups - least.float()[..., None]) / scale.float()[..., None]
        codes = q.round_().clamp_(0, 15).to(torch.uint8)
        tiles = codes.view(-1, HALF, codes.shape[1], 2, 4, STEP).permute(0, 2, 3, 4, 1, 5)
        packed = tiles[:, :, 0] | (tiles[:, :, 1] << 4)
        pairs = torch.stack((scale, least), dim=2).view(-1, VECTOR_WIDTH, codes.shape[1], 2)
        return packed.contiguous(), pairs.permute(0, 2, 3, 1).contiguous()

    def _unpack(self) -> Tensor:
        nibbles = torch.stack((self.packed & 15, self.packed >> 4), dim=2)
        q = nibbles.permute(0, 4, 1, 2, 3, 5).flatten(0, 1).flatten(2).float()
        scale, least = self.scales.float().permute(2, 0, 3, 1).flatten(1, 2)
        return (q * scale[..., None] + least[..., None]).flatten(1)


def quantize_transformers(module: nn.Module, kind: type[nn.Module]) -> None:
    """Put int8 in place of the linear layers of every ``kind`` inside ``module``."""
    for owner, name, layer in linear_onednn.owned_children(module):
        if isinstance(owner, kind) and isinstance(layer, nn.Linear):
            setattr(owner, name, Int8Linear(layer.weight.data, layer.bias))


def clone_outliers(module: nn.Module) -> list[tuple[nn.Module, str, Int8Linear]]:
    """Put plain float32 layers of the same numbers in place of int8; what to bring back where."""
    found = []
    for owner, name, layer in linear_onednn.owned_children(module):
        if isinstance(layer, Int8Linear):
            bias = None if layer.bias is None else layer.bias[: layer.outputs]
            setattr(owner, name, linear_onednn.plain_linear(layer.matrix(), bias))
            found.append((owner, name, layer))
    return found


def quantization_scratch(rows: int, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scratch of int8_gemm.py for rounding so many rows of so many columns."""
    codes = torch.empty(rows, padded, dtype=torch.int8)
    sums = torch.empty(rows, padded // GROUP + 1, dtype=torch.int32)
    return codes, sums, torch.empty(rows, dtype=torch.float32)


def start_task(task: Any, rows: int, scratch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Write what tasks of int8_gemm.py have in common."""
    task["rows"] = rows
    codes, sums, scales = scratch
    openmp.set_pointers(task, codes=codes, sums=sums, scales=scales)


def unsupported_reason() -> str:
    """Why integer matrices cannot be multiplied here, or ""."""
    return openmp.selftest(_wrong)


def _wrong() -> str:
    from chatterbox_opt.kernels.cpu import llvm

    if not llvm.VNNI:
        return "this processor multiplies no bytes (no VNNI instructions)"
    from chatterbox_opt.kernels.cpu import t3_decode  # noqa: F401 - it is compiled now, not in mid-sentence

    largest, rows = torch.ones(BLOCK, BLOCK), torch.tensor([[1.0], [-1.0]]).expand(2, BLOCK)
    near = (torch.allclose(kind(largest)(rows), BLOCK * rows, rtol=0.01) for kind in KINDS)
    return "" if all(near) else "integer products are wrong here"


KINDS = (Int8Linear, Int4Linear)
WEIGHT_ONLY_FEW = (
    64  # rows; for more, as in a prefill, arithmetic counts more than bytes, and cuBLAS is best
)


class WeightOnlyInt8Linear(nn.Module):
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
        if x.is_cuda and len(rows) <= WEIGHT_ONLY_FEW:
            from chatterbox_opt.kernels.cuda import decode_linear  # Triton is not everywhere

            return decode_linear.linear(rows, self.weight, self.scales).unflatten(0, x.shape[:-1])
        return F.linear(x, self.weight.to(x.dtype) * self.scales[:, None].to(x.dtype))

    def state_tensors(self) -> dict[str, Tensor]:
        """What ``from_state_tensors`` makes the same layer of."""
        return {"weight-only": self.weight, "scales": self.scales}

    @classmethod
    def from_state_tensors(cls, kept: Mapping[str, Tensor]) -> WeightOnlyInt8Linear:
        """The layer again."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._keep(kept["weight-only"], kept["scales"])
        return made
