"""Linear layers over integer matrices: int8 and int4 on a CPU, int8 weight-only on a GPU.

Responsible for how one matrix is quantized, packed and multiplied; not responsible for the model
around it, for packed bfloat16 (linear_onednn.py), for which layers are quantized (weight_layout.py)
or for the arithmetic (kernels/cpu/int8_gemm.py, kernels/cuda).

A decode step of T3 reads every matrix to multiply a few rows with it, so narrower weights save time
as well as memory. The flow multiplies thousands of rows, and int8 is twice as fast as bfloat16. No
row's result depends on the other rows of its batch: the audio of a request does not depend on what
is batched with it.
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
ZERO_POINT = 128  # weights are stored unsigned, with this for 0
GROUP = 32  # int4: columns that share a scale and a minimum
# outputs of a vector, columns of a lane, outputs of a panel (kernels/cpu/microkernels.py)
VECTOR_WIDTH, VNNI_FACTOR, BLOCK = 16, 4, 64
INT4_BLOCK = BLOCK // 2  # outputs of an int4 panel
TINY = 1e-30  # lower bound of scales: a row of zeros is divided by this


def symmetric_scales(matrix: Tensor) -> Tensor:
    """Symmetric int8 scales of the rows of float32 [out, in]: [out]."""
    largest = torch.maximum(matrix.amax(1), -matrix.amin(1))  # abs() would copy the matrix
    return (largest / LEVELS).clamp_min(TINY)


class IntegerLinear(nn.Module):
    """``nn.Linear`` over a packed integer matrix; rows are quantized to int8, sums are exact.

    Attributes:
        bias: float32, padded to whole blocks of outputs, or None.
        outputs, inputs: of the matrix; it is padded with zeros to whole blocks and groups.
        packed: uint8, see ``_pack``.
        scales: see ``_pack``.
    """

    BITS: ClassVar[int]
    KIND: ClassVar[str]

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Quantize ``weight`` [out, in] of any float dtype; no reference to it is held."""
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
        bf16 = x.dtype == torch.bfloat16 and self.BITS == 8
        if not (bf16 or x.dtype == torch.float32) or x.device.type != "cpu":
            raise TypeError(f"{self.BITS}-bit products of {x.dtype} on {x.device} are unsupported")
        width = self.outputs + (-self.outputs % BLOCK if bf16 else 0)
        out, bias = x.new_empty(len(rows), width), self.bias
        threads, matrix = openmp.torch_openmp(), self.descriptor()
        task = threads.new_task(int8_gemm.GEMM)
        scratch = quantization_scratch(len(rows), self.padded)
        init_task(task, len(rows), scratch)
        task["matrix"] = matrix.ctypes.data
        openmp.set_pointers(task, x=rows, out=out)
        if bf16:
            bias = torch.zeros(width, dtype=torch.float32) if bias is None else bias
            task["bf16"] = 1
            openmp.set_pointers(task, bias=bias)
        threads.run(int8_gemm.gemm.address, task.ctypes.data)
        return out[:, : self.outputs].unflatten(0, x.shape[:-1])

    @property
    def padded(self) -> int:
        """Inputs including padding."""
        return self.inputs + -self.inputs % GROUP

    def descriptor(self) -> Any:
        """An int8_gemm.MATRIX record [1]; its addresses are valid as long as this layer lives."""
        from chatterbox_opt.kernels.cpu import int8_gemm

        record = np.zeros(1, int8_gemm.MATRIX)
        record["weights"], record["scales"] = self.packed.data_ptr(), self.scales.data_ptr()
        record["outputs"], record["inputs"], record["bits"] = self.outputs, self.inputs, self.BITS
        record["padded"] = self.padded
        record["bias"] = 0 if self.bias is None else self.bias.data_ptr()
        return record

    def matrix(self) -> Tensor:
        """The dequantized matrix, float32 [out, in]."""
        return self._unpack()[: self.outputs, : self.inputs].contiguous()

    def plain(self) -> nn.Linear:
        """An ``nn.Linear`` with the dequantized matrix, float32."""
        bias = None if self.bias is None else self.bias[: self.outputs]
        return linear_onednn.plain_linear(self.matrix(), bias)

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors from which ``from_state_tensors`` restores this layer."""
        size = torch.tensor([self.outputs, self.inputs])
        bias = {} if self.bias is None else {"bias": self.bias}
        return {self.KIND: self.packed, "scales": self.scales, "size": size} | bias

    @classmethod
    def from_state_tensors(cls, stored: Mapping[str, Tensor]) -> Self:
        """Restore a layer from ``state_tensors``."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.outputs, layer.inputs = stored["size"].tolist()
        layer.bias = stored.get("bias")
        layer.packed, layer.scales = stored[cls.KIND], stored["scales"]
        return layer

    def _pack(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _unpack(self) -> Tensor:
        raise NotImplementedError


class Int8Linear(IntegerLinear):
    """int8 weights, one symmetric scale per output."""

    BITS, KIND = 8, "int8"

    def _pack(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """Packed uint8 [out / BLOCK, in / VNNI_FACTOR, BLOCK, VNNI_FACTOR]; scales float32 [out].

        Four vectors of 64 bytes hold 4 columns of 64 outputs.
        """
        scales = symmetric_scales(wide)
        codes = (wide / scales[:, None]).round_().add_(ZERO_POINT).to(torch.uint8)
        panels = codes.view(-1, BLOCK, codes.shape[1] // VNNI_FACTOR, VNNI_FACTOR).transpose(1, 2)
        return panels.contiguous(), scales

    def _unpack(self) -> Tensor:
        codes = self.packed.transpose(1, 2).reshape(-1, self.padded).float() - ZERO_POINT
        return codes * self.scales[:, None]


class Int4Linear(IntegerLinear):
    """int4 weights; each ``GROUP`` columns of an output have their own scale and minimum.

    value = q * scale + minimum, q from 0 to 15.
    """

    BITS, KIND = 4, "int4"

    def _pack(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """Packed uint8 [out / INT4_BLOCK, in / GROUP, 4, INT4_BLOCK, VNNI_FACTOR], and bfloat16
        scales and minima [out / VECTOR_WIDTH, in / GROUP, 2, VECTOR_WIDTH].

        Low nibbles are the first 16 columns of a group, high nibbles the other 16.
        """
        groups = wide.unflatten(1, (-1, GROUP))
        minimum = groups.amin(-1).bfloat16()
        scale = ((groups.amax(-1) - minimum.float()) / 15).clamp_min(TINY).bfloat16()
        q = (groups - minimum.float()[..., None]) / scale.float()[..., None]
        codes = q.round_().clamp_(0, 15).to(torch.uint8)
        shape = (-1, INT4_BLOCK, codes.shape[1], 2, 4, VNNI_FACTOR)
        panels = codes.view(shape).permute(0, 2, 3, 4, 1, 5)
        packed = panels[:, :, 0] | (panels[:, :, 1] << 4)
        pairs = torch.stack((scale, minimum), dim=2).view(-1, VECTOR_WIDTH, codes.shape[1], 2)
        return packed.contiguous(), pairs.permute(0, 2, 3, 1).contiguous()

    def _unpack(self) -> Tensor:
        nibbles = torch.stack((self.packed & 15, self.packed >> 4), dim=2)
        q = nibbles.permute(0, 4, 1, 2, 3, 5).flatten(0, 1).flatten(2).float()
        scale, minimum = self.scales.float().permute(2, 0, 3, 1).flatten(1, 2)
        return (q * scale[..., None] + minimum[..., None]).flatten(1)


def quantize_transformers(module: nn.Module, kind: type[nn.Module]) -> None:
    """Replace the linear layers of every ``kind`` inside ``module`` by int8."""
    for owner, name, layer in linear_onednn.submodules_with_parent(module):
        if isinstance(owner, kind) and isinstance(layer, nn.Linear):
            setattr(owner, name, Int8Linear(layer.weight.data, layer.bias))


def dequantize_layers(module: nn.Module) -> list[tuple[nn.Module, str, Int8Linear]]:
    """Replace int8 layers by dequantized float32 ones.

    Returns:
        The replaced layers as (parent, name, layer), to be restored with ``setattr``.
    """
    replaced = []
    for owner, name, layer in linear_onednn.submodules_with_parent(module):
        if isinstance(layer, Int8Linear):
            setattr(owner, name, layer.plain())
            replaced.append((owner, name, layer))
    return replaced


def quantization_scratch(rows: int, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scratch of int8_gemm.py for quantizing ``rows`` rows of ``padded`` columns."""
    codes = torch.empty(rows, padded, dtype=torch.int8)
    sums = torch.empty(rows, padded // GROUP + 1, dtype=torch.int32)
    return codes, sums, torch.empty(rows, dtype=torch.float32)


def init_task(task: Any, rows: int, scratch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill in the fields that all tasks over integer matrices have in common."""
    task["rows"] = rows
    codes, sums, scales = scratch
    openmp.set_pointers(task, codes=codes, sums=sums, scales=scales)


def unsupported_reason() -> str:
    """Why integer matrices cannot be multiplied here, or ""."""
    return openmp.selftest(_selftest_failure)


def _selftest_failure() -> str:
    from chatterbox_opt.kernels.cpu import llvm

    if not llvm.VNNI:
        return "this CPU has no VNNI instructions for int8 products"
    # compiled now, not during the first request
    from chatterbox_opt.kernels.cpu import t3_decode  # noqa: F401

    ones, rows = torch.ones(BLOCK, BLOCK), torch.tensor([[1.0], [-1.0]]).expand(2, BLOCK)
    close = (torch.allclose(kind(ones)(rows), BLOCK * rows, rtol=0.01) for kind in KINDS)
    return "" if all(close) else "integer products give wrong results here"


KINDS = (Int8Linear, Int4Linear)
# rows; with more, as in a prefill, arithmetic is the limit, not bytes, and cuBLAS is fastest
MAX_WEIGHT_ONLY_ROWS = 64


class WeightOnlyInt8Linear(nn.Module):
    """``nn.Linear``, its matrix symmetric int8 with one scale per output, for GPUs.

    The weights are widened to the activations' dtype in the product; activations are not quantized.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Quantize ``weight`` [out, in] of any float dtype; no reference to it is held."""
        super().__init__()
        wide = weight.float()
        scales = symmetric_scales(wide)
        self._register((wide / scales[:, None]).round_().to(torch.int8), scales, bias)

    def _register(self, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        if x.is_cuda and len(rows) <= MAX_WEIGHT_ONLY_ROWS:
            from chatterbox_opt.kernels.cuda import decode_linear  # needs Triton

            out = decode_linear.linear(rows, self.weight, self.scales).unflatten(0, x.shape[:-1])
            return out if self.bias is None else out + self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype) * self.scales[:, None].to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors from which ``from_state_tensors`` restores this layer."""
        bias = {} if self.bias is None else {"bias": self.bias}
        return {"weight-only": self.weight, "scales": self.scales} | bias

    @classmethod
    def from_state_tensors(cls, stored: Mapping[str, Tensor]) -> WeightOnlyInt8Linear:
        """Restore a layer from ``state_tensors``."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._register(stored["weight-only"], stored["scales"], stored.get("bias"))
        return layer
