"""Convolutions over time with fewer multiplications, and Snake and sums fused.

Responsible for tiles, the epilogue and threads; not responsible for layers or memory. ops.py
calls it and owns the memory that it gets addresses of. Compiled by numba.

The algorithm
-------------
Channels are contiguous: x [time, inputs]. Three outputs of a filter of three taps need nine
multiplications, or five with minimal filtering (Toom 1963, Cook 1966; Winograd 1980; Lavin & Gray
2015), at the points 0, 1, -1, 1/2 and infinity:

    outputs [3] = JOIN [3, 5] ((WEIGHTS [5, 3] taps [3]) * (SPLIT [5, 5] inputs [5]))

The product in the middle is one of numbers for each pair of channels, hence a matrix product over
channels: five of them, one for each part, for three outputs. A filter of 11 taps is four groups of
three (one tap is 0), which share the split inputs: group g of tile n reads tile n + g, so its five
products have an inner dimension of (group, input). With a dilation d, outputs d apart are
a tile, and the d phases are independent:

    inputs -- SPLIT --> parts [5, phase, tile, inputs]
           -- x weights [5, group, inputs, outputs] --> sums [5, phase, tile, outputs]
           -- JOIN, + bias + residual + total --> out; and what the next layer reads, Snake or
              leaky ReLU of it

Rounding errors are 1.3 times those of the direct sum in the same order; with four outputs and taps
they are twice those. Kernels of 3, 7 and 11 taps take 5/9, 5/7 and 20/33 of its multiplications.
The micro-kernel adds all groups to a tile of 6 rows times up to 64 outputs, whose 24 vectors of
sums stay in registers (microkernels.py).

A chunk is ``tiles`` tiles of each phase: its parts, and the weights of one part, are in the
second-level cache. Chunks and tiles begin at multiples of their size: an output's bits depend
neither on threads nor on what follows beyond the reach of its tile.

Packed weights: float32 [panel, part, group, input, width], with ``width`` outputs of a panel, a
multiple of 16; the last one is padded with zeros. In bfloat16 [panel, part, group, pair of inputs,
width, 2]: parts and weights are rounded after they are combined, sums and all else are float32, and
one instruction multiplies two inputs. JOIN takes differences of large sums, so the error is 44 dB
below a sum, where the direct sum of rounded factors has 52.

Why not the library's: oneDNN's convolution computes the direct sum, at three quarters of the CPU's
rate over channels that are not contiguous, prepares itself for each new length, and leaves Snake
to five more passes through memory.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu.compile_cache import Kernel, entry_point
from chatterbox_opt.kernels.cpu.conv.tiles import combination, microkernel, snake
from chatterbox_opt.kernels.cpu.llvm import NJIT_OPTIONS, VECTOR_WIDTH, pointer, thread_index

TILE, PARTS = 3, 5  # outputs, and products for them
ROWS = 6  # of a register tile
NOTHING, SNAKE, LEAKY = 0, 1, 2  # ``activation``
SPLIT = (
    (1 / 2, -1, -1 / 2, 1, 0),
    (0, -1 / 2, 1 / 2, 1, 0),
    (0, 1 / 2, -3 / 2, 1, 0),
    (0, -1, 0, 1, 0),
    (0, 1 / 2, -1, -1 / 2, 1),
)
JOIN = (
    (1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, 0),
    (0, 1, 1, 1 / 4, 1),
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

x: the first output's first tap; what follows is read up to ops.PackedConv.margin. bias:
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


_join = combination(JOIN)


def _multiplier(rows: int, dtype: str) -> Any:
    """Make a function that calls the micro-kernel of ``rows`` rows for the task's width."""
    one, two, three, four = (microkernel(rows, blocks, dtype) for blocks in (1, 2, 3, 4))
    inputs_of_step = 1 if dtype == "float32" else 2

    @_compile
    def multiply(t, weights, values, row_bytes, sums):
        steps = t.inputs // inputs_of_step
        if t.width == 4 * VECTOR_WIDTH:
            four(weights, steps, t.groups, row_bytes, row_bytes, values, sums)
        elif t.width == 3 * VECTOR_WIDTH:
            three(weights, steps, t.groups, row_bytes, row_bytes, values, sums)
        elif t.width == 2 * VECTOR_WIDTH:
            two(weights, steps, t.groups, row_bytes, row_bytes, values, sums)
        else:
            one(weights, steps, t.groups, row_bytes, row_bytes, values, sums)

    return multiply


