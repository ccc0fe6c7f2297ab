"""Compiled code for the processor (numba): products of integer matrices, and T3's whole step.

Knows bytes, vectors and threads. Knows nothing of modules, files or sampling. quantised.py and
integer_step.py are its callers, and hold what it gets addresses of.

A step of T3 at two rows is bound by reading its weights. PyTorch's integer products read them at
three quarters of memory's rate, and between the products some 2,000 small operations and the
interpreter take as long again. Here a step is one call: all layers, on PyTorch's threads (team.py).

Rows are rounded to int8 with one scale each (so no row depends on its neighbours), multiplied with
bytes and summed in int32, exactly. The inner loop is LLVM's, four products to a lane: one
instruction where the processor has VNNI, and plain widening elsewhere.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit, types

from chatterbox_opt.lanes import (
    BLOCK,
    GROUP,
    LANES,
    bits_of,
    bytes_1,
    bytes_2,
    bytes_4,
    bytes_6,
    exp,
    narrowed,
    nibbles_1,
    nibbles_2,
    nibbles_4,
    nibbles_6,
    of_bits,
    place,
    pointer,
    rint,
    settle,
    widened,
)

# numba keeps what it compiled until this file changes: so it must change when lanes.py does
LANES_OF = "66be9e28"

ZERO = 128  # int8 weights are stored as unsigned bytes with this for 0
LEVELS = 127  # int8 codes of rows: from -127 to 127
TINY = np.float32(1e-30)  # a row of zeros is divided by this

# Addresses are int64, in records as numpy lays them out.
MATRIX = np.dtype(
    [(name, "i8") for name in ("weights", "scales", "outputs", "inputs", "padded", "bits")]
)
"""One matrix [outputs, inputs] as quantised.py packs it: of each row ``padded`` inputs are there,
a multiple of GROUP, and outputs up to a multiple of BLOCK."""

_ROWS = ("number", "size", "barrier", "rows", "codes", "sums", "scales")
PRODUCT = np.dtype([(name, "i8") for name in (*_ROWS, "matrix", "x", "out")])
"""x float32 [rows, inputs] times matrix to out float32 [rows, outputs].

number, size, barrier: see team.py. Scratch: codes int8 [rows, padded], sums int32 [rows,
padded / GROUP + 1] (the last is of all), scales float32 [rows].
"""

_SHAPE = ("layers", "each", "heads", "head_dim", "ffn", "utterances")
_TENSORS = ("matrices", "norms", "x", "cos", "sin", "logits", "strips", "room", "places")
LAYERS = np.dtype(
    [(name, "i8") for name in (*_ROWS, *_SHAPE, *_TENSORS, "wide", "narrow", "weights")]
    + [("longest", "i8"), ("eps", "f8")]
)
"""T3's layers and head, over one position of each row.

