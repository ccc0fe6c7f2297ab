"""The inner loops of products on a processor: a few rows times a block of outputs.

Knows registers. Knows nothing of layers or threads.

Such a loop has to keep all its sums in registers and to use one instruction where the processor has
VNNI or bfloat16, which no compiler finds by itself: it is written in LLVM's own language. Where
there is no VNNI, bytes are widened to 16 bits first, exactly too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.llvm import (
    BLOCK,
    FLOATS,
    GROUP,
    I16,
    I32,
    I64,
    INTS,
    STEP,
    VECTOR_WIDTH,
    constant_vector,
    dot_bf16,
    dot_u8s8,
    fma,
    pointers,
    prefetch,
    splat,
    to_bf16,
)

NOTHING = ir.Constant(FLOATS, [0.0] * VECTOR_WIDTH)


def loop(b: Any, times: Any, starts: list[Any], body: Any) -> list[Any]:
    """Run ``body(i, values)`` so often, at least once, values in registers; return the last."""
    before, again = b.block, b.append_basic_block("again")
    done = b.append_basic_block("done")
    b.branch(again)
    b.position_at_end(again)
    i, values = b.phi(I64), [b.phi(start.type) for start in starts]
    after = body(i, values)
    following = b.add(i, I64(1))
    for phi, first, then in zip((i, *values), (I64(0), *starts), (following, *after), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, again)
    b.cbranch(b.icmp_signed("<", following, times), again, done)
    b.position_at_end(done)
    return after


def _loaded(b: Any, vectors: Any, i: Any, blocks: int) -> list[Any]:
    """The ``i``-th vector of each block: they lie side by side, so that all is read in a row."""
    first = b.mul(i, I64(blocks))
    return [b.load(b.gep(vectors, [b.add(first, I64(j))]), align=1) for j in range(blocks)]


def _add_products(
    b: Any, sums: list[Any], weights: list[Any], rows: list[Any], i: Any, dot: Any
) -> list[Any]:
    """Sums [rows * blocks] plus what a vector of each block gives with the rows' ``i``-th bytes."""
    added = []
    for row, p in enumerate(rows):
        four = splat(b, b.load(b.gep(p, [i]), align=4))
        mine = sums[row * len(weights) : (row + 1) * len(weights)]
        added += [dot(b, total, w, four) for total, w in zip(mine, weights, strict=True)]
    return added


def _store(b: Any, values: list[Any], rows: int, out: Any, apart: Any) -> None:
    blocks = len(values) // rows
    for row, p in enumerate(pointers(b, out, apart, rows, values[0].type)):
        for j in range(blocks):
            b.store(values[row * blocks + j], b.gep(p, [I64(j)]), align=4)


def _sums(b: Any, tile: tuple[int, int], dot: Any, nothing: Any, arguments: Any) -> list[Any]:
    """Rows and blocks of a tile: the sums [rows * blocks] of its first arguments, see ``_tile``."""
    rows, blocks = tile
    weights, size, values, ahead = arguments
    vectors = b.inttoptr(weights, INTS.as_pointer())
    scalars = pointers(b, values, size, rows, I32)

    def body(i: Any, sums: list[Any]) -> list[Any]:
        if rows > 2:
            prefetch(b, b.add(ahead, b.shl(i, I64(6))))
        return _add_products(b, sums, _loaded(b, vectors, i, blocks), scalars, i, dot)

    return loop(b, b.sdiv(size, I64(STEP)), [nothing] * (rows * blocks), body)


def _tile(rows: int, blocks: int, dot: Any, nothing: Any) -> Any:
    """Make a function: rows times ``blocks`` times 16 outputs, each of 4 bytes.

    Its arguments, addresses and sizes: weights, of which 64 bytes are 4 bytes of each of 16
    outputs, blocks side by side; bytes of a row, and of the weights of an output; rows; where what
    comes next lies: of it as much as one block is brought into the cache, but for a row or two,
    which go through the weights once and leave no time for it; where to put the outputs of the
    first row, and how many bytes further on those of the next.
    """

    @intrinsic
    def tile(context, weights, size, values, ahead, out, apart):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            *given, out, apart = arguments
            _store(b, _sums(b, (rows, blocks), dot, nothing, given), rows, out, apart)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


