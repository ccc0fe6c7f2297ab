"""What a convolution does to one tile: combinations of rows, products, and Snake.

Responsible for the instructions; generates them for numba. Not responsible for the algorithm, its
matrices or the order of tiles (conv.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.llvm import (
    FLOATS,
    I32,
    I64,
    VECTOR_WIDTH,
    fma,
    pointers,
    rint,
    splat,
)
from chatterbox_opt.kernels.cpu.microkernels import ZEROS, loop

_FLOAT = np.float32


def combination(matrix: Any) -> Any:
    """Make a function that multiplies a few rows by a constant matrix, channel by channel.

    Its arguments are addresses and sizes: the first row; bytes from row to row; the same of the
    results; vectors of a row.
    """

    @intrinsic
    def function(context, values, stride, out, out_stride, vectors):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            values, stride, out, out_stride, vectors = arguments
            rows = pointers(b, values, stride, len(matrix[0]), FLOATS)
            outs = pointers(b, out, out_stride, len(matrix), FLOATS)

            def body(i: Any, _: list[Any]) -> list[Any]:
                loaded = [b.load(b.gep(p, [i]), align=4) for p in rows]
                for factors, p in zip(matrix, outs, strict=True):
                    total = ZEROS
                    for factor, x in zip(factors, loaded, strict=True):
                        if factor:
                            constant = ir.Constant(FLOATS, [float(factor)] * VECTOR_WIDTH)
                            total = fma(b, x, constant, total)
                    b.store(total, b.gep(p, [i]), align=4)
                return []

            loop(b, vectors, [], body)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return function


def microkernel(rows: int, blocks: int) -> Any:
    """Make a micro-kernel: ``rows`` times ``blocks`` vectors of outputs, float32.

    Its arguments are addresses and sizes: the weights; inputs; groups; bytes from group to group,
    and from row to row; the first row; the sums, one row after the other.
    """

    @intrinsic
    def kernel(context, weights, inputs, groups, group_stride, row_stride, values, sums):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, inputs, groups, group_stride, row_stride, values, sums = arguments
            panel = b.inttoptr(weights, FLOATS.as_pointer())

            def add_group(group: Any, acc: list[Any]) -> list[Any]:
                first = b.add(values, b.mul(group, group_stride))
                row_pointers = pointers(b, first, row_stride, rows, I32)
                start = b.mul(group, inputs)

                def add_input(i: Any, acc: list[Any]) -> list[Any]:
                    at = b.mul(b.add(start, i), I64(blocks))
                    loaded = [
                        b.load(b.gep(panel, [b.add(at, I64(j))]), align=4) for j in range(blocks)
                    ]
                    result = []
                    for row, p in enumerate(row_pointers):
                        value = b.bitcast(splat(b, b.load(b.gep(p, [i]), align=4)), FLOATS)
                        old = acc[row * blocks : (row + 1) * blocks]
                        result += [fma(b, w, value, x) for w, x in zip(loaded, old, strict=True)]
                    return result

                return loop(b, inputs, acc, add_input)

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
