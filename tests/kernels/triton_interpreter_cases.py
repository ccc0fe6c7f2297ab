"""The Triton kernels against PyTorch, in Triton's interpreter; run by test_cuda_kernels.py in a
process of its own, because Triton reads TRITON_INTERPRET when it is imported. Each kernel has fast
cases; sizes and types that take the same paths through it are slow ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.common import assert_close
from helpers.gpt2 import TINY_GPT2, gpt2_prompt, upstream_gpt2
from helpers.t3 import as_on_a_gpu, decode_all, eager_backend, sequence_of, utterance
from triton.runtime.errors import OutOfResources

from chatterbox_opt.config.model_config import TINY
from chatterbox_opt.engine import probe
from chatterbox_opt.engine.decoding.decode import eager_step, prefill_fn
from chatterbox_opt.kernels.cuda import (
    decode_attention,
    decode_io,
    decode_linear,
    gemm,
    gemv,
    selftest,
    support,
)
from chatterbox_opt.kernels.cuda import flow as flow_kernels
from chatterbox_opt.kernels.cuda import launch as kernel_launch
from chatterbox_opt.kernels.cuda.decode_attention import KEYS
from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.flow.estimator import Estimator, Transformer
from chatterbox_opt.models.t3 import fused_step, sampler
from chatterbox_opt.models.t3.convert import t3_from_upstream
from chatterbox_opt.models.t3.decode_state import UNFORCED, DecodeState
from chatterbox_opt.models.t3.kv_cache import attend_matmul
from chatterbox_opt.models.t3.llama import apply_rope
from chatterbox_opt.runtime import cuda
from chatterbox_opt.sampling import Sampling

SLOW = pytest.mark.slow
ATOL = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # values up to 6
FLAGS = [  # norm, gated, residual, int8: those of a decode step, and none
    (True, False, False, False),
    (False, False, True, False),
    (True, True, False, False),
    (True, True, True, True),
    (False, False, False, True),
    (False, False, False, False),
]
CASES = [
    pytest.param(
        rows,
        dtype,
        flags,
        # few rows and many: all flags in half precision, and one of each other kind
        marks=() if rows in (2, 5) and (flags == FLAGS[3] or dtype == torch.float16) else SLOW,
    )
    for rows in (1, 2, 3, 5, 70)
    for dtype in ATOL
    # the interpreter's tl.dot treats bfloat16 as integers
    if not (rows > gemv.MAX_GEMV_ROWS and dtype == torch.bfloat16)
    for flags in (FLAGS if rows in (2, 5) else FLAGS[3:5])
]


@pytest.mark.parametrize(("rows", "dtype", "flags"), CASES)
def test_fused_linear(rows, dtype, flags):
    """Sizes that are no multiple of any tile."""
    has_norm, gated, has_residual, int8 = flags
    generator = torch.Generator().manual_seed(rows)
    k, n = 600, 21

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x, norm, residual = 2 * randn(rows, k), randn(k), randn(rows, n)
    weight, scales = randn(2 * n if gated else n, k) / k**0.5, None
    if int8:
        scales = torch.rand(len(weight), generator=generator) / 1000
        weight = (1000 * weight).round().clamp(-127, 127).to(torch.int8)
    exact, exact_weight = x.double(), weight.double()
    if has_norm:
        exact = F.rms_norm(exact, (k,), norm.double(), 1e-3)
    exact = exact @ (exact_weight * scales.double()[:, None] if int8 else exact_weight).t()
    if gated:
        gate, up = exact.chunk(2, dim=-1)
        exact = F.silu(gate) * up
    if has_residual:
        exact += residual.double()
    out = decode_linear.linear(
        x,
        weight,
        scales,
        norm=(norm, 1e-3) if has_norm else None,
        gated=gated,
        residual=residual if has_residual else None,
    )
    assert out.dtype == dtype and out.shape == (rows, n)
    assert_close(out, exact.to(dtype), atol=ATOL[dtype])


# as FLAGS, with biases: LayerNorm, gelu, residual, int8
GPT2_FLAGS = [(True, False, False, False), (True, True, False, True), (False, False, True, False)]
GPT2_CASES = [
    pytest.param(
        rows, dtype, flags, marks=() if dtype == torch.float16 and rows in (1, 5) else SLOW
    )
    for rows in (1, 3, 5, 70)
    for dtype in (torch.float32, torch.float16)
    for flags in (GPT2_FLAGS if rows in (1, 5) else GPT2_FLAGS[1:2])
] + [(2, torch.bfloat16, GPT2_FLAGS[1])]


@pytest.mark.parametrize(("rows", "dtype", "flags"), GPT2_CASES)
def test_fused_linear_of_gpt2(rows, dtype, flags):
    """Rows whose mean is as large as their deviation; sizes that are no multiple of any tile."""
    has_norm, gelu, has_residual, int8 = flags
    generator = torch.Generator().manual_seed(rows)
    k, n = 600, 21

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x, norm, norm_bias, residual = 2 + 2 * randn(rows, k), randn(k), randn(k), randn(rows, n)
    weight, bias, scales = randn(n, k) / k**0.5, randn(n), None
    if int8:
        scales = torch.rand(n, generator=generator) / 1000
        weight = (1000 * weight).round().clamp(-127, 127).to(torch.int8)
    exact, exact_weight = x.double(), weight.double()
    if has_norm:
        exact = F.layer_norm(exact, (k,), norm.double(), norm_bias.double(), 1e-3)
    exact = exact @ (exact_weight * scales.double()[:, None] if int8 else exact_weight).t()
    exact = exact + bias.double()
    if gelu:
        exact = F.gelu(exact, approximate="tanh")
    if has_residual:
        exact += residual.double()
    out = decode_linear.linear(
        x,
        weight,
        scales,
        bias=bias,
        norm=(norm, 1e-3, norm_bias) if has_norm else None,
        gelu=gelu,
        residual=residual if has_residual else None,
    )
    assert out.dtype == dtype and out.shape == (rows, n)
    assert_close(out, exact.to(dtype), atol=ATOL[dtype])


@pytest.mark.parametrize("rows", [2, 8])
def test_layer_norm_of_a_large_mean(rows):
    """The sums of GEMV and GEMM cancel: fifty times the deviation still leaves four digits."""
    generator = torch.Generator().manual_seed(0)
    x = 50 + torch.randn(rows, 1024, generator=generator)
    norm, norm_bias = torch.randn(2, 1024, generator=generator)
    weight = torch.randn(20, 1024, generator=generator) / 32
    expected = F.layer_norm(x, (1024,), norm, norm_bias, 1e-5) @ weight.t()
    out = decode_linear.linear(x, weight, norm=(norm, 1e-5, norm_bias))
    assert_close(out, expected, atol=2e-3)


def test_an_outlier_does_not_overflow_fp16():
    """As in residual streams; with GEMV (few rows) and GEMM on the tensor cores."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 64, generator=generator)
    x[:, 5] = 30_000.0
    norm, weight = torch.full((64,), 8.0), torch.randn(20, 64, generator=generator) / 8
    expected = F.rms_norm(x, (64,), norm, 1e-5) @ weight.t()
    for rows in (2, 8):
        out = decode_linear.linear(x[:rows].half(), weight.half(), norm=(norm.half(), 1e-5))
        assert_close(out.float(), expected[:rows], atol=0.02 * expected.abs().max().item())


