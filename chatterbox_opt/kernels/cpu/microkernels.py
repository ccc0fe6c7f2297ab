"""Micro-kernels: the register-tiled inner loops of matrix products on a CPU, in LLVM IR.

Responsible for one register tile; not responsible for layers, threads or which tile comes next.

The algorithm
-------------
All products here are out[rows, outputs] = x[rows, K] * weights[outputs, K]^T with few rows. As in
BLIS, the innermost kernel computes one register tile of MR rows times NR outputs, with all of its
sums in registers for the whole of K:

                       NR = 64 outputs = 4 vectors of 16 lanes
              w0 [16 x i32]  w1 [16 x i32]  w2 [16 x i32]  w3 [16 x i32]   <- 4 loads per step
    row 0 a0     acc00          acc01          acc02          acc03
    row 1 a1     acc10          acc11          acc12          acc13         24 accumulators
    ...                                                                      + 4 weights
    row 5 a5     acc50          acc51          acc52          acc53         + 1 broadcast <= 32

One step consumes 4 bytes of K (4 int8 or 2 bfloat16 columns): load four weight vectors, broadcast
4 bytes of each row, and issue 6 * 4 dot-product instructions, each on an accumulator of its own.
The instruction has a latency of several cycles; 24 independent sums hide it, and each weight
vector that was loaded is used six times. MR is 1, 2, 4 or 6; NR is 64 (32 for int4, which has
12 int32 sums of the current group of columns and 12 float32 sums of all groups).

Packed weights
--------------
A vector load must yield 4 consecutive columns of each of 16 outputs, so weights are stored in
panels of 64 outputs. For int8, output o and column k are at byte

    ((o // 64 * (K // 4) + k // 4) * 64 + o % 64) * 4 + k % 4

Example: the first 64 bytes of a panel are columns 0..3 of output 0, columns 0..3 of output 1, ...,
columns 0..3 of output 15: one vector. Three more vectors hold outputs 16..63; then come columns
4..7. A tile reads its panel from front to back, the pattern of a hardware prefetcher.

Numbers. VNNI's vpdpbusd multiplies unsigned by signed bytes. Activations are signed; weights are
stored as w + 128, and sum((w + 128) * x) = sum(w * x) + 128 * sum(x) is corrected afterwards with
the row's sum of codes. Sums are int32, hence exact, and independent of MR.

Why LLVM IR. No compiler keeps 24 sums in registers and forms vpdpbusd or vdpbf16ps from a scalar
loop by itself. Without VNNI, bytes are widened to 16 bits first, with the same exact result.

Limits. With one or two rows each weight byte is used once or twice: memory bandwidth is the limit,
and the panel streams through once, prefetched a little ahead. With six rows and more the
instruction rate is; other tiles then reuse the panel from the cache, and meanwhile each tile
prefetches a part of the next panel.
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
    VECTOR_WIDTH,
    VNNI_FACTOR,
    constant_vector,
    dot_bf16,
    dot_u8s8,
    fma,
    pointers,
    prefetch,
    splat,
    to_bf16,
)

# bytes that a tile of one or two rows prefetches ahead of what it loads; a hardware prefetcher
# stops at the end of each page of 4 KiB
PREFETCH_DISTANCE = 2048
ZEROS = ir.Constant(FLOATS, [0.0] * VECTOR_WIDTH)


def loop(b: Any, count: Any, initial: list[Any], body: Any) -> list[Any]:
    """Emit ``count`` iterations, at least one, of ``values = body(i, values)``; return the last.

    The values are phi nodes, so they stay in registers. A body may emit a loop of its own.
    """
    before, header = b.block, b.append_basic_block("loop")
    done = b.append_basic_block("done")
    b.branch(header)
    b.position_at_end(header)
    i, values = b.phi(I64), [b.phi(value.type) for value in initial]
    results = body(i, values)
    following, end = b.add(i, I64(1)), b.block
    for phi, first, new in zip(
        (i, *values), (I64(0), *initial), (following, *results), strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(new, end)
    b.cbranch(b.icmp_signed("<", following, count), header, done)
    b.position_at_end(done)
    return results


def _load_weights(b: Any, panel: Any, i: Any, blocks: int) -> list[Any]:
    """The ``blocks`` vectors of step ``i``; they are contiguous in the panel."""
    first = b.mul(i, I64(blocks))
    return [b.load(b.gep(panel, [b.add(first, I64(j))]), align=1) for j in range(blocks)]


def _accumulate(
    b: Any, acc: list[Any], weights: list[Any], rows: list[Any], i: Any, dot: Any
) -> list[Any]:
    """One step of the tile: acc [rows * blocks] plus weights times 4 bytes of each row."""
    result = []
    for row, p in enumerate(rows):
        broadcast = splat(b, b.load(b.gep(p, [i]), align=4))
        row_acc = acc[row * len(weights) : (row + 1) * len(weights)]
        result += [dot(b, old, w, broadcast) for old, w in zip(row_acc, weights, strict=True)]
    return result


def _store(b: Any, values: list[Any], rows: int, out: Any, out_stride: Any) -> None:
    """Store a tile of 4-byte values, ``out_stride`` bytes from row to row."""
    blocks = len(values) // rows
    for row, p in enumerate(pointers(b, out, out_stride, rows, values[0].type)):
        for j in range(blocks):
            b.store(values[row * blocks + j], b.gep(p, [I64(j)]), align=4)


def _tile_sums(b: Any, tile: tuple[int, int], dot: Any, zero: Any, arguments: Any) -> list[Any]:
    """The sums [rows * blocks] of a tile (rows, blocks); for ``arguments`` see ``_microkernel``."""
    rows, blocks = tile
    weights, size, values, next_panel = arguments
    panel = b.inttoptr(weights, INTS.as_pointer())
    row_pointers = pointers(b, values, size, rows, I32)

    def body(i: Any, acc: list[Any]) -> list[Any]:
        if rows > 2:
            prefetch(b, b.add(next_panel, b.shl(i, I64(6))))
        else:
            ahead = b.add(weights, b.add(b.mul(i, I64(64 * blocks)), I64(PREFETCH_DISTANCE)))
            for j in range(blocks):
                prefetch(b, b.add(ahead, I64(64 * j)))
        return _accumulate(b, acc, _load_weights(b, panel, i, blocks), row_pointers, i, dot)

    return loop(b, b.sdiv(size, I64(VNNI_FACTOR)), [zero] * (rows * blocks), body)


def _microkernel(rows: int, blocks: int, dot: Any, zero: Any) -> Any:
    """Make a micro-kernel: ``rows`` times ``blocks`` vectors of 16 outputs, stored as 4-byte sums.

    Its arguments are addresses and sizes in bytes: the packed panel; bytes of a row, which are as
    many as those of one output's weights; the rows; where to prefetch, 64 bytes per step (a tile
    of one or two rows prefetches its own panel instead); the first row of the output; bytes from
    one row of the output to the next.
    """

    @intrinsic
    def kernel(context, weights, size, values, next_panel, out, out_stride):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            *inputs, out, out_stride = arguments
            _store(b, _tile_sums(b, (rows, blocks), dot, zero, inputs), rows, out, out_stride)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return kernel


def _scores_microkernel(rows: int, blocks: int) -> Any:
    """Make a bfloat16 micro-kernel that also updates a running maximum, for attention.

    One more argument than ``_microkernel``: float32 [rows, VECTOR_WIDTH], each lane replaced by the
    maximum of itself and its row's outputs in that lane. NaN is ignored.
    """

    @intrinsic
    def kernel(context, weights, size, values, next_panel, out, out_stride, maxima):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            *inputs, out, out_stride, maxima = arguments
            acc = _tile_sums(b, (rows, blocks), dot_bf16, ZEROS, inputs)
            _store(b, acc, rows, out, out_stride)
            for row, p in enumerate(pointers(b, maxima, I64(4 * VECTOR_WIDTH), rows, FLOATS)):
                maximum = b.load(p, align=4)
                for new in acc[row * blocks : (row + 1) * blocks]:
                    maximum = b.select(b.fcmp_ordered(">", new, maximum), new, maximum)
                b.store(maximum, p, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return kernel


def _bf16_output_microkernel(rows: int, blocks: int) -> Any:
    """Make an int8 micro-kernel with a fused epilogue and bfloat16 output.

    out = (acc - zero) * factor * scale + bias.

    More arguments than ``_microkernel``: scales, float32 of each row; sums, int32 of each row (128
    times a sum is the zero-point correction), and the bytes from one to the next; factors and bias,
    float32 of each output.
    """

    @intrinsic
    def kernel(  # noqa: PLR0913 - an intrinsic has no records
        context,
        weights,
        size,
        values,
        next_panel,
        out,
        out_stride,
        scales,
        sums,
        sums_stride,
        factors,
        bias,
    ):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            *inputs, out, out_stride, scales, sums, sums_stride, factors, bias = arguments
            columns = (factors, bias)
            # 1) integer products of the tile
            acc = _tile_sums(b, (rows, blocks), dot_u8s8, constant_vector(0), inputs)
            # 2) load what belongs to the outputs
            factors, bias = (
                [
                    b.load(p, align=4)
                    for p in pointers(b, column, I64(4 * VECTOR_WIDTH), blocks, FLOATS)
                ]
                for column in columns
            )
            outs = pointers(b, out, out_stride, rows, ir.VectorType(I16, VECTOR_WIDTH))
            per_row = (
                pointers(b, scales, I64(4), rows, I32),
                pointers(b, sums, sums_stride, rows, I32),
            )
            # 3) row by row: subtract the zero point, scale, add the bias, round, store
            for row, (scale, total) in enumerate(zip(*per_row, strict=True)):
                zero = splat(b, b.shl(b.load(total, align=4), I32(7)))
                factor = b.bitcast(splat(b, b.load(scale, align=4)), FLOATS)
                for j in range(blocks):
                    exact = b.sitofp(b.sub(acc[row * blocks + j], zero), FLOATS)
                    result = fma(b, b.fmul(exact, factors[j]), factor, bias[j])
                    b.store(to_bf16(b, result), b.gep(outs[row], [I64(j)]), align=2)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return kernel


def _int4_microkernel(rows: int, blocks: int) -> Any:
    """Make an int4 micro-kernel, scaled by group: float32 [rows, BLOCK].

    Its arguments: packed weights, scales, padded columns, codes, the int32 sums of their groups,
    whose rows are one longer than there are groups, the output, and where to prefetch. Each byte
    holds two columns: 64 bytes are 4 columns of 16 outputs in the low nibbles, and the columns 16
    further on in the high nibbles.
    """

    @intrinsic
    def kernel(context, weights, scales, padded, codes, sums, out, next_panel):
        bf16 = ir.VectorType(I16, VECTOR_WIDTH)

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, scales, padded, codes, sums, out, next_panel = arguments
            groups = b.sdiv(padded, I64(GROUP))
            panel = b.inttoptr(weights, INTS.as_pointer())
            pairs = pointers(b, scales, b.mul(groups, I64(4 * VECTOR_WIDTH)), blocks, bf16)
            row_pointers = pointers(b, codes, padded, rows, I32)
            stride = b.mul(b.add(groups, I64(1)), I64(4))
            group_sums = pointers(b, sums, stride, rows, I32)

            def widen(p: Any, i: Any) -> Any:  # bfloat16 is the upper half of float32
                bits = b.zext(b.load(b.gep(p, [i]), align=2), INTS)
                return b.bitcast(b.shl(bits, constant_vector(16)), FLOATS)

            def body(group: Any, totals: list[Any]) -> list[Any]:
                # 1) integer products of the group's 32 columns: 4 steps, 2 nibbles each
                acc = [constant_vector(0)] * (rows * blocks)
                for step in range(4):
                    i = b.add(b.shl(group, I64(2)), I64(step))
                    prefetch(b, b.add(next_panel, b.shl(i, I64(6))))
                    loaded = _load_weights(b, panel, i, blocks)
                    low = [b.and_(w, constant_vector(0x0F0F0F0F)) for w in loaded]
                    high = [
                        b.and_(b.lshr(w, constant_vector(4)), constant_vector(0x0F0F0F0F))
                        for w in loaded
                    ]
                    for nibbles, offset in ((low, step), (high, step + 4)):
                        i = b.add(b.shl(group, I64(3)), I64(offset))
                        acc = _accumulate(b, acc, nibbles, row_pointers, i, dot_u8s8)
                # 2) float32: totals += minimum * sum of codes + scale * acc
                twice = b.shl(group, I64(1))
                scale = [widen(p, twice) for p in pairs]
                minimum = [widen(p, b.add(twice, I64(1))) for p in pairs]
                results = []
                for row, p in enumerate(group_sums):
                    code_sum = b.sitofp(splat(b, b.load(b.gep(p, [group]), align=4)), FLOATS)
                    for j in range(blocks):
                        index = row * blocks + j
                        exact = b.sitofp(acc[index], FLOATS)
                        old = fma(b, minimum[j], code_sum, totals[index])
                        results.append(fma(b, scale[j], exact, old))
                return results

            totals = loop(b, groups, [ZEROS] * (rows * blocks), body)
            _store(b, totals, rows, out, I64(4 * BLOCK))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return kernel


# _r6: six rows, so at most 24 of 32 registers hold sums; int4 tiles have half a BLOCK of outputs
dot_u8s8_r1, dot_u8s8_r2, dot_u8s8_r4, dot_u8s8_r6 = (
    _microkernel(rows, BLOCK // VECTOR_WIDTH, dot_u8s8, constant_vector(0)) for rows in (1, 2, 4, 6)
)
dot_bf16_r6, dot_bf16_r6_short = (  # _short: half a BLOCK of outputs
    _microkernel(6, blocks, dot_bf16, ZEROS) for blocks in (4, 2)
)
scores_r6 = _scores_microkernel(6, BLOCK // VECTOR_WIDTH)
dot_u8s8_bf16_r1, dot_u8s8_bf16_r2, dot_u8s8_bf16_r4, dot_u8s8_bf16_r6 = (
    _bf16_output_microkernel(rows, BLOCK // VECTOR_WIDTH) for rows in (1, 2, 4, 6)
)
dot_s4_r1, dot_s4_r2, dot_s4_r4, dot_s4_r6 = (
    _int4_microkernel(rows, BLOCK // VECTOR_WIDTH // 2) for rows in (1, 2, 4, 6)
)
