"""Compiled code for the processor (numba): the flow in bfloat16, all but its products
with matrices: attention over all frames, and layer norms with what stands beside them.

Knows bytes, vectors and threads. Knows nothing of the layers around. bf16_ops.py
is its caller, and holds what it gets addresses of.

PyTorch's fused kernel multiplies through MKL, at a fifth of what an EPYC core can do; by oneDNN's
products the scores of a head go through memory four times. Here six queries at a time, 16 with
AMX, see all keys: scores stay in float32 and in a near cache from product to softmax to product.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu import amx, microkernels, softmax
from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.llvm import (
    BLOCK,
    NJIT_OPTIONS,
    VECTOR_WIDTH,
    barrier_wait,
    bf16_to_float,
    exp,
    float_to_bf16,
    pointer,
    thread_index,
)

QUERIES = amx.ROWS if amx.AMX else 6  # that are worked at together
# 16 rows a power of two apart would fight for the same places of the cache; six have room there
SPARE = 2 * VECTOR_WIDTH if amx.AMX else 0

_NAMES = (
    "number",
    "size",
    "barrier",
    "rows",
    "heads",
    "frames",
    "head_dim",
    "row",
    "frame",
    "head",
)
_TENSORS = ("q", "k", "v", "visible", "out", "keys", "values")
ATTENTION = np.dtype([(name, "i8") for name in (*_NAMES, *_TENSORS)])
"""q, k, v: bfloat16, element [r, h, f, i] lies r * row + h * head + f * frame + i further on.

number, size, barrier: see openmp.py. head_dim is 32 or 64. visible: int64 [rows],
how many frames can be seen, from the first on. out: bfloat16 [rows, frames, heads, head_dim].
Scratch: keys bfloat16 [rows * heads, padded frames, head_dim], values bfloat16 [rows * heads,
BLOCK, padded frames]; frames are padded to a multiple of BLOCK.
"""

_compile = njit(nogil=True, **NJIT_OPTIONS)


_ROWS = ("number", "size", "barrier", "rows", "width", "mish")
NORM = np.dtype(
    [(name, "i8") for name in (*_ROWS, "x", "more", "weight", "bias", "out")] + [("eps", "f8")]
)
"""Layer norm of x (+ more) to out, each bfloat16 [rows, width]; and Mish after it if ``mish`` is 1.

