"""T3's whole decode step over int8 or int4 matrices, compiled by numba: all layers in one call.

Responsible for layers as bytes, vectors and threads; not responsible for modules, files or
sampling. models/t3/int8_step.py calls it and owns the memory that it gets addresses of.

Why one call
------------
A decode step multiplies two rows (one sequence, with and without the text under CFG) with every
matrix of T3, so reading the weights is the limit. PyTorch's integer products read them at three
quarters of memory's rate, and between the products some 2,000 small operations and the interpreter
take as long again. Here a step is one parallel region on PyTorch's threads (openmp.py), and threads
meet at barriers only:

    embedding                  rows are divided
    norm + quantize            rows                 (norms, int8_gemm.quantize_row)
    QKV GEMM                   panels of outputs    (int8_gemm.multiply_rows)
    RoPE, KV write, attention  heads are divided    (``_attend``)
    quantize                   rows
    output GEMM, added to x    panels
    norm + quantize            rows
    gate/up GEMM               panels
    SwiGLU + quantize          rows
    down GEMM, added to x      panels               each line ends with a barrier: 9 per layer

This is Llama (models/t3/llama.py). GPT-2 (gpt2.py) has LayerNorm where Llama has RMSNorm, biases,
no RoPE, and one FFN matrix with gelu where Llama has two with SwiGLU.

The KV cache is int8 with a float32 scale for each position of a head, in buffers of each sequence
and layer, so each head reads exactly as many positions as its sequence has. Keys and values are
[positions, head_dim]. Scales are applied to scores and weights, one number a position.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.int8_gemm import (
    MATRIX,
    TASK_FIELDS,
    multiply_rows,
    quantize,
    quantize_row,
)
from chatterbox_opt.kernels.cpu.llvm import (
    NJIT_OPTIONS,
    barrier_wait,
    exp,
    pointer,
    thread_index,
)

_SHAPE = ("layers", "rows_per_seq", "heads", "head_dim", "ffn", "gated", "num_seqs")
_WEIGHTS = ("matrices", "norms", "norm_biases", "tokens", "positions", "num_positions")
_INPUTS = ("token", "index", "position", "cos", "sin", "kv_pointers", "capacity")
_RESULTS = ("x", "logits")
_SCRATCH = ("wide", "narrow", "probs", "probs_stride")
DECODE_STEP = np.dtype(
    [(name, "i8") for name in (*TASK_FIELDS, *_SHAPE, *_WEIGHTS, *_INPUTS, *_RESULTS, *_SCRATCH)]
    + [("eps", "f8")]
)
"""T3's embeddings, layers and head, over one position of each row.

gated: 1 for SwiGLU, 0 for gelu. matrices: MATRIX [layers * 4 + 1]: qkv, out, gate_up (or up) and
down of each layer, then the head. norms: float32 [layers * 2 + 1, width]; norm_biases: the same of
LayerNorm, or 0 for RMSNorm. tokens, positions: ``T3.tables``, float32; num_positions: rows of the
second one. token, index, position: int64 [num_seqs], the token, its row in ``positions`` and where
it goes in the KV cache. cos, sin: float32 [positions, head_dim], ``LlamaT3.rope`` of all positions,
or 0. kv_pointers: int64 [layers, num_seqs, 4], addresses of keys, values and the scales of both
(models/t3/ragged_kv_cache.py, Int8KVCache); capacity: int64 [num_seqs], positions of a buffer. x:
float32 [rows, width]. logits: float32 [rows, vocabulary]. Scratch: wide float32 [rows, 3 width or
2 ffn], narrow float32 [rows, width], probs float32 [rows * heads, probs_stride], and that of
int8_gemm.GEMM.
"""

_compile = njit(nogil=True, **NJIT_OPTIONS)
_inline = njit(nogil=True, inline="always", **NJIT_OPTIONS)
_FLOAT = np.float32


@_compile
def _rms_norm(x, weight, eps, out):
    """RMSNorm of one row (models/t3/llama.py)."""
    total = _FLOAT(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = _FLOAT(1) / np.sqrt(total / _FLOAT(len(x)) + _FLOAT(eps))
    for i in range(len(x)):
        out[i] = weight[i] * (x[i] * factor)


@_compile
def _layer_norm(x, weight, bias, eps, out):
    """LayerNorm of one row."""
    total, squares = _FLOAT(0), _FLOAT(0)
    for i in range(len(x)):
        total += x[i]
    mean = total / _FLOAT(len(x))
    for i in range(len(x)):
        squares += (x[i] - mean) * (x[i] - mean)
    factor = _FLOAT(1) / np.sqrt(squares / _FLOAT(len(x)) + _FLOAT(eps))
    for i in range(len(x)):
        out[i] = (x[i] - mean) * factor * weight[i] + bias[i]


@_compile
def _swiglu(gate, up):
    """silu(gate) * up, in place on gate (Shazeer 2020)."""
    for j in range(len(gate)):
        gate[j] = gate[j] / (_FLOAT(1) + exp(-gate[j])) * up[j]


@_compile
def _gelu(x):
    """gelu's tanh form, in place (Hendrycks & Gimpel 2016): (1 + tanh(u)) / 2 is sigmoid(2 u)."""
    for j in range(len(x)):
        u = _FLOAT(0.7978845608028654) * (x[j] + _FLOAT(0.044715) * x[j] * x[j] * x[j])
        x[j] = x[j] / (_FLOAT(1) + exp(_FLOAT(-2) * u))


