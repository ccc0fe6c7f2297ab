"""Products of bfloat16 tiles on processors with Intel's AMX, for attention (flow_bf16.py).

Knows tile registers: eight of 16 rows of 64 bytes, here all in full size. Knows nothing of layers
or threads. Whoever calls has asked the system for AMX (torch.cpu._init_amx), else it ends the
process, and has ``configure``d its thread.

A tile instruction multiplies 16 rows by 16 outputs over 32 columns; LLVM's names for them are those
of Intel's manual, and a register is part of the instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatterbox_opt.kernels.cpu.llvm import BLOCK, I8, I64, VECTOR_WIDTH, has

AMX = has("amx-bf16")
ROWS, DEPTH = 16, 32  # of the left tile; DEPTH columns of bfloat16 are 64 bytes
WIDE = 4 * VECTOR_WIDTH  # bytes of a tile's row
_SUMS, _MORE = 4, 2  # the first register of four sums, and of what the sums are made of


def _do(b: Any, name: str, *given: Any) -> None:
    """One instruction; numbers are registers."""
    values = [I8(x) if isinstance(x, int) else x for x in given]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.{name}"), values)


def _at(b: Any, address: Any, offset: int = 0) -> Any:
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


def _queries(dims: int) -> Any:
    """Load 16 queries; their address: bfloat16 [16, dims]."""

    def emit(b: Any, queries: Any) -> None:
        for half in range(dims // DEPTH):
            _do(b, "tileloadd64", half, _at(b, queries, WIDE * half), I64(2 * dims))

    return _instruction(1, emit)


def _scores(dims: int) -> Any:
    """Products of the queries that were loaded with a block of keys.

    Its arguments: the keys, [dims / 2, BLOCK] pairs of bfloat16; where the scores go, float32
    [16, BLOCK], and how many bytes lie between two rows.
    """

    def emit(b: Any, keys: Any, out: Any, apart: Any) -> None:
        parts = range(BLOCK // VECTOR_WIDTH)
        for part in parts:
            _do(b, "tilezero", _SUMS + part)
        for half in range(dims // DEPTH):
            for part in parts:  # a product waits 52 cycles for the one before in its sum
                place, given = half * ROWS * 4 * BLOCK + part * WIDE, _MORE + part % 2
                _do(b, "tileloadd64", given, _at(b, keys, place), I64(4 * BLOCK))
                _do(b, "tdpbf16ps", _SUMS + part, half, given)
        for part in parts:
            _do(b, "tilestored64", _SUMS + part, _at(b, out, part * WIDE), apart)

    return _instruction(3, emit)


def _begin(dims: int) -> Any:
    """Set the sums of ``_mix`` to 0; its argument means nothing."""

    def emit(b: Any, _: Any) -> None:
        for part in range(dims // VECTOR_WIDTH):
            _do(b, "tilezero", _SUMS + part)

    return _instruction(1, emit)


def _mix(dims: int) -> Any:
    """Add 32 frames' values by their shares to the sums.

    Its arguments: the shares, bfloat16 [16, 32], the bytes between two rows of them; the values,
    [16, dims] pairs of bfloat16.
    """

    def emit(b: Any, shares: Any, apart: Any, values: Any) -> None:
        _do(b, "tileloadd64", 0, _at(b, shares), apart)
        for part in range(dims // VECTOR_WIDTH):
            given = 1 + part % 3
            _do(b, "tileloadd64", given, _at(b, values, part * WIDE), I64(4 * dims))
            _do(b, "tdpbf16ps", _SUMS + part, 0, given)

    return _instruction(3, emit)


def _end(dims: int) -> Any:
    """Store the sums: float32 [16, dims] into rows of BLOCK."""

    def emit(b: Any, out: Any) -> None:
        for part in range(dims // VECTOR_WIDTH):
            _do(b, "tilestored64", _SUMS + part, _at(b, out, part * WIDE), I64(4 * BLOCK))

    return _instruction(1, emit)


# its argument: 64 bytes, palette 1, 16 rows of 64 bytes for each register
configure = _instruction(1, lambda b, place: _do(b, "ldtilecfg", _at(b, place)))
# a thread that is done lets go: tiles that may be in use are saved whenever it is interrupted
release = _instruction(1, lambda b, _: _do(b, "tilerelease"))
queries_32, queries_64 = _queries(32), _queries(64)
scores_32, scores_64 = _scores(32), _scores(64)
begin_32, begin_64 = _begin(32), _begin(64)
mix_32, mix_64 = _mix(32), _mix(64)
end_32, end_64 = _end(32), _end(64)
