"""The card's kernels tried before they are trusted.

Knows what they should give for a few numbers. Knows nothing of what is done if they do not.
Imports Triton, as gemv.py does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.errors import first_line
from chatterbox_opt.kernels.cuda import decode_attention, decode_io, decode_linear, gemm
from chatterbox_opt.kernels.cuda import flow as flow_kernels
from chatterbox_opt.kernels.cuda.gemv import MAX_GEMV_ROWS
from chatterbox_opt.kernels.cuda.kv_quantization import quantize
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS

DEEP, WIDE = 1088, 48  # of the matrices: several turns and a rest of one, whatever the tile
HEADS, WIDTH, WORDS = 16, 64, 8194  # as T3 has them: other numbers would be other kernels


def kernels_are_correct(stage: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a stage's kernels give here what PyTorch gives; tried in the forms that ask most."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    of_stage = {"t3": (_products, _attention, _entering, _draw), "flow": (_frames, _norms)}
    return all(tried(drawn) for tried in of_stage[stage])


def _products(drawn: Callable[..., Tensor]) -> bool:
    weight, by = drawn(2 * WIDE, DEEP) / DEEP**0.5, drawn(DEEP)
    scales = torch.full((2 * WIDE,), 0.01, device=weight.device)
    whole = (100 * weight).round().to(torch.int8)
    for rows in (1, 2, MAX_GEMV_ROWS, gemm.SMALLEST_TILE, gemm.LARGEST_TILE):
        x, residual = drawn(rows, DEEP), drawn(rows, WIDE)
        found = decode_linear.linear(x, weight, norm=(by, 1e-5), gated=True, residual=residual)
        gate, up = F.linear(F.rms_norm(x, (DEEP,), by, 1e-5), weight).chunk(2, dim=-1)
        if not _alike(found, F.silu(gate) * up + residual):
            return False
        expected = F.linear(F.rms_norm(x, (DEEP,), by, 1e-5), 0.01 * whole.to(x.dtype))
        gate, up = expected.chunk(2, dim=-1)
        found = decode_linear.linear(x, whole, scales, norm=(by, 1e-5), gated=True)
        if not _alike(found, F.silu(gate) * up):
            return False
    return _as_t3_has_them(drawn) and _shared_depth(drawn)


def _as_t3_has_them(drawn: Callable[..., Tensor]) -> bool:
    """A depth that is a whole tile, and columns that are not, as the head's."""
    weight = drawn(WIDE + 2, 1024) / 32
    for rows in (2, gemm.SMALLEST_TILE, 2 * gemm.LARGEST_TILE):
        x = drawn(rows, 1024)
        if not _alike(decode_linear.linear(x, weight), F.linear(x, weight)):
            return False
    return True


def _shared_depth(drawn: Callable[..., Tensor]) -> bool:
    """A matrix so deep and narrow that programs share its depth; twice, by the same counters."""
    deep = 2048
    weight = drawn(WIDE, deep) / deep**0.5
    arrivals = torch.zeros(WIDE, dtype=torch.int32, device=weight.device)
    whole, scales = (1000 * weight).round().to(torch.int8), arrivals[:WIDE] + 0.001
    for rows, matrix, by in (
        (gemm.SMALLEST_TILE, weight, None),
        (gemm.LARGEST_TILE, whole, scales),
    ):
        x, residual = drawn(rows, deep), drawn(rows, WIDE)
        expected = F.linear(x, matrix.to(x.dtype) * (1 if by is None else 0.001)) + residual
        for _ in range(2):
            found = decode_linear.linear(x, matrix, by, residual=residual, arrivals=arrivals)
            if not _alike(found, expected) or arrivals.any():
                return False
    return True


