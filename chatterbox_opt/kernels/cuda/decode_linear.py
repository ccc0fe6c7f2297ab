"""``F.linear`` of a decode step on a GPU, fused with what surrounds it.

Responsible for choosing between gemv.py and gemm.py and for launching them. Not responsible for
their arithmetic, or for layers. Imports Triton, as they do.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from chatterbox_opt.kernels.cuda.gemm import gemm, gemm_tile, splits
from chatterbox_opt.kernels.cuda.gemv import MAX_GEMV_ROWS, gemv, gemv_tile
from chatterbox_opt.kernels.cuda.launch import pdl_options, triton_errors
from chatterbox_opt.runtime import cuda


@triton_errors()
def linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    arrivals: Tensor | None = None,
) -> Tensor:
    """``F.linear`` and what surrounds it, summed in fp32.

    Args:
        x: [rows, in] of any float dtype.
        weight: [out, in], or [2 out, in] if ``gated``: x's dtype, or int8.
        scales: float32, one for each row of an int8 weight.
        norm: [in] in x's dtype, and epsilon: RMSNorm of x (Zhang & Sennrich 2019) comes first.
        gated: SwiGLU (Shazeer 2020): silu of the first half times the second.
        residual: [rows, out] to be added.
        out: [rows, out] to be written, in one piece; None makes one.
        arrivals: int32 zeros, and zeros again afterwards: lets programs share a tile's depth (as
            many as there are tiles are needed). None: they do not.

    Returns:
        ``out``, in x's dtype.
    """
    (rows, k), n = x.shape, weight.shape[0] // (2 if gated else 1)
    x, out = x.contiguous(), x.new_empty(rows, n) if out is None else out
    by, eps = norm or (x, 0.0)
    given = (
        x,
        weight,
        x if scales is None else scales,
        by,
        x if residual is None else residual.contiguous(),
        out,
    )
    forms = {
        "SCALED": scales is not None,
        "NORMED": norm is not None,
        "GATED": gated,
        "ADDED": residual is not None,
        **pdl_options(x.device),
    }
    if rows <= MAX_GEMV_ROWS:
        tile = gemv_tile(rows, n, k, (x.element_size(), weight.element_size()), gated=gated)
        gemv[(triton.cdiv(n, tile["COLUMNS"]),)](*given, rows, n, eps, K=k, **tile, **forms)
        return out
    tile = gemm_tile(rows, x.element_size(), cuda.capability_major(x.device))
    wide, high = triton.cdiv(n, tile["COLUMNS"]), triton.cdiv(rows, tile["ROWS"])
    parts, tiles = 1, wide * high
    if arrivals is not None and norm is None and not gated and tiles <= arrivals.numel():
        parts = splits(tiles, k, tile["DEPTH"])
    partial = x if parts == 1 else x.new_empty(parts, rows, n, dtype=torch.float32)
    counters = x if arrivals is None else arrivals
    gemm[(wide, high, parts)](
        *given, partial, counters, rows, n, k, eps, SPLITS=parts, **tile, **forms
    )
    return out
