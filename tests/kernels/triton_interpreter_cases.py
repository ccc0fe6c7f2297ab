"""What Triton's kernels compute, by its interpreter; run by test_cuda_kernels.py and test_cuda_kernels_in_place.py
in processes of their own, for Triton decides when it is imported whether it interprets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.common import assert_close
from helpers.t3 import as_on_a_gpu, decode_all, eager_backend, utterance
from triton.runtime.errors import OutOfResources

from chatterbox_opt.config.model_config import TINY
from chatterbox_opt.engine import probe
from chatterbox_opt.kernels.cuda import (
    decode_attention,
    decode_io,
    decode_linear,
    gemm,
    gemv,
    selftest,
)
from chatterbox_opt.kernels.cuda import flow as flow_kernels
from chatterbox_opt.kernels.cuda import launch as kernel_launch
from chatterbox_opt.kernels.cuda.decode_attention import KEYS
from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize
from chatterbox_opt.models.flow.estimator import Estimator, Transformer
from chatterbox_opt.models.t3 import fused_step, sampler
from chatterbox_opt.models.t3.decode_state import UNFORCED, DecodeState
from chatterbox_opt.models.t3.kv_cache import attend_matmul
from chatterbox_opt.models.t3.model import apply_rope
from chatterbox_opt.runtime import cuda
from chatterbox_opt.sampling import Sampling

ATOL = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # values up to 6
FORMS = [  # normed, gated, residual, int8: those of a step, and none
    (True, False, False, False),
    (False, False, True, False),
    (True, True, False, False),
    (True, True, True, True),
    (False, False, False, True),
    (False, False, False, False),
]
CASES = [
    (rows, dtype, form)
    for rows in (1, 2, 3, 5, 70)
    for dtype in ATOL
    # the interpreter's tl.dot takes bfloat16 for integers
    if not (rows > gemv.MAX_GEMV_ROWS and dtype == torch.bfloat16)
    for form in (FORMS if rows in (2, 5) else FORMS[3:5])
]


@pytest.mark.parametrize(("rows", "dtype", "form"), CASES)
def test_a_product_and_what_stands_around_it(rows, dtype, form):
    """Sizes that are no multiple of any tile."""
    is_normed, gated, added, whole = form
    generator = torch.Generator().manual_seed(rows)
    k, n = 600, 37

    def drawn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x, by, residual = 3 * drawn(rows, k), drawn(k), drawn(rows, n)
    weight, scales = drawn(2 * n if gated else n, k) / k**0.5, None
    if whole:
        scales = torch.rand(len(weight), generator=generator) / 1000
        weight = (1000 * weight).round().clamp(-127, 127).to(torch.int8)
    exact, wide = x.double(), weight.double()
    if is_normed:
        exact = torch.nn.functional.rms_norm(exact, (k,), by.double(), 1e-3)
    exact = exact @ (wide * scales.double()[:, None] if whole else wide).t()
    if gated:
        first, second = exact.chunk(2, dim=-1)
        exact = torch.nn.functional.silu(first) * second
    if added:
        exact += residual.double()
    made = decode_linear.linear(
        x,
        weight,
        scales,
        norm=(by, 1e-3) if is_normed else None,
        gated=gated,
        residual=residual if added else None,
    )
    assert made.dtype == dtype and made.shape == (rows, n)
    assert_close(made, exact.to(dtype), atol=ATOL[dtype])


def test_one_great_number_does_not_overflow_a_half():
    """As residual streams have them; alone (few rows) and in company, by the matrix units."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 64, generator=generator)
    x[:, 5] = 30_000.0
    by, weight = torch.full((64,), 8.0), torch.randn(20, 64, generator=generator) / 8
    expected = torch.nn.functional.rms_norm(x, (64,), by, 1e-5) @ weight.t()
    for rows in (2, 8):
        made = decode_linear.linear(x[:rows].half(), weight.half(), norm=(by.half(), 1e-5))
        assert_close(made.float(), expected[:rows], atol=0.02 * expected.abs().max().item())


