"""Full attention of the flow in bfloat16, compiled by numba, with AVX-512 or AMX products.

Responsible for tiles of queries, packing of keys and values, and threads; not responsible for the
layers around. bf16_ops.py calls it and owns the memory that it gets addresses of. Softmax is in
softmax.py, the products in microkernels.py (AVX-512) and amx.py (AMX).

The algorithm
-------------
For each head, out = softmax(q k^T / sqrt(d)) v over all frames. A tile of few queries (6 with
AVX-512, 16 with AMX) is taken through all three steps before the next one starts:

      q tile [6, d]
        | x k^T, packed: panels of 64 frames, pairs of dimensions together
        v
      scores float32 [6, frames]      running maximum per row, frames beyond kv_len set to -inf
        | 2^((s - max) * log2(e) / sqrt(d)), rounded to bfloat16; the sum stays float32
        v
      probs bfloat16 [6, frames]      not yet divided by the sum
        | x v, packed: panels of d dimensions, pairs of frames together
        v
      out [6, d] / sum

One tile's scores are 6 * frames * 4 bytes, 24 KB at 1,000 frames: they stay in the first- or
second-level cache from product to softmax to product. With all scores of a row at hand there is no
need for an online softmax's rescaling.

Packing: keys and values are packed once per head and call, because vdpbf16ps wants two columns of
the inner dimension side by side in each lane: k [d / 2, 64 frames, 2] per panel, and v
[frames / 2, d, 2]. Element (frame f, dimension i) of k goes to panel f // 64, pair i // 2, lane
f % 64, half i % 2. All threads pack, wait at a barrier, then divide the (head, query tile) pairs.

Why not the library's: PyTorch's fused kernel multiplies through MKL, at a fifth of what an EPYC
core can do; with oneDNN's products the scores of a head pass through memory four times. The limit
here is the rate of vdpbf16ps (or tdpbf16ps), then that of the exponentials.
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
    pointer,
    thread_index,
)

QUERIES = amx.ROWS if amx.AMX else 6  # of one tile
# AMX: 16 rows with a power-of-two stride would map to the same cache sets; six rows fit anyway
ROW_PADDING = 2 * VECTOR_WIDTH if amx.AMX else 0

_FIELDS = (
    "thread_num",
    "num_threads",
    "barrier",
    "rows",
    "heads",
    "frames",
    "head_dim",
    "row_stride",
    "frame_stride",
    "head_stride",
)
_TENSORS = ("q", "k", "v", "kv_lens", "out", "packed_keys", "packed_values")
ATTENTION = np.dtype([(name, "i8") for name in (*_FIELDS, *_TENSORS)])
"""q, k, v: bfloat16; element [r, h, f, i] has the offset
r * row_stride + h * head_stride + f * frame_stride + i.

