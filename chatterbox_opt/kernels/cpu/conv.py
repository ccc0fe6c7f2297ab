"""Convolutions over time in float32 with half the multiplications, and Snake and sums fused.

Responsible for tiles, the epilogue and threads; not responsible for layers or memory. conv_ops.py
calls it and owns the memory that it gets addresses of. Compiled by numba.

The algorithm
-------------
Channels are contiguous: x [time, inputs]. Four outputs of a filter of four taps need 16
multiplications, or 7 with minimal filtering (Toom 1963, Cook 1966; Winograd 1980; Lavin & Gray
2015), at the points 0, 1, -1, 1/2, -1/2, 2 and infinity:

    outputs [4] = JOIN [4, 7] ((WEIGHTS [7, 4] taps [4]) * (SPLIT [7, 7] inputs [7]))

The product in the middle is one of numbers for each pair of channels, hence a matrix product over
channels: seven of them, one for each part, at a time of four outputs. A filter of 11 taps is three
groups of four (one tap is 0), which share the split inputs: group g of tile n reads tile n + g, so
its seven products have an inner dimension of (group, input). With a dilation d, outputs d apart are
a tile, and the d phases are independent:

    inputs -- SPLIT --> parts [7, phase, tile, inputs]
           -- x weights [7, group, inputs, outputs] --> sums [7, phase, tile, outputs]
           -- JOIN, + bias + residual + total --> out; and what the next layer reads, Snake or
              leaky ReLU of it

Rounding errors are twice those of the direct sum. Kernels of 3, 7 and 11 taps take 7/12, 1/2 and
21/44 of its multiplications. The micro-kernel adds all groups to a tile of 6 rows times up to 64
outputs, whose 24 vectors of sums stay in registers (microkernels.py).

A chunk is ``tiles`` tiles of each phase: its parts, and the weights of one part, are in the
second-level cache. Chunks begin at multiples of their size, and tiles at multiples of four outputs:
an output's bits do not depend on threads, or on how much follows.

Packed weights: float32 [panel, part, group, input, width], with ``width`` outputs of a panel, a
multiple of 16; the last one is padded with zeros.

Why not the library's: oneDNN's convolution computes the direct sum, at three quarters of the CPU's
rate over channels that are not contiguous, prepares itself for each new length, and leaves Snake
to five more passes through memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.llvm import (
    FLOATS,
    I32,
    I64,
    NJIT_OPTIONS,
    VECTOR_WIDTH,
    fma,
    pointer,
    pointers,
    rint,
    splat,
    thread_index,
)
from chatterbox_opt.kernels.cpu.microkernels import ZEROS, loop

TILE, PARTS = 4, 7  # outputs, and products for them
ROWS = 6  # of a register tile
NOTHING, SNAKE, LEAKY = 0, 1, 2  # ``activation``
SPLIT = (
    (-1 / 2, 1 / 4, 5 / 2, -5 / 4, -2, 1, 0),
    (0, 1 / 2, 1 / 4, -9 / 4, -1, 1, 0),
    (0, -1 / 2, 3 / 4, 7 / 4, -3, 1, 0),
    (0, 1, 3 / 2, -2, -3 / 2, 1, 0),
    (0, -1, 5 / 2, 0, -5 / 2, 1, 0),
    (0, 1 / 4, 0, -5 / 4, 0, 1, 0),
    (0, -1 / 2, 1 / 4, 5 / 2, -5 / 4, -2, 1),
)
JOIN = (
    (1, 1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -1 / 2, 2, 0),
    (0, 1, 1, 1 / 4, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -1 / 8, 8, 1),
)

_FIELDS = (
    "thread_num",
    "num_threads",
    "barrier",
    "rows",
    "inputs",
    "outputs",
    "width",
    "groups",
    "dilation",
    "tiles",
    "activation",
)
_TENSORS = ("x", "weights", "bias", "residual", "total", "out", "activated", "frequency")
CONV = np.dtype([(name, "i8") for name in (*_FIELDS, *_TENSORS)] + [("slope", "f8")])
"""v = convolution + bias + residual + total; out = v; activated = f(v * frequency).