def test_a_matrix_deeper_than_a_tile():
    """By pieces of the depth in turn, and what is beyond the last one is not read."""
    generator = torch.Generator().manual_seed(0)
    k = gemv.DEEPEST + 700
    x, weight, by = (torch.randn(n, k, generator=generator) for n in (2, 3, 1))
    exact = torch.nn.functional.rms_norm(x, (k,), by[0], 1e-5) @ weight.t() / k**0.5
    assert_close(decode_linear.linear(x, weight / k**0.5, norm=(by[0], 1e-5)), exact, atol=1e-4)
    pair = torch.cat((weight, weight.flip(0)))
    gate, up = (torch.nn.functional.rms_norm(x, (k,), by[0], 1e-5) @ pair.t() / k**0.5).chunk(2, 1)
    made = decode_linear.linear(x, pair / k**0.5, norm=(by[0], 1e-5), gated=True)
    assert_close(made, torch.nn.functional.silu(gate) * up, atol=1e-4)


@pytest.mark.parametrize("rows", [5, 70])
@pytest.mark.parametrize("whole", [False, True])
def test_programs_that_share_a_depth(rows, whole):
    """Twice over the same counters, which are zero again afterwards."""
    generator = torch.Generator().manual_seed(rows)
    k, n = 1024, 37
    tile = gemm.gemm_tile(rows, 4)
    tiles = -(-n // tile["COLUMNS"]) * -(-rows // tile["ROWS"])
    assert gemm.splits(tiles, k, tile["DEPTH"]) == 8
    x, residual = (torch.randn(rows, m, generator=generator) for m in (k, n))
    weight, scales = torch.randn(n, k, generator=generator) / k**0.5, None
    exact = weight
    if whole:
        scales = torch.rand(n, generator=generator) / 1000
        weight = (1000 * weight).round().clamp(-127, 127).to(torch.int8)
        exact = weight * scales[:, None]
    arrivals = torch.zeros(tiles, dtype=torch.int32)
    for _ in range(2):
        made = decode_linear.linear(x, weight, scales, residual=residual, arrivals=arrivals)
        assert_close(made, x @ exact.t() + residual, atol=1e-4)
        assert not arrivals.any()


@pytest.mark.parametrize(("n", "k", "rows"), [(3072, 1024, 2), (1024, 4096, 64), (8194, 1024, 1)])
@pytest.mark.parametrize("sizes", [(2, 2), (2, 1), (4, 4), (4, 1)])
def test_tiles_fit_what_they_are_for(n, k, rows, sizes):
    """Whole pieces for every thread, and the parts of a depth cover it once."""
    if rows <= gemv.MAX_GEMV_ROWS:
        tile = gemv.gemv_tile(rows, n, k, sizes)
        pieces = tile["DEPTH"] // tile["PIECE"]
        assert pieces % (32 * tile["num_warps"]) == 0
        assert tile["PIECE"] in (tile["WIDTH"], 2 * tile["WIDTH"])
        assert tile["WIDTH"] * sizes[0] == 16
    else:
        depth = gemm.gemm_tile(rows, sizes[0])["DEPTH"]
        parts = gemm.splits(-(-n // 16), k, depth)
        assert parts > 1 and k % (parts * depth) == 0


CACHES = [(torch.float32, 1e-5, False), (torch.bfloat16, 6e-2, False), (torch.float32, 1e-5, True)]


@pytest.mark.parametrize(("dtype", "atol", "narrow"), CACHES)
@pytest.mark.parametrize("rows_per_seq", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_one_query_attends_up_to_its_place(dtype, atol, narrow, rows_per_seq, shared):
    """Rows of several lengths; behind each lies what nobody may read, and what it adds is kept. By
    one program a head, and by several."""
    generator = torch.Generator().manual_seed(0)
    heads, capacity, width = 3, 3 * KEYS + 40, 16
    places = torch.tensor([0, KEYS - 1, KEYS, KEYS + 1, capacity - 1])
    rows = rows_per_seq * len(places)
    qkv = torch.randn(rows, 3 * heads * width, generator=generator).to(dtype)
    rope = tuple(torch.randn(2, len(places), width, generator=generator).to(dtype))
    buffers = torch.randn(2, rows + 2, heads, capacity, width, generator=generator).to(dtype)
    scales = None
    if narrow:
        buffers, scales = quantize(buffers)
    expected = buffers.clone() if scales is None else dequantize(buffers, scales, dtype)
    q, k, v = qkv.view(rows, 3, heads, 1, width).unbind(1)
    q, k = (
        apply_rope(x, [p.repeat_interleave(rows_per_seq, 0)[:, None, None] for p in rope])
        for x in (q, k)
    )
    every = places.repeat_interleave(rows_per_seq)
    for kept, new in zip(expected, (k, v), strict=True):
        new = dequantize(*quantize(new), dtype) if narrow else new
        kept[torch.arange(rows), :, every] = new[:, :, 0]
    visible = (torch.arange(capacity) <= every[:, None])[:, None, None]
    attended = attend_matmul(q, *expected[:, :rows], visible).transpose(1, 2).flatten(1)
    for row, place in enumerate(every):
        if narrow:
            buffers[:, row, :, place:] = 127
            scales[:, row, :, place:] = torch.nan
        else:
            buffers[:, row, :, place:] = torch.nan
    arrivals = torch.zeros(rows * heads, dtype=torch.int32) if shared else None
    if shared:
        assert decode_attention.splits(rows, heads) == (8 if rows_per_seq == 1 else 8)
    pair = None if scales is None else tuple(scales)
    found = decode_attention.decode_attention(qkv, rope, *buffers, places, pair, arrivals)
    assert_close(found, attended, atol=atol)
    assert arrivals is None or not arrivals.any()
    numbers = buffers if scales is None else dequantize(buffers, scales, dtype)
    kept, wanted = (x[:, torch.arange(rows), :, every] for x in (numbers, expected))
    assert_close(kept, wanted, atol=atol)
    behind = numbers[:, :rows].isnan()[..., 0]
    assert torch.equal(behind, ~(visible[:, 0].expand(2, rows, heads, -1))), "and nothing else"


@pytest.mark.parametrize("last", range(5))
def test_whoever_is_last_gives_the_same(last, monkeypatch):
    """Programs end in any order: the interpreter's order of a head's programs is rotated."""
    from triton.runtime import interpreter

    order = list(range(8))
    order = order[last:] + order[:last]
    generator = torch.Generator().manual_seed(0)
    qkv, places = torch.randn(1, 3 * 16, generator=generator), torch.tensor([6 * KEYS])
    rope = tuple(torch.randn(2, 1, 16, generator=generator))
    buffers = torch.randn(2, 1, 1, 8 * KEYS, 16, generator=generator)

    def attend():
        arrivals = torch.zeros(1, dtype=torch.int32)
        return decode_attention.decode_attention(
            qkv, rope, *buffers.clone(), places, None, arrivals
        )

    expected, seen = attend(), []
    plain = interpreter.interpreter_builder.set_grid_idx

    def rotated(x, y, z):
        seen.append(order[z])
        plain(x, y, order[z])

    monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_idx", rotated)
    assert torch.equal(attend(), expected)
    assert seen == order


def test_great_scores_do_not_overflow():
    heads, width, place = 1, 16, 180
    qkv = torch.cat(
        (torch.full((1, 16), 300.0), torch.full((1, 16), -300.0), torch.zeros(1, 16)), 1
    )
    keys = torch.full((1, heads, 200, width), -300.0)
    keys[0, 0, 150] = 300.0
    values = torch.arange(200.0)[None, None, :, None].expand(1, 1, 200, width).contiguous()
    still = torch.ones(1, width), torch.zeros(1, width)
    made = decode_attention.decode_attention(qkv, still, keys, values, torch.tensor([place]))
    assert torch.equal(made, torch.full_like(made, 150.0))


@pytest.mark.parametrize("rows_per_seq", [1, 2])
def test_it_draws_what_the_slots_draw(rows_per_seq):
    """Rows with knobs of all kinds, two of them not finite; now and then a token is prescribed, and
    some have come to the end of their tables."""
    generator = torch.Generator().manual_seed(0)
    asked = [
        Sampling(temperature=t, cfg_weight=w, min_p=p, repetition_penalty=r)
        for t in (0.0, 0.5, 1.0, 2.0)
        for w, p in ((0.5, 0.05), (0.0, 0.0), (1.0, 1.0), (0.3, 0.4))
        for r in (1.0, 1.2, 3.0)
    ]
    rows, words, places, steps = len(asked), 300, 12, 8
    token_buffer = torch.full((rows, places), UNFORCED)
    token_buffer[3, 2], token_buffer[rows - 1, 1] = 299, 0  # whatever the logits are
    state = {
        "logits": 3 * torch.randn(rows_per_seq * rows, words, generator=generator),
        "seen": torch.rand(rows, words, generator=generator) < 0.1,
        "noise": torch.ones(rows, words),
        "token_buffer": token_buffer,
        "last_token": torch.zeros(rows, dtype=torch.long),
        "num_generated": torch.arange(rows) % 7,
        "position": 40 + torch.arange(rows),
    }
    state["logits"][rows_per_seq * (rows - 1), 5] = torch.nan
    state["logits"][rows_per_seq * (rows - 2), 299] = torch.inf
    state["num_generated"][rows - 1] = 0
    knobs = sampler.SamplingTensors.allocate(rows)
    for row, one in enumerate(asked):
        knobs.set(row, one)
    mine, theirs = (
        SimpleNamespace(
            rows_per_seq=rows_per_seq,
            sampling_tensors=knobs,
            **{k: v.clone() for k, v in state.items()},
        )
        for _ in range(2)
    )
    for _ in range(steps):
        lots = torch.empty(rows, words).exponential_(generator=generator)
        mine.noise.copy_(lots)
        theirs.noise.copy_(lots)
        DecodeState.sample_next(theirs, 0, rows, needs_sort=False)
        fused_step.sample_tokens(mine, rows)
        for name in ("seen", "token_buffer", "last_token", "num_generated", "position"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert len(set(mine.token_buffer.flatten().tolist())) > rows
    assert mine.token_buffer[rows - 1, :3].tolist() == [sampler.NOT_FINITE, 0, sampler.NOT_FINITE]
    assert mine.num_generated.max() == places - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows_per_seq", [1, 2])
def test_a_step_begins_as_the_model_begins_it(engine, dtype, rows_per_seq):
    with engine.pipeline.placement("t3") as t3:
        tables = t3.speech_emb.weight.to(dtype), t3.speech_pos.weight.to(dtype)
        counters = tuple(torch.tensor(row) for row in ((3, 0, 50), (0, 7, 2), (0, 700, 4000)))
        x, rope, places, arrivals = decode_io.embed_tokens(
            counters, tables, t3.frequencies, rows_per_seq, 3500, 5
        )
        counters[2].clamp_(max=3499)
        expected, *turned = t3.embed_tokens(*counters, 1)
    assert torch.equal(places, counters[2])
    assert torch.equal(arrivals, torch.zeros(3 * rows_per_seq * 5, dtype=torch.int32))
    assert torch.equal(
        x, (tables[0][counters[0]] + tables[1][counters[1]]).repeat_interleave(rows_per_seq, 0)
    )
    assert_close(x.float(), expected.repeat_interleave(rows_per_seq, 0).float(), atol=ATOL[dtype])
    for found, wanted in zip(rope, turned, strict=True):
        assert_close(found, wanted.to(dtype), atol=ATOL[dtype])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float16, 4e-3)])
@pytest.mark.parametrize("frames", [1, flow_kernels.KEYS, flow_kernels.QUERIES + 9])
def test_frames_attend_to_those_that_are_there(dtype, atol, frames):
    """Rows of several lengths; behind each lies what nobody may read. Laid out as the flow has it."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, (frames + 1) // 2, frames])
    qkv = 2 * torch.randn(3, frames, 3, 2, 32, generator=generator)
    there = torch.arange(frames) < lengths[:, None]
    q, k, v = qkv.to(dtype).transpose(1, 3).unbind(2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.double() for x in (q, k, v)), attn_mask=there[:, None, None]
    )
    k.masked_fill_(~there[:, None, :, None], 1e4)
    v.masked_fill_(~there[:, None, :, None], torch.nan)
    made = flow_kernels.attention(q, k, v, lengths.int())
    assert made.shape == (3, frames, 64) and made.dtype == dtype
    assert_close(made, expected.transpose(1, 2).flatten(2).to(dtype), atol=atol)
    alone = flow_kernels.attention(q[2:], k[2:], v[2:], None)
    assert_close(alone, made[2:], atol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("width", [256, 96])
def test_a_norm_and_what_stands_around_it(dtype, atol, width):
    generator = torch.Generator().manual_seed(0)
    x, more = (5 * torch.randn(3, 7, width, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(width, generator=generator).to(dtype) for _ in range(2))
    layer = torch.nn.functional.layer_norm
    for add in (None, more):
        for mish in (False, True):
            total = x if add is None else x + add
            exact = layer(total.double(), (width,), weight.double(), bias.double(), 1e-5)
            exact = torch.nn.functional.mish(exact) if mish else exact
            found = flow_kernels.layer_norm(x, weight, bias, 1e-5, add, mish=mish)
            assert torch.equal(found[0], total)
            assert_close(found[1], exact.to(dtype), atol=atol)


def test_the_flow_is_the_same_with_them(engine, monkeypatch):
    """The whole velocity field in float16, padded rows: by the kernels, and by PyTorch's."""
    asked = []
    for name in ("attention", "layer_norm"):
        kernel = getattr(flow_kernels, name)

        def counted(*given, _kernel=kernel, _name=name, **more):
            asked.append(_name)
            return _kernel(*given, **more)

        monkeypatch.setattr(flow_kernels, name, counted)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        half = Estimator(TINY.flow).half().eval()
        for parameter in half.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 6)
        half.time_in.float(), half.time_out.float()
        mask = torch.arange(40) < torch.tensor([[40], [31]])
        given = half.condition(torch.randn(2, 40, 240, generator=generator).half(), mask)
        x = torch.randn(1, 40, 80, generator=generator).half()
        [shifts] = half.time_shifts(torch.tensor([0.3])).unbind(1)
        expected = half(x, given, shifts)
        assert not asked
        half.fuse()
        found = half(x, given, shifts)
    blocks = sum(isinstance(part, Transformer) for part in half.modules())
    assert asked.count("attention") == blocks and asked.count("layer_norm") > 2 * blocks
    assert_close(found[mask], expected[mask], atol=0.02 * expected.abs().max().item())


def wrong(tensor):
    """Other numbers, where a kernel may read without harm."""
    if tensor.dtype == torch.bool:
        return ~tensor
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 1)


