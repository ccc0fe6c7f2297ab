"""Self-test of the Triton kernels, run on the GPU before they are used.

Responsible for their expected results on a few inputs. Not responsible for what is done if they are
wrong (support.py, config/plan.py). Imports Triton, as gemv.py does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.kernels.cuda import decode_attention, decode_io, decode_linear, gemm
from chatterbox_opt.kernels.cuda import flow as flow_kernels
from chatterbox_opt.kernels.cuda.gemv import MAX_GEMV_ROWS
from chatterbox_opt.kernels.cuda.kv_quantization import quantize

K, N = 1088, 48  # of the matrices: several K tiles and a remainder, whatever the tile
HEADS, HEAD_DIM, VOCAB = 16, 64, 8194  # T3's: other values would be other kernels
Draw = Callable[..., Tensor]  # shape -> random tensor


def kernels_are_correct(stage: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a stage's kernels compute what PyTorch does here, in their most complex forms."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    checks = {"t3": (_linear, _attention, _embed, _sample), "flow": (_flow_attention, _layer_norm)}
    return all(check(randn) for check in checks[stage])


def _linear(randn: Draw) -> bool:
    weight, norm = randn(2 * N, K) / K**0.5, randn(K)
    scales = torch.full((2 * N,), 0.01, device=weight.device)
    int8_weight = (100 * weight).round().to(torch.int8)
    for rows in (1, 2, MAX_GEMV_ROWS, gemm.SMALLEST_TILE, gemm.LARGEST_TILE):
        x, residual = randn(rows, K), randn(rows, N)
        result = decode_linear.linear(x, weight, norm=(norm, 1e-5), gated=True, residual=residual)
        gate, up = F.linear(F.rms_norm(x, (K,), norm, 1e-5), weight).chunk(2, dim=-1)
        if not _close(result, F.silu(gate) * up + residual):
            return False
        expected = F.linear(F.rms_norm(x, (K,), norm, 1e-5), 0.01 * int8_weight.to(x.dtype))
        gate, up = expected.chunk(2, dim=-1)
        result = decode_linear.linear(x, int8_weight, scales, norm=(norm, 1e-5), gated=True)
        if not _close(result, F.silu(gate) * up):
            return False
    return _linear_of_gpt2(randn) and _linear_of_head(randn) and _linear_split_k(randn)


def _linear_of_gpt2(randn: Draw) -> bool:
    """LayerNorm, bias and gelu; rows with a mean."""
    weight, bias = randn(N, K) / K**0.5, randn(N)
    norm, norm_bias, eps = randn(K), randn(K), 1e-5
    scales = torch.full((N,), 0.01, device=weight.device)
    int8_weight = (100 * weight).round().to(torch.int8)
    linear = functools.partial(
        decode_linear.linear, bias=bias, norm=(norm, eps, norm_bias), gelu=True
    )
    for rows in (1, gemm.SMALLEST_TILE):
        x, residual = 1 + randn(rows, K), randn(rows, N)
        normed = F.layer_norm(x, (K,), norm, norm_bias, eps)
        expected = F.gelu(F.linear(normed, weight, bias), approximate="tanh") + residual
        if not _close(linear(x, weight, residual=residual), expected):
            return False
        product = F.linear(normed, 0.01 * int8_weight.to(x.dtype), bias)
        if not _close(linear(x, int8_weight, scales), F.gelu(product, approximate="tanh")):
            return False
    return True


def _linear_of_head(randn: Draw) -> bool:
    """K a multiple of the tile and N not, as in T3's head."""
    weight = randn(N + 2, 1024) / 32
    for rows in (2, gemm.SMALLEST_TILE, 2 * gemm.LARGEST_TILE):
        x = randn(rows, 1024)
        if not _close(decode_linear.linear(x, weight), F.linear(x, weight)):
            return False
    return True


def _linear_split_k(randn: Draw) -> bool:
    """A matrix of large K and small N, so that K is split; twice, with the same counters."""
    k = 2048
    weight = randn(N, k) / k**0.5
    arrivals = torch.zeros(N, dtype=torch.int32, device=weight.device)
    int8_weight, scales = (1000 * weight).round().to(torch.int8), arrivals[:N] + 0.001
    for rows, matrix, scale in (
        (gemm.SMALLEST_TILE, weight, None),
        (gemm.LARGEST_TILE, int8_weight, scales),
    ):
        x, residual = randn(rows, k), randn(rows, N)
        expected = F.linear(x, matrix.to(x.dtype) * (1 if scale is None else 0.001)) + residual
        for _ in range(2):
            result = decode_linear.linear(x, matrix, scale, residual=residual, arrivals=arrivals)
            if not _close(result, expected) or arrivals.any():
                return False
    return True