x: the first output's first tap; what follows is read up to conv_ops.PackedConv.margin. bias:
float32 of whole panels. residual, total, out, activated: float32 [rows, outputs], or 0 for none;
out may be one that is added. f: y + sin(y)^2, or leaky ReLU with ``slope``, and then frequency,
float32 [outputs], is not used.
"""

ACTIVATE = np.dtype(
    [(name, "i8") for name in ("thread_num", "num_threads", "barrier", "rows", "outputs")]
    + [(name, "i8") for name in ("x", "frequency", "activated")]
)
"""activated = Snake of x * frequency; float32 [rows, outputs]."""

_compile = njit(nogil=True, **NJIT_OPTIONS)
_FLOAT = np.float32


def _combination(matrix: Any) -> Any:
    """Make a function that multiplies a few rows by a constant matrix, channel by channel.

    Its arguments are addresses and sizes: the first row; bytes from row to row; the same of the
    results; vectors of a row.
    """

    @intrinsic
    def function(context, values, stride, out, out_stride, vectors):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            values, stride, out, out_stride, vectors = arguments
            rows = pointers(b, values, stride, len(matrix[0]), FLOATS)
            outs = pointers(b, out, out_stride, len(matrix), FLOATS)

            def body(i: Any, _: list[Any]) -> list[Any]:
                loaded = [b.load(b.gep(p, [i]), align=4) for p in rows]
                for factors, p in zip(matrix, outs, strict=True):
                    total = ZEROS
                    for factor, x in zip(factors, loaded, strict=True):
                        if factor:
                            constant = ir.Constant(FLOATS, [float(factor)] * VECTOR_WIDTH)
                            total = fma(b, x, constant, total)
                    b.store(total, b.gep(p, [i]), align=4)
                return []

            loop(b, vectors, [], body)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return function


def _microkernel(rows: int, blocks: int) -> Any:
    """Make a micro-kernel: ``rows`` times ``blocks`` vectors of outputs, float32.

    Its arguments are addresses and sizes: the weights; inputs; groups; bytes from group to group,
    and from row to row; the first row; the sums, one row after the other.
    """

    @intrinsic
    def kernel(context, weights, inputs, groups, group_stride, row_stride, values, sums):
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, inputs, groups, group_stride, row_stride, values, sums = arguments
            panel = b.inttoptr(weights, FLOATS.as_pointer())

            def add_group(group: Any, acc: list[Any]) -> list[Any]:
                first = b.add(values, b.mul(group, group_stride))
                row_pointers = pointers(b, first, row_stride, rows, I32)
                start = b.mul(group, inputs)

                def add_input(i: Any, acc: list[Any]) -> list[Any]:
                    at = b.mul(b.add(start, i), I64(blocks))
                    loaded = [
                        b.load(b.gep(panel, [b.add(at, I64(j))]), align=4) for j in range(blocks)
                    ]
                    result = []
                    for row, p in enumerate(row_pointers):
                        value = b.bitcast(splat(b, b.load(b.gep(p, [i]), align=4)), FLOATS)
                        old = acc[row * blocks : (row + 1) * blocks]
                        result += [fma(b, w, value, x) for w, x in zip(loaded, old, strict=True)]
                    return result

                return loop(b, inputs, acc, add_input)

            acc = loop(b, groups, [ZEROS] * (rows * blocks), add_group)
            out = b.inttoptr(sums, FLOATS.as_pointer())
            for i, value in enumerate(acc):
                b.store(value, b.gep(out, [I64(i)]), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return kernel


_split, _join = _combination(SPLIT), _combination(JOIN)
_r6_x1, _r6_x2, _r6_x3, _r6_x4 = (_microkernel(ROWS, blocks) for blocks in (1, 2, 3, 4))
_r1_x1, _r1_x2, _r1_x3, _r1_x4 = (_microkernel(1, blocks) for blocks in (1, 2, 3, 4))


@njit(nogil=True, error_model="numpy", fastmath={"contract"})  # the order of operations matters
def snake(y):
    """y + sin(y)^2; the square is accurate to 3e-7 while |y| is below 10,000.

    Its period is pi, which is subtracted in three parts (Cody & Waite 1980).
    """
    n = rint(y * _FLOAT(0.31830988618))
    r = y - n * _FLOAT(3.140625)
    r = r - n * _FLOAT(9.67502593994140625e-4)
    r = r - n * _FLOAT(1.509957990978376432e-7)
    square = r * r
    # (sin(r) / r - 1) / r^2 for |r| up to pi / 2: fitted, to 2e-11
    p = _FLOAT(-2.3845516e-8)
    p = p * square + _FLOAT(2.7522551e-6)
    p = p * square + _FLOAT(-1.98408028e-4)
    p = p * square + _FLOAT(8.33333048e-3)
    p = p * square + _FLOAT(-1.66666666e-1)
    sine = r + r * square * p
    return y + sine * sine


@_compile
def _multiply_six(t, weights, values, row_bytes, sums):
    """The micro-kernel of six rows for the task's width."""
    if t.width == 4 * VECTOR_WIDTH:
        _r6_x4(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)
    elif t.width == 3 * VECTOR_WIDTH:
        _r6_x3(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)
    elif t.width == 2 * VECTOR_WIDTH:
        _r6_x2(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)
    else:
        _r6_x1(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)


