"""int8 and int4 GEMM with dynamic activation quantization, compiled by numba.

Responsible for quantizing rows, choosing register tiles and dividing the work among threads; not
responsible for modules, files or layers. layers/linear_int.py calls it and owns the memory that it
gets addresses of; t3_decode.py builds T3's whole decode step from the same functions.

The algorithm
-------------
out[r, o] = sum over k of x[r, k] * w[o, k], with w in int8 or int4 and x in float32 or bfloat16:

1. Quantize each row of x by itself, symmetrically: scale = max|x[r]| / 127 and
   code[r, k] = round(x[r, k] / scale) in [-127, 127]. Each row has its own scale, so no row depends
   on the other rows of its batch. Also store the codes' sum, of each group of 32 and of all.
2. Multiply codes by weights in integers, exactly, tile by tile (microkernels.py).
3. Undo the weights' zero point and scale by row and by output:

       int8:  out = (acc - 128 * sum(codes)) * w_scale[o] * x_scale[r]
       int4:  out = sum over groups g of (acc_g * scale[o, g] + sum(codes_g) * minimum[o, g])
                    * x_scale[r]

   Example of the correction: w = -3 is stored as 125, code = 10. 125 * 10 - 128 * 10 = -30.

Loop order: for each panel of 64 outputs, then for each tile of 6, 4, 2 or 1 rows. 11 rows are tiles
of 6 + 4 + 1. The first tile of a panel streams its weights from memory, and later tiles find them
in the cache. Tiles of more than two rows prefetch meanwhile, each a quarter of the next panel:

    panel 0: [rows 0-5]           [rows 6-9]           [row 10]     panel 1: [rows 0-5] ...
             prefetch w1, 1st 1/4  prefetch w1, 2nd 1/4                      half of w1 is in L2

Threads: with float32 rows (a decode step, few rows) each thread takes a range of panels, so each
weight is read from memory once in all; a barrier separates quantization from products. With
bfloat16 rows (the flow, thousands of rows) each thread takes a range of rows, and works through it
240 rows at a time, so that their codes stay in its cache while every panel passes by.

Limits: few rows are bound by the memory bandwidth of the weights, of which int8 reads a quarter of
float32's bytes and int4 about an eighth; many rows are bound by vpdpbusd, one instruction for 64
products where the CPU has VNNI. Without VNNI, bytes are widened to 16 bits first.
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
    times,
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

ZERO_POINT = 128  # int8 weights are stored as unsigned bytes, with this for 0
LEVELS = 127  # int8 codes of rows: from -127 to 127
TINY = np.float32(1e-30)  # lower bound of a row's maximum: a row of zeros is divided by this
CHUNK = 240  # bfloat16 rows that a thread quantizes and then multiplies while they are in its cache

# Addresses are int64, in records as numpy lays them out.
MATRIX = np.dtype(
    [(name, "i8") for name in ("weights", "scales", "outputs", "inputs", "padded", "bits", "bias")]
)
"""One matrix [outputs, inputs] as layers/linear_int.py packs it: each row has ``padded`` inputs, a
multiple of GROUP, and outputs are padded to a multiple of BLOCK. bias: float32, or 0 for none; not
for bfloat16 rows, whose task has it."""

TASK_FIELDS = ("thread_num", "num_threads", "barrier", "rows", "codes", "sums", "scales")
GEMM = np.dtype([(name, "i8") for name in (*TASK_FIELDS, "matrix", "bf16", "bias", "x", "out")])
"""x float32 [rows, inputs] times matrix to out float32 [rows, outputs].