MODULES, LAUNCHERS = (
    (gemv, gemm, decode_attention, decode_io),
    (decode_linear, decode_attention, decode_io),
)


class TestBeginningEarly:
    """A kernel that begins while the one before it works (kernels/cuda/launch.py): what others write is
    wrong until it has waited."""

    @pytest.fixture
    def waits(self, monkeypatch):
        """How often was waited, and the tensors that others write."""
        written, right, counted = [], [], []

        def gdc_launch_dependents():
            assert len(right) == 0, "every program waits"
            right.extend(tensor.clone() for tensor in written)
            for tensor in written:
                tensor.copy_(wrong(tensor))

        def gdc_wait():
            for tensor in written:
                tensor.copy_(right.pop(0))
            counted.append(1)

        for module in LAUNCHERS:
            monkeypatch.setattr(module, "pdl_options", lambda device: {"USE_PDL": True})
        for module in MODULES:
            monkeypatch.setattr(module, "gdc_launch_dependents", gdc_launch_dependents)
            monkeypatch.setattr(module, "gdc_wait", gdc_wait)
        yield written, counted
        assert not right

    def check(self, waits, call, given, programs):
        """``call`` gives the same as without, also in what it changes."""
        written, counted = waits
        with pytest.MonkeyPatch.context() as patch:
            for module in LAUNCHERS:
                patch.setattr(module, "pdl_options", lambda device: {"USE_PDL": False})
            plain = [tensor.clone() for tensor in given]
            expected = call(*plain)
        written += given
        found = call(*given)
        assert len(counted) == programs
        for a, b in zip(flat([found, *given]), flat([expected, *plain]), strict=True):
            assert torch.equal(a, b) and (not a.is_floating_point() or a.isfinite().all())

    @pytest.mark.parametrize("rows", [2, 5])
    @pytest.mark.parametrize("form", FORMS)
    def test_a_product(self, waits, rows, form):
        is_normed, gated, added, whole = form
        generator = torch.Generator().manual_seed(rows)
        weight = torch.randn(40, 600, generator=generator)
        scales = torch.rand(40, generator=generator) if whole else None
        weight = (9 * weight).to(torch.int8) if whole else weight
        norm = (torch.randn(600, generator=generator), 1e-3) if is_normed else None
        outputs = 20 if gated else 40

        def call(x, residual):
            return decode_linear.linear(
                x, weight, scales, norm=norm, gated=gated, residual=residual if added else None
            )

        x, residual = (torch.randn(rows, n, generator=generator) for n in (600, outputs))
        sizes = (4, weight.element_size())
        columns = (
            16 if rows > 4 else gemv.gemv_tile(rows, outputs, 600, sizes, gated=gated)["COLUMNS"]
        )
        self.check(waits, call, [x, residual], -(-outputs // columns))

    def test_attention(self, waits):
        generator = torch.Generator().manual_seed(0)
        rope = torch.randn(2, 2, 16, generator=generator)
        buffers = torch.randn(2, 4, 3, 300, 16, generator=generator)
        qkv, places = torch.randn(4, 3 * 3 * 16, generator=generator), torch.tensor([5, 280])

        def call(qkv, rope, buffers, places):
            return decode_attention.decode_attention(qkv, (rope[0], rope[1]), *buffers, places)

        self.check(waits, call, [qkv, rope, buffers, places], 4 * 3)

    def test_shared_attention(self, waits):
        """Of the counters the step's first kernel makes zeros: they too are another's."""
        generator = torch.Generator().manual_seed(0)
        rope = torch.randn(2, 2, 16, generator=generator)
        buffers = torch.randn(2, 4, 3, 300, 16, generator=generator)
        qkv, places = torch.randn(4, 3 * 3 * 16, generator=generator), torch.tensor([5, 280])

        def call(qkv, rope, buffers, places, arrivals):
            pair = (rope[0], rope[1])
            return decode_attention.decode_attention(qkv, pair, *buffers, places, None, arrivals)

        arrivals = torch.zeros(4 * 3, dtype=torch.int32)
        programs = 4 * 3 * decode_attention.splits(4, 3)
        self.check(waits, call, [qkv, rope, buffers, places, arrivals], programs)

    def test_a_shared_depth(self, waits):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(40, 1024, generator=generator)

        def call(x, residual, arrivals):
            return decode_linear.linear(x, weight, residual=residual, arrivals=arrivals)

        x, residual = (torch.randn(5, n, generator=generator) for n in (1024, 40))
        self.check(waits, call, [x, residual, torch.zeros(3, dtype=torch.int32)], 3 * 8)

    def test_the_beginning_of_a_step(self, waits):
        generator = torch.Generator().manual_seed(0)
        tables = torch.randn(2, 9, 64, generator=generator)
        frequencies = torch.rand(8, generator=generator)

        def call(counters):
            return decode_io.embed_tokens(tuple(counters), tuple(tables), frequencies, 2, 500, 3)

        self.check(waits, call, [torch.tensor([[3, 8], [5, 0], [700, 9]])], 2)

    def test_the_draw(self, waits):
        generator = torch.Generator().manual_seed(0)
        knobs = sampler.SamplingTensors.allocate(2).values
        state = [
            torch.randn(4, 300, generator=generator),
            torch.rand(2, 300, generator=generator) < 0.3,
            knobs,
            torch.rand(2, 300, generator=generator) + 0.1,
            torch.full((2, 9), UNFORCED),
            torch.tensor([[3, 8], [5, 0], [40, 9]]),
        ]

        def call(logits, seen, knobs, noise, token_buffer, counters):
            free = {"free": UNFORCED, "not_finite": sampler.NOT_FINITE}
            decode_io.sample_tokens(
                logits, seen, knobs, noise, token_buffer, tuple(counters), **free
            )

        self.check(waits, call, state, 2)


class TestTryingToBeginEarly:
    @pytest.fixture
    def asked(self, monkeypatch):
        """Whether kernels begin early on a card that records like this."""
        monkeypatch.setattr(cuda, "capability_major", lambda device: 9)
        monkeypatch.setattr(kernel_launch, "gdc_launch_dependents", lambda: None)
        monkeypatch.setattr(kernel_launch, "gdc_wait", lambda: None)
        monkeypatch.setattr(
            kernel_launch, "PDL_ON", {"USE_PDL": True}
        )  # the interpreter knows no more

        def asked(record):
            monkeypatch.setattr(cuda, "GraphCapturer", lambda device: record)
            return kernel_launch.pdl_supported.__wrapped__(torch.device("cpu"))

        return asked

    def test_where_a_recorded_chain_counts_right_they_do(self, asked):
        assert asked(lambda work: work)

    def test_where_it_counts_wrong_they_do_not(self, asked):
        assert not asked(lambda work: lambda: None)

    def test_where_it_is_refused_they_do_not(self, asked, caplog):
        def refuse(work):
            raise RuntimeError("CUDA error: invalid resource handle")

        with caplog.at_level("INFO"):
            assert not asked(refuse)
        assert "kernels do not begin early here: CUDA error" in caplog.text

    @pytest.mark.parametrize("generation", [0, 7, 8, 12])
    def test_other_cards_are_not_asked(self, asked, monkeypatch, generation):
        monkeypatch.setattr(cuda, "capability_major", lambda device: generation)
        assert not asked(lambda work: work)


def flat(values):
    """All tensors in there."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif value is not None:
            yield from flat(value)


class TestTrying:
    """What the card is asked before it is given these kernels."""

    @pytest.fixture(autouse=True)
    def few_heads(self, monkeypatch):
        """A GPU has them all at once; the interpreter takes milliseconds for each."""
        monkeypatch.setattr(selftest, "HEADS", 2)

    @pytest.mark.parametrize("stage", ["t3", "flow"])
    def test_right_kernels_are_found_right(self, stage):
        assert selftest.unsupported_reason(stage, torch.float16, "cpu") == ""

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            (decode_linear, "linear"),
            (decode_attention, "decode_attention"),
            (flow_kernels, "attention"),
            (flow_kernels, "layer_norm"),
        ],
    )
    def test_wrong_ones_are_found_wrong(self, module, name, monkeypatch):
        exact = getattr(module, name)

        def off(*given, **more):
            made = exact(*given, **more)
            return (made[0], made[1] * 1.1) if name == "layer_norm" else made * 1.1

        monkeypatch.setattr(module, name, off)
        if module is decode_attention:  # the products before it are right, and take long
            monkeypatch.setattr(selftest, "_products", lambda drawn: True)
        stage = "flow" if module is flow_kernels else "t3"
        assert (
            selftest.unsupported_reason(stage, torch.float16, "cpu")
            == "Triton's kernels are wrong here"
        )

    @pytest.fixture
    def only_the_ends(self, monkeypatch):
        """What stands between them was tried by other tests, and takes the interpreter long."""
        for name in ("_products", "_attention"):
            monkeypatch.setattr(selftest, name, lambda drawn: True)

    def test_a_wrong_beginning_is_found_wrong(self, monkeypatch, only_the_ends):
        exact = decode_io.embed_tokens

        def swapped(*given):
            x, (cos, sin), *rest = exact(*given)
            return x, (cos, -sin), *rest

        monkeypatch.setattr(decode_io, "embed_tokens", swapped)
        assert (
            selftest.unsupported_reason("t3", torch.float16, "cpu")
            == "Triton's kernels are wrong here"
        )

    @pytest.mark.parametrize("i", range(3))
    def test_a_wrong_end_is_found_wrong(self, i, monkeypatch, only_the_ends):
        exact = decode_io.sample_tokens

        def beyond(*given, **more):
            exact(*given, **more)
            given[5][i].add_(1)  # a counter

        monkeypatch.setattr(decode_io, "sample_tokens", beyond)
        assert (
            selftest.unsupported_reason("t3", torch.float16, "cpu")
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
    def test_what_cannot_be_built_is_a_reason(self, monkeypatch, error):
        class Failing:
            def __getitem__(self, grid):
                raise error

        monkeypatch.setattr(decode_linear, "gemv", Failing())
        assert "Triton cannot build kernels here" in selftest.unsupported_reason(
            "t3", torch.float16, "cpu"
        )

    def test_old_cards_are_not_asked(self):
        assert "need compute capability 7.5" in probe._kernels_unsupported("t3", "float32", (7, 0))
        assert "need compute capability 8.0" in probe._kernels_unsupported(
            "flow", "float16", (7, 5)
        )


def test_t3_says_the_same_with_it(engine, monkeypatch):
    """The whole loop: utterances of several lengths side by side, one slot used twice. By large
    tiles, for the interpreter takes a millisecond a program."""

    monkeypatch.setattr(decode_attention, "MOST_SPLITS", 2)
    exact = gemv.gemv_tile

    def wide(*given, gated=False):
        return exact(*given, gated=gated, columns=512)

    monkeypatch.setattr(decode_linear, "gemv_tile", wide)
    sampling = [Sampling(seed=seed, max_tokens=5 + 3 * seed) for seed in range(3)]
    texts = ("hello.", "a longer one, with a comma.", "no!")
    num_generated = [
        utterance(engine, text, knobs) for text, knobs in zip(texts, sampling, strict=True)
    ]
    with engine.pipeline.placement("t3") as t3, as_on_a_gpu(t3):
        found = [
            token_buffer.tokens
            for token_buffer in decode_all(
                t3, num_generated, slots=2, backend=eager_backend(static=True, fused=True)
            )
        ]
        again = [utterance(engine, t, k) for t, k in zip(texts, sampling, strict=True)]
        assert found == [token_buffer.tokens for token_buffer in decode_all(t3, again, slots=2)]
    assert sum(map(len, found)) > 15
