"""``F.linear`` of a decode step on a GPU, fused with the operations around it.

Responsible for choosing between gemv.py and gemm.py and for launching them. Not responsible for
their arithmetic, or for layers. Imports Triton, as they do.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from chatterbox_opt.kernels.cuda.gemm import gemm, gemm_tile, num_splits
from chatterbox_opt.kernels.cuda.gemv import MAX_BLOCK_K, MAX_GEMV_ROWS, gemv, gemv_tile
from chatterbox_opt.kernels.cuda.launch import pdl_options, triton_errors
from chatterbox_opt.runtime import cuda

Norm = tuple[Tensor, float] | tuple[Tensor, float, Tensor]  # weight, epsilon, and a bias


@triton_errors()
def linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    gated: bool = False,
    gelu: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    arrivals: Tensor | None = None,
) -> Tensor:
    """``F.linear`` with the operations around it, accumulated in fp32.

    Args:
        x: [rows, in] of any float dtype.
        weight: [out, in], or [2 out, in] if ``gated``: x's dtype, or int8.
        scales: float32, one for each row of an int8 weight.
        bias: [out], to be added; not if ``gated``.
        norm: [in] in x's dtype, and epsilon: RMSNorm of x (Zhang & Sennrich 2019) comes first. With
            a bias [in] in x's dtype too, LayerNorm (Ba et al. 2016); not if ``gated``.
        gated: SwiGLU (Shazeer 2020): silu of the first half times the second.
        gelu: of the product (Hendrycks & Gimpel 2016), in its tanh form.
        residual: [rows, out] to be added.
        out: [rows, out] to be written, contiguous; None allocates it.
        arrivals: int32 counters, zeros before and after, at least one per tile: allows split-K.
            None: every tile is computed by one program.

    Returns:
        ``out``, in x's dtype.
    """
    (rows, k), n = x.shape, weight.shape[0] // (2 if gated else 1)
    x, out = x.contiguous(), x.new_empty(rows, n) if out is None else out
    norm_weight, eps, *norm_bias = norm or (x, 0.0)
    assert not (gated and (gelu or bias is not None or norm_bias))
    # x stands in for absent tensors: the kernel does not touch them
    tensors = (
        x,
        weight,
        x if scales is None else scales,
        x if bias is None else bias,
        norm_weight,
        *(norm_bias or (x,)),
        x if residual is None else residual.contiguous(),
        out,
    )
    constants = {
        "HAS_SCALES": scales is not None,
        "HAS_BIAS": bias is not None,
        "HAS_NORM": norm is not None,
        "LAYER_NORM": bool(norm_bias),
        "GATED": gated,
        "GELU": gelu,
        "HAS_RESIDUAL": residual is not None,
        **pdl_options(x.device),
    }
    if rows <= MAX_GEMV_ROWS and (not norm_bias or k <= MAX_BLOCK_K):
        tile = gemv_tile(rows, n, k, (x.element_size(), weight.element_size()), gated=gated)
        gemv[(triton.cdiv(n, tile["BLOCK_N"]),)](*tensors, rows, n, eps, K=k, **tile, **constants)
        return out
    tile = gemm_tile(rows, x.element_size(), cuda.capability_major(x.device))
    column_tiles, row_tiles = triton.cdiv(n, tile["BLOCK_N"]), triton.cdiv(rows, tile["BLOCK_M"])
    splits, tiles = 1, column_tiles * row_tiles
    if arrivals is not None and norm is None and not gated and tiles <= arrivals.numel():
        splits = num_splits(tiles, k, tile["BLOCK_K"])
    partial = x if splits == 1 else x.new_empty(splits, rows, n, dtype=torch.float32)
    counters = x if arrivals is None else arrivals
    gemm[(column_tiles, row_tiles, splits)](
        *tensors, partial, counters, rows, n, k, eps, SPLIT_K=splits, **tile, **constants
    )
    return out