@_compile
def _multiply_one(t, weights, values, row_bytes, sums):
    """The micro-kernel of one row for the task's width."""
    if t.width == 4 * VECTOR_WIDTH:
        _r1_x4(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)
    elif t.width == 3 * VECTOR_WIDTH:
        _r1_x3(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)
    elif t.width == 2 * VECTOR_WIDTH:
        _r1_x2(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)
    else:
        _r1_x1(weights, t.inputs, t.groups, row_bytes, row_bytes, values, sums)


@_compile
def _split_inputs(t, row, tiles, parts):
    """The parts [7, phases * (tiles + groups - 1), inputs] of a chunk's inputs."""
    row_bytes, vectors = t.inputs * 4, parts.shape[2] // VECTOR_WIDTH
    held, part_bytes = tiles + t.groups - 1, parts.shape[1] * parts.shape[2] * 4
    for phase in range(t.dilation):
        for tile in range(held):
            first = t.x + (row + phase + t.dilation * TILE * tile) * row_bytes
            out = parts.ctypes.data + (phase * held + tile) * parts.shape[2] * 4
            _split(first, t.dilation * row_bytes, out, part_bytes, vectors)


@_compile
def _multiply(t, panel, tiles, parts, sums):
    """The sums [7, phases * tiles, width] of a chunk's parts times a panel."""
    held, row_bytes = tiles + t.groups - 1, parts.shape[2] * 4
    part_weights = t.groups * t.inputs * t.width * 4
    for part in range(PARTS):
        weights = t.weights + (panel * PARTS + part) * part_weights
        for phase in range(t.dilation):
            values = parts.ctypes.data + (part * parts.shape[1] + phase * held) * row_bytes
            out = sums.ctypes.data + (part * sums.shape[1] + phase * tiles) * t.width * 4
            tile = 0
            while tile < tiles:
                if tiles < ROWS:
                    at, count = tile, 1
                    _multiply_one(
                        t, weights, values + at * row_bytes, row_bytes, out + at * t.width * 4
                    )
                else:  # the last six may be computed again
                    at, count = min(tile, tiles - ROWS), ROWS
                    _multiply_six(
                        t, weights, values + at * row_bytes, row_bytes, out + at * t.width * 4
                    )
                tile = at + count