more: 0, or what is added to x, where x lies, before. weight, bias: bfloat16 [width].
"""


@_compile
def _padded(frames):
    return (frames + BLOCK - 1) // BLOCK * BLOCK


@_compile
def _pack(t, unit):
    """Lay out a head's keys and values as microkernels.py wants its weights, zeros behind the last frame.

    Keys: outputs are frames, two dimensions side by side. Values: outputs are dimensions, two
    frames side by side.
    """
    row, head = unit // t.heads, unit % t.heads
    n, d, padded = t.frames, t.head_dim, _padded(t.frames)
    place_k = t.k + (row * t.row + head * t.head) * 2
    place_v = t.v + (row * t.row + head * t.head) * 2
    keys = carray(
        pointer(t.keys + unit * padded * d * 2), (padded // BLOCK, d // 2, BLOCK), np.uint32
    )
    values = carray(
        pointer(t.values + unit * padded * BLOCK * 2),
        (padded // 2, d),
        np.uint32,
    )
    for f in range(padded):
        if f < n:
            pairs = carray(pointer(place_k + f * t.frame * 2), d // 2, np.uint32)
            for i in range(d // 2):
                keys[f // BLOCK, i, f % BLOCK] = pairs[i]
        else:
            keys[f // BLOCK, :, f % BLOCK] = 0
    for f in range(0, padded, 2):
        # behind the last frame the first one stands in, and is taken out again
        first = carray(pointer(place_v + (f if f < n else 0) * t.frame * 2), d, np.uint16)
        second = carray(pointer(place_v + (f + 1 if f + 1 < n else 0) * t.frame * 2), d, np.uint16)
        kept = np.uint32(0xFFFFFFFF if f + 1 < n else 0xFFFF if f < n else 0)
        for i in range(d):
            pair = np.uint32(first[i]) | (np.uint32(second[i]) << np.uint32(16))
            values[f // 2, i] = pair & kept


# By vectors, six queries, or by tiles, 16. Arguments are addresses: a view of an array costs as
# much as the exponentials of a hundred scores.


@_compile
def _score_by_vectors(keys, d, visible, queries, scores, apart, most):
    """Scores of queries bfloat16 [6, d]: float32, ``apart`` bytes from row to row, -inf behind the
    last that is visible; in each lane the highest: ``most``, float32 [6, LANES]."""
    for first in range(0, visible, BLOCK):
        here, out = keys + first * d * 2, scores + first * 4
        ahead = here + BLOCK * d * 2
        if first + BLOCK <= visible:
            microkernels.scores_r6(here, d * 2, queries, ahead, out, apart, most)
        else:
            microkernels.dot_bf16_r6(here, d * 2, queries, ahead, out, apart)
            for i in range(QUERIES):
                _hide(out + i * apart, visible - first)
                softmax.highest(out + i * apart, 1, most + i * 4 * VECTOR_WIDTH)


@_compile
def _score_by_tiles(keys, d, visible, queries, scores, apart, most):
    """The same of 16."""
    if d == 64:
        amx.queries_64(queries)
    else:
        amx.queries_32(queries)
    blocks = _padded(visible) // BLOCK
    for block in range(blocks):
        here, out = keys + block * BLOCK * d * 2, scores + block * BLOCK * 4
        if d == 64:
            amx.scores_64(here, out, apart)
        else:
            amx.scores_32(here, out, apart)
        for i in range(QUERIES):  # while the block is near
            if block == blocks - 1 and visible % BLOCK:
                _hide(out + i * apart, visible % BLOCK)
            softmax.highest(out + i * apart, 1, most + i * 4 * VECTOR_WIDTH)


@_compile
def _hide(scores, first):
    """Make the last scores of a block, from ``first`` on, -inf."""
    block = carray(pointer(scores), BLOCK, np.float32)
    for i in range(first, BLOCK):
        block[i] = -np.inf


@_compile
def _read_by_vectors(values, d, visible, shares, twice, padded, read):
    """Values by six queries' shares, rows ``twice`` bytes apart: float32 [6, d] into rows of
    BLOCK."""
    for i in range(QUERIES):
        rest = carray(pointer(shares + i * twice), padded, np.uint16)
        for j in range(_padded(visible), padded):
            rest[j] = 0
    if d > BLOCK // 2:
        microkernels.dot_bf16_r6(values, padded * 2, shares, values, read, 4 * BLOCK)
    else:
        microkernels.dot_bf16_r6_short(values, padded * 2, shares, values, read, 4 * BLOCK)


@_compile
def _read_by_tiles(values, d, visible, shares, twice, padded, read):
    """The same of 16."""
    if d == 64:
        amx.begin_64(0)
        for first in range(0, visible, amx.DEPTH):
            amx.mix_64(shares + first * 2, twice, values + first * d * 2)
        amx.end_64(read)
    else:
        amx.begin_32(0)
        for first in range(0, visible, amx.DEPTH):
            amx.mix_32(shares + first * 2, twice, values + first * d * 2)
        amx.end_32(read)


@_compile
def _start_tiles():
    """This thread's tile registers: palette 1, all of 16 rows of 64 bytes."""
    asked = np.zeros(64, np.uint8)
    asked[0] = 1
    asked[16:32:2] = amx.WIDE
    asked[48:56] = amx.ROWS
    amx.configure(asked.ctypes.data)


@_compile
def _stop_tiles():
    amx.release(0)


@_compile
def _nothing():
    pass


# the others would be instructions that this processor has not
_score, _read = (
    (_score_by_tiles, _read_by_tiles) if amx.AMX else (_score_by_vectors, _read_by_vectors)
)
_start, _stop = (_start_tiles, _stop_tiles) if amx.AMX else (_nothing, _nothing)


