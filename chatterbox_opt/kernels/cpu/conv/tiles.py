"""What a convolution does to one tile: combinations of rows, products, and Snake.

Responsible for the instructions; generates them for numba. Not responsible for the algorithm, its
matrices or the order of tiles (kernel.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.llvm import (
    FLOATS,
    I16,
    I32,
    I64,
    INTS,
    VECTOR_WIDTH,
    dot_bf16,
    fma,
    pointers,
    rint,
    splat,
    to_bf16,
)
from chatterbox_opt.kernels.cpu.microkernels import ZEROS, loop

_FLOAT = np.float32


def _fma_float32(b: Any, acc: Any, weights: Any, values: Any) -> Any:
    return fma(b, b.bitcast(weights, FLOATS), b.bitcast(values, FLOATS), acc)


# how a vector of weights is multiplied by 4 bytes of a row
DOTS = {"float32": _fma_float32, "bfloat16": dot_bf16}


def combination(matrix: Any, dtype: str = "float32") -> Any:
    """Make a function that multiplies a few rows by a constant matrix, channel by channel.

    Its arguments are addresses and sizes: the first row, float32; bytes from row to row; the same
    of the results, in ``dtype``; vectors of a row.
    """
    stored = FLOATS if dtype == "float32" else ir.VectorType(I16, VECTOR_WIDTH)

    @intrinsic
    def function(context, values, stride, out, out_stride, vectors):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            values, stride, out, out_stride, vectors = arguments
            rows = pointers(b, values, stride, len(matrix[0]), FLOATS)
            outs = pointers(b, out, out_stride, len(matrix), stored)

            def body(i: Any, _: list[Any]) -> list[Any]:
                loaded = [b.load(b.gep(p, [i]), align=4) for p in rows]
                for factors, p in zip(matrix, outs, strict=True):
                    total = ZEROS
                    for factor, x in zip(factors, loaded, strict=True):
                        if factor:
                            constant = ir.Constant(FLOATS, [float(factor)] * VECTOR_WIDTH)
                            total = fma(b, x, constant, total)
                    result = total if stored is FLOATS else to_bf16(b, total)
                    b.store(result, b.gep(p, [i]), align=2)
                return []

            loop(b, vectors, [], body)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return function


def microkernel(rows: int, blocks: int, dtype: str) -> Any:
    """Make a micro-kernel: ``rows`` times ``blocks`` vectors of outputs, with float32 sums.

    Its arguments are addresses and sizes: the weights; steps, which are inputs in float32 and pairs
    of them in bfloat16; groups; bytes from group to group, and from row to row; the first row; the
    sums, one row after the other.
    """
    dot = DOTS[dtype]

    @intrinsic
    def kernel(context, weights, steps, groups, group_stride, row_stride, values, sums):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, steps, groups, group_stride, row_stride, values, sums = arguments
            panel = b.inttoptr(weights, INTS.as_pointer())

            def add_group(group: Any, acc: list[Any]) -> list[Any]:
                first = b.add(values, b.mul(group, group_stride))
                row_pointers = pointers(b, first, row_stride, rows, I32)
                start = b.mul(group, steps)

                def add_step(i: Any, acc: list[Any]) -> list[Any]:
                    at = b.mul(b.add(start, i), I64(blocks))
                    loaded = [
                        b.load(b.gep(panel, [b.add(at, I64(j))]), align=4) for j in range(blocks)
                    ]
                    result = []
                    for row, p in enumerate(row_pointers):
                        value = splat(b, b.load(b.gep(p, [i]), align=4))
                        old = acc[row * blocks : (row + 1) * blocks]
                        result += [dot(b, x, w, value) for w, x in zip(loaded, old, strict=True)]
                    return result

                return loop(b, steps, acc, add_step)

            acc = loop(b, groups, [ZEROS] * (rows * blocks), add_group)
            out = b.inttoptr(sums, FLOATS.as_pointer())
            for i, value in enumerate(acc):
                b.store(value, b.gep(out, [I64(i)]), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return kernel


@njit(nogil=True, error_model="numpy", fastmath={"contract"})  # the order of operations matters
def snake(y):
    """y + sin(y)^2; the square is accurate to 3e-7 while |y| is below 10,000.

    Its period is pi, which is subtracted in three parts (Cody & Waite 1980).
    """
    n = rint(y * _FLOAT(0.31830988618))
    r = y - n * _FLOAT(3.140625)
    r = r - n * _FLOAT(9.67502593994140625e-4)
    r = r - n * _FLOAT(1.509957990978376432e-7)
    square = r * r
    # (sin(r) / r - 1) / r^2 for |r| up to pi / 2: fitted, to 2e-11
    p = _FLOAT(-2.3845516e-8)
    p = p * square + _FLOAT(2.7522551e-6)
    p = p * square + _FLOAT(-1.98408028e-4)
    p = p * square + _FLOAT(8.33333048e-3)
    p = p * square + _FLOAT(-1.66666666e-1)
    sine = r + r * square * p
    return y + sine * sine