@_compile
def _add(sums, address):
    """Add float32 values at an address."""
    values = carray(pointer(address), len(sums), np.float32)
    for j in range(len(sums)):
        sums[j] += values[j]


@_compile
def _finish(t, row, first, sums):
    """The epilogue of one row's outputs from ``first`` on.

    Args:
        sums: float32 [outputs], changed.
    """
    n, at = len(sums), (row * t.outputs + first) * 4
    _add(sums, t.bias + first * 4)
    if t.residual:
        _add(sums, t.residual + at)
    if t.total:
        _add(sums, t.total + at)
    if t.out:
        out = carray(pointer(t.out + at), n, np.float32)
        for j in range(n):
            out[j] = sums[j]
    activated = carray(pointer(t.activated + at), n, np.float32)
    if t.activation == SNAKE:
        frequency = carray(pointer(t.frequency + first * 4), n, np.float32)
        for j in range(n):
            activated[j] = snake(sums[j] * frequency[j])
    elif t.activation == LEAKY:
        slope = _FLOAT(t.slope)
        for j in range(n):
            activated[j] = sums[j] if sums[j] > 0 else sums[j] * slope


@_compile
def _finish_panel(t, row, first, tiles, sums, tile_sums):
    """Join the parts of a chunk's sums, and the epilogue.

    Args:
        tile_sums: scratch float32 [4, width].
    """
    part_bytes, last = sums.shape[1] * t.width * 4, min(t.width, t.outputs - first)
    for phase in range(t.dilation):
        for tile in range(tiles):
            values = sums.ctypes.data + (phase * tiles + tile) * t.width * 4
            vectors = t.width // VECTOR_WIDTH
            _join(values, part_bytes, tile_sums.ctypes.data, t.width * 4, vectors)
            for i in range(TILE):
                at = row + phase + t.dilation * (TILE * tile + i)
                if at < t.rows:
                    _finish(t, at, first, tile_sums[i, :last])


@entry_point
def conv(data):
    """One CONV task, called in each thread: chunks of rows are divided."""
    t = carray(data, 1, CONV)[0]
    thread, threads = thread_index(t)
    panels = (t.outputs + t.width - 1) // t.width
    lanes = (t.inputs + VECTOR_WIDTH - 1) // VECTOR_WIDTH * VECTOR_WIDTH
    held = t.tiles + t.groups - 1
    parts = np.empty((PARTS, t.dilation * held, lanes), np.float32)
    sums = np.empty((PARTS, t.dilation * t.tiles, t.width), np.float32)
    tile_sums = np.empty((TILE, t.width), np.float32)
    tile_rows = t.dilation * TILE
    chunk = t.tiles * tile_rows
    chunks = (t.rows + chunk - 1) // chunk
    for row in range(
        chunks * thread // threads * chunk, chunks * (thread + 1) // threads * chunk, chunk
    ):
        tiles = (min(chunk, t.rows - row) + tile_rows - 1) // tile_rows
        _split_inputs(t, row, tiles, parts)
        for panel in range(panels):
            _multiply(t, panel, tiles, parts, sums)
            _finish_panel(t, row, panel * t.width, tiles, sums, tile_sums)


@entry_point
def activate(data):
    """One ACTIVATE task, called in each thread: rows are divided."""
    t = carray(data, 1, ACTIVATE)[0]
    thread, threads = thread_index(t)
    shape = (t.rows, t.outputs)
    x = carray(pointer(t.x), shape, np.float32)
    activated = carray(pointer(t.activated), shape, np.float32)
    frequency = carray(pointer(t.frequency), t.outputs, np.float32)
    for row in range(t.rows * thread // threads, t.rows * (thread + 1) // threads):
        for j in range(t.outputs):
            activated[row, j] = snake(x[row, j] * frequency[j])