@_compile
def _attend(t, unit, first, scores, shares, queries, read, highest):
    """Up to ``QUERIES`` of a head, from ``first`` on; what follows is scratch.

    Args:
        scores, shares: float32 and uint16 [QUERIES, padded frames and more].
        queries, read: uint16 [QUERIES, head_dim], float32 [QUERIES, BLOCK].
        highest: float32 [QUERIES, LANES].
    """
    row, head = unit // t.heads, unit % t.heads
    d, padded = t.head_dim, _padded(t.frames)
    count = min(QUERIES, t.frames - first)
    for i in range(count):
        place_q = t.q + (row * t.row + head * t.head + (first + i) * t.frame) * 2
        query = carray(pointer(place_q), d, np.uint16)
        for j in range(d):
            queries[i, j] = query[j]
    for i in range(QUERIES):
        for j in range(VECTOR_WIDTH):
            highest[i, j] = -np.inf
    visible = carray(pointer(t.visible), t.rows, np.int64)[row]
    at, apart, most = scores.ctypes.data, scores.shape[1] * 4, highest.ctypes.data
    shared, twice, mixed = shares.ctypes.data, shares.shape[1] * 2, read.ctypes.data
    _score(t.keys + unit * padded * d * 2, d, visible, queries.ctypes.data, at, apart, most)
    scale = np.float32(1.44269504) / np.sqrt(np.float32(d))  # to powers of 2
    blocks = _padded(visible) // BLOCK
    for i in range(count):
        lanes = most + i * 4 * VECTOR_WIDTH
        total = softmax.shares(at + i * apart, blocks, lanes, scale, shared + i * twice)
        highest[i, 0] = total
    _read(t.values + unit * padded * BLOCK * 2, d, visible, shared, twice, padded, mixed)
    for i in range(count):
        frame = (row * t.frames + first + i) * t.heads + head
        factor = np.float32(1) / highest[i, 0]
        softmax.scaled(mixed + i * 4 * BLOCK, factor, d // VECTOR_WIDTH, t.out + frame * d * 2)


@_compile
def _bits_at(address, count):
    return carray(pointer(address), count, np.uint16)


@_compile
def _norm_row(t, row, weight, bias, wide):
    """One row of a NORM; sums in float32, as PyTorch's.

    Args:
        weight, bias: float32 [width].
        wide: scratch of the same shape.
    """
    n, at = t.width, row * t.width * 2
    x, out = _bits_at(t.x + at, n), _bits_at(t.out + at, n)
    total = np.float32(0)
    if t.more:
        more = _bits_at(t.more + at, n)
        for i in range(n):
            x[i] = float_to_bf16(bf16_to_float(x[i]) + bf16_to_float(more[i]))
    for i in range(n):
        wide[i] = bf16_to_float(x[i])
        total += wide[i]
    mean, spread = total / np.float32(n), np.float32(0)
    for i in range(n):
        wide[i] -= mean
        spread += wide[i] * wide[i]
    factor = np.float32(1) / np.sqrt(spread / np.float32(n) + np.float32(t.eps))
    if t.mish:
        for i in range(n):
            y = wide[i] * factor * weight[i] + bias[i]
            # tanh(log(1 + e^y)) is 1 to the last bit from there on
            e = exp(y if y < np.float32(20) else np.float32(20))
            e = e * e + np.float32(2) * e
            out[i] = float_to_bf16(y * (e / (e + np.float32(2))))
    else:
        for i in range(n):
            out[i] = float_to_bf16(wide[i] * factor * weight[i] + bias[i])


@entry_point
def norm(data):
    """Work for a team: a NORM."""
    t = carray(data, 1, NORM)[0]
    part, parts = thread_index(t)
    weight, bias = np.empty(t.width, np.float32), np.empty(t.width, np.float32)
    given, more = _bits_at(t.weight, t.width), _bits_at(t.bias, t.width)
    for i in range(t.width):
        weight[i], bias[i] = bf16_to_float(given[i]), bf16_to_float(more[i])
    wide = np.empty(t.width, np.float32)
    for row in range(t.rows * part // parts, t.rows * (part + 1) // parts):
        _norm_row(t, row, weight, bias, wide)


@entry_point
def attention(data):
    """Work for a team: an ATTENTION."""
    t = carray(data, 1, ATTENTION)[0]
    part, parts = thread_index(t)
    for unit in range(part, t.rows * t.heads, parts):
        _pack(t, unit)
    barrier_wait(t)
    padded = _padded(t.frames)
    scores = np.empty((QUERIES, padded + SPARE), np.float32)
    shares = np.zeros((QUERIES, padded + SPARE), np.uint16)
    queries, read = (
        np.zeros((QUERIES, t.head_dim), np.uint16),
        np.empty((QUERIES, BLOCK), np.float32),
    )
    highest = np.empty((QUERIES, VECTOR_WIDTH), np.float32)
    turns = (t.frames + QUERIES - 1) // QUERIES
    work = t.rows * t.heads * turns
    _start()
    for turn in range(work * part // parts, work * (part + 1) // parts):
        _attend(t, turn // turns, turn % turns * QUERIES, scores, shares, queries, read, highest)
    _stop()
