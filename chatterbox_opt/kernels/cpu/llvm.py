"""LLVM IR helpers of the compiled CPU kernels: vectors, dot products, conversions, prefetch.

Responsible for single instructions; not responsible for matrices (microkernels.py), layers or
threads.

How Python becomes machine code here
------------------------------------
numba translates Python functions to LLVM IR (LLVM's typed assembly language), and LLVM compiles
the IR for this CPU. Most loops are plain Python that LLVM vectorizes well. Where one particular
instruction matters, numba's ``@intrinsic`` lets us emit the IR ourselves: at compile time it calls
a Python function with an ``IRBuilder`` (always ``b`` here), and each call on ``b`` appends one
instruction. So a Python ``for`` over a builder is an unrolled loop, and a Python list of values is
a set of registers.

All vectors are 512 bits: 16 lanes of 32 bits (``VECTOR_WIDTH``). The two dot products are

    vpdpbusd   acc.i32[lane] += sum of u8[4 * lane + c] * s8[4 * lane + c] for c in 0..3   (VNNI)
    vdpbf16ps  acc.f32[lane] += sum of a[2 * lane + c] * b[2 * lane + c]   for c in 0..1   (bf16)

Both take 64 bytes of each operand: one lane consumes 4 bytes, that is 4 int8 or 2 bfloat16 columns
of the inner dimension. Packed weights are therefore stored in groups of 4 bytes per output
(microkernels.py shows the layout). No LLVM pass forms these instructions from a scalar loop over
our layout, so we name them. On a CPU without VNNI, ``dot_u8s8`` widens bytes to 16 bits and
multiplies those, which is exact as well but slower.

Functions of a builder ``b`` emit IR into the function that is being compiled; the lower-case names
at the end are called from functions that numba compiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

VECTOR_WIDTH = 16  # 32-bit lanes of a vector, so outputs that one accumulator register holds
VNNI_FACTOR = 4  # int8 columns that one 32-bit lane multiplies at a time (VNNI blocking factor)
GROUP = 32  # columns with a common sum of activation codes; int4: with a common scale and minimum
BLOCK = 4 * VECTOR_WIDTH  # outputs of one packed panel: NR, the width of the register tile
# how numba compiles: sums in any order, so that loops are vectorized; NaN and Inf stay
NJIT_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
INTS, FLOATS = ir.VectorType(I32, VECTOR_WIDTH), ir.VectorType(ir.FloatType(), VECTOR_WIDTH)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's ``bfloat`` type, which llvmlite does not define."""

    def __str__(self) -> str:
        return "bfloat"


def has_feature(feature: str) -> bool:
    """Whether numba compiles for a CPU feature; the CPU itself may have more."""
    override = config.CPU_FEATURES
    return f"+{feature}" in (get_host_cpu_features() if override is None else override).split(",")


VNNI, BFLOAT16 = has_feature("avx512vnni"), has_feature("avx512bf16")


def constant_vector(value: int) -> Any:
    """An int32 vector with the same compile-time constant in each lane."""
    return ir.Constant(INTS, [value] * VECTOR_WIDTH)


def splat(b: Any, scalar: Any) -> Any:
    """An int32 vector with the same runtime value in each lane (a broadcast)."""
    undefined = ir.Constant(INTS, ir.Undefined)
    first_element = b.insert_element(undefined, scalar, I32(0))
    return b.shuffle_vector(first_element, undefined, constant_vector(0))


def dot_u8s8(b: Any, acc: Any, weights: Any, codes: Any) -> Any:
    """Add the dot product of four unsigned and four signed bytes to each int32 lane of ``acc``."""
    if VNNI:
        kind = ir.FunctionType(INTS, [INTS] * 3)
        call = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return b.call(call, [acc, weights, codes])
    # without VNNI: widen bytes to 16 bits, multiply, add neighbors; pmaddwd on x86
    pairs, wide = ir.VectorType(I16, 2 * VECTOR_WIDTH), ir.VectorType(I32, 2 * VECTOR_WIDTH)
    eight = ir.Constant(pairs, [8] * 2 * VECTOR_WIDTH)
    for shift in (0, 8):  # bytes 0 and 2 of each lane, then bytes 1 and 3
        unsigned = b.bitcast(
            b.and_(b.lshr(weights, constant_vector(shift)), constant_vector(0x00FF00FF)), pairs
        )
        signed = b.bitcast(codes, pairs)
        signed = b.ashr(signed if shift else b.shl(signed, eight), eight)
        products = b.mul(b.sext(unsigned, wide), b.sext(signed, wide))
        for first in (0, 1):
            every_second = ir.Constant(INTS, list(range(first, 2 * VECTOR_WIDTH, 2)))
            undefined = ir.Constant(wide, ir.Undefined)
            acc = b.add(acc, b.shuffle_vector(products, undefined, every_second))
    return acc