def _scores_tile(rows: int, blocks: int) -> Any:
    """The same of bfloat16, and the largest so far: one more argument, float32 [rows, LANES], of
    which each is replaced by what is larger among its row's outputs there. NaN counts for nothing.
    """

    @intrinsic
    def tile(context, weights, size, values, ahead, out, apart, highest):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            *given, out, apart, highest = arguments
            sums = _sums(b, (rows, blocks), dot_bf16, NOTHING, given)
            _store(b, sums, rows, out, apart)
            for row, p in enumerate(pointers(b, highest, I64(4 * VECTOR_WIDTH), rows, FLOATS)):
                most = b.load(p, align=4)
                for new in sums[row * blocks : (row + 1) * blocks]:
                    most = b.select(b.fcmp_ordered(">", new, most), new, most)
                b.store(most, p, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


def _bf16_output_tile(rows: int, blocks: int) -> Any:
    """The same from bytes to finished bfloat16: (sum - zero) * factor * scale + bias.

    More arguments: scales, float32 of each row; sums, int32 of each row, of which 128 times as much
    is the zero, and the bytes from one to the next; factors and bias, float32 of each output.
    """

    @intrinsic
    def tile(  # noqa: PLR0913 - LLVM knows no records
        context, weights, size, values, ahead, out, apart, scales, sums, sums_apart, factors, bias
    ):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            *given, out, apart, scales, sums, sums_apart, factors, bias = arguments
            columns = (factors, bias)
            counts = _sums(b, (rows, blocks), dot_u8s8, constant_vector(0), given)
            factors, bias = (
                [
                    b.load(p, align=4)
                    for p in pointers(b, column, I64(4 * VECTOR_WIDTH), blocks, FLOATS)
                ]
                for column in columns
            )
            outs = pointers(b, out, apart, rows, ir.VectorType(I16, VECTOR_WIDTH))
            rows_of = (
                pointers(b, scales, I64(4), rows, I32),
                pointers(b, sums, sums_apart, rows, I32),
            )
            for row, (scale, total) in enumerate(zip(*rows_of, strict=True)):
                zero = splat(b, b.shl(b.load(total, align=4), I32(7)))
                factor = b.bitcast(splat(b, b.load(scale, align=4)), FLOATS)
                for j in range(blocks):
                    counted = b.sitofp(b.sub(counts[row * blocks + j], zero), FLOATS)
                    made = fma(b, b.fmul(counted, factors[j]), factor, bias[j])
                    b.store(to_bf16(b, made), b.gep(outs[row], [I64(j)]), align=2)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return tile


def _int4_tile(rows: int, blocks: int) -> Any:
    """The same from nibbles, scaled by group: float32 [rows, BLOCK].

    Its arguments: weights, scales, padded columns, codes, the int32 sums of their groups, whose
    rows are one longer than there are groups, where to put it, and what comes next. 64 bytes are
    4 columns, the low nibbles, and those 16 further on.
    """

    @intrinsic
    def tile(context, weights, scales, padded, codes, sums, out, ahead):
        halves = ir.VectorType(I16, VECTOR_WIDTH)

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, scales, padded, codes, sums, out, ahead = arguments
            groups = b.sdiv(padded, I64(GROUP))
            vectors = b.inttoptr(weights, INTS.as_pointer())
            pairs = pointers(b, scales, b.mul(groups, I64(4 * VECTOR_WIDTH)), blocks, halves)
            scalars = pointers(b, codes, padded, rows, I32)
            stride = b.mul(b.add(groups, I64(1)), I64(4))
            added = pointers(b, sums, stride, rows, I32)

            def widen(p: Any, i: Any) -> Any:  # bfloat16 is the upper half of float32
                bits = b.zext(b.load(b.gep(p, [i]), align=2), INTS)
                return b.bitcast(b.shl(bits, constant_vector(16)), FLOATS)

            def body(group: Any, totals: list[Any]) -> list[Any]:
                counts = [constant_vector(0)] * (rows * blocks)
                for step in range(4):
                    i = b.add(b.shl(group, I64(2)), I64(step))
                    prefetch(b, b.add(ahead, b.shl(i, I64(6))))
                    loaded = _loaded(b, vectors, i, blocks)
                    low = [b.and_(w, constant_vector(0x0F0F0F0F)) for w in loaded]
                    high = [
                        b.and_(b.lshr(w, constant_vector(4)), constant_vector(0x0F0F0F0F))
                        for w in loaded
                    ]
                    for nibbles, at in ((low, step), (high, step + 4)):
                        i = b.add(b.shl(group, I64(3)), I64(at))
                        counts = _add_products(b, counts, nibbles, scalars, i, dot_u8s8)
                twice = b.shl(group, I64(1))
                scale = [widen(p, twice) for p in pairs]
                least = [widen(p, b.add(twice, I64(1))) for p in pairs]
                after = []
                for row, p in enumerate(added):
                    total = b.sitofp(splat(b, b.load(b.gep(p, [group]), align=4)), FLOATS)
                    for j in range(blocks):
                        at = row * blocks + j
                        counted = b.sitofp(counts[at], FLOATS)
                        old = fma(b, least[j], total, totals[at])
                        after.append(fma(b, scale[j], counted, old))
                return after

            sums = loop(b, groups, [NOTHING] * (rows * blocks), body)
            _store(b, sums, rows, out, I64(4 * BLOCK))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


# 24 of 32 registers hold sums at most; a block of nibbles is worked at by halves
dot_u8s8_r1, dot_u8s8_r2, dot_u8s8_r4, dot_u8s8_r6 = (
    _tile(rows, BLOCK // VECTOR_WIDTH, dot_u8s8, constant_vector(0)) for rows in (1, 2, 4, 6)
)
dot_bf16_r6, dot_bf16_r6_short = (  # short ones give half a BLOCK of outputs
    _tile(6, blocks, dot_bf16, NOTHING) for blocks in (4, 2)
)
scores_r6 = _scores_tile(6, BLOCK // VECTOR_WIDTH)
dot_u8s8_bf16_r1, dot_u8s8_bf16_r2, dot_u8s8_bf16_r4, dot_u8s8_bf16_r6 = (
    _bf16_output_tile(rows, BLOCK // VECTOR_WIDTH) for rows in (1, 2, 4, 6)
)
dot_s4_r1, dot_s4_r2, dot_s4_r4, dot_s4_r6 = (
    _int4_tile(rows, BLOCK // VECTOR_WIDTH // 2) for rows in (1, 2, 4, 6)
)