def _attention(randn: Draw) -> bool:
    """Two sequences of two rows at different positions, with one program per head and with splits;
    also compares what is written to the cache. Then the same with an int8 cache."""
    ends, rows_per_seq, capacity = (3, 4 * decode_attention.KEYS + 1), 2, 8 * decode_attention.KEYS
    keys, values = (randn(4, HEADS, capacity, HEAD_DIM) for _ in range(2))
    qkv, cos, sin = randn(4, 3 * HEADS * HEAD_DIM), randn(2, HEAD_DIM), randn(2, HEAD_DIM)
    positions = torch.tensor(ends, device=keys.device)
    arrivals = torch.zeros(4 * HEADS, dtype=torch.int32, device=keys.device)
    (key_ints, key_scales), (value_ints, value_scales) = quantize(keys), quantize(values)
    int8_cache, scales = (key_ints, value_ints), (key_scales, value_scales)
    attend, rope = decode_attention.decode_attention, (cos, sin)
    still = torch.ones_like(cos[:1]), torch.zeros_like(sin[:1])
    as_they_are, by_nothing = (
        attend(qkv[:2], angles, keys.clone(), values.clone(), positions[:1])
        for angles in (None, still)
    )
    if not _close(as_they_are, by_nothing):
        return False
    results = (
        attend(qkv, rope, keys, values, positions),
        attend(qkv, rope, keys, values, positions, None, arrivals),
        attend(qkv, rope, key_ints, value_ints, positions, scales, arrivals),
    )
    for row in range(4):
        seq = row // rows_per_seq
        end = ends[seq]
        q, k, v = qkv[row].view(3, HEADS, 1, HEAD_DIM)
        q, k = (x * cos[seq] + x.roll(HEAD_DIM // 2, -1) * sin[seq] for x in (q, k))
        past = keys[row, :, :end], values[row, :, :end]
        written = keys[row, :, end : end + 1], values[row, :, end : end + 1]
        visible = [torch.cat(pair, 1) for pair in zip(past, (k, v), strict=True)]
        attended = F.scaled_dot_product_attention(q, visible[0], visible[1]).view(-1)
        dequantized = [
            ints[row, :, end : end + 1] * scale[row, :, end : end + 1, None]
            for ints, scale in zip(int8_cache, scales, strict=True)
        ]
        close = [_close(result[row], attended) for result in results]
        close += [_close(a, b) for a, b in zip((*written, *dequantized), (k, v) * 2, strict=True)]
        if not all(close) or arrivals.any():
            return False
    return True


def _embed(randn: Draw) -> bool:
    """At a position with large angles, and at one beyond the cache."""
    tables, frequencies = (randn(9, K), randn(7, K)), randn(HEAD_DIM // 2).float()
    token, num_generated, position = torch.tensor(
        [[8, 2], [6, 0], [3000, 5000]], device=frequencies.device
    )
    for rows_per_seq in (1, 2):
        x, rope, positions, arrivals = decode_io.embed_tokens(
            (token, num_generated, position), tables, frequencies, rows_per_seq, 4000, HEADS
        )
        angles = position.clamp(max=3999)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        expected = (
            (tables[0][token] + tables[1][num_generated]).repeat_interleave(rows_per_seq, dim=0),
            torch.cat((cos, cos), dim=1),
            torch.cat((-sin, sin), dim=1),
        )
        exact = positions.tolist() == [3000, 3999] and not arrivals.any()
        if rope is None or not exact or not all(map(_close, (x, *rope), expected)):
            return False
    position -= 2996  # of a table of all positions: within it, and beyond
    counters = token, num_generated, position
    x, rope, positions, arrivals = decode_io.embed_tokens(counters, tables, None, 1, 1500, HEADS)
    exact = rope is None and positions.tolist() == [4, 1499] and not arrivals.any()
    return exact and _close(x, tables[0][token] + tables[1][position.clamp(max=6)])


def _sample(randn: Draw) -> bool:
    """The likeliest token was seen, so the penalty makes another one likelier; then one is
    forced."""
    logits = randn(2, VOCAB)
    params = torch.tensor([[0.5, 2.0, 0.8, 0.9, 0.0, 0.0]], device=logits.device)
    noise = torch.ones(1, VOCAB, device=logits.device)
    logits[:, 7000], logits[:, 8] = 18.0, 19.0
    for rows_per_seq, turbo in ((1, False), (2, False), (1, True)):
        seen = torch.zeros(1, VOCAB, dtype=torch.bool, device=logits.device)
        seen[:, 8] = True
        token_buffer = torch.tensor([[-1, 9, -1]], device=logits.device)
        token, num_generated, position = torch.zeros(3, 1, dtype=torch.long, device=logits.device)
        state = seen, params, noise, token_buffer, (token, num_generated, position)
        for expected in (7000, 9):
            decode_io.sample_tokens(
                logits[:rows_per_seq], *state, unforced=-1, not_finite=-1, turbo=turbo, start=8
            )
            if token.item() != expected:
                return False
        if seen.nonzero()[:, 1].tolist() != ([9, 7000] if turbo else [8, 9, 7000]):
            return False
        if token_buffer.tolist() != [[7000, 9, -1]] or [*num_generated, *position] != [2, 2]:
            return False
    return True


def _flow_attention(randn: Draw) -> bool:
    """Several blocks and a remainder, rows of two lengths, and without a mask."""
    frames = 2 * flow_kernels.QUERIES + 16  # a multiple of 16, like buckets
    qkv = randn(2, frames, 3, HEADS // 2, HEAD_DIM).transpose(1, 3)
    q, k, v = qkv.unbind(2)
    lengths = torch.tensor([frames - 70, frames - 3], dtype=torch.int32, device=q.device)
    mask = (torch.arange(frames, device=q.device) < lengths[:, None])[:, None, None]
    for attn_mask, padded_to in ((mask, lengths), (None, None)):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        result = flow_kernels.attention(q, k, v, padded_to)
        if not _close(result, expected.transpose(1, 2).flatten(2)):
            return False
    return True


def _layer_norm(randn: Draw) -> bool:
    x, other, weight, bias = randn(2, 16, 256), randn(2, 16, 256), randn(256), randn(256)
    for residual, mish in ((other, False), (None, True)):
        total = x if residual is None else x + residual
        expected = F.layer_norm(total, (256,), weight, bias)
        expected = F.mish(expected) if mish else expected
        result = flow_kernels.layer_norm(x, weight, bias, 1e-5, residual, mish=mish)
        if not (_close(result[0], total) and _close(result[1], expected)):
            return False
    return True


def _close(result: Tensor, expected: Tensor) -> bool:
    scale = expected.float().abs().max().clamp(min=1.0)
    return bool((result.float() - expected.float()).abs().max() < 0.03 * scale)
