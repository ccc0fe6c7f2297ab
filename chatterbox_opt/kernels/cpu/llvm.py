"""What the compiled code is made of (compiled_*.py): vectors, bytes and bits, as LLVM has them.

Knows instructions. Knows nothing of matrices (microkernels.py), layers or threads.

Functions of a builder ``b`` emit LLVM's own language into what is being compiled; the names in
small letters at the end are for functions that numba compiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

VECTOR_WIDTH = 16  # outputs that one vector sums for
STEP = 4  # columns that one lane multiplies at a time
GROUP = 32  # columns whose codes are summed together; int4: they share a scale and a minimum
BLOCK = 4 * VECTOR_WIDTH  # outputs that are worked at together
# how numba compiles: sums in any order, so that loops become vectors; NaN and infinity stay
NJIT_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
INTS, FLOATS = ir.VectorType(I32, VECTOR_WIDTH), ir.VectorType(ir.FloatType(), VECTOR_WIDTH)


class _BFloat(ir.Type):  # type: ignore[misc]
    """What llvmlite's own language has no name for."""

    def __str__(self) -> str:
        return "bfloat"


def has(feature: str) -> bool:
    """Whether numba compiles for a feature; the processor may have more."""
    asked = config.CPU_FEATURES
    return f"+{feature}" in (get_host_cpu_features() if asked is None else asked).split(",")


VNNI, BFLOAT16 = has("avx512vnni"), has("avx512bf16")


def constant_vector(value: int) -> Any:
    """A vector of one int32."""
    return ir.Constant(INTS, [value] * VECTOR_WIDTH)


def splat(b: Any, scalar: Any) -> Any:
    """A vector of one int32 that is only known later."""
    nothing = ir.Constant(INTS, ir.Undefined)
    return b.shuffle_vector(b.insert_element(nothing, scalar, I32(0)), nothing, constant_vector(0))


def dot_u8s8(b: Any, total: Any, weights: Any, codes: Any) -> Any:
    """Add to each lane of int32 ``total`` four unsigned bytes times four signed ones."""
    if VNNI:
        kind = ir.FunctionType(INTS, [INTS] * 3)
        call = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return b.call(call, [total, weights, codes])
    pairs, wide = ir.VectorType(I16, 2 * VECTOR_WIDTH), ir.VectorType(I32, 2 * VECTOR_WIDTH)
    eight = ir.Constant(pairs, [8] * 2 * VECTOR_WIDTH)
    for shift in (0, 8):  # bytes 0 and 2, then 1 and 3, as 16-bit numbers: pmaddwd on x86
        unsigned = b.bitcast(
            b.and_(b.lshr(weights, constant_vector(shift)), constant_vector(0x00FF00FF)), pairs
        )
        signed = b.bitcast(codes, pairs)
        signed = b.ashr(signed if shift else b.shl(signed, eight), eight)
        both = b.mul(b.sext(unsigned, wide), b.sext(signed, wide))
        for first in (0, 1):
            half = ir.Constant(INTS, list(range(first, 2 * VECTOR_WIDTH, 2)))
            total = b.add(total, b.shuffle_vector(both, ir.Constant(wide, ir.Undefined), half))
    return total


def dot_bf16(b: Any, total: Any, weights: Any, values: Any) -> Any:
    """Add to each lane of float32 ``total`` two products of bfloat16 numbers."""
    kind = ir.FunctionType(FLOATS, [FLOATS, INTS, INTS])
    call = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return b.call(call, [total, weights, values])


def to_bf16(b: Any, value: Any) -> Any:
    """The bits of bfloat16, 16-bit integers, of one float32 or a vector, to nearest even."""
    vector = isinstance(value.type, ir.VectorType)
    kinds = (I16, I32, _BFloat())
    narrow, wide, half = (ir.VectorType(k, VECTOR_WIDTH) if vector else k for k in kinds)
    if BFLOAT16:
        return b.bitcast(b.fptrunc(value, half), narrow)

    def constant(number: int) -> Any:
        return ir.Constant(wide, [number] * VECTOR_WIDTH if vector else number)

    bits = b.bitcast(value, wide)
    odd = b.and_(b.lshr(bits, constant(16)), constant(1))
    return b.trunc(b.lshr(b.add(b.add(bits, constant(0x7FFF)), odd), constant(16)), narrow)


def pointers(b: Any, first: Any, stride: Any, count: int, kind: Any) -> list[Any]:
    """``count`` pointers to ``kind``, ``stride`` bytes apart, from address ``first`` on."""
    return [
        b.inttoptr(b.add(first, b.mul(stride, I64(i))), kind.as_pointer()) for i in range(count)
    ]


def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z of vectors of float32, rounded once."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32"), [x, y, z])


def prefetch(b: Any, address: Any) -> None:
    """Bring the 64 bytes at an address nearer."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    call = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    # to read, into the second-level cache, data
    b.call(call, [b.inttoptr(address, I8.as_pointer()), I32(0), I32(2), I32(1)])


def _simple(signature: Any, emit: Any) -> Any:
    """An intrinsic of one argument, emitted by ``emit(builder, value)``."""

    @intrinsic
    def function(context, value):
        return signature, lambda context, b, signature, values: emit(b, values[0])

    return function


def _called(b: Any, address: Any, result: Any) -> Any:
    return b.call(b.inttoptr(address, ir.FunctionType(result, []).as_pointer()), [])


def _wait_there(b: Any, address: Any) -> Any:
    _called(b, address, ir.VoidType())
    return I64(0)


def _round(b: Any, value: Any) -> Any:
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.rint.f32"), [value])


pointer = _simple(types.voidptr(types.int64), lambda b, v: b.inttoptr(v, I8.as_pointer()))
call_int = _simple(types.int64(types.int64), lambda b, v: b.sext(_called(b, v, I32), I64))
wait = _simple(types.int64(types.int64), _wait_there)
rint = _simple(types.float32(types.float32), _round)
bits_of = _simple(types.int32(types.float32), lambda b, v: b.bitcast(v, I32))
from_bits = _simple(types.float32(types.int32), lambda b, v: b.bitcast(v, ir.FloatType()))


float_to_bf16 = _simple(types.uint16(types.float32), lambda b, v: to_bf16(b, v))
float_to_half = _simple(
    types.uint16(types.float32), lambda b, v: b.bitcast(b.fptrunc(v, ir.HalfType()), I16)
)
half_to_float = _simple(
    types.float32(types.uint16), lambda b, v: b.fpext(b.bitcast(v, ir.HalfType()), ir.FloatType())
)


@njit(nogil=True, error_model="numpy", fastmath={"contract"})  # the order matters
def exp(x):
    """Cephes' expf, good to 2e-7, written so that a loop of it becomes vectors."""
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays
    x = np.float32(88) if x > np.float32(88) else x
    n = rint(x * np.float32(1.44269504))
    x = x - n * np.float32(0.693359375)
    x = x + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1)
    return y * from_bits(np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(nogil=True)
def thread_index(t):
    """Which thread this is, of how many (openmp.py): ``t`` has ``number`` and ``size``."""
    return (call_int(t.number), call_int(t.size)) if t.number else (0, 1)


@njit(nogil=True)
def barrier_wait(t):
    """Wait until all threads are here: ``t`` has ``barrier``."""
    if t.barrier:
        wait(t.barrier)


@njit(nogil=True)
def bf16_to_float(bits):
    """Bits of bfloat16, uint16, to float32."""
    return from_bits(np.int32(np.int32(bits) << np.int32(16)))
