"""Microseconds of single kernels in CUDA graphs: attention by kernel, linear layers by tile.

Responsible for shapes and candidates. Not responsible for engines' plans or files. Each candidate
cycles through more matrices, or KV caches, than fit into the L2 cache, so none is read from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.measuring.clocks import graph_us
from chatterbox_opt.config.model_config import GPT2, LLAMA, FlowConfig
from chatterbox_opt.errors import first_line
from chatterbox_opt.kernels.cuda.kv_quantization import quantize
from chatterbox_opt.models.t3.kv_cache import attend_matmul
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS
from chatterbox_opt.runtime.cuda_graphs import CaptureFn

# what is fused into each of T3's linear layers; GPT-2's have biases, but for the head
FUSIONS = {
    LLAMA: {
        "qkv": "norm",
        "out": "residual",
        "gate_up": "gated",
        "down": "residual",
        "head": "norm",
    },
    GPT2: {
        "qkv": "layer norm",
        "out": "residual",
        "gate_up": "gelu",
        "down": "residual",
        "head": "layer norm",
    },
}
MAX_L2 = 128 << 20  # bytes, more than the L2 cache of any GPU
GEMV_COLUMNS = (1, 2, 4, 8)  # BLOCK_N of gemv.py
GEMM_TILES = tuple(product((16, 32, 64), (64, 128)))  # columns and depth of one of gemm.py
COUNTERS = 4096  # of arriving programs, for splits of a head or tile
SPLIT, UNSPLIT = True, False  # whether several programs share a head
# by name: that, and arguments of ``decode_attention``
TRITON_VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "triton": (SPLIT, {}),
    "triton, no splits": (UNSPLIT, {}),
    "triton, tiles of 32": (SPLIT, {"tile": 32}),
    "triton, tiles of 128": (SPLIT, {"tile": 128}),
}
Scales = tuple[Tensor, Tensor] | None
Attend = Callable[[Tensor, Tensor, Scales], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Shapes of a decode step's attention.

    Attributes:
        rows: two for each request under classifier-free guidance.
        kv_len: positions of each row.
        quantized: the KV cache is int8, with scales.
    """

    heads: int
    width: int
    rows: int
    kv_len: int
    device: torch.device
    dtype: torch.dtype
    quantized: bool = False

    @property
    def nbytes(self) -> int:
        """Of keys and values of one layer, and their scales."""
        per_key = self.width + 4 if self.quantized else self.width * self.dtype.itemsize
        return 2 * self.rows * self.heads * self.kv_len * per_key

    def randn(self, *sizes: int) -> Tensor:
        """Random numbers."""
        return torch.randn(sizes, device=self.device, dtype=self.dtype)

    def cache(self) -> tuple[Tensor, Tensor, Scales]:
        """Keys and values of one layer, [rows, heads, kv_len, width], and their scales."""
        sizes = (self.rows, self.heads, self.kv_len, self.width)
        keys, values = self.randn(*sizes), self.randn(*sizes)
        if not self.quantized:
            return keys, values, None
        (keys, key_scales), (values, value_scales) = quantize(keys), quantize(values)
        return keys, values, (key_scales, value_scales)