If ``bf16`` is 1, x and out are bfloat16, the matrix is int8, out has whole BLOCKs of outputs, and
bias, float32 of whole BLOCKs too, is added to it. thread_num, num_threads, barrier: see openmp.py.
Scratch: codes int8 [rows, padded], sums int32 [rows, padded / GROUP + 1] (the last is of all),
scales float32 [rows].
"""

_compile = njit(nogil=True, **NJIT_OPTIONS)
_FLOAT = np.float32


@_compile
def _rows_per_tile(left):
    """MR of the next register tile when ``left`` rows remain."""
    return 6 if left >= 6 else 4 if left >= 4 else 2 if left >= 2 else 1


@_compile
def _prefetch_address(m, first, rows, tile):
    """Where tile number ``tile`` of the int8 panel at output ``first`` prefetches.

    Successive tiles of a panel each prefetch another quarter of the next panel.
    """
    return (
        m.weights
        + (first + BLOCK) * m.padded
        + (tile % 4 * VECTOR_WIDTH * m.padded if rows > 2 else 0)
    )


@_compile
def _int8_tile(m, t, first, row, rows, tile, acc, result):
    """Rows from ``row`` on times the int8 panel at output ``first``: float32 [rows, BLOCK]."""
    n, out = m.padded, acc.ctypes.data
    weights, codes = m.weights + first * n, t.codes + row * n
    next_panel = _prefetch_address(m, first, rows, tile)
    if rows == 6:
        dot_u8s8_r6(weights, n, codes, next_panel, out, 4 * BLOCK)
    elif rows == 4:
        dot_u8s8_r4(weights, n, codes, next_panel, out, 4 * BLOCK)
    elif rows == 2:
        dot_u8s8_r2(weights, n, codes, next_panel, out, 4 * BLOCK)
    else:
        dot_u8s8_r1(weights, n, codes, next_panel, out, 4 * BLOCK)
    sums = carray(pointer(t.sums), (t.rows, n // GROUP + 1), np.int32)
    scales = carray(pointer(m.scales + first * 4), BLOCK, np.float32)
    for i in range(rows):
        zero = np.int32(np.int32(ZERO_POINT) * sums[row + i, -1])
        for j in range(BLOCK):
            result[i, j] = _FLOAT(np.int32(acc[i, j] - zero)) * scales[j]


@_compile
def _int4_tile(m, t, first, row, rows, tile, result):
    """The same with int4 weights, in two micro-kernels of half a BLOCK of outputs."""
    n = m.padded
    codes, sums = t.codes + row * n, t.sums + row * (n // GROUP + 1) * 4
    for half in range(2):
        outputs = first + half * BLOCK // 2
        weights, scales = m.weights + outputs * n // 2, m.scales + outputs * n // GROUP * 4
        out = result.ctypes.data + half * BLOCK // 2 * 4
        next_panel = (
            weights + (BLOCK * n + tile % 2 * VECTOR_WIDTH * n if rows > 2 else BLOCK // 2 * n) // 2
        )
        if rows == 6:
            dot_s4_r6(weights, scales, n, codes, sums, out, next_panel)
        elif rows == 4:
            dot_s4_r4(weights, scales, n, codes, sums, out, next_panel)
        elif rows == 2:
            dot_s4_r2(weights, scales, n, codes, sums, out, next_panel)
        else:
            dot_s4_r1(weights, scales, n, codes, sums, out, next_panel)


@_compile
def _add_bias(m, first, out):
    """Add the biases of the panel at output ``first``: [rows, outputs]."""
    bias = carray(pointer(m.bias + first * 4), BLOCK, np.float32)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] += bias[j]


@_compile
def multiply_rows(m, t, out, add, thread, threads):
    """Quantized rows times this thread's panels; written or added to out [rows, outputs]."""
    acc, result = np.empty((6, BLOCK), np.int32), np.empty((6, BLOCK), np.float32)
    scales = carray(pointer(t.scales), t.rows, np.float32)
    blocks = (m.outputs + BLOCK - 1) // BLOCK
    for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
        first, row, tile = block * BLOCK, 0, 0
        last = min(BLOCK, m.outputs - first)
        while row < t.rows:
            # 1) products of one register tile
            rows = _rows_per_tile(t.rows - row)
            if m.bits == 8:
                _int8_tile(m, t, first, row, rows, tile, acc, result)
            else:
                _int4_tile(m, t, first, row, rows, tile, result)
            # 2) scale by row; outputs that only pad the last panel are dropped
            for i in range(rows):
                scale = scales[row + i]
                if add:
                    for j in range(last):
                        out[row + i, first + j] += result[i, j] * scale
                else:
                    for j in range(last):
                        out[row + i, first + j] = result[i, j] * scale
            # 3) bias
            if m.bias:
                _add_bias(m, first, out[row : row + rows, first : first + last])
            row += rows
            tile += 1