thread_num, num_threads, barrier: see openmp.py. head_dim is 32 or 64. kv_lens: int64 [rows], how
many frames are attended to, the first ones. out: bfloat16 [rows, frames, heads, head_dim].
Scratch: packed_keys bfloat16 [rows * heads, padded frames, head_dim], packed_values bfloat16
[rows * heads, BLOCK, padded frames]; frames are padded to a multiple of BLOCK.
"""

_compile = njit(nogil=True, **NJIT_OPTIONS)


@_compile
def _padded(frames):
    return (frames + BLOCK - 1) // BLOCK * BLOCK


@_compile
def _pack(t, unit):
    """Pack the keys and values of one (row, head) for the micro-kernels, padded with zeros.

    Keys: outputs are frames, pairs are of dimensions. Values: outputs are dimensions, pairs are of
    frames.
    """
    row, head = unit // t.heads, unit % t.heads
    n, d, padded = t.frames, t.head_dim, _padded(t.frames)
    k_address = t.k + (row * t.row_stride + head * t.head_stride) * 2
    v_address = t.v + (row * t.row_stride + head * t.head_stride) * 2
    keys = carray(
        pointer(t.packed_keys + unit * padded * d * 2), (padded // BLOCK, d // 2, BLOCK), np.uint32
    )
    values = carray(
        pointer(t.packed_values + unit * padded * BLOCK * 2),
        (padded // 2, d),
        np.uint32,
    )
    # 1) keys: two dimensions are one uint32 already
    for f in range(padded):
        if f < n:
            pairs = carray(pointer(k_address + f * t.frame_stride * 2), d // 2, np.uint32)
            for i in range(d // 2):
                keys[f // BLOCK, i, f % BLOCK] = pairs[i]
        else:
            keys[f // BLOCK, :, f % BLOCK] = 0
    # 2) values: interleave two frames
    for f in range(0, padded, 2):
        # after the last frame, frame 0 is read instead and masked out
        first = carray(pointer(v_address + (f if f < n else 0) * t.frame_stride * 2), d, np.uint16)
        second = carray(
            pointer(v_address + (f + 1 if f + 1 < n else 0) * t.frame_stride * 2), d, np.uint16
        )
        mask = np.uint32(0xFFFFFFFF if f + 1 < n else 0xFFFF if f < n else 0)
        for i in range(d):
            pair = np.uint32(first[i]) | (np.uint32(second[i]) << np.uint32(16))
            values[f // 2, i] = pair & mask


# AVX-512 with six queries, or AMX with 16. Arguments are addresses: creating a view of an array
# takes as long as the exponentials of a hundred scores.


@_compile
def _scores_avx512(keys, d, kv_len, queries, scores, stride, maxima):
    """Scores of queries bfloat16 [6, d]: float32, ``stride`` bytes from row to row, -inf from
    ``kv_len`` on; ``maxima``, float32 [6, VECTOR_WIDTH], is the running maximum of each lane."""
    for first in range(0, kv_len, BLOCK):
        panel, out = keys + first * d * 2, scores + first * 4
        next_panel = panel + BLOCK * d * 2
        if first + BLOCK <= kv_len:
            microkernels.scores_r6(panel, d * 2, queries, next_panel, out, stride, maxima)
        else:
            microkernels.dot_bf16_r6(panel, d * 2, queries, next_panel, out, stride)
            for i in range(QUERIES):
                _mask_block(out + i * stride, kv_len - first)
                softmax.update_maxima(out + i * stride, 1, maxima + i * 4 * VECTOR_WIDTH)


@_compile
def _scores_amx(keys, d, kv_len, queries, scores, stride, maxima):
    """The same for 16 queries."""
    if d == 64:
        amx.load_queries_64(queries)
    else:
        amx.load_queries_32(queries)
    blocks = _padded(kv_len) // BLOCK
    for block in range(blocks):
        panel, out = keys + block * BLOCK * d * 2, scores + block * BLOCK * 4
        if d == 64:
            amx.scores_64(panel, out, stride)
        else:
            amx.scores_32(panel, out, stride)
        for i in range(QUERIES):  # while the block is in the first-level cache
            if block == blocks - 1 and kv_len % BLOCK:
                _mask_block(out + i * stride, kv_len % BLOCK)
            softmax.update_maxima(out + i * stride, 1, maxima + i * 4 * VECTOR_WIDTH)


@_compile
def _mask_block(scores, first):
    """Set the last scores of a block, from ``first`` on, to -inf."""
    block = carray(pointer(scores), BLOCK, np.float32)
    for i in range(first, BLOCK):
        block[i] = -np.inf


@_compile
def _weighted_values_avx512(values, d, kv_len, probs, stride, padded, out):
    """Six queries' probabilities, with a row stride in bytes, times values: float32 [6, d] into
    rows of BLOCK."""
    for i in range(QUERIES):
        rest = carray(pointer(probs + i * stride), padded, np.uint16)
        for j in range(_padded(kv_len), padded):
            rest[j] = 0
    if d > BLOCK // 2:
        microkernels.dot_bf16_r6(values, padded * 2, probs, values, out, 4 * BLOCK)
    else:
        microkernels.dot_bf16_r6_short(values, padded * 2, probs, values, out, 4 * BLOCK)


@_compile
def _weighted_values_amx(values, d, kv_len, probs, stride, padded, out):
    """The same for 16 queries."""
    if d == 64:
        amx.zero_output_64(0)
        for first in range(0, kv_len, amx.DEPTH):
            amx.add_values_64(probs + first * 2, stride, values + first * d * 2)
        amx.store_output_64(out)
    else:
        amx.zero_output_32(0)
        for first in range(0, kv_len, amx.DEPTH):
            amx.add_values_32(probs + first * 2, stride, values + first * d * 2)
        amx.store_output_32(out)


@_compile
def _configure_tiles():
    """Configure this thread's tile registers: palette 1, all of 16 rows of 64 bytes."""
    tile_config = np.zeros(64, np.uint8)
    tile_config[0] = 1
    tile_config[16:32:2] = amx.ROW_BYTES
    tile_config[48:56] = amx.ROWS
    amx.configure(tile_config.ctypes.data)


