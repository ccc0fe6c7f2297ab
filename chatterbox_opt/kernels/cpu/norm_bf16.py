"""Layer norms of the flow in bfloat16, fused with a residual add or Mish, compiled by numba.

Responsible for rows of numbers and threads; not responsible for the layers around them.
bf16_ops.py calls it and owns the memory that it gets addresses of. Sums are float32, as PyTorch's.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.llvm import (
    NJIT_OPTIONS,
    bf16_to_float,
    exp,
    float_to_bf16,
    pointer,
    thread_index,
)

_FIELDS = ("thread_num", "num_threads", "barrier", "rows", "width", "mish")
_TENSORS = ("x", "residual", "weight", "bias", "out")
NORM = np.dtype([(name, "i8") for name in (*_FIELDS, *_TENSORS)] + [("eps", "f8")])
"""Layer norm of x (+ residual) to out, each bfloat16 [rows, width]; then Mish if ``mish`` is 1.

residual: 0, or what is added to x, in place, before. weight, bias: bfloat16 [width].
"""

_compile = njit(nogil=True, **NJIT_OPTIONS)


@_compile
def _bf16_array(address, count):
    return carray(pointer(address), count, np.uint16)


@_compile
def _norm_row(t, row, weight, bias, wide):
    """One row of a NORM.

    Args:
        weight, bias: float32 [width].
        wide: scratch of the same shape.
    """
    n, offset = t.width, row * t.width * 2
    x, out = _bf16_array(t.x + offset, n), _bf16_array(t.out + offset, n)
    total = np.float32(0)
    # 1) x += residual
    if t.residual:
        residual = _bf16_array(t.residual + offset, n)
        for i in range(n):
            x[i] = float_to_bf16(bf16_to_float(x[i]) + bf16_to_float(residual[i]))
    # 2) mean and variance
    for i in range(n):
        wide[i] = bf16_to_float(x[i])
        total += wide[i]
    mean, variance = total / np.float32(n), np.float32(0)
    for i in range(n):
        wide[i] -= mean
        variance += wide[i] * wide[i]
    factor = np.float32(1) / np.sqrt(variance / np.float32(n) + np.float32(t.eps))
    # 3) normalize, with or without Mish: y * tanh(log(1 + e^y)) = y * (e^2y + 2e^y) / (... + 2)
    if t.mish:
        for i in range(n):
            y = wide[i] * factor * weight[i] + bias[i]
            # from 20 on, tanh(log(1 + e^y)) is 1 to the last bit
            e = exp(y if y < np.float32(20) else np.float32(20))
            e = e * e + np.float32(2) * e
            out[i] = float_to_bf16(y * (e / (e + np.float32(2))))
    else:
        for i in range(n):
            out[i] = float_to_bf16(wide[i] * factor * weight[i] + bias[i])


@entry_point
def norm(data):
    """One NORM task, called in each thread: rows are divided."""
    t = carray(data, 1, NORM)[0]
    thread, threads = thread_index(t)
    weight, bias = np.empty(t.width, np.float32), np.empty(t.width, np.float32)
    weight_bits, bias_bits = _bf16_array(t.weight, t.width), _bf16_array(t.bias, t.width)
    for i in range(t.width):
        weight[i], bias[i] = bf16_to_float(weight_bits[i]), bf16_to_float(bias_bits[i])
    wide = np.empty(t.width, np.float32)
    for row in range(t.rows * thread // threads, t.rows * (thread + 1) // threads):
        _norm_row(t, row, weight, bias, wide)
