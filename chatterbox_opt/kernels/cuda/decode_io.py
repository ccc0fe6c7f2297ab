"""Triton kernels at both ends of a decode step: embedding before T3's layers, sampling after them.

Responsible for one kernel each. Not responsible for layers, for slots, or for when these are used.
Imports Triton, as gemv.py does.

In PyTorch each end is ten to twenty kernels on a few numbers: launches only, as long as several
layers. Here each is one launch with one program per sequence, whose vocabulary or embedding row
fits into its registers:

    embed_kernel    token, position -> x, cos and sin of RoPE, cache positions, zeroed counters
    ... layers ...
    sample_kernel   logits -> CFG -> repetition penalty -> min-p -> token; advances the counters

The state (last token, position, token buffer) stays in device memory between steps, so a captured
CUDA graph of steps replays without the host. The sampler adds no randomness of its own: noise is
drawn outside, and argmax(probability / exponential noise) is a sample (the Gumbel-max trick in
another form), as in models/t3/sampler.py, operation by operation. top-k and top-p need a sort and
stay in PyTorch.
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

SAMPLE_WARPS = 32  # that hold a vocabulary
FEWER_SAMPLE_WARPS = {12: 8}  # by major capability, where so many would spill registers


# a slot's rows may start at any address: one kernel for all alignments
@triton.jit(do_not_specialize_on_alignment=("last_token", "num_generated", "position"))
def embed_kernel(
    last_token, num_generated, position, token_embedding, position_embedding, frequencies,
    x, cos, sin, positions, arrivals, width, table_rows, max_positions, num_counters,
    ROWS_PER_SEQ: tl.constexpr, BLOCK_WIDTH: tl.constexpr, HALF_DIM: tl.constexpr,
    BLOCK_COUNTERS: tl.constexpr, ROPE: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """Embed a sequence's last token, compute its RoPE angles, and zero its counters."""
    if USE_PDL:
        gdc_launch_dependents()
    seq = tl.program_id(0)
    column = tl.arange(0, BLOCK_WIDTH)
    mask = column < width
    if ROPE:
        pair = tl.arange(0, HALF_DIM)
        frequency = tl.load(frequencies + pair)  # written by no kernel
    if USE_PDL:
        gdc_wait()
    # 1. position in the KV cache; a slot that ended may be stepped further
    cache_position = tl.minimum(tl.load(position + seq), max_positions - 1)
    # 2. token embedding plus learned position embedding, the same for all rows of the sequence
    of_token = token_embedding + tl.load(last_token + seq) * width + column
    of_token = tl.load(of_token, mask, 0.0).to(tl.float32)
    # learned positions are of speech tokens, or of all inputs
    learned = tl.load(num_generated + seq) if ROPE else tl.minimum(cache_position, table_rows - 1)
    of_position = position_embedding + learned * width + column
    of_position = tl.load(of_position, mask, 0.0).to(tl.float32)
    for row in tl.static_range(ROWS_PER_SEQ):
        row_start = (seq * ROWS_PER_SEQ + row) * width
        tl.store(x + row_start + column, of_token + of_position, mask)
    tl.store(positions + seq, cache_position)
    counter = tl.arange(0, BLOCK_COUNTERS)
    counters = arrivals + seq * num_counters + counter
    tl.store(counters, tl.zeros_like(counter), counter < num_counters)
    # 3. RoPE angles; sin carries the sign of the rotation
    if ROPE:
        angle = cache_position.to(tl.float32) * frequency
        cosine, sine = tl.cos(angle), tl.sin(angle)
        offsets = seq * 2 * HALF_DIM + pair
        tl.store(cos + offsets, cosine)
        tl.store(cos + offsets + HALF_DIM, cosine)
        tl.store(sin + offsets, -sine)
        tl.store(sin + offsets + HALF_DIM, sine)


