"""Which layout a matrix gets: plain, oneDNN's bfloat16, int8 or int4 (CPU), int8 weight-only (GPU).

Responsible for which layouts work here, and for packing and unpacking the matrices of a model; not
responsible for the layers themselves (linear_int.py, linear_onednn.py) or the model around them.

A decode step of T3 multiplies two rows with every matrix. PyTorch's plain bfloat16 product takes 56
to 74 ms for all of them on two cores with AMX, the same as float32 does; over oneDNN's layout it
takes 43 ms. Other operations cannot read the packed layout: a stage that changes its precision
unpacks.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox_opt.kernels.cpu import bf16_ops, onednn
from chatterbox_opt.kernels.cpu.conv import ops as conv_ops
from chatterbox_opt.layers import linear_int, linear_onednn
from chatterbox_opt.layers.linear_int import Int4Linear, Int8Linear, WeightOnlyInt8Linear
from chatterbox_opt.layers.linear_onednn import PackedBf16Linear
from chatterbox_opt.utils.lazy_reasons import LazyReasons

INT8_FLOW = "int8 flow"
BFLOAT16_VOCODER = "bfloat16 vocoder"
ONEDNN = "onednn"
WEIGHT_ONLY = "weight-only"  # int8 on a GPU
PackedLayer = PackedBf16Linear | Int8Linear | Int4Linear | WeightOnlyInt8Linear


def unsupported_dtypes() -> LazyReasons:
    """The narrow dtypes that are unsupported or slow on this CPU, each with the reason; and
    ``INT8_FLOW``, which has bfloat16 activations, and ``BFLOAT16_VOCODER``, whose products are."""
    int_reason = functools.cache(linear_int.unsupported_reason)
    return LazyReasons(
        {
            "bfloat16": _bf16_unsupported_reason,
            "int8": int_reason,
            "int4": int_reason,
            INT8_FLOW: lambda: int_reason() or _int8_flow_unsupported_reason(),
            BFLOAT16_VOCODER: _bfloat16_vocoder_unsupported_reason,
            ONEDNN: lambda: "" if onednn.supported() else "no oneDNN product on this CPU",
        }
    )


def _has_amx() -> bool:
    return torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


def _int8_flow_unsupported_reason() -> str:
    if _has_amx():
        return "AMX multiplies bfloat16 faster"
    supported = bf16_ops.supports(torch.zeros(1, dtype=torch.bfloat16))
    return "" if supported else "this CPU has no bfloat16 for the flow's activations"


def _bfloat16_vocoder_unsupported_reason() -> str:
    if _has_amx():
        return "CPUs with AMX have no faster bfloat16 instruction for it"
    return conv_ops.unsupported_reason(torch.bfloat16)


def _bf16_unsupported_reason() -> str:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    # on x86 oneDNN also reports support where it only emulates, at half of float32's speed
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    supported = onednn.supported() and (native or not x86)
    return "" if supported else "this CPU has no bfloat16 instructions"


def make_layer(name: str, weight: Tensor, layout: str, bias: Tensor | None = None) -> PackedLayer:
    """A layer of the matrix called ``name`` in ``layout``.

    The head stays int8 in a 4-bit model: its outputs are the logits.
    """
    factories: dict[str, Callable[[Tensor, Tensor | None], PackedLayer]] = {
        "bfloat16": PackedBf16Linear,
        "int8": Int8Linear,
        "int4": Int8Linear if name.startswith("head") else Int4Linear,
        WEIGHT_ONLY: WeightOnlyInt8Linear,
    }
    return factories[layout](weight, bias)


LAYER_TYPES: dict[str, type[PackedLayer]] = {
    "bfloat16": PackedBf16Linear,
    "int8": Int8Linear,
    "int4": Int4Linear,
    WEIGHT_ONLY: WeightOnlyInt8Linear,
}


def packed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with packed layers, as plain tensors by name."""
    state = dict(module.state_dict())
    for path, layer in module.named_modules():
        if isinstance(layer, PackedLayer):
            state |= {f"{path}.{name}": tensor for name, tensor in layer.state_tensors().items()}
    return state


def restore_packed(module: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Restore the packed layers of ``packed_tensors`` in a plain module; return other tensors."""
    remaining = dict(stored)
    for kind, layer_type in LAYER_TYPES.items():
        paths = [name[: -len(kind) - 1] for name in stored if name.endswith(f".{kind}")]
        for path in paths:
            own = [name for name in remaining if name.rpartition(".")[0] == path]
            part = {name.rpartition(".")[2]: remaining.pop(name) for name in own}
            owner, _, name = path.rpartition(".")
            setattr(module.get_submodule(owner), name, layer_type.from_state_tensors(part))
    return remaining


def pack(module: nn.Module, paths: Iterable[str]) -> None:
    """Replace those submodules that are plain bfloat16 linear layers by packed ones."""
    for path in paths:
        layer = module.get_submodule(path)
        if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.bfloat16:
            owner, _, name = path.rpartition(".")
            bias = None if layer.bias is None else layer.bias.data
            packed = PackedBf16Linear(layer.weight.data, bias)
            setattr(module.get_submodule(owner), name, packed)


def unpack(module: nn.Module) -> bool:
    """Replace packed layers by plain ones, integers by dequantized float32 weights.

    Weight-only layers (GPU) accept rows of any dtype, and stay.

    Returns:
        Whether there were packed bfloat16 ones, which ``pack`` can restore exactly.
    """
    was_packed = False
    for parent, name, child in linear_onednn.submodules_with_parent(module):
        if isinstance(child, PackedLayer) and not isinstance(child, WeightOnlyInt8Linear):
            setattr(parent, name, child.plain())
            was_packed |= isinstance(child, PackedBf16Linear)
    return was_packed


class _Widen(nn.Module):
    """A parametrization: the stored weight, widened each time it is used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, stored: Tensor) -> Tensor:
        return stored.to(self.dtype)


def store_narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Store matrices in ``dtype`` while arithmetic stays in their present one.

    For GPUs whose half-precision arithmetic is slow or unsafe (GTX 10xx: 1/64 rate): half of the
    memory, float32 results from rounded weights.
    """
    for part in list(module.modules()):
        if isinstance(part, (nn.Linear, nn.Conv1d)) and not parametrize.is_parametrized(part):
            wide = part.weight.dtype
            part.weight.data = part.weight.data.to(dtype)
            parametrize.register_parametrization(part, "weight", _Widen(wide), unsafe=True)