matrices: MATRIX [layers * 4 + 1]: qkv, out, gate_up and down of each layer, then the head. norms:
float32 [layers * 2 + 1, width]. x: float32 [rows, width], overwritten. cos, sin: float32 [rows,
head_dim] as ``T3.rope`` gives them. logits: float32 [rows, vocabulary]. strips: int64 [layers,
utterances, 2], addresses of keys and values in float16 (ragged.py); room, places: int64
[utterances], how many positions there are and which is to be written. Scratch: wide float32 [rows,
3 width or 2 ffn], narrow float32 [rows, width], weights float32 [rows * heads, longest], and as in
PRODUCT.
"""

# sums in any order, so that loops become vectors; NaN and infinity stay what they are
_HOW = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
_compile = njit(nogil=True, **_HOW)
_FLOAT = np.float32


@_compile
def _eight(m, t, first, row, rows, turn, totals):
    """Rows from ``row`` on times int8 outputs from ``first`` on: float32 [rows, BLOCK].

    Turn by turn, of the four that go through the same weights, the next ones are brought nearer.
    """
    counts = np.empty((6, BLOCK), np.int32)
    n, out = m.padded, counts.ctypes.data
    weights, codes = m.weights + first * n, t.codes + row * n
    ahead = weights + BLOCK * n + (turn % 4 * LANES * n if rows > 2 else 0)
    if rows == 6:
        bytes_6(weights, n, codes, out, 4 * BLOCK, ahead)
    elif rows == 4:
        bytes_4(weights, n, codes, out, 4 * BLOCK, ahead)
    elif rows == 2:
        bytes_2(weights, n, codes, out, 4 * BLOCK, ahead)
    else:
        bytes_1(weights, n, codes, out, 4 * BLOCK, ahead)
    sums = carray(pointer(t.sums), (t.rows, n // GROUP + 1), np.int32)
    scales = carray(pointer(m.scales + first * 4), BLOCK, np.float32)
    for i in range(rows):
        zero = np.int32(ZERO) * sums[row + i, -1]
        for j in range(BLOCK):
            totals[i, j] = _FLOAT(counts[i, j] - zero) * scales[j]


@_compile
def _four(m, t, first, row, rows, turn, totals):
    """The same with int4 weights."""
    n = m.padded
    codes, sums = t.codes + row * n, t.sums + row * (n // GROUP + 1) * 4
    for half in range(2):
        outputs = first + half * BLOCK // 2
        weights, scales = m.weights + outputs * n // 2, m.scales + outputs * n // GROUP * 4
        out = totals.ctypes.data + half * BLOCK // 2 * 4
        ahead = weights + (BLOCK * n + turn % 2 * LANES * n if rows > 2 else BLOCK // 2 * n) // 2
        if rows == 6:
            nibbles_6(weights, scales, n, codes, sums, out, ahead)
        elif rows == 4:
            nibbles_4(weights, scales, n, codes, sums, out, ahead)
        elif rows == 2:
            nibbles_2(weights, scales, n, codes, sums, out, ahead)
        else:
            nibbles_1(weights, scales, n, codes, sums, out, ahead)


@_compile
def _product(m, t, out, add, part, parts):
    """Quantised rows times a part of the outputs of a matrix, to or onto out [rows, outputs]."""
    totals, scales = np.empty((6, BLOCK), np.float32), carray(pointer(t.scales), t.rows, np.float32)
    blocks = (m.outputs + BLOCK - 1) // BLOCK
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        first, row, turn = block * BLOCK, 0, 0
        last = min(BLOCK, m.outputs - first)
        while row < t.rows:
            left = t.rows - row
            rows = 6 if left >= 6 else 4 if left >= 4 else 2 if left >= 2 else 1
            if m.bits == 8:
                _eight(m, t, first, row, rows, turn, totals)
            else:
                _four(m, t, first, row, rows, turn, totals)
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
def _quantise(x, row, m, t):
    """Round one row float32 [inputs] for a matrix.

    The largest is found among bits as integers, which order like the numbers, NaN above all.
    """
    groups = m.padded // GROUP
    codes = carray(pointer(t.codes + row * m.padded), m.padded, np.int8)
    sums = carray(pointer(t.sums + row * (groups + 1) * 4), groups + 1, np.int32)
    scales = carray(pointer(t.scales), t.rows, np.float32)
    largest = bits_of(TINY)
    for i in range(m.inputs):
        largest = max(largest, bits_of(x[i]) & np.int32(0x7FFFFFFF))
    factor = _FLOAT(LEVELS) / of_bits(largest)
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
    scales[row] = of_bits(largest) / _FLOAT(LEVELS)


@_compile
def _normed(x, weight, eps, out):
    """RMSNorm of one row (t3.py)."""
    total = _FLOAT(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = _FLOAT(1) / np.sqrt(total / _FLOAT(len(x)) + _FLOAT(eps))
    for i in range(len(x)):
        out[i] = weight[i] * (x[i] * factor)


@_compile
def _attend(t, layer, number):
    """Head ``number`` of all rows' heads: turn and keep its key, keep its value, read the rest."""
    row, head = number // t.heads, number % t.heads
    heads = carray(pointer(t.wide), (t.rows, 3, t.heads, t.head_dim), np.float32)[row]
    out = carray(pointer(t.narrow), (t.rows, t.heads, t.head_dim), np.float32)[row, head]
    cos = carray(pointer(t.cos), (t.rows, t.head_dim), np.float32)[row]
    sin = carray(pointer(t.sin), (t.rows, t.head_dim), np.float32)[row]
    weights = carray(pointer(t.weights), (t.rows * t.heads, t.longest), np.float32)[number]
    n, utterance = t.head_dim, row // t.each
    strips = carray(pointer(t.strips), (t.layers, t.utterances, 2), np.int64)
    room = carray(pointer(t.room), t.utterances, np.int64)[utterance]
    place = carray(pointer(t.places), t.utterances, np.int64)[utterance]
    offset = ((row % t.each) * t.heads + head) * room * n * 2
    keys = carray(pointer(strips[layer, utterance, 0] + offset), (room, n), np.uint16)
    values = carray(pointer(strips[layer, utterance, 1] + offset), (n, room), np.uint16)
    q, k, v = heads[0, head], heads[1, head], heads[2, head]
    query, half, scale = np.empty(n, np.float32), n // 2, _FLOAT(1) / np.sqrt(_FLOAT(n))
    for i in range(half):
        j = i + half
        query[i] = (q[i] * cos[i] + q[j] * sin[i]) * scale
        query[j] = (q[j] * cos[j] + q[i] * sin[j]) * scale
        keys[place, i] = narrowed(k[i] * cos[i] + k[j] * sin[i])
        keys[place, j] = narrowed(k[j] * cos[j] + k[i] * sin[j])
    for i in range(n):
        values[i, place] = narrowed(v[i])
    highest = _FLOAT(-np.inf)
    for p in range(place + 1):
        score = _FLOAT(0)
        for i in range(n):
            score += query[i] * widened(keys[p, i])
        weights[p] = score
        highest = max(highest, score)
    total = _FLOAT(0)
    for p in range(place + 1):
        weights[p] = exp(weights[p] - highest)
        total += weights[p]
    read = (place // LANES + 1) * LANES  # whole vectors; there is nothing but zeros behind
    weights[place + 1 : read] = 0
    for i in range(n):
        attended = _FLOAT(0)
        for p in range(read):
            attended += weights[p] * widened(values[i, p])
        out[i] = attended / total


@_compile
def _norm_rows(t, x, weight, m, part, parts):
    narrow = carray(pointer(t.narrow), x.shape, np.float32)
    for row in range(part, t.rows, parts):
        _normed(x[row], weight, t.eps, narrow[row])
        _quantise(narrow[row], row, m, t)
    settle(t)


@_compile
def _layer(t, i, part, parts):
    """One layer: x is changed where it lies."""
    rows, width = t.rows, t.heads * t.head_dim
    matrices = carray(pointer(t.matrices), t.layers * 4 + 1, MATRIX)
    norms = carray(pointer(t.norms), (2 * t.layers + 1, width), np.float32)
    x = carray(pointer(t.x), (rows, width), np.float32)
    narrow = carray(pointer(t.narrow), (rows, width), np.float32)
    qkv = carray(pointer(t.wide), (rows, 3 * width), np.float32)
    both = carray(pointer(t.wide), (rows, 2 * t.ffn), np.float32)
    _norm_rows(t, x, norms[2 * i], matrices[4 * i], part, parts)
    _product(matrices[4 * i], t, qkv, False, part, parts)
    settle(t)
    for n in range(part, rows * t.heads, parts):
        _attend(t, i, n)
    settle(t)
    for row in range(part, rows, parts):
        _quantise(narrow[row], row, matrices[4 * i + 1], t)
    settle(t)
    _product(matrices[4 * i + 1], t, x, True, part, parts)
    settle(t)
    _norm_rows(t, x, norms[2 * i + 1], matrices[4 * i + 2], part, parts)
    _product(matrices[4 * i + 2], t, both, False, part, parts)
    settle(t)
    for row in range(part, rows, parts):
        gate, up = both[row, : t.ffn], both[row, t.ffn :]
        for j in range(t.ffn):
            gate[j] = gate[j] / (_FLOAT(1) + exp(-gate[j])) * up[j]
        _quantise(gate, row, matrices[4 * i + 3], t)
    settle(t)
    _product(matrices[4 * i + 3], t, x, True, part, parts)
    settle(t)


_ENTRY = types.void(types.voidptr)


@cfunc(_ENTRY, cache=True, **_HOW)
def layers(data):
    """Work for a team: a step of LAYERS."""
    t = carray(data, 1, LAYERS)[0]
    part, parts = place(t)
    for i in range(t.layers):
        _layer(t, i, part, parts)
    width = t.heads * t.head_dim
    head = carray(pointer(t.matrices), t.layers * 4 + 1, MATRIX)[t.layers * 4]
    norms = carray(pointer(t.norms), (2 * t.layers + 1, width), np.float32)
    x = carray(pointer(t.x), (t.rows, width), np.float32)
    _norm_rows(t, x, norms[2 * t.layers], head, part, parts)
    logits = carray(pointer(t.logits), (t.rows, head.outputs), np.float32)
    _product(head, t, logits, False, part, parts)


@cfunc(_ENTRY, cache=True, **_HOW)
def product(data):
    """Work for a team: a PRODUCT."""
    t = carray(data, 1, PRODUCT)[0]
    part, parts = place(t)
    m = carray(pointer(t.matrix), 1, MATRIX)[0]
    x = carray(pointer(t.x), (t.rows, m.inputs), np.float32)
    for row in range(part, t.rows, parts):
        _quantise(x[row], row, m, t)
    settle(t)
    _product(m, t, carray(pointer(t.out), (t.rows, m.outputs), np.float32), False, part, parts)
