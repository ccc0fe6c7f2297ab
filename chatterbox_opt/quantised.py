"""Linear layers over integer matrices, for the processor: int8 and int4.

Knows how one matrix is rounded and multiplied. Knows nothing of the model around it, of packed
bfloat16 (packing.py) or of which layers shall be quantised.

A step of T3 reads every matrix to multiply a handful of rows with it, so narrower numbers are time
as well as memory. Both layers take and give float32, and no row's result depends on the rows beside
it: what a sentence sounds like does not depend on what is spoken together with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LEVELS = 127  # int8 from -127 to 127, for weights and for activations
ZERO = 128  # the kernel wants activations unsigned
ENGINE = "fbgemm"
GROUP = 32  # int4: columns that share a scale and an offset
BLOCK = 16  # int4: the kernel takes rows of the matrix by so many
TINY = 1e-30  # a row of zeros is divided by this


_SWITCH = threading.Lock()  # guards torch's engine, which is the whole process's


@contextmanager
def _packing_engine() -> Iterator[None]:
    """The engine that packs; the packed matrix itself knows who multiplies it.

    Threads that pack side by side have it set around all of them.
    """
    with _SWITCH:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = ENGINE
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


def symmetric_scales(matrix: Tensor) -> Tensor:
    """What int8 levels of each row of float32 [out, in] stand for, zero for zero: [out]."""
    largest = torch.maximum(matrix.amax(1), -matrix.amin(1))  # no second matrix, as abs() makes
    return (largest / LEVELS).clamp_min(TINY)


class Int8Linear(nn.Module):
    """``nn.Linear`` without bias in integers: int8 x int8, summed in int32.

    Weights have one scale for each output, symmetric. Activations are divided by their row's
    largest value first, so that the kernel's one scale is the constant 1/127 and fits every row.
    """

    def __init__(self, weight: Tensor) -> None:
        """Round ``weight`` [out, in] of any float dtype; it is not kept."""
        super().__init__()
        wide = weight.float()
        scales = symmetric_scales(wide).double()
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with _packing_engine():
            self._pack(torch.quantize_per_channel(wide, scales, zeros, 0, torch.qint8))

    def _pack(self, rounded: Tensor) -> None:
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] to float32 [..., out]."""
        # not vector_norm(inf), which is not vectorised: 100 times slower on 300 rows
        largest = x.abs().amax(-1, keepdim=True).clamp_min_(TINY)
        out: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / LEVELS, ZERO, self.packed
        )
        return out.mul_(largest)

    def matrix(self) -> Tensor:
        """The rounded values, float32 [out, in]."""
        rounded, _ = torch.ops.quantized.linear_unpack(self.packed)
        wide: Tensor = rounded.dequantize()
        return wide

    def kept(self) -> dict[str, Tensor]:
        """What ``of_kept`` makes the same layer of: int8 [out, in] and float64 [out]."""
        rounded, _ = torch.ops.quantized.linear_unpack(self.packed)
        return {"int8": rounded.int_repr(), "scales": rounded.q_per_channel_scales()}

    @classmethod
    def of_kept(cls, kept: Mapping[str, Tensor]) -> Int8Linear:
        """The layer again."""
        return cls.side_by_side([kept])[0]

    @classmethod
    def side_by_side(cls, kept: Sequence[Mapping[str, Tensor]]) -> list[Int8Linear]:
        """Many layers again: FBGEMM packs a matrix on one core, and needs no interpreter then."""
        with _packing_engine(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(cls._again, kept))

    @classmethod
    def _again(cls, kept: Mapping[str, Tensor]) -> Int8Linear:
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        scales = kept["scales"]
        zeros = torch.zeros(len(scales), dtype=torch.long)
        made._pack(torch._make_per_channel_quantized_tensor(kept["int8"], scales, zeros, 0))
        return made


class Int4Linear(nn.Module):
    """``nn.Linear`` without bias over 4-bit weights; products in bfloat16, sums in float32.

    Each ``GROUP`` columns of a row have a scale and an offset of their own: value = (q - 8) *
    scale + offset, q from 0 to 15.
    """

    def __init__(self, weight: Tensor) -> None:
        """Round ``weight`` [out, in] of any float dtype; it is not kept.

        Raises:
            RuntimeError: ``in`` is no multiple of ``GROUP``.
        """
        super().__init__()
        self.outputs, self.inputs = weight.shape
        # rows up to a whole block, zeros, that forward() leaves out again
        missing = -self.outputs % BLOCK
        wide = nn.functional.pad(weight.float(), (0, 0, 0, missing))
        groups = wide.unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp_min(TINY).bfloat16()
        offset = (low + 8 * scale.float()).bfloat16()
        q = (groups - offset.float()[..., None]) / scale.float()[..., None] + 8
        q = q.round().clamp(0, 15).to(torch.int32).flatten(1)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
        self.scales = torch.stack((scale, offset), dim=-1).transpose(0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., in] to float32 [..., out]."""
        rows = x.reshape(-1, self.inputs).bfloat16()
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, GROUP, self.scales
        )
        return out[:, : self.outputs].float().unflatten(0, x.shape[:-1])

    def matrix(self) -> Tensor:
        """The rounded values, float32 [out, in]: what the layer makes of the identity."""
        wide: Tensor = self(torch.eye(self.inputs)).t().contiguous()
        return wide

    def kept(self) -> dict[str, Tensor]:
        """What ``of_kept`` makes the same layer of."""
        size = torch.tensor([self.outputs, self.inputs])
        return {"int4": self.packed, "scales": self.scales, "size": size}

    @classmethod
    def of_kept(cls, kept: Mapping[str, Tensor]) -> Int4Linear:
        """The layer again."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.outputs, made.inputs = kept["size"].tolist()
        made.packed, made.scales = kept["int4"], kept["scales"]
        return made


def lacks_int8() -> str:
    """Why int8 matrices cannot be multiplied here, or "".

    The largest values of all are multiplied and compared with the exact sum: without VNNI
    instructions the kernel's 16-bit sums saturate, and would do so without a word.
    """
    if ENGINE not in torch.backends.quantized.supported_engines:
        return "this processor or this torch has no int8 products"
    side = 64
    weight, rows = torch.full((side, side), 1.0), torch.tensor([[1.0], [-1.0]]).expand(2, side)
    try:
        out = Int8Linear(weight)(rows)
    except (RuntimeError, AttributeError) as error:  # refused, or not in this torch
        return f"torch {torch.__version__} has no such int8 products ({_first_line(error)})"
    if not torch.allclose(out, side * rows[:, :1].expand(2, side), rtol=1e-3):
        return "this processor's int8 products saturate (no VNNI instructions)"
    return ""


def lacks_int4() -> str:
    """Why int4 matrices cannot be multiplied here, or ""."""
    try:
        out = Int4Linear(torch.eye(64))(torch.eye(64))
    except (RuntimeError, AttributeError) as error:
        return f"torch {torch.__version__} has no int4 products ({_first_line(error)})"
    return "" if torch.allclose(out, torch.eye(64), atol=0.02) else "int4 products are wrong here"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