@triton.jit(
    do_not_specialize_on_alignment=(
        "logits", "seen", "sampling_params", "noise",
        "token_buffer", "last_token", "num_generated", "position",
    )
)  # fmt: skip
def sample_kernel(
    logits, seen, sampling_params, noise, token_buffer, last_token, num_generated, position,
    vocab, max_tokens, start, unforced, not_finite,
    ROWS_PER_SEQ: tl.constexpr, NUM_PARAMS: tl.constexpr, BLOCK_VOCAB: tl.constexpr,
    TURBO: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """Sample a sequence's next token: ``sampler.sample`` without a sort, in its order of
    operations, then the rest of ``DecodeState.sample_next``."""
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
    seq = tl.program_id(0)
    token = tl.arange(0, BLOCK_VOCAB)
    mask = token < vocab
    own_params = sampling_params + seq * NUM_PARAMS
    count, current_position = tl.load(num_generated + seq), tl.load(position + seq)
    forced = tl.load(token_buffer + seq * max_tokens + count)
    temperature, min_p = tl.load(own_params + 2), tl.load(own_params + 3)
    divisor = tl.where(temperature == 0, 1.0, temperature)
    # 1. classifier-free guidance
    score = tl.load(logits + seq * ROWS_PER_SEQ * vocab + token, mask, 0.0).to(tl.float32)
    if ROWS_PER_SEQ == 2:
        uncond = tl.load(logits + (2 * seq + 1) * vocab + token, mask, 0.0).to(tl.float32)
        score += tl.load(own_params) * (score - uncond)
    num_nonfinite = tl.sum(tl.where(tl.abs(score) < float("inf"), 0, 1), axis=0)
    if TURBO:
        score = tl.div_rn(score, divisor)
    # 2. repetition penalty
    penalty = tl.load(own_params + 1)
    repeated = tl.load(seen + seq * vocab + token, mask, 0) != 0
    score = tl.where(repeated, tl.where(score < 0, score * penalty, score / penalty), score)
    score = tl.where(mask, score, float("-inf"))
    # 3. temperature, softmax, min-p
    greedy = tl.argmax(score, axis=0)
    if not TURBO:
        score /= divisor
    filtered = tl.exp(score - tl.max(score, axis=0))
    if not TURBO:
        probability = filtered / tl.sum(filtered, axis=0)
        unlikely = probability < min_p * tl.max(probability, axis=0)
        filtered = tl.where(unlikely, 0.0, filtered)
    # 4. sample by exponential noise; NaN/Inf and forced tokens override it
    exponential = tl.load(noise + seq * vocab + token, mask, 1.0)
    sampled = tl.argmax(filtered / tl.sum(filtered, axis=0) / exponential, axis=0)
    result = tl.where(temperature == 0, greedy, sampled)
    result = tl.where(num_nonfinite == 0, result, not_finite).to(tl.int64)
    result = tl.where(forced == unforced, result, forced)
    # 5. advance the state
    tl.debug_barrier()  # every thread has loaded what one of them overwrites now
    tl.store(token_buffer + seq * max_tokens + count, result)
    result = tl.minimum(tl.maximum(result, 0), vocab - 1)  # a valid row of the embedding
    tl.store(last_token + seq, result)
    if TURBO:  # the start token was in the history of the first token only
        of_start = seen + seq * vocab + start
        tl.store(of_start, tl.where(count == 0, 0, tl.load(of_start)))
        tl.debug_barrier()  # it may be the token itself
    tl.store(seen + seq * vocab + result, 1)
    tl.store(num_generated + seq, tl.minimum(count + 1, max_tokens - 1))
    tl.store(position + seq, current_position + 1)


@triton_errors()
def embed_tokens(
    counters: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
    frequencies: Tensor | None,
    rows_per_seq: int,
    max_positions: int,
    heads: int,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor, Tensor]:
    """The inputs of a step's first layer: embeddings, ``T3.rope``, positions in the KV cache, and
    zeroed arrival counters (gemm.py, decode_attention.py).

    Args:
        counters: int64 [n] each, as of ``T3.step``: last token, number generated, position.
        tables: token and position embeddings: [V, width] and [P, width].
        frequencies: fp32 [head_dim / 2], a power of two; of rotary positions (Su et al. 2021); the
            table of positions is of speech tokens. None: it is of all positions.
        rows_per_seq: rows of one sequence.
        max_positions: positions are clamped below it: a slot that ended may be stepped further.
        heads: of attention; each row has a counter per head.

    Returns:
        [n * rows_per_seq, width]; two of [n, head_dim], in the tables' dtype, or None without
        ``frequencies``; int64 [n]; int32 zeros [n * rows_per_seq * heads].
    """
    (n,), width = counters[0].shape, tables[0].shape[1]
    half_dim = 1 if frequencies is None else len(frequencies)
    x = tables[0].new_empty(n * rows_per_seq, width)
    (cos, sin), positions = x.new_empty(2, n, 2 * half_dim), counters[2].new_empty(n)
    num_counters = rows_per_seq * heads
    arrivals = x.new_empty(n * num_counters, dtype=torch.int32)
    constants = {
        "ROWS_PER_SEQ": rows_per_seq,
        "BLOCK_WIDTH": triton.next_power_of_2(width),
        "HALF_DIM": half_dim,
        "BLOCK_COUNTERS": triton.next_power_of_2(num_counters),
        "ROPE": frequencies is not None,
        **pdl_options(x.device),
    }
    stand_in = x if frequencies is None else frequencies  # not touched
    tensors = (*counters, *tables, stand_in, x, cos, sin, positions, arrivals)
    sizes = (width, len(tables[1]), max_positions, num_counters)
    embed_kernel[(n,)](*tensors, *sizes, **constants)
    return x, (None if frequencies is None else (cos, sin)), positions, arrivals


@triton_errors()
def sample_tokens(
    logits: Tensor,
    seen: Tensor,
    sampling_params: Tensor,
    noise: Tensor,
    token_buffer: Tensor,
    counters: tuple[Tensor, Tensor, Tensor],
    *,
    unforced: int,
    not_finite: int,
    turbo: bool = False,
    start: int = 0,
) -> None:
    """``DecodeState.sample_next`` without a sort; changes ``seen``, ``token_buffer``, the counters.

    Args:
        logits: [n or 2 n, V] of any float dtype.
        seen: bool [n, V].
        sampling_params: fp32 [n, 6], see ``sampler.SamplingTensors``.
        noise: fp32 [n, V], exponential.
        token_buffer: int64 [n, P], see ``DecodeState``.
        counters: int64 [n] each: last token, number generated, position.
        unforced: in ``token_buffer`` where no token is forced.
        not_finite: stored as the token where logits have NaN/Inf.
        turbo: in the order of ``sampler.sample`` with ``turbo``.
        start: the start token, which then leaves ``seen`` after the first token.
    """
    rows, vocab = seen.shape
    constants = {"ROWS_PER_SEQ": len(logits) // rows, "NUM_PARAMS": sampling_params.shape[1]}
    tensors = (logits, seen.view(torch.uint8), sampling_params, noise, token_buffer, *counters)
    major = cuda.capability_major(logits.device)
    sample_kernel[(rows,)](
        *tensors,
        vocab,
        token_buffer.shape[1],
        start,
        unforced,
        not_finite,
        **constants,
        BLOCK_VOCAB=triton.next_power_of_2(vocab),
        TURBO=turbo,
        **pdl_options(logits.device),
        num_warps=FEWER_SAMPLE_WARPS.get(major, SAMPLE_WARPS),
    )
