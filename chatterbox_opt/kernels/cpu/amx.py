"""bfloat16 products of AMX tiles, for attention on Intel CPUs (flow_bf16.py).

Responsible for the tile registers; not responsible for layers or threads. The caller has requested
AMX from the operating system (torch.cpu._init_amx; without it the process is killed), and has
``configure``d its thread.

A tile register is a matrix of up to 16 rows of 64 bytes; there are eight, tmm0 to tmm7, here all in
full size. tdpbf16ps multiplies two of them into a third: float32 C[16, 16] += A[16, 32] * B, with A
in bfloat16 row by row, and B's 32 columns in pairs, as packed weights are (microkernels.py). The
names of the instructions are those of Intel's manual; register numbers are immediates.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.llvm import BLOCK, I8, I64, VECTOR_WIDTH, has_feature

AMX = has_feature("amx-bf16")
ROWS, DEPTH = 16, 32  # of the left tile; DEPTH columns of bfloat16 are 64 bytes
ROW_BYTES = 4 * VECTOR_WIDTH  # bytes of a tile's row
_ACC, _KEYS = 4, 2  # first register of the four accumulators, and of the keys' two buffers


def _emit(b: Any, name: str, *operands: Any) -> None:
    """One instruction; Python ints are register numbers."""
    values = [I8(x) if isinstance(x, int) else x for x in operands]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.{name}"), values)


def _pointer(b: Any, address: Any, offset: int = 0) -> Any:
    return b.inttoptr(b.add(address, I64(offset)), I8.as_pointer())


def _instruction(count: int, emit: Any) -> Any:
    """An intrinsic of one or three int64 without a result: ``emit(builder, *values)`` emits it."""
    signature = types.void(*[types.int64] * count)

    def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
        emit(b, *values)
        return context.get_dummy_value()

    @intrinsic
    def one(context, first):
        return signature, generate

    @intrinsic
    def three(context, first, second, third):
        return signature, generate

    return {1: one, 3: three}[count]


def _load_queries(dims: int) -> Any:
    """Load 16 queries into tiles; the argument is their address: bfloat16 [16, dims]."""

    def emit(b: Any, queries: Any) -> None:
        for half in range(dims // DEPTH):
            _emit(b, "tileloadd64", half, _pointer(b, queries, ROW_BYTES * half), I64(2 * dims))

    return _instruction(1, emit)


def _scores(dims: int) -> Any:
    """Products of the loaded queries with a block of keys.

    Its arguments: the keys, [dims / 2, BLOCK] pairs of bfloat16; the address of the scores, float32
    [16, BLOCK], and the bytes from one of their rows to the next.
    """

    def emit(b: Any, keys: Any, out: Any, stride: Any) -> None:
        parts = range(BLOCK // VECTOR_WIDTH)
        for part in parts:
            _emit(b, "tilezero", _ACC + part)
        for half in range(dims // DEPTH):
            for part in parts:  # four accumulators in rotation: tdpbf16ps has 52 cycles of latency
                offset, tile = half * ROWS * 4 * BLOCK + part * ROW_BYTES, _KEYS + part % 2
                _emit(b, "tileloadd64", tile, _pointer(b, keys, offset), I64(4 * BLOCK))
                _emit(b, "tdpbf16ps", _ACC + part, half, tile)
        for part in parts:
            _emit(b, "tilestored64", _ACC + part, _pointer(b, out, part * ROW_BYTES), stride)

    return _instruction(3, emit)


def _zero_output(dims: int) -> Any:
    """Zero the accumulators of ``_add_values``; the argument is ignored."""

    def emit(b: Any, _: Any) -> None:
        for part in range(dims // VECTOR_WIDTH):
            _emit(b, "tilezero", _ACC + part)

    return _instruction(1, emit)


def _add_values(dims: int) -> Any:
    """Add the probabilities of 32 frames times their values to the accumulators.

    Its arguments: the probabilities, bfloat16 [16, 32], the bytes from one of their rows to the
    next; the values, [16, dims] pairs of bfloat16.
    """

    def emit(b: Any, probs: Any, stride: Any, values: Any) -> None:
        _emit(b, "tileloadd64", 0, _pointer(b, probs), stride)
        for part in range(dims // VECTOR_WIDTH):
            tile = 1 + part % 3
            address = _pointer(b, values, part * ROW_BYTES)
            _emit(b, "tileloadd64", tile, address, I64(4 * dims))
            _emit(b, "tdpbf16ps", _ACC + part, 0, tile)

    return _instruction(3, emit)


def _store_output(dims: int) -> Any:
    """Store the accumulators: float32 [16, dims] into rows of BLOCK."""

    def emit(b: Any, out: Any) -> None:
        for part in range(dims // VECTOR_WIDTH):
            address = _pointer(b, out, part * ROW_BYTES)
            _emit(b, "tilestored64", _ACC + part, address, I64(4 * BLOCK))

    return _instruction(1, emit)


# the argument is the address of 64 bytes: palette 1, 16 rows of 64 bytes for each register
configure = _instruction(1, lambda b, address: _emit(b, "ldtilecfg", _pointer(b, address)))
# after the last tile: while tiles are in use, the kernel saves them at each context switch
release = _instruction(1, lambda b, _: _emit(b, "tilerelease"))
load_queries_32, load_queries_64 = _load_queries(32), _load_queries(64)
scores_32, scores_64 = _scores(32), _scores(64)
zero_output_32, zero_output_64 = _zero_output(32), _zero_output(64)
add_values_32, add_values_64 = _add_values(32), _add_values(64)
store_output_32, store_output_64 = _store_output(32), _store_output(64)
