"""A kernel whose functions call each other, as a program: prints a digest of what it computes.

LLVM optimizes ``normalized`` differently where it is a library of its own and where it is part of
the kernel: its sums are then in another order.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.llvm import NJIT_OPTIONS, pointer
from chatterbox_opt.kernels.cpu.openmp import OpenMPRuntime

SHAPE = (8, 1000)
_compile = njit(nogil=True, **NJIT_OPTIONS)


@_compile
def normalized(x, out):
    """Softmax, and a few more sums."""
    highest, total, mean, squares = -np.float32(np.inf), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(x)):
        highest = max(highest, x[i])
    for i in range(len(x)):
        out[i] = np.exp(x[i] - highest)
        total += out[i]
    for i in range(len(x)):
        out[i] /= total
        mean += out[i] * x[i]
    for i in range(len(x)):
        squares += (x[i] - mean) * (x[i] - mean)
    for i in range(len(x)):
        out[i] = out[i] * squares + mean


@_compile
def alternate(x, first):
    """Several calls, so that they are not all inlined."""
    for i in range(first, len(x) - 1, 2):
        normalized(x[i], x[i + 1])
        normalized(x[i + 1], x[i])


def kernel(address):
    """float32 ``SHAPE``, in place."""
    x = carray(pointer(carray(address, 1, np.int64)[0]), SHAPE, np.float32)
    normalized(x[0], x[7])
    alternate(x, 0)
    normalized(x[1], x[6])
    alternate(x, 1)


if __name__ == "__main__":
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    compiled, address = entry_point(kernel), np.array([x.ctypes.data])
    OpenMPRuntime().run(compiled.address, address.ctypes.data)
    print(hashlib.sha256(x.tobytes()).hexdigest())
