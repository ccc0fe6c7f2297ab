"""Matrices laid out for the processor: oneDNN's blocked bfloat16, and integers (linear_int.py); and
integers for a card (linear_int.py).

Knows the layouts, which of them work here, and how the matrices of a model change places with them.
Knows nothing of the model around them.

A step of T3 multiplies two rows with every matrix. PyTorch's plain bfloat16 product takes 56 to 74
ms for all of them on two cores with AMX, the same as float32 does; over oneDNN's own layout it
takes 43. The layout cannot be read by other operations: a stage that changes its precision unpacks.
"""

from __future__ import annotations

import functools
import logging
import platform
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox_opt.kernels.cpu import bf16_ops, onednn
from chatterbox_opt.layers import linear_int, linear_onednn
from chatterbox_opt.layers.linear_int import Int4Linear, Int8Linear, WeightOnlyInt8Linear
from chatterbox_opt.layers.linear_onednn import PackedBf16Linear
from chatterbox_opt.utils.lazy_reasons import LazyReasons

QUANTIZED = ("int8", "int4")
INT8_FLOW = "int8 flow"
ONEDNN = "onednn"
WEIGHT_ONLY = "weight-only"  # int8 for a card
PackedLayer = PackedBf16Linear | Int8Linear | Int4Linear | WeightOnlyInt8Linear


def unsupported_dtypes() -> LazyReasons:
    """The narrow dtypes that are missing or slow on this processor, each with the reason; and
    ``INT8_FLOW``, which multiplies rows of bfloat16."""
    integers = functools.cache(linear_int.unsupported_reason)
    return LazyReasons(
        {
            "bfloat16": _no_fast_bfloat16,
            "int8": integers,
            "int4": integers,
            INT8_FLOW: lambda: integers() or _no_bfloat16_between(),
            ONEDNN: lambda: "" if onednn.supported() else "no oneDNN product on this CPU",
        }
    )


def _no_bfloat16_between() -> str:
    if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
        return "AMX multiplies bfloat16 faster"
    serves = bf16_ops.supports(torch.zeros(1, dtype=torch.bfloat16))
    return "" if serves else "there is no bfloat16 between its matrices"


def _no_fast_bfloat16() -> str:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    # on x86 oneDNN also says yes where it only emulates, at half of float32's speed
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return (
        "" if onednn.supported() and (native or not x86) else "this processor computes no bfloat16"
    )


def compute_dtype(dtype: str) -> torch.dtype:
    """The dtype of the values between matrices that are stored as ``dtype``."""
    found: torch.dtype = torch.float32 if dtype in QUANTIZED else getattr(torch, dtype)
    return found


def layout(dtype: str, device: str) -> str:
    """How to lay out the matrices of a stage with ``dtype`` on ``device``, "" for plainly."""
    if dtype in QUANTIZED:
        return dtype if device == "cpu" else WEIGHT_ONLY
    return "bfloat16" if (dtype, device) == ("bfloat16", "cpu") and onednn.supported() else ""


def make_layer(name: str, weight: Tensor, layout: str) -> PackedLayer:
    """The matrix called ``name`` in ``layout``.

    The head stays int8 in a 4-bit model: its rows are the words to choose between.
    """
    makers: dict[str, Callable[[Tensor], PackedLayer]] = {
        "bfloat16": PackedBf16Linear,
        "int8": Int8Linear,
        "int4": Int8Linear if name.startswith("head") else Int4Linear,
        WEIGHT_ONLY: WeightOnlyInt8Linear,
    }
    return makers[layout](weight)


LAYER_TYPES: dict[str, type[PackedLayer]] = {
    "bfloat16": PackedBf16Linear,
    "int8": Int8Linear,
    "int4": Int4Linear,
    WEIGHT_ONLY: WeightOnlyInt8Linear,
}


def packed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with packed layers, as plain tensors by name."""
    found = dict(module.state_dict())
    for path, layer in module.named_modules():
        if isinstance(layer, PackedLayer):
            found |= {f"{path}.{name}": tensor for name, tensor in layer.state_tensors().items()}
    return found


def restore_packed(module: nn.Module, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the packed layers of ``packed_tensors`` into a module of plain ones; return what is left."""
    left = dict(kept)
    for kind, maker in LAYER_TYPES.items():
        paths = [name[: -len(kind) - 1] for name in kept if name.endswith(f".{kind}")]
        for path in paths:
            own = [name for name in left if name.rpartition(".")[0] == path]
            part = {name.rpartition(".")[2]: left.pop(name) for name in own}
            owner, _, name = path.rpartition(".")
            setattr(module.get_submodule(owner), name, maker.from_state_tensors(part))
    return left


def packable(module: nn.Module) -> bool:
    """Whether a layer is one that the layouts are for: a matrix without bias."""
    return isinstance(module, nn.Linear) and module.bias is None and module.in_features > 1


def pack(module: nn.Module) -> None:
    """Replace every bias-free bfloat16 linear layer inside ``module`` by a packed one."""
    for parent, name, child in linear_onednn.owned_children(module):
        if not isinstance(child, nn.Linear) or not packable(child):
            continue
        if child.weight.dtype == torch.bfloat16:
            setattr(parent, name, PackedBf16Linear(child.weight.data))


def unpack(module: nn.Module) -> bool:
    """Put plain layers back, integers as the float32 values that they stand for; those for a card
    multiply rows of any dtype, and stay.

    Returns:
        Whether there were packed bfloat16 ones, which ``pack`` can bring back as they were.
    """
    found = False
    for parent, name, child in linear_onednn.owned_children(module):
        if isinstance(child, PackedLayer) and not isinstance(child, WeightOnlyInt8Linear):
            setattr(parent, name, linear_onednn.plain_linear(child.matrix()))
            found |= isinstance(child, PackedBf16Linear)
    return found


log = logging.getLogger(__name__)


class _Widen(nn.Module):
    """A stored weight, widened each time it is used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, stored: Tensor) -> Tensor:
        return stored.to(self.dtype)


def store_narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep matrices in ``dtype`` while arithmetic stays in their present one.

    For cards whose half-precision arithmetic is slow or unsafe (GTX 10xx: 1/64 rate): half of the
    memory, float32 results from rounded weights.
    """
    for part in list(module.modules()):
        if isinstance(part, (nn.Linear, nn.Conv1d)) and not parametrize.is_parametrized(part):
            wide = part.weight.dtype
            part.weight.data = part.weight.data.to(dtype)
            parametrize.register_parametrization(part, "weight", _Widen(wide), unsafe=True)