@_compile
def _release_tiles():
    amx.release(0)


@_compile
def _no_op():
    pass


# chosen at import: the other functions would be instructions that this CPU does not have
_scores, _weighted_values = (
    (_scores_amx, _weighted_values_amx) if amx.AMX else (_scores_avx512, _weighted_values_avx512)
)
_start, _stop = (_configure_tiles, _release_tiles) if amx.AMX else (_no_op, _no_op)


@_compile
def _attend(t, unit, first, scores, probs, queries, attended, maxima):
    """Up to ``QUERIES`` queries of a (row, head), from frame ``first`` on.

    Args:
        scores, probs: scratch float32 and uint16 [QUERIES, padded frames + ROW_PADDING].
        queries, attended: scratch uint16 [QUERIES, head_dim], float32 [QUERIES, BLOCK].
        maxima: scratch float32 [QUERIES, VECTOR_WIDTH].
    """
    row, head = unit // t.heads, unit % t.heads
    d, padded = t.head_dim, _padded(t.frames)
    count = min(QUERIES, t.frames - first)
    # 1) gather the queries
    for i in range(count):
        q_address = (
            t.q + (row * t.row_stride + head * t.head_stride + (first + i) * t.frame_stride) * 2
        )
        query = carray(pointer(q_address), d, np.uint16)
        for j in range(d):
            queries[i, j] = query[j]
    for i in range(QUERIES):
        for j in range(VECTOR_WIDTH):
            maxima[i, j] = -np.inf
    # 2) scores and their maxima
    kv_len = carray(pointer(t.kv_lens), t.rows, np.int64)[row]
    scores_at, scores_stride, maxima_at = (
        scores.ctypes.data,
        scores.shape[1] * 4,
        maxima.ctypes.data,
    )
    probs_at, probs_stride, attended_at = (
        probs.ctypes.data,
        probs.shape[1] * 2,
        attended.ctypes.data,
    )
    keys = t.packed_keys + unit * padded * d * 2
    _scores(keys, d, kv_len, queries.ctypes.data, scores_at, scores_stride, maxima_at)
    # 3) softmax's numerators and their sum, which replaces a maximum
    scale = np.float32(1.44269504) / np.sqrt(np.float32(d))  # log2(e) / sqrt(d)
    blocks = _padded(kv_len) // BLOCK
    for i in range(count):
        row_maxima = maxima_at + i * 4 * VECTOR_WIDTH
        row_scores, row_probs = scores_at + i * scores_stride, probs_at + i * probs_stride
        total = softmax.exp_scores(row_scores, blocks, row_maxima, scale, row_probs)
        maxima[i, 0] = total
    # 4) times values, divided by the sum
    values = t.packed_values + unit * padded * BLOCK * 2
    _weighted_values(values, d, kv_len, probs_at, probs_stride, padded, attended_at)
    for i in range(count):
        frame = (row * t.frames + first + i) * t.heads + head
        factor = np.float32(1) / maxima[i, 0]
        softmax.scale_to_bf16(
            attended_at + i * 4 * BLOCK, factor, d // VECTOR_WIDTH, t.out + frame * d * 2
        )


@entry_point
def attention(data):
    """One ATTENTION task, called in each thread: heads and query tiles are divided."""
    t = carray(data, 1, ATTENTION)[0]
    thread, threads = thread_index(t)
    # 1) pack all keys and values
    for unit in range(thread, t.rows * t.heads, threads):
        _pack(t, unit)
    barrier_wait(t)
    # 2) this thread's scratch
    padded = _padded(t.frames)
    scores = np.empty((QUERIES, padded + ROW_PADDING), np.float32)
    probs = np.zeros((QUERIES, padded + ROW_PADDING), np.uint16)
    queries, attended = (
        np.zeros((QUERIES, t.head_dim), np.uint16),
        np.empty((QUERIES, BLOCK), np.float32),
    )
    maxima = np.empty((QUERIES, VECTOR_WIDTH), np.float32)
    # 3) its share of the query tiles of all heads
    tiles = (t.frames + QUERIES - 1) // QUERIES
    work = t.rows * t.heads * tiles
    _start()
    for i in range(work * thread // threads, work * (thread + 1) // threads):
        _attend(t, i // tiles, i % tiles * QUERIES, scores, probs, queries, attended, maxima)
    _stop()
