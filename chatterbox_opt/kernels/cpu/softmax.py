"""Softmax of rows of attention scores with AVX-512, in LLVM IR (flow_bf16.py).

Responsible for maxima, exponentials and rounding to bfloat16; not responsible for where scores
come from. Written in LLVM IR because LLVM does not use 512-bit vectors by itself on Intel CPUs.

exp(s - max) is computed as 2^x with x = (s - max) * log2(e). Let n = floor(x) and r = x - n: a
polynomial gives 2^r and the instruction vscalefps multiplies by 2^n; -inf gives exactly 0. The
division by the sum is left to the end, when the product with the values is scaled
(``scale_to_bf16``).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.llvm import FLOATS, I16, I32, I64, VECTOR_WIDTH, fma, splat, to_bf16
from chatterbox_opt.kernels.cpu.microkernels import ZEROS, loop

# 2^r for r in [0, 1), the highest power first: error 3e-6; coefficients fitted for this file
_EXP2_POLYNOMIAL = (0.0135341456, 0.0520114920, 0.2414427465, 0.6930038341, 1.0000025936)
_REDUCE_FLOOR = 9  # vreduceps immediate: x - floor(x), exceptions suppressed


def _constant(number: float) -> Any:
    return ir.Constant(FLOATS, [number] * VECTOR_WIDTH)


def _avx512(b: Any, name: str, x: Any, y: Any) -> Any:
    """An AVX-512 instruction of two operands, unmasked, in the current rounding mode."""
    operands = [x, y, x, ir.Constant(I16, -1), I32(4)]
    kind = ir.FunctionType(FLOATS, [value.type for value in operands])
    name = f"llvm.x86.avx512.mask.{name}.ps.512"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), operands)


def _exp2(b: Any, x: Any) -> Any:
    """2 to the power of each lane; 0 for -inf, and NaN stays."""
    fraction, y = _avx512(b, "reduce", x, I32(_REDUCE_FLOOR)), _constant(_EXP2_POLYNOMIAL[0])
    for coefficient in _EXP2_POLYNOMIAL[1:]:
        y = fma(b, y, fraction, _constant(coefficient))
    return _avx512(b, "scalef", y, x)


def _maximum(b: Any, x: Any, y: Any) -> Any:
    """The larger of each lane; y where x is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _reduce(b: Any, name: str, *operands: Any) -> Any:
    """Reduce a vector to a scalar: ``name`` is LLVM's, fmax or fadd."""
    kind = ir.FunctionType(ir.FloatType(), [value.type for value in operands])
    name = f"llvm.vector.reduce.{name}.v16f32"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), operands)


@intrinsic
def update_maxima(context, scores, blocks, maxima):
    """Replace each lane of ``maxima``, float32 [VECTOR_WIDTH], by the maximum of itself and that
    lane of the scores, float32 [blocks, BLOCK]."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, blocks, maxima = arguments
        vectors, stored = (b.inttoptr(address, FLOATS.as_pointer()) for address in (scores, maxima))

        def body(i: Any, tops: list[Any]) -> list[Any]:
            first = b.mul(i, I64(len(tops)))
            addresses = [b.gep(vectors, [b.add(first, I64(j))]) for j in range(len(tops))]
            loaded = [b.load(address, align=4) for address in addresses]
            return [_maximum(b, x, y) for x, y in zip(loaded, tops, strict=True)]

        first, second, third, fourth = loop(b, blocks, [b.load(stored, align=4)] * 4, body)
        top = _maximum(b, _maximum(b, first, second), _maximum(b, third, fourth))
        b.store(top, stored, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def exp_scores(context, scores, blocks, maxima, scale, out):
    """Softmax's numerators in bfloat16, 2^((scores - max) * scale) of float32 [blocks, BLOCK];
    returns their float32 sum. The maximum is that of the lanes of ``maxima``."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, blocks, maxima, scale, out = arguments
        top = _reduce(b, "fmax", b.load(b.inttoptr(maxima, FLOATS.as_pointer()), align=4))
        offset = b.fneg(b.fmul(top, scale))
        offset, scale = (
            b.bitcast(splat(b, b.bitcast(number, I32)), FLOATS) for number in (offset, scale)
        )
        vectors = b.inttoptr(scores, FLOATS.as_pointer())
        bf16_out = b.inttoptr(out, ir.VectorType(I16, VECTOR_WIDTH).as_pointer())

        def body(i: Any, sums: list[Any]) -> list[Any]:
            new_sums = []
            for j, total in enumerate(sums):
                index = b.add(b.mul(i, I64(len(sums))), I64(j))
                score = b.load(b.gep(vectors, [index]), align=4)
                power = _exp2(b, fma(b, score, scale, offset))
                b.store(to_bf16(b, power), b.gep(bf16_out, [index]), align=2)
                new_sums.append(b.fadd(total, power))
            return new_sums

        first, second, third, fourth = loop(b, blocks, [ZEROS] * 4, body)
        total = b.fadd(b.fadd(first, second), b.fadd(third, fourth))
        call = _reduce(b, "fadd", ir.Constant(ir.FloatType(), 0.0), total)
        call.fastmath.add("reassoc")
        return call

    arguments = (types.int64, types.int64, types.int64, types.float32, types.int64)
    return types.float32(*arguments), generate


@intrinsic
def scale_to_bf16(context, numbers, factor, vectors, out):
    """``vectors`` float32 vectors times ``factor``, rounded to bfloat16."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        numbers, factor, vectors, out = arguments
        factors = b.bitcast(splat(b, b.bitcast(factor, I32)), FLOATS)
        values = b.inttoptr(numbers, FLOATS.as_pointer())
        bf16_out = b.inttoptr(out, ir.VectorType(I16, VECTOR_WIDTH).as_pointer())

        def body(i: Any, _: list[Any]) -> list[Any]:
            product = b.fmul(b.load(b.gep(values, [i]), align=4), factors)
            b.store(to_bf16(b, product), b.gep(bf16_out, [i]), align=2)
            return []

        loop(b, vectors, [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), generate
