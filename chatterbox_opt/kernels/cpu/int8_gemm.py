"""Compiled code for the processor (numba): rows times integer matrices.

Knows bytes, vectors and threads. Knows nothing of modules, files or layers. linear_int.py is its
caller, and holds what it gets addresses of; t3_decode.py has all of T3's step around it.

Rows are rounded to int8 with one scale each (so no row depends on its neighbours), multiplied with
bytes and summed in int32, exactly. The inner loop is LLVM's, four products to a lane: one
instruction where the processor has VNNI, and plain widening elsewhere (microkernels.py).
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.llvm import (
    BLOCK,
    GROUP,
    NJIT_OPTIONS,
    VECTOR_WIDTH,
    barrier_wait,
    bf16_to_float,
    bits_of,
    from_bits,
    pointer,
    rint,
    thread_index,
)
from chatterbox_opt.kernels.cpu.microkernels import (
    dot_s4_r1,
    dot_s4_r2,
    dot_s4_r4,
    dot_s4_r6,
    dot_u8s8_bf16_r1,
    dot_u8s8_bf16_r2,
    dot_u8s8_bf16_r4,
    dot_u8s8_bf16_r6,
    dot_u8s8_r1,
    dot_u8s8_r2,
    dot_u8s8_r4,
    dot_u8s8_r6,
)

ZERO = 128  # int8 weights are stored as unsigned bytes with this for 0
LEVELS = 127  # int8 codes of rows: from -127 to 127
TINY = np.float32(1e-30)  # a row of zeros is divided by this
CHUNK = 240  # rows of halves that a thread rounds, and multiplies while they are in its cache

# Addresses are int64, in records as numpy lays them out.
MATRIX = np.dtype(
    [(name, "i8") for name in ("weights", "scales", "outputs", "inputs", "padded", "bits")]
)
"""One matrix [outputs, inputs] as linear_int.py packs it: of each row ``padded`` inputs are there,
a multiple of GROUP, and outputs up to a multiple of BLOCK."""

ROWS = ("number", "size", "barrier", "rows", "codes", "sums", "scales")
PRODUCT = np.dtype([(name, "i8") for name in (*ROWS, "matrix", "halves", "bias", "x", "out")])
"""x float32 [rows, inputs] times matrix to out float32 [rows, outputs].