def _parts_multiplier(dtype: str) -> tuple[Any, Any]:
    """Make the functions that split a chunk's inputs into parts of ``dtype`` and multiply these."""
    split, size = combination(SPLIT, dtype), 4 if dtype == "float32" else 2
    multiply_six, multiply_one = _multiplier(ROWS, dtype), _multiplier(1, dtype)

    @_compile
    def split_inputs(t, row, tiles, parts):
        """The parts [5, phases * (tiles + groups - 1), inputs] of a chunk's inputs."""
        row_bytes, vectors = t.inputs * 4, parts.shape[2] // VECTOR_WIDTH
        held, part_bytes = tiles + t.groups - 1, parts.shape[1] * parts.shape[2] * size
        for phase in range(t.dilation):
            for tile in range(held):
                first = t.x + (row + phase + t.dilation * TILE * tile) * row_bytes
                out = parts.ctypes.data + (phase * held + tile) * parts.shape[2] * size
                split(first, t.dilation * row_bytes, out, part_bytes, vectors)

    @_compile
    def multiply(t, panel, tiles, parts, sums):
        """The sums [5, phases * tiles, width] of a chunk's parts times a panel."""
        held, row_bytes = tiles + t.groups - 1, parts.shape[2] * size
        part_weights = t.groups * t.inputs * t.width * size
        for part in range(PARTS):
            weights = t.weights + (panel * PARTS + part) * part_weights
            for phase in range(t.dilation):
                values = parts.ctypes.data + (part * parts.shape[1] + phase * held) * row_bytes
                out = sums.ctypes.data + (part * sums.shape[1] + phase * tiles) * t.width * 4
                tile = 0
                while tile < tiles:
                    if tiles < ROWS:
                        at, count = tile, 1
                        multiply_one(
                            t, weights, values + at * row_bytes, row_bytes, out + at * t.width * 4
                        )
                    else:  # the last six may be computed again
                        at, count = min(tile, tiles - ROWS), ROWS
                        multiply_six(
                            t, weights, values + at * row_bytes, row_bytes, out + at * t.width * 4
                        )
                    tile = at + count

    return split_inputs, multiply


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
        tile_sums: scratch float32 [3, width].
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


def _convolution(dtype: str) -> Any:
    """Make the function of a CONV task whose parts and weights have ``dtype``."""
    split_inputs, multiply = _parts_multiplier(dtype)
    part_dtype = np.float32 if dtype == "float32" else np.uint16  # bfloat16 as its bits

    @_compile
    def run(t):
        thread, threads = thread_index(t)
        panels = (t.outputs + t.width - 1) // t.width
        columns = (t.inputs + VECTOR_WIDTH - 1) // VECTOR_WIDTH * VECTOR_WIDTH
        held = t.tiles + t.groups - 1
        parts = np.empty((PARTS, t.dilation * held, columns), part_dtype)
        sums = np.empty((PARTS, t.dilation * t.tiles, t.width), np.float32)
        tile_sums = np.empty((TILE, t.width), np.float32)
        tile_rows = t.dilation * TILE
        chunk = t.tiles * tile_rows
        chunks = (t.rows + chunk - 1) // chunk
        for row in range(
            chunks * thread // threads * chunk, chunks * (thread + 1) // threads * chunk, chunk
        ):
            tiles = (min(chunk, t.rows - row) + tile_rows - 1) // tile_rows
            split_inputs(t, row, tiles, parts)
            for panel in range(panels):
                multiply(t, panel, tiles, parts, sums)
                _finish_panel(t, row, panel * t.width, tiles, sums, tile_sums)

    return run


_run_float32, _run_bfloat16 = _convolution("float32"), _convolution("bfloat16")


def _conv_float32(data: Any) -> None:
    _run_float32(carray(data, 1, CONV)[0])


def _conv_bfloat16(data: Any) -> None:
    _run_bfloat16(carray(data, 1, CONV)[0])


@functools.cache
def conv(dtype: str) -> Kernel:
    """One CONV task with products of ``dtype``, called in each thread: chunks of rows are divided.

    Compiled at the first call: LLVM aborts on an instruction that the CPU does not support.
    """
    return entry_point(_conv_float32 if dtype == "float32" else _conv_bfloat16)


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