def test_k_larger_than_a_tile():
    """Tile by tile along K, and nothing beyond the end is read."""
    generator = torch.Generator().manual_seed(0)
    k = gemv.MAX_BLOCK_K + 700
    x, weight, norm = (torch.randn(n, k, generator=generator) for n in (2, 3, 1))
    normed = F.rms_norm(x, (k,), norm[0], 1e-5)
    exact = normed @ weight.t() / k**0.5
    assert_close(decode_linear.linear(x, weight / k**0.5, norm=(norm[0], 1e-5)), exact, atol=1e-4)
    pair = torch.cat((weight, weight.flip(0)))
    gate, up = (normed @ pair.t() / k**0.5).chunk(2, 1)
    out = decode_linear.linear(x, pair / k**0.5, norm=(norm[0], 1e-5), gated=True)
    assert_close(out, F.silu(gate) * up, atol=1e-4)


@pytest.mark.parametrize(
    ("int8", "rows"),
    [
        (False, 5),
        (True, 5),
        pytest.param(True, 70, marks=SLOW),
        pytest.param(False, 70, marks=SLOW),
    ],
)
def test_split_k(rows, int8):
    """Twice with the same counters, which are zero again afterwards."""
    generator = torch.Generator().manual_seed(rows)
    k, n = 1024, 37
    tile = gemm.gemm_tile(rows, 4)
    tiles = -(-n // tile["BLOCK_N"]) * -(-rows // tile["BLOCK_M"])
    assert gemm.num_splits(tiles, k, tile["BLOCK_K"]) == 8
    x, residual = (torch.randn(rows, m, generator=generator) for m in (k, n))
    weight, scales = torch.randn(n, k, generator=generator) / k**0.5, None
    exact = weight
    if int8:
        scales = torch.rand(n, generator=generator) / 1000
        weight = (1000 * weight).round().clamp(-127, 127).to(torch.int8)
        exact = weight * scales[:, None]
    arrivals = torch.zeros(tiles, dtype=torch.int32)
    for bias in (None, torch.randn(n, generator=generator)):
        expected = F.linear(x, exact, bias) + residual
        out = decode_linear.linear(
            x, weight, scales, bias=bias, residual=residual, arrivals=arrivals
        )
        assert_close(out, expected, atol=1e-4)
        assert not arrivals.any()


@pytest.mark.parametrize(
    ("n", "k", "rows"), [(3072, 1024, 2), (1024, 4096, 64), (8194, 1024, 1), (768, 3072, 32)]
)
@pytest.mark.parametrize("sizes", [(2, 2), (2, 1), (4, 4), (4, 1)])
def test_tiles_fit_their_matrix(n, k, rows, sizes):
    """Whole vectors for every thread, and the splits of K cover it once."""
    if rows <= gemv.MAX_GEMV_ROWS:
        tile = gemv.gemv_tile(rows, n, k, sizes)
        vectors = tile["BLOCK_K"] // tile["VECTOR"]
        assert vectors % (32 * tile["num_warps"]) == 0
        assert tile["VECTOR"] in (tile["LOAD"], 2 * tile["LOAD"])
        assert tile["LOAD"] * sizes[0] == 16
    else:
        block_k = gemm.gemm_tile(rows, sizes[0])["BLOCK_K"]
        splits = gemm.num_splits(-(-n // 16), k, block_k)
        assert splits > 1 and k % (splits * block_k) == 0


CACHES = [  # dtype and tolerance, int8 keys and values, rotary positions
    (torch.float32, 1e-5, False, True),
    (torch.bfloat16, 6e-2, False, True),
    (torch.float32, 1e-5, True, True),
    (torch.float32, 1e-5, False, False),
]


ATTENTION_CASES = [
    pytest.param(
        split,
        rows_per_seq,
        *cache,
        # with splits, which take long: one of each type, number of rows, and int8 or not
        marks=SLOW
        if split and (rows_per_seq, cache) not in ((1, CACHES[1]), (2, CACHES[2]))
        else (),
    )
    for split in (False, True)
    for rows_per_seq in (1, 2)
    for cache in CACHES
]


@pytest.mark.parametrize(
    ("split", "rows_per_seq", "dtype", "atol", "kv_int8", "rotary"), ATTENTION_CASES
)
def test_decode_attention(dtype, atol, kv_int8, rotary, rows_per_seq, split):
    """Rows of several lengths, with NaN after each; the new key and value are written. With one
    program a head, and with splits."""
    generator = torch.Generator().manual_seed(0)
    heads, capacity, head_dim = 2, 3 * KEYS + 40, 16
    positions = torch.tensor([0, KEYS - 1, KEYS, KEYS + 1, capacity - 1])
    rows = rows_per_seq * len(positions)
    qkv = torch.randn(rows, 3 * heads * head_dim, generator=generator).to(dtype)
    rope = tuple(torch.randn(2, len(positions), head_dim, generator=generator).to(dtype))
    buffers = torch.randn(2, rows + 2, heads, capacity, head_dim, generator=generator).to(dtype)
    scales = None
    if kv_int8:
        buffers, scales = quantize(buffers)
    expected = buffers.clone() if scales is None else dequantize(buffers, scales, dtype)
    q, k, v = qkv.view(rows, 3, heads, 1, head_dim).unbind(1)
    if rotary:
        of_row = [part.repeat_interleave(rows_per_seq, 0)[:, None, None] for part in rope]
        q, k = apply_rope(q, of_row), apply_rope(k, of_row)
    else:
        rope = None
    of_rows = positions.repeat_interleave(rows_per_seq)
    for cache, new in zip(expected, (k, v), strict=True):
        new = dequantize(*quantize(new), dtype) if kv_int8 else new
        cache[torch.arange(rows), :, of_rows] = new[:, :, 0]
    visible = (torch.arange(capacity) <= of_rows[:, None])[:, None, None]
    attended = attend_matmul(q, *expected[:, :rows], visible).transpose(1, 2).flatten(1)
    for row, position in enumerate(of_rows):
        if kv_int8:
            buffers[:, row, :, position:] = 127
            scales[:, row, :, position:] = torch.nan
        else:
            buffers[:, row, :, position:] = torch.nan
    arrivals = torch.zeros(rows * heads, dtype=torch.int32) if split else None
    if split:
        assert decode_attention.num_splits(rows, heads) == 8
    pair = None if scales is None else tuple(scales)
    out = decode_attention.decode_attention(qkv, rope, *buffers, positions, pair, arrivals)
    assert_close(out, attended, atol=atol)
    assert arrivals is None or not arrivals.any()
    caches = buffers if scales is None else dequantize(buffers, scales, dtype)
    written, wanted = (x[:, torch.arange(rows), :, of_rows] for x in (caches, expected))
    assert_close(written, wanted, atol=atol)
    still_nan = caches[:, :rows].isnan()[..., 0]
    assert torch.equal(still_nan, ~(visible[:, 0].expand(2, rows, heads, -1))), "nothing else"


@pytest.mark.parametrize("last", range(5))
def test_merging_does_not_depend_on_the_last_program(last, monkeypatch):
    """Programs end in any order: the interpreter's order of a head's programs is rotated."""
    from triton.runtime import interpreter

    order = list(range(8))
    order = order[last:] + order[:last]
    generator = torch.Generator().manual_seed(0)
    qkv, positions = torch.randn(1, 3 * 16, generator=generator), torch.tensor([6 * KEYS])
    rope = tuple(torch.randn(2, 1, 16, generator=generator))
    buffers = torch.randn(2, 1, 1, 8 * KEYS, 16, generator=generator)

    def attend():
        arrivals = torch.zeros(1, dtype=torch.int32)
        return decode_attention.decode_attention(
            qkv, rope, *buffers.clone(), positions, None, arrivals
        )

    expected, called = attend(), []
    plain = interpreter.interpreter_builder.set_grid_idx

    def rotated(x, y, z):
        called.append(order[z])
        plain(x, y, order[z])

    monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_idx", rotated)
    assert torch.equal(attend(), expected)
    assert called == order


def test_large_scores_do_not_overflow():
    heads, head_dim, position = 1, 16, 180
    qkv = torch.cat(
        (torch.full((1, 16), 300.0), torch.full((1, 16), -300.0), torch.zeros(1, 16)), 1
    )
    keys = torch.full((1, heads, 200, head_dim), -300.0)
    keys[0, 0, 150] = 300.0
    values = torch.arange(200.0)[None, None, :, None].expand(1, 1, 200, head_dim).contiguous()
    identity = torch.ones(1, head_dim), torch.zeros(1, head_dim)
    out = decode_attention.decode_attention(qkv, identity, keys, values, torch.tensor([position]))
    assert torch.equal(out, torch.full_like(out, 150.0))


@pytest.mark.parametrize(
    ("rows_per_seq", "turbo"),
    [
        pytest.param(1, False, marks=SLOW),
        (2, False),
        pytest.param(1, True, marks=SLOW),
    ],
)
def test_sample_kernel(rows_per_seq, turbo):
    """Sampling parameters of all kinds, two rows with NaN/Inf, some forced tokens, and rows whose
    token buffer is full, against ``DecodeState.draw``."""
    generator = torch.Generator().manual_seed(0)
    samplings = [
        Sampling(temperature=t, cfg_weight=w, min_p=p, repetition_penalty=r)
        for t in (0.0, 0.5, 1.0, 2.0)
        for w, p in ((0.5, 0.05), (0.0, 0.0), (1.0, 1.0), (0.3, 0.4))
        for r in (1.0, 1.2, 3.0)
    ]
    rows, vocab, max_tokens, steps = len(samplings), 300, 8, 4
    token_buffer = torch.full((rows, max_tokens), UNFORCED)
    token_buffer[3, 2], token_buffer[rows - 1, 1] = 299, 0  # whatever the logits are
    state = {
        "logits": 3 * torch.randn(rows_per_seq * rows, vocab, generator=generator),
        "seen": torch.rand(rows, vocab, generator=generator) < 0.1,
        "noise": torch.ones(rows, vocab),
        "token_buffer": token_buffer,
        "last_token": torch.zeros(rows, dtype=torch.long),
        "num_generated": torch.arange(rows) % 7,
        "position": 40 + torch.arange(rows),
    }
    state["logits"][rows_per_seq * (rows - 1), 5] = torch.nan
    state["logits"][rows_per_seq * (rows - 2), 299] = torch.inf
    state["num_generated"][rows - 1] = 0
    state["seen"][:, 7] = True
    state["logits"][:, 7] += 4.0  # the start token, which leaves the history of turbo's
    knobs = sampler.SamplingTensors.allocate(rows)
    for row, sampling in enumerate(samplings):
        knobs.set(row, sampling)
    fused, reference = (
        SimpleNamespace(
            rows_per_seq=rows_per_seq,
            turbo=turbo,
            start=7,
            sampling_tensors=knobs,
            **{k: v.clone() for k, v in state.items()},
        )
        for _ in range(2)
    )
    for _ in range(steps):
        noise = torch.empty(rows, vocab).exponential_(generator=generator)
        fused.noise.copy_(noise)
        reference.noise.copy_(noise)
        DecodeState.sample_with_torch(reference, 0, rows, needs_sort=False)
        fused_step.sample_tokens(fused, rows)
        for name in ("seen", "token_buffer", "last_token", "num_generated", "position"):
            assert torch.equal(getattr(fused, name), getattr(reference, name)), name
    assert len(set(fused.token_buffer.flatten().tolist())) > rows
    assert bool((~fused.seen[:, 7]).any()) == turbo
    assert fused.token_buffer[rows - 1, :3].tolist() == [sampler.NOT_FINITE, 0, sampler.NOT_FINITE]
    assert fused.num_generated.max() == max_tokens - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows_per_seq", [1, 2])
def test_embed_kernel(engine, dtype, rows_per_seq):
    with engine.pipeline.placement("t3") as t3:
        tables = t3.speech_emb.weight.to(dtype), t3.speech_pos.weight.to(dtype)
        counters = tuple(torch.tensor(row) for row in ((3, 0, 50), (0, 7, 2), (0, 700, 4000)))
        x, rope, positions, arrivals = decode_io.embed_tokens(
            counters, tables, t3.frequencies, rows_per_seq, 3500, 5
        )
        counters[2].clamp_(max=3499)
        expected, *expected_rope = t3.embed_tokens(*counters, 1)
    assert torch.equal(positions, counters[2])
    assert torch.equal(arrivals, torch.zeros(3 * rows_per_seq * 5, dtype=torch.int32))
    assert torch.equal(
        x, (tables[0][counters[0]] + tables[1][counters[1]]).repeat_interleave(rows_per_seq, 0)
    )
    assert_close(x.float(), expected.repeat_interleave(rows_per_seq, 0).float(), atol=ATOL[dtype])
    for ours, wanted in zip(rope, expected_rope, strict=True):
        assert_close(ours, wanted.to(dtype), atol=ATOL[dtype])


def test_embed_kernel_of_gpt2(gpt2):
    """Learned positions of the KV cache, and those beyond the table and beyond the cache."""
    tables = gpt2.speech_emb.weight, gpt2.positions.weight
    counters = tuple(torch.tensor(row) for row in ((3, 0, 50), (0, 7, 2), (0, 700, 250)))
    x, rope, positions, arrivals = decode_io.embed_tokens(counters, tables, None, 1, 240, 5)
    counters[2].clamp_(max=239)
    assert rope is None and torch.equal(positions, counters[2])
    assert torch.equal(arrivals, torch.zeros(3 * 5, dtype=torch.int32))
    (expected,) = gpt2.embed_tokens(*counters, 1)
    assert torch.equal(x, expected)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
@pytest.mark.parametrize("frames", [1, flow_kernels.KEYS, flow_kernels.QUERIES + 9])
def test_flow_attention(dtype, atol, frames):
    """Rows of several lengths, with NaN after each, in the flow's memory layout."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, (frames + 1) // 2, frames])
    qkv = 2 * torch.randn(3, frames, 3, 2, 32, generator=generator)
    mask = torch.arange(frames) < lengths[:, None]
    q, k, v = qkv.to(dtype).transpose(1, 3).unbind(2)
    expected = F.scaled_dot_product_attention(
        *(x.double() for x in (q, k, v)), attn_mask=mask[:, None, None]
    )
    k.masked_fill_(~mask[:, None, :, None], 1e4)
    v.masked_fill_(~mask[:, None, :, None], torch.nan)
    out = flow_kernels.attention(q, k, v, lengths.int())
    assert out.shape == (3, frames, 64) and out.dtype == dtype
    assert_close(out, expected.transpose(1, 2).flatten(2).to(dtype), atol=atol)
    unpadded = flow_kernels.attention(q[2:], k[2:], v[2:], None)
    assert_close(unpadded, out[2:], atol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("width", [256, 96])
def test_flow_layer_norm(dtype, atol, width):
    generator = torch.Generator().manual_seed(0)
    x, other = (5 * torch.randn(3, 7, width, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(width, generator=generator).to(dtype) for _ in range(2))
    layer = F.layer_norm
    for residual in (None, other):
        for mish in (False, True):
            total = x if residual is None else x + residual
            exact = layer(total.double(), (width,), weight.double(), bias.double(), 1e-5)
            exact = F.mish(exact) if mish else exact
            result = flow_kernels.layer_norm(x, weight, bias, 1e-5, residual, mish=mish)
            assert torch.equal(result[0], total)
            assert_close(result[1], exact.to(dtype), atol=atol)


def test_the_flow_estimator_with_the_kernels(engine, monkeypatch):
    """The whole velocity field in float16, padded rows, against PyTorch's operations."""
    called = []
    for name in ("attention", "layer_norm"):
        kernel = getattr(flow_kernels, name)

        def counting(*args, _kernel=kernel, _name=name, **kwargs):
            called.append(_name)
            return _kernel(*args, **kwargs)

        monkeypatch.setattr(flow_kernels, name, counting)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        half = Estimator(TINY.flow).half().eval()
        for parameter in half.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 6)
        half.time_in.float(), half.time_out.float()
        mask = torch.arange(40) < torch.tensor([[40], [31]])
        conditioning = half.condition(torch.randn(2, 40, 240, generator=generator).half(), mask)
        x = torch.randn(1, 40, 80, generator=generator).half()
        [shifts] = half.time_shifts(torch.tensor([0.3])).unbind(1)
        expected = half(x, conditioning, shifts)
        assert not called
        half.fuse()
        result = half(x, conditioning, shifts)
    blocks = sum(isinstance(part, Transformer) for part in half.modules())
    assert called.count("attention") == blocks and called.count("layer_norm") > 2 * blocks
    assert_close(result[mask], expected[mask], atol=0.02 * expected.abs().max().item())


def corrupted(tensor):
    """Other values, which a kernel may use as indices without harm."""
    if tensor.dtype == torch.bool:
        return ~tensor
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 1)


MODULES, LAUNCHERS = (
    (gemv, gemm, decode_attention, decode_io),
    (decode_linear, decode_attention, decode_io),
)


class TestPDL:
    """Programmatic dependent launch (kernels/cuda/launch.py): until a kernel has called gdc_wait,
    tensors that other kernels write hold wrong values."""

    @pytest.fixture
    def waits(self, monkeypatch):
        """The tensors that other kernels write, and a list with an entry for each gdc_wait."""
        written, saved, calls = [], [], []

        def gdc_launch_dependents():
            assert len(saved) == 0, "every program calls gdc_wait"
            saved.extend(tensor.clone() for tensor in written)
            for tensor in written:
                tensor.copy_(corrupted(tensor))

        def gdc_wait():
            for tensor in written:
                tensor.copy_(saved.pop(0))
            calls.append(1)

        for module in LAUNCHERS:
            monkeypatch.setattr(module, "pdl_options", lambda device: {"USE_PDL": True})
        for module in MODULES:
            monkeypatch.setattr(module, "gdc_launch_dependents", gdc_launch_dependents)
            monkeypatch.setattr(module, "gdc_wait", gdc_wait)
        yield written, calls
        assert not saved

    def check(self, waits, call, inputs, programs):
        """``call`` returns and writes the same as without PDL."""
        written, calls = waits
        with pytest.MonkeyPatch.context() as patch:
            for module in LAUNCHERS:
                patch.setattr(module, "pdl_options", lambda device: {"USE_PDL": False})
            plain = [tensor.clone() for tensor in inputs]
            expected = call(*plain)
        written += inputs
        result = call(*inputs)
        assert len(calls) == programs
        for a, b in zip(flat([result, *inputs]), flat([expected, *plain]), strict=True):
            assert torch.equal(a, b) and (not a.is_floating_point() or a.isfinite().all())

    @pytest.mark.parametrize(
        ("flags", "rows"),
        [
            pytest.param(flags, rows, marks=() if flags in (FLAGS[1], FLAGS[3]) else SLOW)
            for flags in FLAGS
            for rows in (2, 5)
        ],
    )
    def test_linear(self, waits, rows, flags):
        has_norm, gated, has_residual, int8 = flags
        generator = torch.Generator().manual_seed(rows)
        weight = torch.randn(40, 600, generator=generator)
        scales = torch.rand(40, generator=generator) if int8 else None
        weight = (9 * weight).to(torch.int8) if int8 else weight
        norm = (torch.randn(600, generator=generator), 1e-3) if has_norm else None
        outputs = 20 if gated else 40

        def call(x, residual):
            return decode_linear.linear(
                x,
                weight,
                scales,
                norm=norm,
                gated=gated,
                residual=residual if has_residual else None,
            )

        x, residual = (torch.randn(rows, n, generator=generator) for n in (600, outputs))
        sizes = (4, weight.element_size())
        columns = (
            16 if rows > 4 else gemv.gemv_tile(rows, outputs, 600, sizes, gated=gated)["BLOCK_N"]
        )
        self.check(waits, call, [x, residual], -(-outputs // columns))

    @pytest.mark.parametrize("rows", [2, 5])
    def test_linear_of_gpt2(self, waits, rows):
        generator = torch.Generator().manual_seed(rows)
        weight, bias = torch.randn(40, 600, generator=generator), torch.randn(40)
        norm, norm_bias = torch.randn(2, 600, generator=generator)

        def call(x):
            return decode_linear.linear(
                x, weight, bias=bias, norm=(norm, 1e-3, norm_bias), gelu=True
            )

        x = torch.randn(rows, 600, generator=generator)
        columns = 16 if rows > 4 else gemv.gemv_tile(rows, 40, 600, (4, 4))["BLOCK_N"]
        self.check(waits, call, [x], -(-40 // columns))

    def test_decode_attention(self, waits):
        generator = torch.Generator().manual_seed(0)
        rope = torch.randn(2, 2, 16, generator=generator)
        buffers = torch.randn(2, 4, 3, 300, 16, generator=generator)
        qkv, positions = torch.randn(4, 3 * 3 * 16, generator=generator), torch.tensor([5, 280])

        def call(qkv, rope, buffers, positions):
            return decode_attention.decode_attention(qkv, (rope[0], rope[1]), *buffers, positions)

        self.check(waits, call, [qkv, rope, buffers, positions], 4 * 3)

    @SLOW
    def test_decode_attention_with_splits(self, waits):
        """The counters too are written by another kernel: the step's first one zeroes them."""
        generator = torch.Generator().manual_seed(0)
        rope = torch.randn(2, 2, 16, generator=generator)
        buffers = torch.randn(2, 4, 2, 300, 16, generator=generator)
        qkv, positions = torch.randn(4, 3 * 2 * 16, generator=generator), torch.tensor([5, 280])

        def call(qkv, rope, buffers, positions, arrivals):
            pair = (rope[0], rope[1])
            return decode_attention.decode_attention(qkv, pair, *buffers, positions, None, arrivals)

        arrivals = torch.zeros(4 * 2, dtype=torch.int32)
        programs = 4 * 2 * decode_attention.num_splits(4, 2)
        self.check(waits, call, [qkv, rope, buffers, positions, arrivals], programs)

    def test_split_k(self, waits):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(40, 1024, generator=generator)

        def call(x, residual, arrivals):
            return decode_linear.linear(x, weight, residual=residual, arrivals=arrivals)

        x, residual = (torch.randn(5, n, generator=generator) for n in (1024, 40))
        self.check(waits, call, [x, residual, torch.zeros(3, dtype=torch.int32)], 3 * 8)

    def test_embed(self, waits):
        generator = torch.Generator().manual_seed(0)
        tables = torch.randn(2, 9, 64, generator=generator)
        frequencies = torch.rand(8, generator=generator)

        def call(counters):
            return decode_io.embed_tokens(tuple(counters), tuple(tables), frequencies, 2, 500, 3)

        self.check(waits, call, [torch.tensor([[3, 8], [5, 0], [700, 9]])], 2)

    def test_embed_of_gpt2(self, waits):
        tables = torch.randn(2, 9, 64)

        def call(counters):
            return decode_io.embed_tokens(tuple(counters), tuple(tables), None, 1, 500, 3)

        self.check(waits, call, [torch.tensor([[3, 8], [5, 0], [7, 90]])], 2)

    @pytest.mark.parametrize("turbo", [False, True])
    def test_sample(self, waits, turbo):
        generator = torch.Generator().manual_seed(0)
        sampling_params = sampler.SamplingTensors.allocate(2).values
        state = [
            torch.randn(4, 300, generator=generator),
            torch.rand(2, 300, generator=generator) < 0.3,
            sampling_params,
            torch.rand(2, 300, generator=generator) + 0.1,
            torch.full((2, 9), UNFORCED),
            torch.tensor([[3, 8], [5, 0], [40, 9]]),
        ]

        def call(logits, seen, sampling_params, noise, token_buffer, counters):
            special = {"unforced": UNFORCED, "not_finite": sampler.NOT_FINITE, "turbo": turbo}
            decode_io.sample_tokens(
                logits, seen, sampling_params, noise, token_buffer, tuple(counters), **special
            )

        self.check(waits, call, state, 2)


class TestPDLProbe:
    @pytest.fixture
    def supported(self, monkeypatch):
        """Whether PDL counts as supported on a GPU with this graph capture; by a chain of few
        programs, each of which takes the interpreter long."""
        few = SimpleNamespace(
            zeros=lambda count, width, **kwargs: torch.zeros(count, width // 16, **kwargs),
            long=torch.long,
        )
        monkeypatch.setattr(kernel_launch, "torch", few)
        monkeypatch.setattr(cuda, "capability_major", lambda device: 9)
        monkeypatch.setattr(kernel_launch, "gdc_launch_dependents", lambda: None)
        monkeypatch.setattr(kernel_launch, "gdc_wait", lambda: None)
        monkeypatch.setattr(
            kernel_launch, "PDL_ON", {"USE_PDL": True}
        )  # the interpreter has no launch_pdl

        def supported(capture):
            monkeypatch.setattr(cuda, "GraphCapturer", lambda device: capture)
            return kernel_launch.pdl_supported.__wrapped__(torch.device("cpu"))

        return supported

    def test_supported_if_a_captured_chain_is_correct(self, supported):
        assert supported(lambda work: work)

    def test_unsupported_if_it_is_wrong(self, supported):
        assert not supported(lambda work: lambda: None)

    def test_unsupported_if_capture_fails(self, supported, caplog):
        def fail(work):
            raise RuntimeError("CUDA error: invalid resource handle")

        with caplog.at_level("INFO"):
            assert not supported(fail)
        assert "programmatic dependent launch is unsupported: CUDA error" in caplog.text

    @pytest.mark.parametrize("generation", [0, 7, 8, 12])
    def test_other_gpus_are_not_probed(self, supported, monkeypatch, generation):
        monkeypatch.setattr(cuda, "capability_major", lambda device: generation)
        assert not supported(lambda work: work)


def flat(values):
    """All tensors in nested sequences."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif value is not None:
            yield from flat(value)


class TestSelfTest:
    """The self-test that a GPU must pass before the kernels are used."""

    @pytest.fixture(autouse=True)
    def few_programs(self, monkeypatch):
        """A GPU runs all heads and columns in parallel; the interpreter takes milliseconds for each.
        The columns are still those of two tiles of a GEMM, of which the second has a remainder."""
        monkeypatch.setattr(selftest, "HEADS", 2)
        monkeypatch.setattr(selftest, "N", 20)

    @pytest.mark.parametrize("stage", [pytest.param("t3", marks=SLOW), "flow"])
    def test_correct_kernels_pass(self, stage):
        assert support.unsupported_reason(stage, torch.float16, "cpu") == ""

    def test_correct_kernels_other_than_products_pass(self, monkeypatch):
        monkeypatch.setattr(selftest, "_linear", lambda drawn: True)
        assert support.unsupported_reason("t3", torch.float16, "cpu") == ""

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            (decode_linear, "linear"),
            pytest.param(decode_attention, "decode_attention", marks=SLOW),
            (flow_kernels, "attention"),
            (flow_kernels, "layer_norm"),
        ],
    )
    def test_wrong_kernels_fail(self, module, name, monkeypatch):
        exact = getattr(module, name)

        def inexact(*args, **kwargs):
            out = exact(*args, **kwargs)
            return (out[0], out[1] * 1.1) if name == "layer_norm" else out * 1.1

        monkeypatch.setattr(module, name, inexact)
        if module is decode_attention:  # the products before it are right, and take long
            monkeypatch.setattr(selftest, "_linear", lambda drawn: True)
        stage = "flow" if module is flow_kernels else "t3"
        assert (
            support.unsupported_reason(stage, torch.float16, "cpu")
            == "Triton's kernels are wrong here"
        )

    @pytest.fixture
    def only_embed_and_sample(self, monkeypatch):
        """Other tests cover the layers, which take the interpreter long."""
        for name in ("_linear", "_attention"):
            monkeypatch.setattr(selftest, name, lambda randn: True)

    def test_a_wrong_embedding_fails(self, monkeypatch, only_embed_and_sample):
        exact = decode_io.embed_tokens

        def wrong_sign(*args):
            x, rope, *rest = exact(*args)
            return x, rope and (rope[0], -rope[1]), *rest

        monkeypatch.setattr(decode_io, "embed_tokens", wrong_sign)
        assert (
            support.unsupported_reason("t3", torch.float16, "cpu")
            == "Triton's kernels are wrong here"
        )

    @pytest.mark.parametrize("i", range(3))
    def test_a_wrong_counter_fails(self, i, monkeypatch, only_embed_and_sample):
        exact = decode_io.sample_tokens

        def off_by_one(*args, **kwargs):
            exact(*args, **kwargs)
            args[5][i].add_(1)  # a counter

        monkeypatch.setattr(decode_io, "sample_tokens", off_by_one)
        assert (
            support.unsupported_reason("t3", torch.float16, "cpu")
            == "Triton's kernels are wrong here"
        )

    @pytest.mark.parametrize(
        "error",
        [
            OutOfResources(200_000, 101_376, "shared memory"),
            RuntimeError("no C compiler"),
            OSError("x"),
        ],
    )
    def test_build_errors_are_the_reason(self, monkeypatch, error):
        class Failing:
            def __getitem__(self, grid):
                raise error

        monkeypatch.setattr(decode_linear, "gemv", Failing())
        assert "Triton cannot build kernels here" in support.unsupported_reason(
            "t3", torch.float16, "cpu"
        )

    def test_old_gpus_are_not_tested(self):
        assert "need compute capability 7.5" in probe._kernels_unsupported("t3", "float32", (7, 0))
        assert "need compute capability 8.0" in probe._kernels_unsupported(
            "flow", "float16", (7, 5)
        )


@pytest.fixture
def few_programs(monkeypatch):
    """Large tiles, because the interpreter takes a millisecond a program."""
    monkeypatch.setattr(decode_attention, "MAX_SPLITS", 2)
    exact = gemv.gemv_tile

    def wide(*args, gated=False):
        return exact(*args, gated=gated, columns=512)

    def wide_gemm(*args):
        return gemm.gemm_tile(*args, columns=512)

    monkeypatch.setattr(decode_linear, "gemv_tile", wide)
    monkeypatch.setattr(decode_linear, "gemm_tile", wide_gemm)


@pytest.fixture(scope="module")
def gpt2():
    return t3_from_upstream(upstream_gpt2(TINY_GPT2).state_dict(), TINY_GPT2, torch.float32)


@SLOW
def test_gpt2_with_the_fused_step(gpt2, few_programs):
    """As the test below; with knobs that need a sort and without."""
    assert fused_step.supports(gpt2)
    sampling = [
        Sampling(seed=0, max_tokens=2),
        Sampling(seed=1, max_tokens=4, top_k=20, top_p=0.9),
        Sampling(seed=2, max_tokens=3, temperature=0.0, repetition_penalty=2.0),
    ]

    def decoded(backend):
        sequences = [sequence_of(gpt2_prompt(TINY_GPT2, i), s) for i, s in enumerate(sampling)]
        ended = decode_all(gpt2, sequences, slots=2, rows_per_seq=1, backend=backend)
        return [list(one.tokens) for one in ended]

    tokens = decoded(eager_backend(static=True, fused=True))
    assert tokens == decoded(eager_backend())
    assert [len(one) for one in tokens] == [2, 4, 3]


@pytest.mark.parametrize(("count", "int8"), [(1, False), pytest.param(5, True, marks=SLOW)])
def test_logits_of_a_fused_step_of_gpt2(gpt2, few_programs, int8, count):
    """Against PyTorch's step over the same cache and weights: GEMV for one row, GEMM for five."""
    t3 = gpt2
    if int8:
        state = upstream_gpt2(TINY_GPT2).state_dict()
        t3 = t3_from_upstream(state, TINY_GPT2, torch.float32, weight_layout.WEIGHT_ONLY)
    backend, logits = eager_backend(static=True), []
    for step in (fused_step.FusedStep(t3), eager_step(t3.step)):
        slots = backend.slots(t3, count, 1)
        for slot in range(count):
            prompt, params = gpt2_prompt(TINY_GPT2, slot), Sampling(seed=slot)
            slots.prefill(slot, prompt, params, t3, prefill_fn(t3), 3, forced_tokens=(5, 6))
        slots.sample_next(0, count, needs_sort=False)
        step(slots, count, slots.cache.capacity, needs_sort=False)
        logits.append(slots.logits.clone())
    assert_close(*logits, atol=1e-4)


@pytest.mark.parametrize(("count", "num_slots"), [(2, 1), pytest.param(3, 2, marks=SLOW)])
def test_t3_with_the_fused_step(engine, few_programs, count, num_slots):
    """The whole decode loop: a batch of sequences of several lengths, one slot used twice."""
    sampling = [Sampling(seed=seed, max_tokens=count + seed) for seed in range(count)]
    texts = ("hello.", "a longer one, with a comma.", "no!")[:count]
    sequences = [utterance(engine, t, s) for t, s in zip(texts, sampling, strict=True)]
    with engine.pipeline.placement("t3") as t3, as_on_a_gpu(t3):
        backend = eager_backend(static=True, fused=True)
        tokens = [out.tokens for out in decode_all(t3, sequences, slots=num_slots, backend=backend)]
        again = [utterance(engine, t, s) for t, s in zip(texts, sampling, strict=True)]
        assert tokens == [out.tokens for out in decode_all(t3, again, slots=num_slots)]
    assert sum(map(len, tokens)) > 2 * count