@_compile
def quantize(x, codes):
    """Write int8 codes of float32 ``x`` [n]; return their scale.

    The maximum is searched among bits as integers, which order like the absolute values, NaN above
    all; so with NaN or Inf the scale is not finite.
    """
    largest = bits_of(TINY)
    for i in range(len(x)):
        new = np.int32(bits_of(x[i]) & np.int32(0x7FFFFFFF))
        largest = new if new > largest else largest
    factor = _FLOAT(LEVELS) / from_bits(largest)
    for i in range(len(x)):
        codes[i] = np.int8(np.int32(rint(times(x[i], factor))))
    return from_bits(largest) / _FLOAT(LEVELS)


@_compile
def quantize_row(x, row, m, t):
    """Quantize one row, float32 [inputs], to int8 codes, their sums and a scale."""
    groups = m.padded // GROUP
    codes = carray(pointer(t.codes + row * m.padded), m.padded, np.int8)
    sums = carray(pointer(t.sums + row * (groups + 1) * 4), groups + 1, np.int32)
    scales = carray(pointer(t.scales), t.rows, np.float32)
    # 1) codes and scale
    scales[row] = quantize(x, codes)
    codes[m.inputs :] = 0
    # 2) sums of codes: by group, and of all as the last element
    sums[groups] = 0
    for group in range(groups):
        total = np.int32(0)
        for i in range(group * GROUP, (group + 1) * GROUP):
            total += np.int32(codes[i])
        sums[group] = total
        sums[groups] += total


@_compile
def _bf16_rows(m, t, start, end, wide):
    """Rows from ``start`` to ``end`` times int8, bfloat16 in and out.

    Args:
        wide: scratch float32 [inputs].
    """
    # 1) quantize the rows
    x = carray(pointer(t.x), (t.rows, m.inputs), np.uint16)
    for row in range(start, end):
        for i in range(m.inputs):
            wide[i] = bf16_to_float(x[row, i])
        quantize_row(wide, row, m, t)
    # 2) all panels, each with all of these rows
    n, out_stride = m.padded, (m.outputs + BLOCK - 1) // BLOCK * BLOCK * 2
    sums_stride = (n // GROUP + 1) * 4
    for first in range(0, m.outputs, BLOCK):
        weights, factors, bias = m.weights + first * n, m.scales + first * 4, t.bias + first * 4
        row, tile = start, 0
        while row < end:
            rows = _rows_per_tile(end - row)
            codes, scales, sums = t.codes + row * n, t.scales + row * 4, t.sums + row * sums_stride
            sums += sums_stride - 4  # of all groups
            out = t.out + row * out_stride + first * 2
            next_panel = _prefetch_address(m, first, rows, tile)
            epilogue = (scales, sums, sums_stride, factors, bias)
            if rows == 6:
                dot_u8s8_bf16_r6(weights, n, codes, next_panel, out, out_stride, *epilogue)
            elif rows == 4:
                dot_u8s8_bf16_r4(weights, n, codes, next_panel, out, out_stride, *epilogue)
            elif rows == 2:
                dot_u8s8_bf16_r2(weights, n, codes, next_panel, out, out_stride, *epilogue)
            else:
                dot_u8s8_bf16_r1(weights, n, codes, next_panel, out, out_stride, *epilogue)
            row += rows
            tile += 1


@entry_point
def gemm(data):
    """One GEMM task, called in each thread: bfloat16 rows are divided, or else float32 outputs."""
    t = carray(data, 1, GEMM)[0]
    thread, threads = thread_index(t)
    m = carray(pointer(t.matrix), 1, MATRIX)[0]
    if t.bf16:
        wide = np.empty(m.inputs, np.float32)
        end = t.rows * (thread + 1) // threads
        for start in range(t.rows * thread // threads, end, CHUNK):
            _bf16_rows(m, t, start, min(start + CHUNK, end), wide)
        return
    x = carray(pointer(t.x), (t.rows, m.inputs), np.float32)
    for row in range(thread, t.rows, threads):
        quantize_row(x[row], row, m, t)
    barrier_wait(t)
    out = carray(pointer(t.out), (t.rows, m.outputs), np.float32)
    multiply_rows(m, t, out, False, thread, threads)