def dot_bf16(b: Any, acc: Any, weights: Any, values: Any) -> Any:
    """Add the dot product of two pairs of bfloat16 to each float32 lane of ``acc`` (vdpbf16ps)."""
    kind = ir.FunctionType(FLOATS, [FLOATS, INTS, INTS])
    call = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return b.call(call, [acc, weights, values])


def to_bf16(b: Any, value: Any) -> Any:
    """Round a float32 scalar or vector to bfloat16, to nearest even; returns the bits as int16."""
    vector = isinstance(value.type, ir.VectorType)
    kinds = (I16, I32, _BFloat())
    narrow, wide, bfloat = (ir.VectorType(k, VECTOR_WIDTH) if vector else k for k in kinds)
    if BFLOAT16:
        return b.bitcast(b.fptrunc(value, bfloat), narrow)

    def constant(number: int) -> Any:
        return ir.Constant(wide, [number] * VECTOR_WIDTH if vector else number)

    bits = b.bitcast(value, wide)
    odd = b.and_(b.lshr(bits, constant(16)), constant(1))
    return b.trunc(b.lshr(b.add(b.add(bits, constant(0x7FFF)), odd), constant(16)), narrow)


def pointers(b: Any, first: Any, stride: Any, count: int, kind: Any) -> list[Any]:
    """``count`` pointers to ``kind``, ``stride`` bytes between them, starting at ``first``."""
    return [
        b.inttoptr(b.add(first, b.mul(stride, I64(i))), kind.as_pointer()) for i in range(count)
    ]


def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z of float32 vectors, rounded once."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32"), [x, y, z])


def prefetch(b: Any, address: Any) -> None:
    """Prefetch the cache line at an address into the second-level cache."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    call = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    # read access, locality 2 (second-level cache), data cache
    b.call(call, [b.inttoptr(address, I8.as_pointer()), I32(0), I32(2), I32(1)])


def _unary_intrinsic(signature: Any, emit: Any) -> Any:
    """An intrinsic of one argument, emitted by ``emit(builder, value)``."""

    @intrinsic
    def function(context, value):
        return signature, lambda context, b, signature, values: emit(b, values[0])

    return function


def _call_address(b: Any, address: Any, result: Any) -> Any:
    return b.call(b.inttoptr(address, ir.FunctionType(result, []).as_pointer()), [])


def _call_void(b: Any, address: Any) -> Any:
    _call_address(b, address, ir.VoidType())
    return I64(0)


def _rint(b: Any, value: Any) -> Any:
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.rint.f32"), [value])


# addresses and C functions
pointer = _unary_intrinsic(types.voidptr(types.int64), lambda b, v: b.inttoptr(v, I8.as_pointer()))
call_int = _unary_intrinsic(
    types.int64(types.int64), lambda b, v: b.sext(_call_address(b, v, I32), I64)
)
call_void = _unary_intrinsic(types.int64(types.int64), _call_void)
# rounding and bits
rint = _unary_intrinsic(types.float32(types.float32), _rint)
bits_of = _unary_intrinsic(types.int32(types.float32), lambda b, v: b.bitcast(v, I32))
from_bits = _unary_intrinsic(types.float32(types.int32), lambda b, v: b.bitcast(v, ir.FloatType()))
# half precision: bits as uint16
float_to_bf16 = _unary_intrinsic(types.uint16(types.float32), lambda b, v: to_bf16(b, v))


@njit(nogil=True, error_model="numpy", fastmath={"contract"})  # the order of operations matters
def exp(x):
    """Cephes' expf, accurate to 2e-7, written so that a loop over it is vectorized."""
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays
    x = np.float32(88) if x > np.float32(88) else x
    # e^x = 2^n * e^r: n = round(x / ln 2), r = x - n ln 2 with ln 2 in two parts
    n = rint(x * np.float32(1.44269504))
    x = x - n * np.float32(0.693359375)
    x = x + n * np.float32(2.12194440e-4)
    # a polynomial for e^r
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1)
    # 2^n by writing n into the exponent bits
    return y * from_bits(np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def times(x, factor):
    """x * factor, and nothing else: with "reassoc" x * (a / b), with a quotient that many x have in
    common, is compiled to (x * a) / b, a division for each, which overflows where x * a does."""
    return x * factor


@njit(nogil=True)
def thread_index(t):
    """Index of this thread and number of threads; ``t`` has ``thread_num`` and ``num_threads``."""
    return (call_int(t.thread_num), call_int(t.num_threads)) if t.thread_num else (0, 1)


@njit(nogil=True)
def barrier_wait(t):
    """Wait until all threads have arrived here; ``t`` has ``barrier`` (openmp.py)."""
    if t.barrier:
        call_void(t.barrier)


@njit(nogil=True)
def bf16_to_float(bits):
    """Bits of bfloat16, uint16, to float32."""
    return from_bits(np.int32(np.int32(bits) << np.int32(16)))
