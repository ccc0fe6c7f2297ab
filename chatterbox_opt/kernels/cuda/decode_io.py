"""Kernels of our own for where a decode step on a card begins and ends, in Triton.

Knows what comes before T3's first layer and after its last. Knows nothing of layers, of slots, or
of when these are used. Imports Triton, as gemv.py does.

Each takes the place of ten to twenty of PyTorch's, which would take as long as several layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatterbox_opt.kernels.cuda.launch import (
    gdc_launch_dependents,
    gdc_wait,
    pdl_options,
    triton_errors,
)
from chatterbox_opt.runtime import cuda

WIDE_WARPS = 32  # threads / 32 that hold a vocabulary
FEWER_WARPS = {12: 8}  # on generations where so many would spill registers


# a slot's rows begin anywhere: one kernel for all of them
@triton.jit(do_not_specialize_on_alignment=("last_token", "num_generated", "position"))
def embed_kernel(
    last_token, num_generated, position, words, spots, frequencies, x, cos, sin, places, arrivals,
    width, beyond, counters,
    ROWS_PER_SEQ: tl.constexpr, ROOM: tl.constexpr, HALF: tl.constexpr, COUNTERS: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    """An utterance's token and its place, embedded, its position's angles, and zeros in its
    counters, one program."""
    if USE_PDL:
        gdc_launch_dependents()
    row = tl.program_id(0)
    lane, pair = tl.arange(0, ROOM), tl.arange(0, HALF)
    inside = lane < width
    frequency = tl.load(frequencies + pair)
    if USE_PDL:
        gdc_wait()
    word = tl.load(words + tl.load(last_token + row) * width + lane, inside, 0.0).to(tl.float32)
    spot = tl.load(spots + tl.load(num_generated + row) * width + lane, inside, 0.0).to(tl.float32)
    for rows_per_seq in tl.static_range(ROWS_PER_SEQ):
        tl.store(x + (row * ROWS_PER_SEQ + rows_per_seq) * width + lane, word + spot, inside)
    place = tl.minimum(tl.load(position + row), beyond - 1)
    tl.store(places + row, place)
    counter = tl.arange(0, COUNTERS)
    tl.store(arrivals + row * counters + counter, tl.zeros_like(counter), counter < counters)
    angle = place.to(tl.float32) * frequency
    along, across = tl.cos(angle), tl.sin(angle)
    turned = row * 2 * HALF + pair
    tl.store(cos + turned, along)
    tl.store(cos + turned + HALF, along)
    tl.store(sin + turned, -across)
    tl.store(sin + turned + HALF, across)


@triton.jit(
    do_not_specialize_on_alignment=(
        "logits", "seen", "knobs", "noise", "token_buffer", "last_token", "num_generated", "position",
    )
)  # fmt: skip
def sample_kernel(
    logits, seen, knobs, noise, token_buffer, last_token, num_generated, position, words, places, free, not_finite,
    ROWS_PER_SEQ: tl.constexpr, COLUMNS: tl.constexpr, WORDS: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """An utterance's next token, one program: ``sampler.sample`` without a ranking, in its order;
    then ``slots.draw``."""
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    word = tl.arange(0, WORDS)
    there = word < words
    asked = knobs + row * COLUMNS
    count, where = tl.load(num_generated + row), tl.load(position + row)
    forced_tokens = tl.load(token_buffer + row * places + count)
    given = tl.load(logits + row * ROWS_PER_SEQ * words + word, there, 0.0).to(tl.float32)
    if ROWS_PER_SEQ == 2:
        uncond = tl.load(logits + (2 * row + 1) * words + word, there, 0.0).to(tl.float32)
        given += tl.load(asked) * (given - uncond)
    odd = tl.sum(tl.where(tl.abs(given) < float("inf"), 0, 1), axis=0)
    penalty = tl.load(asked + 1)
    heard = tl.load(seen + row * words + word, there, 0) != 0
    given = tl.where(heard, tl.where(given < 0, given * penalty, given / penalty), given)
    given = tl.where(there, given, float("-inf"))
    temperature, min_p = tl.load(asked + 2), tl.load(asked + 3)
    greedy = tl.argmax(given, axis=0)
    given /= tl.where(temperature == 0, 1.0, temperature)
    likely = tl.exp(given - tl.max(given, axis=0))
    probability = likely / tl.sum(likely, axis=0)
    kept = tl.where(probability < min_p * tl.max(probability, axis=0), 0.0, likely)
    lots = tl.load(noise + row * words + word, there, 1.0)
    drawn = tl.argmax(kept / tl.sum(kept, axis=0) / lots, axis=0)
    made = tl.where(temperature == 0, greedy, drawn)
    made = tl.where(odd == 0, made, not_finite).to(tl.int64)
    made = tl.where(forced_tokens == free, made, forced_tokens)
    tl.debug_barrier()  # what is written now was read: by all threads, whoever writes
    tl.store(token_buffer + row * places + count, made)
    made = tl.minimum(tl.maximum(made, 0), words - 1)  # no row of a table, whatever was drawn
    tl.store(last_token + row, made)
    tl.store(seen + row * words + made, 1)
    tl.store(num_generated + row, tl.minimum(count + 1, places - 1))
    tl.store(position + row, where + 1)


@triton_errors()
def embed_tokens(
    counters: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
    frequencies: Tensor,
    rows_per_seq: int,
    beyond: int,
    heads: int,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """What a step's first layer gets, ``T3.rope``, where in the cache keys and values go, and the
    counters of programs that share work (gemm.py, decode_attention.py).

    Args:
        counters: int64 [n] each, as of ``T3.step``: token, spoken, position.
        tables: embeddings of tokens and of their places: [V, width] and [P, width].
        frequencies: float32 [head_dim / 2], a power of two; of rotary positions (Su et al. 2021).
        rows_per_seq: rows of one utterance.
        beyond: positions stay below: a slot that ended may be stepped further.
        heads: of attention; there is a counter for each row's.

    Returns:
        [n * each, width]; two of [n, head_dim], in the tables' dtype; int64 [n]; int32 zeros
        [n * each * heads].
    """
    (n,), width, half = counters[0].shape, tables[0].shape[1], len(frequencies)
    x = tables[0].new_empty(n * rows_per_seq, width)
    (cos, sin), places = x.new_empty(2, n, 2 * half), counters[2].new_empty(n)
    arrivals = x.new_empty(n * rows_per_seq * heads, dtype=torch.int32)
    sizes = {"ROWS_PER_SEQ": rows_per_seq, "ROOM": triton.next_power_of_2(width), "HALF": half}
    sizes["COUNTERS"] = triton.next_power_of_2(rows_per_seq * heads)
    given = (*counters, *tables, frequencies, x, cos, sin, places, arrivals)
    embed_kernel[(n,)](
        *given, width, beyond, rows_per_seq * heads, **sizes, **pdl_options(x.device)
    )
    return x, (cos, sin), places, arrivals


@triton_errors()
def sample_tokens(
    logits: Tensor,
    seen: Tensor,
    knobs: Tensor,
    noise: Tensor,
    token_buffer: Tensor,
    counters: tuple[Tensor, Tensor, Tensor],
    *,
    free: int,
    not_finite: int,
) -> None:
    """``slots.draw`` without a ranking; changes ``seen``, ``token_buffer`` and the counters.

    Args:
        logits: [n or 2 n, V] of any float dtype.
        seen: bool [n, V].
        knobs: float32 [n, 6], see ``sampler.SamplingTensors``.
        noise: float32 [n, V].
        token_buffer: int64 [n, P], see ``DecodeState``.
        counters: int64 [n] each: token, spoken, position.
        free: in ``token_buffer`` where nothing is prescribed.
        not_finite: in place of a token.
    """
    rows, words = seen.shape
    sizes = {"ROWS_PER_SEQ": len(logits) // rows, "COLUMNS": knobs.shape[1]}
    given = (logits, seen.view(torch.uint8), knobs, noise, token_buffer, *counters)
    sample_kernel[(rows,)](
        *given,
        words,
        token_buffer.shape[1],
        free,
        not_finite,
        **sizes,
        WORDS=triton.next_power_of_2(words),
        **pdl_options(logits.device),
        num_warps=FEWER_WARPS.get(cuda.capability_major(logits.device), WIDE_WARPS),
    )
