"""What the compiled code is made of (compiled_*.py): vectors, bytes and bits, as LLVM has them.

Knows instructions. Knows nothing of matrices, layers or threads.

The inner loop of an integer product has to stay in registers and to use one instruction where the
processor has VNNI, which no compiler finds by itself: it is written in LLVM's own language.
Elsewhere bytes are widened to 16 bits first, exactly too.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

LANES = 16  # outputs that one vector sums for
STEP = 4  # columns that one lane multiplies at a time
GROUP = 32  # columns whose codes are summed together; int4: they share a scale and a minimum
BLOCK = 4 * LANES  # outputs that are worked at together

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_INTS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(ir.FloatType(), LANES)


class _BFloat(ir.Type):  # type: ignore[misc]
    """What llvmlite's own language has no name for."""

    def __str__(self) -> str:
        return "bfloat"


def _has(feature: str) -> bool:
    asked = config.CPU_FEATURES  # numba's own setting, for trying other processors
    if asked is not None:
        return f"+{feature}" in asked
    return bool(llvmlite.binding.get_host_cpu_features().get(feature))


VNNI, BFLOAT16 = _has("avx512vnni"), _has("avx512bf16")


def _every(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


def _splat(b: Any, scalar: Any) -> Any:
    nothing = ir.Constant(_INTS, ir.Undefined)
    return b.shuffle_vector(b.insert_element(nothing, scalar, _I32(0)), nothing, _every(0))


def _dot_bytes(b: Any, total: Any, weights: Any, codes: Any) -> Any:
    """Add to each lane of int32 ``total`` four unsigned bytes times four signed ones."""
    if VNNI:
        kind = ir.FunctionType(_INTS, [_INTS] * 3)
        call = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return b.call(call, [total, weights, codes])
    pairs, wide = ir.VectorType(_I16, 2 * LANES), ir.VectorType(_I32, 2 * LANES)
    eight = ir.Constant(pairs, [8] * 2 * LANES)
    for shift in (0, 8):  # bytes 0 and 2, then 1 and 3, as 16-bit numbers: pmaddwd on x86
        unsigned = b.bitcast(b.and_(b.lshr(weights, _every(shift)), _every(0x00FF00FF)), pairs)
        signed = b.bitcast(codes, pairs)
        signed = b.ashr(signed if shift else b.shl(signed, eight), eight)
        both = b.mul(b.sext(unsigned, wide), b.sext(signed, wide))
        for first in (0, 1):
            half = ir.Constant(_INTS, list(range(first, 2 * LANES, 2)))
            total = b.add(total, b.shuffle_vector(both, ir.Constant(wide, ir.Undefined), half))
    return total


def _dot_halves(b: Any, total: Any, weights: Any, values: Any) -> Any:
    """Add to each lane of float32 ``total`` two products of bfloat16 numbers."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _INTS, _INTS])
    call = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return b.call(call, [total, weights, values])


def _pointers(b: Any, first: Any, stride: Any, count: int, kind: Any) -> list[Any]:
    return [
        b.inttoptr(b.add(first, b.mul(stride, _I64(i))), kind.as_pointer()) for i in range(count)
    ]


def _prefetch(b: Any, address: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    call = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    # to read, into the second-level cache, data
    b.call(call, [b.inttoptr(address, _I8.as_pointer()), _I32(0), _I32(2), _I32(1)])


def _loop(b: Any, times: Any, starts: list[Any], body: Any) -> list[Any]:
    """Run ``body(i, values)`` so often, at least once, values in registers; return the last."""
    before, again = b.block, b.append_basic_block("again")
    done = b.append_basic_block("done")
    b.branch(again)
    b.position_at_end(again)
    i, values = b.phi(_I64), [b.phi(start.type) for start in starts]
    after = body(i, values)
    following = b.add(i, _I64(1))
    for phi, first, then in zip((i, *values), (_I64(0), *starts), (following, *after), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, again)
    b.cbranch(b.icmp_signed("<", following, times), again, done)
    b.position_at_end(done)
    return after


def _add_products(
    b: Any, sums: list[Any], weights: list[Any], rows: list[Any], i: Any, dot: Any
) -> list[Any]:
    """Sums [rows * blocks] plus what a vector of each block gives with the rows' ``i``-th bytes."""
    added = []
    for row, p in enumerate(rows):
        four = _splat(b, b.load(b.gep(p, [i]), align=4))
        mine = sums[row * len(weights) : (row + 1) * len(weights)]
        added += [dot(b, total, w, four) for total, w in zip(mine, weights, strict=True)]
    return added


def _store(b: Any, values: list[Any], rows: int, out: Any, apart: Any) -> None:
    blocks = len(values) // rows
    for row, p in enumerate(_pointers(b, out, apart, rows, values[0].type)):
        for j in range(blocks):
            b.store(values[row * blocks + j], b.gep(p, [_I64(j)]), align=4)


def _tile(rows: int, blocks: int, dot: Any, nothing: Any) -> Any:
    """Make a function: rows times ``blocks`` times 16 outputs, each of 4 bytes.

    Its arguments, addresses and sizes: weights, of which 64 bytes are 4 bytes of each of 16
    outputs; bytes of a row, and of the weights of an output; rows; where to put the outputs of the
    first row, and how many bytes further on those of the next; and where what comes next lies: of
    it as much as one block is brought into the cache, but for a row or two, which go through the
    weights once and leave no time for it.
    """

    @intrinsic
    def tile(context, weights, size, values, out, apart, ahead):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, size, values, out, apart, ahead = arguments
            vectors = _pointers(b, weights, b.mul(size, _I64(LANES)), blocks, _INTS)
            scalars = _pointers(b, values, size, rows, _I32)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                if rows > 2:
                    _prefetch(b, b.add(ahead, b.shl(i, _I64(6))))
                loaded = [b.load(b.gep(p, [i]), align=1) for p in vectors]
                return _add_products(b, sums, loaded, scalars, i, dot)

            times = b.sdiv(size, _I64(STEP))
            _store(b, _loop(b, times, [nothing] * (rows * blocks), body), rows, out, apart)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


def _halves_tile(rows: int, blocks: int) -> Any:
    """The same from bytes to finished bfloat16: (sum - zero) * factor * scale + bias.

    More arguments: scales, float32 of each row; sums, int32 of each row, of which 128 times as much
    is the zero, and the bytes from one to the next; factors and bias, float32 of each output.
    """

    @intrinsic
    def tile(  # noqa: PLR0913 - LLVM knows no records
        context, weights, size, values, out, apart, ahead, scales, sums, sums_apart, factors, bias
    ):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, size, values, out, apart, ahead, scales, sums, sums_apart, *columns = arguments
            vectors = _pointers(b, weights, b.mul(size, _I64(LANES)), blocks, _INTS)
            scalars = _pointers(b, values, size, rows, _I32)

            def body(i: Any, counts: list[Any]) -> list[Any]:
                _prefetch(b, b.add(ahead, b.shl(i, _I64(6))))
                loaded = [b.load(b.gep(p, [i]), align=1) for p in vectors]
                return _add_products(b, counts, loaded, scalars, i, _dot_bytes)

            times = b.sdiv(size, _I64(STEP))
            counts = _loop(b, times, [_every(0)] * (rows * blocks), body)
            kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
            fma = cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32")
            factors, bias = (
                [b.load(p, align=4) for p in _pointers(b, column, _I64(4 * LANES), blocks, _FLOATS)]
                for column in columns
            )
            halves = ir.VectorType(_BFloat(), LANES)
            outs = _pointers(b, out, apart, rows, halves)
            rows_of = (
                _pointers(b, scales, _I64(4), rows, _I32),
                _pointers(b, sums, sums_apart, rows, _I32),
            )
            for row, (scale, total) in enumerate(zip(*rows_of, strict=True)):
                zero = _splat(b, b.shl(b.load(total, align=4), _I32(7)))
                factor = b.bitcast(_splat(b, b.load(scale, align=4)), _FLOATS)
                for j in range(blocks):
                    counted = b.sitofp(b.sub(counts[row * blocks + j], zero), _FLOATS)
                    made = b.call(fma, [b.fmul(counted, factors[j]), factor, bias[j]])
                    b.store(b.fptrunc(made, halves), b.gep(outs[row], [_I64(j)]), align=2)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return tile


def _nibbles_tile(rows: int, blocks: int) -> Any:
    """The same from nibbles, scaled by group: float32 [rows, BLOCK].

    Two more arguments: scales, and the int32 sums of groups of codes, whose rows are one longer
    than there are groups. 64 bytes are 4 columns, the low nibbles, and those 16 further on.
    """

    @intrinsic
    def tile(context, weights, scales, padded, codes, sums, out, ahead):
        halves = ir.VectorType(_I16, LANES)

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, scales, padded, codes, sums, out, ahead = arguments
            groups = b.sdiv(padded, _I64(GROUP))
            vectors = _pointers(b, weights, b.mul(padded, _I64(LANES // 2)), blocks, _INTS)
            pairs = _pointers(b, scales, b.mul(groups, _I64(4 * LANES)), blocks, halves)
            scalars = _pointers(b, codes, padded, rows, _I32)
            stride = b.mul(b.add(groups, _I64(1)), _I64(4))
            added = _pointers(b, sums, stride, rows, _I32)
            kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
            fma = cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32")

            def widen(p: Any, i: Any) -> Any:  # bfloat16 is the upper half of float32
                bits = b.zext(b.load(b.gep(p, [i]), align=2), _INTS)
                return b.bitcast(b.shl(bits, _every(16)), _FLOATS)

            def body(group: Any, totals: list[Any]) -> list[Any]:
                counts = [_every(0)] * (rows * blocks)
                for step in range(4):
                    i = b.add(b.shl(group, _I64(2)), _I64(step))
                    _prefetch(b, b.add(ahead, b.shl(i, _I64(6))))
                    loaded = [b.load(b.gep(p, [i]), align=1) for p in vectors]
                    low = [b.and_(w, _every(0x0F0F0F0F)) for w in loaded]
                    high = [b.and_(b.lshr(w, _every(4)), _every(0x0F0F0F0F)) for w in loaded]
                    for nibbles, at in ((low, step), (high, step + 4)):
                        i = b.add(b.shl(group, _I64(3)), _I64(at))
                        counts = _add_products(b, counts, nibbles, scalars, i, _dot_bytes)
                twice = b.shl(group, _I64(1))
                scale = [widen(p, twice) for p in pairs]
                least = [widen(p, b.add(twice, _I64(1))) for p in pairs]
                after = []
                for row, p in enumerate(added):
                    total = b.sitofp(_splat(b, b.load(b.gep(p, [group]), align=4)), _FLOATS)
                    for j in range(blocks):
                        at = row * blocks + j
                        counted = b.sitofp(counts[at], _FLOATS)
                        after.append(
                            b.call(
                                fma, [scale[j], counted, b.call(fma, [least[j], total, totals[at]])]
                            )
                        )
                return after

            nothing = ir.Constant(_FLOATS, [0.0] * LANES)
            sums = _loop(b, groups, [nothing] * (rows * blocks), body)
            _store(b, sums, rows, out, _I64(4 * BLOCK))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


# 24 of 32 registers hold sums at most; a block of nibbles is worked at by halves
bytes_1, bytes_2, bytes_4, bytes_6 = (
    _tile(rows, BLOCK // LANES, _dot_bytes, _every(0)) for rows in (1, 2, 4, 6)
)
halves_6, halves_6_short = (  # short ones give half a BLOCK of outputs
    _tile(6, blocks, _dot_halves, ir.Constant(_FLOATS, [0.0] * LANES)) for blocks in (4, 2)
)
finished_1, finished_2, finished_4, finished_6 = (
    _halves_tile(rows, BLOCK // LANES) for rows in (1, 2, 4, 6)
)
nibbles_1, nibbles_2, nibbles_4, nibbles_6 = (
    _nibbles_tile(rows, BLOCK // LANES // 2) for rows in (1, 2, 4, 6)
)


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
    return _I64(0)


def _round(b: Any, value: Any) -> Any:
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.rint.f32"), [value])


pointer = _simple(types.voidptr(types.int64), lambda b, v: b.inttoptr(v, _I8.as_pointer()))
asked = _simple(types.int64(types.int64), lambda b, v: b.sext(_called(b, v, _I32), _I64))
wait = _simple(types.int64(types.int64), _wait_there)
rint = _simple(types.float32(types.float32), _round)
bits_of = _simple(types.int32(types.float32), lambda b, v: b.bitcast(v, _I32))
of_bits = _simple(types.float32(types.int32), lambda b, v: b.bitcast(v, ir.FloatType()))


rounded = _simple(
    types.uint16(types.float32), lambda b, v: b.bitcast(b.fptrunc(v, _BFloat()), _I16)
)
narrowed = _simple(
    types.uint16(types.float32), lambda b, v: b.bitcast(b.fptrunc(v, ir.HalfType()), _I16)
)
widened = _simple(
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
    return y * of_bits(np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(nogil=True)
def place(t):
    """Which thread this is, of how many (team.py): ``t`` has ``number`` and ``size``."""
    return (asked(t.number), asked(t.size)) if t.number else (0, 1)


@njit(nogil=True)
def settle(t):
    """Wait until all threads are here: ``t`` has ``barrier``."""
    if t.barrier:
        wait(t.barrier)


@njit(nogil=True)
def exact(bits):
    """Bits of bfloat16, uint16, to float32."""
    return of_bits(np.int32(np.int32(bits) << np.int32(16)))