def decode_attention(
    shape: AttentionShape, capture: CaptureFn, *, fused: bool, cache_bytes: int = MAX_L2
) -> dict[str, Any]:
    """Microseconds of one layer's decode attention, by kernel.

    Args:
        fused: whether the Triton kernel runs here.
        cache_bytes: bytes of KV caches to cycle through.

    Returns:
        a row with "us" by candidate, or its error.
    """
    layers = max(1, -(-cache_bytes // shape.nbytes))
    caches = [shape.cache() for _ in range(layers)]
    candidates = {} if shape.quantized else _pytorch_candidates(shape)
    if fused:
        candidates |= _triton_candidates(shape)
    row: dict[str, Any] = {"rows": shape.rows, "kv_len": shape.kv_len, "bytes": shape.nbytes}
    row |= {"int8": shape.quantized, "layers": layers}
    for name, attend in candidates.items():

        def all_layers(attend: Attend = attend) -> None:
            for cache in caches:
                attend(*cache)

        row[name] = timed(capture, all_layers, shape.device, layers)
    return row


def _pytorch_candidates(shape: AttentionShape) -> dict[str, Attend]:
    q = shape.randn(shape.rows, shape.heads, 1, shape.width)
    visible = torch.ones(shape.rows, 1, 1, shape.kv_len, dtype=torch.bool, device=shape.device)
    return {
        "sdpa, masked": lambda k, v, _: F.scaled_dot_product_attention(q, k, v, visible),
        "sdpa, no mask": lambda k, v, _: F.scaled_dot_product_attention(q, k, v),
        "products": lambda k, v, _: attend_matmul(q, k, v, visible),
    }


def _triton_candidates(shape: AttentionShape) -> dict[str, Attend]:
    from chatterbox_opt.kernels.cuda.decode_attention import (
        decode_attention,  # needs Triton
    )

    sequences = max(1, shape.rows // 2)
    qkv = shape.randn(shape.rows, 3 * shape.heads * shape.width)
    rope = shape.randn(sequences, shape.width), shape.randn(sequences, shape.width)
    positions = torch.full((sequences,), shape.kv_len - 1, device=shape.device)
    counters = torch.zeros(COUNTERS, dtype=torch.int32, device=shape.device)

    def candidate(split: bool, options: Mapping[str, Any]) -> Attend:  # noqa: FBT001
        arrivals = counters if split else None
        return lambda k, v, scales: decode_attention(
            qkv, rope, k, v, positions, scales, arrivals, **options
        )

    return {name: candidate(*variant) for name, variant in TRITON_VARIANTS.items()}


def flow_attention(
    shape: FlowConfig, capture: CaptureFn, device: torch.device, frames: int, *, fused: bool
) -> dict[str, Any]:
    """Microseconds of the flow's attention by kernel, in fp16: two rows, a tenth is padding. Its
    queries, keys and values were just written and may be in the L2 cache, as in the flow.

    Args:
        fused: whether the Triton kernel runs here.
    """
    sizes = (2, frames, 3, shape.estimator_heads, shape.estimator_head_dim)
    qkv = torch.randn(sizes, device=device, dtype=torch.float16)
    q, k, v = qkv.transpose(1, 3).unbind(2)
    lengths = torch.full((2,), frames - frames // 10, dtype=torch.int32, device=device)
    mask = (torch.arange(frames, device=device) < lengths[:, None])[:, None, None]
    candidates: dict[str, Callable[[], Any]] = {
        "sdpa, no mask": functools.partial(F.scaled_dot_product_attention, q, k, v),
        "sdpa, masked": functools.partial(F.scaled_dot_product_attention, q, k, v, mask),
    }
    if fused:
        from chatterbox_opt.kernels.cuda import flow as flow_kernels  # needs Triton

        candidates["triton"] = functools.partial(flow_kernels.attention, q, k, v, lengths)
    row: dict[str, Any] = {"frames": frames}
    return row | {name: timed(capture, once, device, 1, 30) for name, once in candidates.items()}


def timed(
    capture: CaptureFn, work: Callable[[], Any], device: torch.device, parts: int, times: int = 1
) -> float | str:
    """Microseconds of one of the ``parts`` of some work, or the error why it cannot run here."""
    try:
        return graph_us(capture, work, device, times=times) / parts
    except (*DEVICE_ERRORS, TypeError) as error:  # a kernel without this argument, a tile too large
        return first_line(error)


def linear_by_tile(
    name: str,
    matrices: Sequence[tuple[Tensor, Tensor | None]],
    rows: int,
    fusion: str,
    dtype: torch.dtype,
    capture: CaptureFn,
    *,
    sweep: bool,
) -> Iterator[dict[str, Any]]:
    """Microseconds of a fused linear layer with the default and other tiles, and of the unfused one
    with cuBLAS. For tuning ``gemv_tile`` and ``gemm_tile``.

    Args:
        matrices: weight [out, in], and the scales of an int8 one, of every layer.
        rows: of the step.
        fusion: of ``FUSIONS``; "gated" and "gelu" have a norm too.
        dtype: of x.
        sweep: measure other tiles than the default one.
    """
    from chatterbox_opt.kernels.cuda.decode_linear import linear  # needs Triton
    from chatterbox_opt.kernels.cuda.gemv import MAX_GEMV_ROWS

    weight = matrices[0][0]
    x = torch.randn(rows, weight.shape[1], device=weight.device, dtype=dtype)
    arguments = _fusion_arguments(fusion, x, weight)
    row = {"matrix": name, "rows": rows, "bytes": weight.nbytes, "dtype": str(weight.dtype)}

    def us(once: Callable[[Tensor, Tensor | None], Any]) -> dict[str, Any]:
        def layers() -> None:
            for matrix in matrices:
                once(*matrix)

        us_each = timed(capture, layers, weight.device, len(matrices))
        return with_bandwidth(us_each, weight.nbytes)

    def fused(weight: Tensor, scales: Tensor | None) -> Tensor:
        return linear(x, weight, scales, **arguments)

    yield row | {"by": "triton", "tile": "default"} | us(fused)
    if weight.dtype == dtype:
        yield row | {"by": "cublas"} | us(lambda weight, _: F.linear(x, weight))
    gemv_tiles = [{"columns": columns} for columns in GEMV_COLUMNS]
    gemm_tiles = [{"columns": columns, "depth": depth} for columns, depth in GEMM_TILES]
    for tile in (gemv_tiles if rows <= MAX_GEMV_ROWS else gemm_tiles) if sweep else ():
        with tiled(tile):
            yield row | {"by": "triton", "tile": tile} | us(fused)


def _fusion_arguments(fusion: str, x: Tensor, weight: Tensor) -> dict[str, Any]:
    """The arguments of ``decode_linear.linear`` for a fusion."""
    if fusion == "residual":
        counters = torch.zeros(COUNTERS, dtype=torch.int32, device=x.device)
        return {"residual": x.new_zeros(len(x), len(weight)), "arrivals": counters}
    if fusion in ("layer norm", "gelu"):
        bias = x.new_zeros(len(weight))
        norm = (torch.ones_like(x[0]), 1e-5, torch.zeros_like(x[0]))
        return {"norm": norm, "bias": bias, "gelu": fusion == "gelu"}
    return {"norm": (torch.ones_like(x[0]), 1e-5), "gated": fusion == "gated"}


@contextmanager
def tiled(tile: Mapping[str, Any]) -> Iterator[None]:
    """Make ``decode_linear.linear`` use other tiles in the block.

    Args:
        tile: arguments of ``gemv_tile`` or ``gemm_tile``.
    """
    from chatterbox_opt.kernels.cuda import decode_linear  # needs Triton

    module: Any = decode_linear
    defaults = module.gemv_tile, module.gemm_tile
    module.gemv_tile, module.gemm_tile = (functools.partial(f, **tile) for f in defaults)
    try:
        yield
    finally:
        module.gemv_tile, module.gemm_tile = defaults


def with_bandwidth(us: float | str, nbytes: int) -> dict[str, Any]:
    """Microseconds and GB/s, or the error."""
    if isinstance(us, str):
        return {"error": us}
    return {"us": us, "gb_per_second": nbytes / us / 1e3 if us else None}
