"""Compiled code for the processor (numba): the flow in bfloat16, all but its products
with matrices: attention over all frames, and layer norms with what stands beside them.

Knows bytes, vectors and threads. Knows nothing of the layers around. cpu_bfloat16.py
is its caller, and holds what it gets addresses of.

PyTorch's fused kernel multiplies through MKL, at a fifth of what an EPYC core can do; by oneDNN's
products the scores of a head go through memory four times. Here six queries at a time see all
keys: scores stay in float32 and in the first-level cache from product to softmax to product.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit, types

from chatterbox_opt.lanes import (
    BLOCK,
    HOW,
    LANES,
    bits_of,
    exact,
    exp,
    of_bits,
    place,
    pointer,
    rint,
    rounded,
    settle,
)
from chatterbox_opt.tiles import halves_6, halves_6_short, scores_6

# numba keeps what it compiled until this file changes: so it must change when what it uses does
MADE_OF = {"tiles": "e61627ab", "lanes": "170b6e3b"}

QUERIES = 6  # that are worked at together

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

number, size, barrier: see team.py. head_dim is 32 or 64. visible: int64 [rows],
how many frames can be seen, from the first on. out: bfloat16 [rows, frames, heads, head_dim].
Scratch: keys bfloat16 [rows * heads, padded frames, head_dim], values bfloat16 [rows * heads,
BLOCK, padded frames]; frames are padded to a multiple of BLOCK.
"""

_compile = njit(nogil=True, **HOW)


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
    """Lay out a head's keys and values as tiles.py wants its weights, zeros behind the last frame.

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


@_compile
def _power(x):
    """2 to the power of x, at most 0, by the series: 3e-6 off, where bfloat16 is 4e-3."""
    x = np.float32(-126) if x < np.float32(-126) else x  # NaN stays
    n = rint(x)
    x -= n
    y = np.float32(0.00133335581) * x + np.float32(0.00961812911)
    y = y * x + np.float32(0.0555041087)
    y = y * x + np.float32(0.240226507)
    y = y * x + np.float32(0.693147181)
    y = y * x + np.float32(1)
    return of_bits(np.int32(bits_of(y) + np.int32(np.int32(n) << np.int32(23))))


@_compile
def _share(scores, highest, scale, shares):
    """Softmax of one query's scores into bfloat16; return what the shares are to be divided by.

    Args:
        highest: float32 [LANES], of all whole blocks.
    """
    top = highest[0]
    for i in range(1, LANES):
        top = highest[i] if highest[i] > top else top
    for i in range(len(scores) // BLOCK * BLOCK, len(scores)):
        top = scores[i] if scores[i] > top else top
    total = np.float32(0)
    for i in range(len(scores)):
        share = _power((scores[i] - top) * scale)
        total += share
        shares[i] = rounded(share)
    return total


@_compile
def _attend(t, unit, first, scores, shares, queries, read, highest):
    """Up to six queries of a head, from ``first`` on; what follows is scratch.

    Args:
        scores, shares: float32 and uint16 [QUERIES, padded frames].
        queries, read: uint16 [QUERIES, head_dim], float32 [QUERIES, BLOCK].
        highest: float32 [QUERIES, LANES].
    """
    row, head = unit // t.heads, unit % t.heads
    d, padded = t.head_dim, _padded(t.frames)
    count = min(QUERIES, t.frames - first)
    for i in range(count):
        place_q = t.q + (row * t.row + head * t.head + (first + i) * t.frame) * 2
        queries[i] = carray(pointer(place_q), d, np.uint16)
    visible = carray(pointer(t.visible), t.rows, np.int64)[row]
    keys = t.keys + unit * padded * d * 2
    highest[:] = -np.inf
    for first_key in range(0, visible, BLOCK):
        here, out = keys + first_key * d * 2, scores.ctypes.data + first_key * 4
        ahead = here + BLOCK * d * 2
        if first_key + BLOCK <= visible:
            most = highest.ctypes.data
            scores_6(here, d * 2, queries.ctypes.data, ahead, out, padded * 4, most)
        else:
            halves_6(here, d * 2, queries.ctypes.data, ahead, out, padded * 4)
    scale = np.float32(1.44269504) / np.sqrt(np.float32(d))  # to powers of 2
    for i in range(count):
        highest[i, 0] = _share(scores[i, :visible], highest[i], scale, shares[i, :visible])
        shares[i, visible:] = 0
    values = t.values + unit * padded * BLOCK * 2
    if d > BLOCK // 2:
        halves_6(values, padded * 2, shares.ctypes.data, values, read.ctypes.data, 4 * BLOCK)
    else:
        halves_6_short(values, padded * 2, shares.ctypes.data, values, read.ctypes.data, 4 * BLOCK)
    outs = carray(pointer(t.out), (t.rows, t.frames, t.heads, d), np.uint16)
    for i in range(count):
        factor = np.float32(1) / highest[i, 0]  # their sum, by now
        for j in range(d):
            outs[row, first + i, head, j] = rounded(read[i, j] * factor)


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
            x[i] = rounded(exact(x[i]) + exact(more[i]))
    for i in range(n):
        wide[i] = exact(x[i])
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
            out[i] = rounded(y * (e / (e + np.float32(2))))
    else:
        for i in range(n):
            out[i] = rounded(wide[i] * factor * weight[i] + bias[i])


@cfunc(types.void(types.voidptr), cache=True, **HOW)
def norm(data):
    """Work for a team: a NORM."""
    t = carray(data, 1, NORM)[0]
    part, parts = place(t)
    weight, bias = np.empty(t.width, np.float32), np.empty(t.width, np.float32)
    given, more = _bits_at(t.weight, t.width), _bits_at(t.bias, t.width)
    for i in range(t.width):
        weight[i], bias[i] = exact(given[i]), exact(more[i])
    wide = np.empty(t.width, np.float32)
    for row in range(t.rows * part // parts, t.rows * (part + 1) // parts):
        _norm_row(t, row, weight, bias, wide)


@cfunc(types.void(types.voidptr), cache=True, **HOW)
def attention(data):
    """Work for a team: an ATTENTION."""
    t = carray(data, 1, ATTENTION)[0]
    part, parts = place(t)
    for unit in range(part, t.rows * t.heads, parts):
        _pack(t, unit)
    settle(t)
    padded = _padded(t.frames)
    scores = np.empty((QUERIES, padded), np.float32)
    shares = np.zeros((QUERIES, padded), np.uint16)
    queries, read = (
        np.zeros((QUERIES, t.head_dim), np.uint16),
        np.empty((QUERIES, BLOCK), np.float32),
    )
    highest = np.empty((QUERIES, LANES), np.float32)
    sixes = (t.frames + QUERIES - 1) // QUERIES
    work = t.rows * t.heads * sixes
    for six in range(work * part // parts, work * (part + 1) // parts):
        _attend(t, six // sixes, six % sixes * QUERIES, scores, shares, queries, read, highest)
