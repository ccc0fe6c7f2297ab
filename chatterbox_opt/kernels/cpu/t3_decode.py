"""Compiled code for the processor (numba): T3's whole step over integer matrices.

Knows layers as bytes, vectors and threads. Knows nothing of modules, files or sampling.
int8_step.py is its caller, and holds what it gets addresses of.

A step of T3 at two rows is bound by reading its weights. PyTorch's integer products read them at
three quarters of memory's rate, and between the products some 2,000 small operations and the
interpreter take as long again. Here a step is one call: all layers, on PyTorch's threads (openmp.py).
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.int8_gemm import MATRIX, ROWS, multiply_rows, quantize_row
from chatterbox_opt.kernels.cpu.llvm import (
    NJIT_OPTIONS,
    VECTOR_WIDTH,
    barrier_wait,
    exp,
    float_to_half,
    half_to_float,
    pointer,
    thread_index,
)

_SHAPE = ("layers", "rows_per_seq", "heads", "head_dim", "ffn", "utterances")
_TENSORS = ("matrices", "norms", "x", "cos", "sin", "logits", "strips", "room", "places")
LAYERS = np.dtype(
    [(name, "i8") for name in (*ROWS, *_SHAPE, *_TENSORS, "wide", "narrow", "weights")]
    + [("longest", "i8"), ("eps", "f8")]
)
"""T3's layers and head, over one position of each row.

matrices: MATRIX [layers * 4 + 1]: qkv, out, gate_up and down of each layer, then the head. norms:
float32 [layers * 2 + 1, width]. x: float32 [rows, width], overwritten. cos, sin: float32 [rows,
head_dim] as ``T3.rope`` gives them. logits: float32 [rows, vocabulary]. strips: int64 [layers,
utterances, 2], addresses of keys and values in float16 (ragged_kv_cache.py); room, places: int64
[utterances], how many positions there are and which is to be written. Scratch: wide float32 [rows,
3 width or 2 ffn], narrow float32 [rows, width], weights float32 [rows * heads, longest], and as in
compiled_integers.PRODUCT.
"""

_compile = njit(nogil=True, **NJIT_OPTIONS)
_FLOAT = np.float32


@_compile
def _normed(x, weight, eps, out):
    """RMSNorm of one row (models/t3/model.py)."""
    total = _FLOAT(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = _FLOAT(1) / np.sqrt(total / _FLOAT(len(x)) + _FLOAT(eps))
    for i in range(len(x)):
        out[i] = weight[i] * (x[i] * factor)


@_compile
def _kept(x):
    """To float16; at the end of its range, not beyond."""
    x = _FLOAT(65504) if x > _FLOAT(65504) else x  # NaN stays
    x = _FLOAT(-65504) if x < _FLOAT(-65504) else x
    return float_to_half(x)


@_compile
def _attend(t, layer, number):
    """Head ``number`` of all rows' heads: turn and keep its key, keep its value, read the rest."""
    row, head = number // t.heads, number % t.heads
    heads = carray(pointer(t.wide), (t.rows, 3, t.heads, t.head_dim), np.float32)[row]
    out = carray(pointer(t.narrow), (t.rows, t.heads, t.head_dim), np.float32)[row, head]
    cos = carray(pointer(t.cos), (t.rows, t.head_dim), np.float32)[row]
    sin = carray(pointer(t.sin), (t.rows, t.head_dim), np.float32)[row]
    weights = carray(pointer(t.weights), (t.rows * t.heads, t.longest), np.float32)[number]
    n, utterance = t.head_dim, row // t.rows_per_seq
    strips = carray(pointer(t.strips), (t.layers, t.utterances, 2), np.int64)
    room = carray(pointer(t.room), t.utterances, np.int64)[utterance]
    last = carray(pointer(t.places), t.utterances, np.int64)[utterance]
    offset = ((row % t.rows_per_seq) * t.heads + head) * room * n * 2
    keys = carray(pointer(strips[layer, utterance, 0] + offset), (room, n), np.uint16)
    values = carray(pointer(strips[layer, utterance, 1] + offset), (n, room), np.uint16)
    q, k, v = heads[0, head], heads[1, head], heads[2, head]
    query, half, scale = np.empty(n, np.float32), n // 2, _FLOAT(1) / np.sqrt(_FLOAT(n))
    for i in range(half):
        j = i + half
        query[i] = (q[i] * cos[i] + q[j] * sin[i]) * scale
        query[j] = (q[j] * cos[j] + q[i] * sin[j]) * scale
        keys[last, i] = _kept(k[i] * cos[i] + k[j] * sin[i])
        keys[last, j] = _kept(k[j] * cos[j] + k[i] * sin[j])
    for i in range(n):
        values[i, last] = _kept(v[i])
    highest = _FLOAT(-np.inf)
    for p in range(last + 1):
        score = _FLOAT(0)
        for i in range(n):
            score += query[i] * half_to_float(keys[p, i])
        weights[p] = score
        highest = max(highest, score)
    total = _FLOAT(0)
    for p in range(last + 1):
        weights[p] = exp(weights[p] - highest)
        total += weights[p]
    read = (
        last // VECTOR_WIDTH + 1
    ) * VECTOR_WIDTH  # whole vectors; there is nothing but zeros behind
    weights[last + 1 : read] = 0
    for i in range(n):
        attended = _FLOAT(0)
        for p in range(read):
            attended += weights[p] * half_to_float(values[i, p])
        out[i] = attended / total


@_compile
def _norm_rows(t, x, weight, m, part, parts):
    narrow = carray(pointer(t.narrow), x.shape, np.float32)
    for row in range(part, t.rows, parts):
        _normed(x[row], weight, t.eps, narrow[row])
        quantize_row(narrow[row], row, m, t)
    barrier_wait(t)


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
    multiply_rows(matrices[4 * i], t, qkv, False, part, parts)
    barrier_wait(t)
    for n in range(part, rows * t.heads, parts):
        _attend(t, i, n)
    barrier_wait(t)
    for row in range(part, rows, parts):
        quantize_row(narrow[row], row, matrices[4 * i + 1], t)
    barrier_wait(t)
    multiply_rows(matrices[4 * i + 1], t, x, True, part, parts)
    barrier_wait(t)
    _norm_rows(t, x, norms[2 * i + 1], matrices[4 * i + 2], part, parts)
    multiply_rows(matrices[4 * i + 2], t, both, False, part, parts)
    barrier_wait(t)
    for row in range(part, rows, parts):
        gate, up = both[row, : t.ffn], both[row, t.ffn :]
        for j in range(t.ffn):
            gate[j] = gate[j] / (_FLOAT(1) + exp(-gate[j])) * up[j]
        quantize_row(gate, row, matrices[4 * i + 3], t)
    barrier_wait(t)
    multiply_rows(matrices[4 * i + 3], t, x, True, part, parts)
    barrier_wait(t)


@entry_point
def layers(data):
    """Work for a team: a step of LAYERS."""
    t = carray(data, 1, LAYERS)[0]
    part, parts = thread_index(t)
    for i in range(t.layers):
        _layer(t, i, part, parts)
    width = t.heads * t.head_dim
    head = carray(pointer(t.matrices), t.layers * 4 + 1, MATRIX)[t.layers * 4]
    norms = carray(pointer(t.norms), (2 * t.layers + 1, width), np.float32)
    x = carray(pointer(t.x), (t.rows, width), np.float32)
    _norm_rows(t, x, norms[2 * t.layers], head, part, parts)
    logits = carray(pointer(t.logits), (t.rows, head.outputs), np.float32)
    multiply_rows(head, t, logits, False, part, parts)