def _attention(drawn: Callable[..., Tensor]) -> bool:
    """Two utterances of two rows at different places, by one program a head and by several; what
    is written is looked at too. Then the same with an int8 cache."""
    lasts, rows_per_seq, capacity = (3, 4 * decode_attention.KEYS + 1), 2, 8 * decode_attention.KEYS
    keys, values = (drawn(4, HEADS, capacity, WIDTH) for _ in range(2))
    qkv, cos, sin = drawn(4, 3 * HEADS * WIDTH), drawn(2, WIDTH), drawn(2, WIDTH)
    places = torch.tensor(lasts, device=keys.device)
    arrivals = torch.zeros(4 * HEADS, dtype=torch.int32, device=keys.device)
    (key_ints, key_scales), (value_ints, value_scales) = quantize(keys), quantize(values)
    narrow, scales = (key_ints, value_ints), (key_scales, value_scales)
    attend, rope = decode_attention.decode_attention, (cos, sin)
    found = (
        attend(qkv, rope, keys, values, places),
        attend(qkv, rope, keys, values, places, None, arrivals),
        attend(qkv, rope, key_ints, value_ints, places, scales, arrivals),
    )
    for row in range(4):
        last, along, across = (
            lasts[row // rows_per_seq],
            cos[row // rows_per_seq],
            sin[row // rows_per_seq],
        )
        q, k, v = qkv[row].view(3, HEADS, 1, WIDTH)
        q, k = (x * along + x.roll(WIDTH // 2, -1) * across for x in (q, k))
        past = keys[row, :, :last], values[row, :, :last]
        kept = keys[row, :, last : last + 1], values[row, :, last : last + 1]
        seen = [torch.cat(pair, 1) for pair in zip(past, (k, v), strict=True)]
        attended = F.scaled_dot_product_attention(q, seen[0], seen[1]).view(-1)
        rounded = [
            numbers[row, :, last : last + 1] * by[row, :, last : last + 1, None]
            for numbers, by in zip(narrow, scales, strict=True)
        ]
        alike = [_alike(one[row], attended) for one in found]
        alike += [_alike(new, x) for new, x in zip((*kept, *rounded), (k, v) * 2, strict=True)]
        if not all(alike) or arrivals.any():
            return False
    return True


def _entering(drawn: Callable[..., Tensor]) -> bool:
    """At a position whose angles are great, and at one beyond the cache."""
    tables, frequencies = (drawn(9, DEEP), drawn(7, DEEP)), drawn(WIDTH // 2).float()
    token, num_generated, position = torch.tensor(
        [[8, 2], [6, 0], [3000, 5000]], device=frequencies.device
    )
    for rows_per_seq in (1, 2):
        x, rope, places, arrivals = decode_io.embed_tokens(
            (token, num_generated, position), tables, frequencies, rows_per_seq, 4000, HEADS
        )
        angles = position.clamp(max=3999)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        expected = (
            (tables[0][token] + tables[1][num_generated]).repeat_interleave(rows_per_seq, dim=0),
            torch.cat((cos, cos), dim=1),
            torch.cat((-sin, sin), dim=1),
        )
        right = places.tolist() == [3000, 3999] and not arrivals.any()
        if not right or not all(map(_alike, (x, *rope), expected)):
            return False
    return True


def _draw(drawn: Callable[..., Tensor]) -> bool:
    """The likeliest word is said, so the penalty makes another one likelier; then another is
    prescribed."""
    logits = drawn(2, WORDS)
    knobs = torch.tensor([[0.5, 2.0, 0.8, 0.9, 0.0, 0.0]], device=logits.device)
    noise = torch.ones(1, WORDS, device=logits.device)
    logits[:, 7000], logits[:, 8] = 18.0, 19.0
    for rows_per_seq in (1, 2):
        seen = torch.zeros(1, WORDS, dtype=torch.bool, device=logits.device)
        seen[:, 8] = True
        token_buffer = torch.tensor([[-1, 9, -1]], device=logits.device)
        token, num_generated, position = torch.zeros(3, 1, dtype=torch.long, device=logits.device)
        state = seen, knobs, noise, token_buffer, (token, num_generated, position)
        for told in (7000, 9):
            decode_io.sample_tokens(logits[:rows_per_seq], *state, free=-1, not_finite=-1)
            if token.item() != told:
                return False
        if seen.nonzero()[:, 1].tolist() != [8, 9, 7000] or token_buffer.tolist() != [
            [7000, 9, -1]
        ]:
            return False
        if [*num_generated, *position] != [2, 2]:
            return False
    return True


def _frames(drawn: Callable[..., Tensor]) -> bool:
    """The flow's attention: several turns and a rest, rows of two lengths, and without a mask."""
    frames = 2 * flow_kernels.QUERIES + 16  # as buckets are, a multiple of 16
    qkv = drawn(2, frames, 3, HEADS // 2, WIDTH).transpose(1, 3)
    q, k, v = qkv.unbind(2)
    lengths = torch.tensor([frames - 70, frames - 3], dtype=torch.int32, device=q.device)
    mask = (torch.arange(frames, device=q.device) < lengths[:, None])[:, None, None]
    for seen, given in ((mask, lengths), (None, None)):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        if not _alike(flow_kernels.attention(q, k, v, given), expected.transpose(1, 2).flatten(2)):
            return False
    return True


def _norms(drawn: Callable[..., Tensor]) -> bool:
    x, more, weight, bias = drawn(2, 16, 256), drawn(2, 16, 256), drawn(256), drawn(256)
    for add, mish in ((more, False), (None, True)):
        total = x if add is None else x + add
        expected = F.layer_norm(total, (256,), weight, bias)
        expected = F.mish(expected) if mish else expected
        found = flow_kernels.layer_norm(x, weight, bias, 1e-5, add, mish=mish)
        if not (_alike(found[0], total) and _alike(found[1], expected)):
            return False
    return True


def _alike(found: Tensor, expected: Tensor) -> bool:
    scale = expected.float().abs().max().clamp(min=1.0)
    return bool((found.float() - expected.float()).abs().max() < 0.03 * scale)


def unsupported_reason(stage: str, dtype: torch.dtype, device: str = "cuda") -> str:
    """Why the kernels of our own for a stage cannot be used on this card in a dtype, or "".

    All of them are tried: Triton compiles them the first time, and builds what launches them with
    the system's C compiler.

    Args:
        stage: "t3" or "flow".
    """
    if importlib.util.find_spec("triton") is None:
        return "this torch comes without Triton"
    try:
        from chatterbox_opt.kernels.cuda import selftest

        right = selftest.kernels_are_correct(stage, torch.device(device), dtype)
    except DEVICE_ERRORS as error:
        reason = first_line(error)
        return f"Triton cannot build kernels here ({reason})"
    return "" if right else "Triton's kernels are wrong here"