@_compile
def _rotate(x, cos, sin, out):
    """RoPE of one head (models/t3/llama.py)."""
    half = len(x) // 2
    for i in range(half):
        j = i + half
        out[i] = x[i] * cos[i] + x[j] * sin[i]
        out[j] = x[j] * cos[j] + x[i] * sin[j]


@_inline
def _weigh(weights, values, positions, out, n):
    """Write the weighted sum of the first ``positions`` values, four at a time."""
    for i in range(n):
        out[i] = 0
    whole = positions - positions % 4
    for p in range(0, whole, 4):
        a, b, c, d = weights[p], weights[p + 1], weights[p + 2], weights[p + 3]
        for i in range(n):
            first = a * _FLOAT(values[p, i]) + b * _FLOAT(values[p + 1, i])
            second = c * _FLOAT(values[p + 2, i]) + d * _FLOAT(values[p + 3, i])
            out[i] += first + second
    for p in range(whole, positions):
        for i in range(n):
            out[i] += weights[p] * _FLOAT(values[p, i])


@_inline
def _attend_over(query, cached, probs, positions, out, n):
    """Attention of one query over the first ``positions`` of ``cached``; n is head_dim.

    Where n is a constant, the loops over it are unrolled.

    Args:
        cached: keys, values int8 [positions, n], and the scales of both float32 [positions].
    """
    keys, values, key_scales, value_scales = cached
    # 1) scores and their maximum
    for p in range(positions):
        score = _FLOAT(0)
        for i in range(n):
            score += query[i] * _FLOAT(keys[p, i])
        probs[p] = score * key_scales[p]
    highest = _FLOAT(-np.inf)
    for p in range(positions):
        highest = max(highest, probs[p])
    # 2) softmax's numerators and their sum
    total = _FLOAT(0)
    for p in range(positions):
        weight = exp(probs[p] - highest)
        total += weight
        probs[p] = weight * value_scales[p]
    # 3) times values
    _weigh(probs, values, positions, out, n)
    for i in range(n):
        out[i] /= total


@_compile
def _attend(t, layer, number):
    """Decode attention of head ``number`` of all rows' heads; appends its key and value."""
    row, head = number // t.heads, number % t.heads
    heads = carray(pointer(t.wide), (t.rows, 3, t.heads, t.head_dim), np.float32)[row]
    out = carray(pointer(t.narrow), (t.rows, t.heads, t.head_dim), np.float32)[row, head]
    probs = carray(pointer(t.probs), (t.rows * t.heads, t.probs_stride), np.float32)[number]
    n, seq = t.head_dim, row // t.rows_per_seq
    kv_pointers = carray(pointer(t.kv_pointers), (t.layers, t.num_seqs, 4), np.int64)[layer, seq]
    capacity = carray(pointer(t.capacity), t.num_seqs, np.int64)[seq]
    last = carray(pointer(t.position), t.num_seqs, np.int64)[seq]
    first = ((row % t.rows_per_seq) * t.heads + head) * capacity
    keys = carray(pointer(kv_pointers[0] + first * n), (capacity, n), np.int8)
    values = carray(pointer(kv_pointers[1] + first * n), (capacity, n), np.int8)
    key_scales = carray(pointer(kv_pointers[2] + first * 4), capacity, np.float32)
    value_scales = carray(pointer(kv_pointers[3] + first * 4), capacity, np.float32)
    q, k, v = heads[0, head], heads[1, head], heads[2, head]
    query, key, scale = (
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        _FLOAT(1) / np.sqrt(_FLOAT(n)),
    )
    # 1) RoPE; append key and value
    if t.cos:
        cos = carray(pointer(t.cos), (last + 1, n), np.float32)[last]
        sin = carray(pointer(t.sin), (last + 1, n), np.float32)[last]
        _rotate(q, cos, sin, query)
        _rotate(k, cos, sin, key)
    else:
        query[:], key[:] = q, k
    for i in range(n):
        query[i] *= scale
    key_scales[last] = quantize(key, keys[last])
    value_scales[last] = quantize(v, values[last])
    # 2) attention
    cached = (keys, values, key_scales, value_scales)
    if n == 64:
        _attend_over(query, cached, probs, last + 1, out, 64)
    else:
        _attend_over(query, cached, probs, last + 1, out, n)


