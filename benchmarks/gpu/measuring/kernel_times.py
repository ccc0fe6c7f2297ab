"""Microseconds of single kernels in CUDA graphs: attention by kernel, products by tile.

Knows shapes and candidates. Knows nothing of engines' plans or of files. Each candidate runs
through as many matrices, or KV caches, as do not fit into the L2 cache: none is found there.
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
from chatterbox_opt.config.model_config import FlowConfig
from chatterbox_opt.errors import first_line
from chatterbox_opt.kernels.cuda.kv_quantization import quantize
from chatterbox_opt.models.t3.kv_cache import products
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS
from chatterbox_opt.runtime.cuda_graphs import CaptureFn

# what stands around each of T3's products
MATRICES = {
    "qkv": "norm",
    "out": "residual",
    "gate_up": "gated",
    "down": "residual",
    "head": "norm",
}
COLD = 128 << 20  # bytes, more than the L2 cache of any GPU
GEMV_COLUMNS = (1, 2, 4, 8)  # BLOCK_N of gemv.py
GEMM_TILES = tuple(product((16, 32, 64), (64, 128)))  # columns and depth of one of gemm.py
COUNTERS = 4096  # of programs that share a head, or a tile
SHARED, ALONE = True, False  # whether programs share a head
# by name: that, and arguments of ``decode_attention.attend``
ATTENDING: dict[str, tuple[bool, dict[str, Any]]] = {
    "own": (SHARED, {}),
    "own, no splits": (ALONE, {}),
    "own, tiles of 32": (SHARED, {"tile": 32}),
    "own, tiles of 128": (SHARED, {"tile": 128}),
}
Scales = tuple[Tensor, Tensor] | None
Attend = Callable[[Tensor, Tensor, Scales], Tensor]


@dataclass(frozen=True, slots=True)
class Queries:
    """Shapes of a decode step's attention.

    Attributes:
        rows: two for each request under guidance.
        span: positions of each row.
        quantized: the KV cache is int8, with scales.
    """

    heads: int
    width: int
    rows: int
    span: int
    device: torch.device
    dtype: torch.dtype
    quantized: bool = False

    @property
    def nbytes(self) -> int:
        """Of keys and values of one layer, and their scales."""
        rows_per_seq = self.width + 4 if self.quantized else self.width * self.dtype.itemsize
        return 2 * self.rows * self.heads * self.span * rows_per_seq

    def drawn(self, *sizes: int) -> Tensor:
        """Random numbers."""
        return torch.randn(sizes, device=self.device, dtype=self.dtype)

    def cache(self) -> tuple[Tensor, Tensor, Scales]:
        """Keys and values of one layer, [rows, heads, span, width], and their scales."""
        sizes = (self.rows, self.heads, self.span, self.width)
        keys, values = self.drawn(*sizes), self.drawn(*sizes)
        if not self.quantized:
            return keys, values, None
        (keys, by_key), (values, by_value) = quantize(keys), quantize(values)
        return keys, values, (by_key, by_value)


def decode_attention(
    asked: Queries, record: CaptureFn, *, fused: bool, cold: int = COLD
) -> dict[str, Any]:
    """Microseconds of one layer's attention of a step, by kernel.

    Args:
        fused: whether the kernel of our own can be run here.
        cold: bytes of KV caches that are gone through.

    Returns:
        a row with "us" by candidate; one that cannot run has its error there.
    """
    layers = max(1, -(-cold // asked.nbytes))
    caches = [asked.cache() for _ in range(layers)]
    candidates = {} if asked.quantized else _by_pytorch(asked)
    if fused:
        candidates |= _by_own(asked)
    row: dict[str, Any] = {"rows": asked.rows, "span": asked.span, "bytes": asked.nbytes}
    row |= {"int8": asked.quantized, "layers": layers}
    for name, attend in candidates.items():

        def through(attend: Attend = attend) -> None:
            for cache in caches:
                attend(*cache)

        row[name] = timed(record, through, asked.device, layers)
    return row


def _by_pytorch(asked: Queries) -> dict[str, Attend]:
    q = asked.drawn(asked.rows, asked.heads, 1, asked.width)
    visible = torch.ones(asked.rows, 1, 1, asked.span, dtype=torch.bool, device=asked.device)
    return {
        "sdpa, masked": lambda k, v, _: F.scaled_dot_product_attention(q, k, v, visible),
        "sdpa, no mask": lambda k, v, _: F.scaled_dot_product_attention(q, k, v),
        "products": lambda k, v, _: products(q, k, v, visible),
    }


def _by_own(asked: Queries) -> dict[str, Attend]:
    from chatterbox_opt.kernels.cuda.decode_attention import (
        decode_attention,  # Triton is not everywhere
    )

    many = max(1, asked.rows // 2)
    qkv = asked.drawn(asked.rows, 3 * asked.heads * asked.width)
    rope = asked.drawn(many, asked.width), asked.drawn(many, asked.width)
    places = torch.full((many,), asked.span - 1, device=asked.device)
    counters = torch.zeros(COUNTERS, dtype=torch.int32, device=asked.device)

    def by(shared: bool, more: Mapping[str, Any]) -> Attend:  # noqa: FBT001
        arrivals = counters if shared else None
        return lambda k, v, scales: decode_attention(
            qkv, rope, k, v, places, scales, arrivals, **more
        )

    return {name: by(*how) for name, how in ATTENDING.items()}


def flow_attention(
    shape: FlowConfig, record: CaptureFn, device: torch.device, frames: int, *, fused: bool
) -> dict[str, Any]:
    """Microseconds of the flow's attention by kernel, in halves: two rows, a tenth is padding. Its
    queries, keys and values were just written and may be in the L2 cache, as they are in a flow.

    Args:
        fused: whether the kernel of our own can be run here.
    """
    sizes = (2, frames, 3, shape.estimator_heads, shape.estimator_head_dim)
    qkv = torch.randn(sizes, device=device, dtype=torch.float16)
    q, k, v = qkv.transpose(1, 3).unbind(2)
    lengths = torch.full((2,), frames - frames // 10, dtype=torch.int32, device=device)
    mask = (torch.arange(frames, device=device) < lengths[:, None])[:, None, None]
    candidates: dict[str, Callable[[], Any]] = {
        "sdpa, all": functools.partial(F.scaled_dot_product_attention, q, k, v),
        "sdpa, masked": functools.partial(F.scaled_dot_product_attention, q, k, v, mask),
    }
    if fused:
        from chatterbox_opt.kernels.cuda import flow as flow_kernels  # Triton is not everywhere

        candidates["own"] = functools.partial(flow_kernels.attention, q, k, v, lengths)
    row: dict[str, Any] = {"frames": frames}
    return row | {name: timed(record, once, device, 1, 30) for name, once in candidates.items()}


def timed(
    record: CaptureFn, work: Callable[[], Any], device: torch.device, parts: int, times: int = 1
) -> float | str:
    """Microseconds of one of the ``parts`` of some work, or why it cannot run here."""
    try:
        return graph_us(record, work, device, times=times) / parts
    except (*DEVICE_ERRORS, TypeError) as error:  # a kernel without this argument, a tile too large
        return first_line(error)


def products_by_tile(
    name: str,
    matrices: Sequence[tuple[Tensor, Tensor | None]],
    rows: int,
    around: str,
    dtype: torch.dtype,
    record: CaptureFn,
    *,
    sweep: bool,
) -> Iterator[dict[str, Any]]:
    """Microseconds of a layer's product, with what stands around it, as planned and by tile, and
    of the bare product by cuBLAS. To choose ``gemv_tile`` and ``gemm_tile`` by.

    Args:
        matrices: weight [out, in], and the scales of an int8 one, of every layer.
        rows: of the step.
        around: "norm", "residual" or "gated" (with a norm).
        dtype: of x.
        sweep: other tiles than the planned are tried.
    """
    from chatterbox_opt.kernels.cuda.decode_linear import linear  # Triton is not everywhere
    from chatterbox_opt.kernels.cuda.gemv import MAX_GEMV_ROWS

    weight = matrices[0][0]
    x = torch.randn(rows, weight.shape[1], device=weight.device, dtype=dtype)
    more = _around(around, x, weight)
    row = {"matrix": name, "rows": rows, "bytes": weight.nbytes, "dtype": str(weight.dtype)}

    def us(once: Callable[[Tensor, Tensor | None], Any]) -> dict[str, Any]:
        def layers() -> None:
            for matrix in matrices:
                once(*matrix)

        return rated(timed(record, layers, weight.device, len(matrices)), weight.nbytes)

    def own(weight: Tensor, scales: Tensor | None) -> Tensor:
        return linear(x, weight, scales, **more)

    yield row | {"by": "own", "tile": "as planned"} | us(own)
    if weight.dtype == dtype:
        yield row | {"by": "cublas"} | us(lambda weight, _: F.linear(x, weight))
    few = [{"columns": columns} for columns in FEW_COLUMNS]
    many = [{"columns": columns, "depth": depth} for columns, depth in MANY_TILES]
    for tile in (few if rows <= MAX_GEMV_ROWS else many) if sweep else ():
        with tiled(tile):
            yield row | {"by": "own", "tile": tile} | us(own)


def _around(what: str, x: Tensor, weight: Tensor) -> dict[str, Any]:
    """The arguments of ``decode_linear.linear`` for what stands around a product."""
    if what == "residual":
        counters = torch.zeros(COUNTERS, dtype=torch.int32, device=x.device)
        return {"residual": x.new_zeros(len(x), len(weight)), "arrivals": counters}
    return {"norm": (torch.ones_like(x[0]), 1e-5), "gated": what == "gated"}


@contextmanager
def tiled(tile: Mapping[str, Any]) -> Iterator[None]:
    """Have ``decode_linear.linear`` take other tiles.

    Args:
        tile: arguments of ``gemv_tile`` or ``gemm_tile``.
    """
    from chatterbox_opt.kernels.cuda import decode_linear  # Triton is not everywhere

    found: Any = decode_linear
    usual = found.gemv_tile, found.gemm_tile
    found.gemv_tile, found.gemm_tile = (functools.partial(make, **tile) for make in usual)
    try:
        yield
    finally:
        found.gemv_tile, found.gemm_tile = usual


def rated(us: float | str, nbytes: int) -> dict[str, Any]:
    """Microseconds and GB/s, or the error."""
    if isinstance(us, str):
        return {"error": us}
    return {"us": us, "gb_per_second": nbytes / us / 1e3 if us else None}