If ``halves`` is 1, x and out are bfloat16, the matrix is int8, out has whole BLOCKs of outputs,
and bias, float32 of whole BLOCKs too, is added to it. number, size, barrier: see openmp.py.
Scratch: codes int8 [rows, padded], sums int32 [rows, padded / GROUP + 1] (the last is of all),
scales float32 [rows].
"""

_compile = njit(nogil=True, **NJIT_OPTIONS)
_FLOAT = np.float32


@_compile
def _rows_per_tile(left):
    """How many of ``left`` rows microkernels.py multiplies together."""
    return 6 if left >= 6 else 4 if left >= 4 else 2 if left >= 2 else 1


@_compile
def _prefetch_address(m, first, rows, turn):
    """What is brought nearer while int8 outputs from ``first`` on are worked at: turn by turn, of
    the four that go through the same weights, a part of the next ones."""
    return (
        m.weights
        + (first + BLOCK) * m.padded
        + (turn % 4 * VECTOR_WIDTH * m.padded if rows > 2 else 0)
    )


@_compile
def _int8_tile(m, t, first, row, rows, turn, counts, totals):
    """Rows from ``row`` on times int8 outputs from ``first`` on: float32 [rows, BLOCK]."""
    n, out = m.padded, counts.ctypes.data
    weights, codes = m.weights + first * n, t.codes + row * n
    ahead = _prefetch_address(m, first, rows, turn)
    if rows == 6:
        dot_u8s8_r6(weights, n, codes, ahead, out, 4 * BLOCK)
    elif rows == 4:
        dot_u8s8_r4(weights, n, codes, ahead, out, 4 * BLOCK)
    elif rows == 2:
        dot_u8s8_r2(weights, n, codes, ahead, out, 4 * BLOCK)
    else:
        dot_u8s8_r1(weights, n, codes, ahead, out, 4 * BLOCK)
    sums = carray(pointer(t.sums), (t.rows, n // GROUP + 1), np.int32)
    scales = carray(pointer(m.scales + first * 4), BLOCK, np.float32)
    for i in range(rows):
        zero = np.int32(np.int32(ZERO) * sums[row + i, -1])
        for j in range(BLOCK):
            totals[i, j] = _FLOAT(np.int32(counts[i, j] - zero)) * scales[j]


@_compile
def _int4_tile(m, t, first, row, rows, turn, totals):
    """The same with int4 weights."""
    n = m.padded
    codes, sums = t.codes + row * n, t.sums + row * (n // GROUP + 1) * 4
    for half in range(2):
        outputs = first + half * BLOCK // 2
        weights, scales = m.weights + outputs * n // 2, m.scales + outputs * n // GROUP * 4
        out = totals.ctypes.data + half * BLOCK // 2 * 4
        ahead = (
            weights + (BLOCK * n + turn % 2 * VECTOR_WIDTH * n if rows > 2 else BLOCK // 2 * n) // 2
        )
        if rows == 6:
            dot_s4_r6(weights, scales, n, codes, sums, out, ahead)
        elif rows == 4:
            dot_s4_r4(weights, scales, n, codes, sums, out, ahead)
        elif rows == 2:
            dot_s4_r2(weights, scales, n, codes, sums, out, ahead)
        else:
            dot_s4_r1(weights, scales, n, codes, sums, out, ahead)


@_compile
def multiply_rows(m, t, out, add, part, parts):
    """Quantised rows times a part of the outputs of a matrix, to or onto out [rows, outputs]."""
    counts, totals = np.empty((6, BLOCK), np.int32), np.empty((6, BLOCK), np.float32)
    scales = carray(pointer(t.scales), t.rows, np.float32)
    blocks = (m.outputs + BLOCK - 1) // BLOCK
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        first, row, turn = block * BLOCK, 0, 0
        last = min(BLOCK, m.outputs - first)
        while row < t.rows:
            rows = _rows_per_tile(t.rows - row)
            if m.bits == 8:
                _int8_tile(m, t, first, row, rows, turn, counts, totals)
            else:
                _int4_tile(m, t, first, row, rows, turn, totals)
            for i in range(rows):
                scale = scales[row + i]
                if add:
                    for j in range(last):
                        out[row + i, first + j] += totals[i, j] * scale
                else:
                    for j in range(last):
                        out[row + i, first + j] = totals[i, j] * scale
            row += rows
            turn += 1


@_compile
def quantize_row(x, row, m, t):
    """Round one row float32 [inputs] for a matrix.

    The largest is found among bits as integers, which order like the numbers, NaN above all.
    """
    groups = m.padded // GROUP
    codes = carray(pointer(t.codes + row * m.padded), m.padded, np.int8)
    sums = carray(pointer(t.sums + row * (groups + 1) * 4), groups + 1, np.int32)
    scales = carray(pointer(t.scales), t.rows, np.float32)
    largest = bits_of(TINY)
    for i in range(m.inputs):
        new = np.int32(bits_of(x[i]) & np.int32(0x7FFFFFFF))
        largest = new if new > largest else largest
    factor = _FLOAT(LEVELS) / from_bits(largest)
    for i in range(m.inputs):
        codes[i] = np.int8(np.int32(rint(x[i] * factor)))
    codes[m.inputs :] = 0
    sums[groups] = 0
    for group in range(groups):
        total = np.int32(0)
        for i in range(group * GROUP, (group + 1) * GROUP):
            total += np.int32(codes[i])
        sums[group] = total
        sums[groups] += total
    scales[row] = from_bits(largest) / _FLOAT(LEVELS)


@_compile
def _bf16_rows(m, t, start, end, wide):
    """Rows from ``start`` to ``end`` times int8, bfloat16 before and after.

    Args:
        wide: scratch float32 [inputs].
    """
    x = carray(pointer(t.x), (t.rows, m.inputs), np.uint16)
    for row in range(start, end):
        for i in range(m.inputs):
            wide[i] = bf16_to_float(x[row, i])
        quantize_row(wide, row, m, t)
    n, apart = m.padded, (m.outputs + BLOCK - 1) // BLOCK * BLOCK * 2
    sums_apart = (n // GROUP + 1) * 4
    for first in range(0, m.outputs, BLOCK):
        weights, factors, bias = m.weights + first * n, m.scales + first * 4, t.bias + first * 4
        row, turn = start, 0
        while row < end:
            rows = _rows_per_tile(end - row)
            codes, scales, sums = t.codes + row * n, t.scales + row * 4, t.sums + row * sums_apart
            sums += sums_apart - 4  # of all groups
            out, ahead = t.out + row * apart + first * 2, _prefetch_address(m, first, rows, turn)
            more = (scales, sums, sums_apart, factors, bias)
            if rows == 6:
                dot_u8s8_bf16_r6(weights, n, codes, ahead, out, apart, *more)
            elif rows == 4:
                dot_u8s8_bf16_r4(weights, n, codes, ahead, out, apart, *more)
            elif rows == 2:
                dot_u8s8_bf16_r2(weights, n, codes, ahead, out, apart, *more)
            else:
                dot_u8s8_bf16_r1(weights, n, codes, ahead, out, apart, *more)
            row += rows
            turn += 1


@entry_point
def gemm(data):
    """Work for a team: a PRODUCT. Rows of halves are many, and shared; else outputs are."""
    t = carray(data, 1, PRODUCT)[0]
    part, parts = thread_index(t)
    m = carray(pointer(t.matrix), 1, MATRIX)[0]
    if t.halves:
        wide = np.empty(m.inputs, np.float32)
        end = t.rows * (part + 1) // parts
        for start in range(t.rows * part // parts, end, CHUNK):
            _bf16_rows(m, t, start, min(start + CHUNK, end), wide)
        return
    x = carray(pointer(t.x), (t.rows, m.inputs), np.float32)
    for row in range(part, t.rows, parts):
        quantize_row(x[row], row, m, t)
    barrier_wait(t)
    multiply_rows(m, t, carray(pointer(t.out), (t.rows, m.outputs), np.float32), False, part, parts)