@_compile
def _embed(t, thread, threads):
    """The embeddings of this thread's rows, which ``_norm_and_quantize`` gives to it as well."""
    width, seqs = t.heads * t.head_dim, t.num_seqs
    x = carray(pointer(t.x), (t.rows, width), np.float32)
    for row in range(thread, t.rows, threads):
        seq = row // t.rows_per_seq
        token = carray(pointer(t.token), seqs, np.int64)[seq]
        # a finished sequence may be stepped once more
        index = min(carray(pointer(t.index), seqs, np.int64)[seq], t.num_positions - 1)
        tokens = carray(pointer(t.tokens + token * width * 4), width, np.float32)
        positions = carray(pointer(t.positions + index * width * 4), width, np.float32)
        for i in range(width):
            x[row, i] = tokens[i] + positions[i]


@_compile
def _norm_and_quantize(t, x, number, m, thread, threads):
    """Norm ``number`` of this thread's rows of x, quantized for matrix ``m``; then a barrier."""
    narrow = carray(pointer(t.narrow), x.shape, np.float32)
    shape = (2 * t.layers + 1, x.shape[1])
    weight = carray(pointer(t.norms), shape, np.float32)[number]
    for row in range(thread, t.rows, threads):
        if t.norm_biases:
            bias = carray(pointer(t.norm_biases), shape, np.float32)[number]
            _layer_norm(x[row], weight, bias, t.eps, narrow[row])
        else:
            _rms_norm(x[row], weight, t.eps, narrow[row])
        quantize_row(narrow[row], row, m, t)
    barrier_wait(t)


@_compile
def _layer(t, i, thread, threads):
    """One transformer layer, in place on x."""
    rows, width = t.rows, t.heads * t.head_dim
    matrices = carray(pointer(t.matrices), t.layers * 4 + 1, MATRIX)
    x = carray(pointer(t.x), (rows, width), np.float32)
    narrow = carray(pointer(t.narrow), (rows, width), np.float32)
    qkv = carray(pointer(t.wide), (rows, 3 * width), np.float32)
    gate_up = carray(pointer(t.wide), (rows, (1 + t.gated) * t.ffn), np.float32)
    # 1) norm, QKV
    _norm_and_quantize(t, x, 2 * i, matrices[4 * i], thread, threads)
    multiply_rows(matrices[4 * i], t, qkv, False, thread, threads)
    barrier_wait(t)
    # 2) attention
    for n in range(thread, rows * t.heads, threads):
        _attend(t, i, n)
    barrier_wait(t)
    # 3) output projection, added to x
    for row in range(thread, rows, threads):
        quantize_row(narrow[row], row, matrices[4 * i + 1], t)
    barrier_wait(t)
    multiply_rows(matrices[4 * i + 1], t, x, True, thread, threads)
    barrier_wait(t)
    # 4) norm, gate and up
    _norm_and_quantize(t, x, 2 * i + 1, matrices[4 * i + 2], thread, threads)
    multiply_rows(matrices[4 * i + 2], t, gate_up, False, thread, threads)
    barrier_wait(t)
    # 5) SwiGLU or gelu, in place
    for row in range(thread, rows, threads):
        gate = gate_up[row, : t.ffn]
        if t.gated:
            _swiglu(gate, gate_up[row, t.ffn :])
        else:
            _gelu(gate)
        quantize_row(gate, row, matrices[4 * i + 3], t)
    barrier_wait(t)
    # 6) down projection, added to x
    multiply_rows(matrices[4 * i + 3], t, x, True, thread, threads)
    barrier_wait(t)


@entry_point
def decode_step(data):
    """One DECODE_STEP task, called in each thread."""
    t = carray(data, 1, DECODE_STEP)[0]
    thread, threads = thread_index(t)
    _embed(t, thread, threads)
    for i in range(t.layers):
        _layer(t, i, thread, threads)
    # final norm and head
    width = t.heads * t.head_dim
    head = carray(pointer(t.matrices), t.layers * 4 + 1, MATRIX)[t.layers * 4]
    x = carray(pointer(t.x), (t.rows, width), np.float32)
    _norm_and_quantize(t, x, 2 * t.layers, head, thread, threads)
    logits = carray(pointer(t.logits), (t.rows, head.outputs), np.float32)
    multiply_rows(head, t, logits, False, thread, threads)
