"""Softmax of a row of scores, in vectors as wide as the processor has (flow_bf16.py).

Knows exponentials and bfloat16. Knows nothing of where scores come from. It is written in LLVM's
own language because a compiler is shy of the widest vectors on Intel's processors.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.llvm import FLOATS, I16, I32, I64, VECTOR_WIDTH, fma, splat, to_bf16
from chatterbox_opt.kernels.cpu.microkernels import NOTHING, loop

# 2 to the power of a number from 0 to 1, the highest power first: 3e-6 off; fitted here
_SERIES = (0.0135341456, 0.0520114920, 0.2414427465, 0.6930038341, 1.0000025936)
_ABOVE_FLOOR = 9  # of a number: what is above the next lower whole one; and no exception


def _constant(number: float) -> Any:
    return ir.Constant(FLOATS, [number] * VECTOR_WIDTH)


def _instruction(b: Any, name: str, x: Any, y: Any) -> Any:
    """One of AVX-512's, of all lanes, rounding as usual."""
    given = [x, y, x, ir.Constant(I16, -1), I32(4)]
    kind = ir.FunctionType(FLOATS, [value.type for value in given])
    name = f"llvm.x86.avx512.mask.{name}.ps.512"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), given)


def _power(b: Any, x: Any) -> Any:
    """2 to the power of each lane; 0 of minus infinity, and NaN stays."""
    rest, y = _instruction(b, "reduce", x, I32(_ABOVE_FLOOR)), _constant(_SERIES[0])
    for coefficient in _SERIES[1:]:
        y = fma(b, y, rest, _constant(coefficient))
    return _instruction(b, "scalef", y, x)


def _higher(b: Any, x: Any, y: Any) -> Any:
    """NaN counts for nothing."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _reduced(b: Any, name: str, *given: Any) -> Any:
    kind = ir.FunctionType(ir.FloatType(), [value.type for value in given])
    name = f"llvm.vector.reduce.{name}.v16f32"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), given)


@intrinsic
def highest(context, scores, blocks, most):
    """Replace each lane of ``most``, float32 [LANES], by what is higher in some of float32
    [blocks, BLOCK]."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, blocks, most = arguments
        vectors, kept = (b.inttoptr(place, FLOATS.as_pointer()) for place in (scores, most))

        def body(i: Any, tops: list[Any]) -> list[Any]:
            first = b.mul(i, I64(len(tops)))
            places = [b.gep(vectors, [b.add(first, I64(j))]) for j in range(len(tops))]
            given = [b.load(place, align=4) for place in places]
            return [_higher(b, x, y) for x, y in zip(given, tops, strict=True)]

        first, second, third, fourth = loop(b, blocks, [b.load(kept, align=4)] * 4, body)
        b.store(_higher(b, _higher(b, first, second), _higher(b, third, fourth)), kept, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def shares(context, scores, blocks, most, scale, out):
    """Softmax's numerators, 2 ** ((scores - top) * scale), of float32 [blocks, BLOCK] in bfloat16;
    returned is their sum. The top is the highest lane of ``most``, float32 [LANES]."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, blocks, most, scale, out = arguments
        top = _reduced(b, "fmax", b.load(b.inttoptr(most, FLOATS.as_pointer()), align=4))
        below = b.fneg(b.fmul(top, scale))
        below, scale = (
            b.bitcast(splat(b, b.bitcast(number, I32)), FLOATS) for number in (below, scale)
        )
        vectors = b.inttoptr(scores, FLOATS.as_pointer())
        halves = b.inttoptr(out, ir.VectorType(I16, VECTOR_WIDTH).as_pointer())

        def body(i: Any, sums: list[Any]) -> list[Any]:
            after = []
            for j, total in enumerate(sums):
                at = b.add(b.mul(i, I64(len(sums))), I64(j))
                given = b.load(b.gep(vectors, [at]), align=4)
                made = _power(b, fma(b, given, scale, below))
                b.store(to_bf16(b, made), b.gep(halves, [at]), align=2)
                after.append(b.fadd(total, made))
            return after

        first, second, third, fourth = loop(b, blocks, [NOTHING] * 4, body)
        total = b.fadd(b.fadd(first, second), b.fadd(third, fourth))
        call = _reduced(b, "fadd", ir.Constant(ir.FloatType(), 0.0), total)
        call.fastmath.add("reassoc")
        return call

    given = (types.int64, types.int64, types.int64, types.float32, types.int64)
    return types.float32(*given), generate


@intrinsic
def scaled(context, numbers, factor, vectors, out):
    """So many vectors of float32 times ``factor``, in bfloat16."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        numbers, factor, vectors, out = arguments
        by = b.bitcast(splat(b, b.bitcast(factor, I32)), FLOATS)
        given = b.inttoptr(numbers, FLOATS.as_pointer())
        halves = b.inttoptr(out, ir.VectorType(I16, VECTOR_WIDTH).as_pointer())

        def body(i: Any, _: list[Any]) -> list[Any]:
            made = b.fmul(b.load(b.gep(given, [i]), align=4), by)
            b.store(to_bf16(b, made), b.gep(halves, [i]), align=2)
            return []

        loop(b, vectors, [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), generate
