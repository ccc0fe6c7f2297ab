"""What Triton's kernels compute, by its interpreter; run by test_kernels.py in a process of its own,
for Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_close, looking, say_all, utterance
from triton.runtime.errors import OutOfResources

from chatterbox_opt import card, hardware, kernels, sampler
from chatterbox_opt.cache import products
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.t3 import rotate

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
    if not (rows > kernels.FEW and dtype == torch.bfloat16)
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
    made = kernels.linear(
        x,
        weight,
        scales,
        norm=(by, 1e-3) if is_normed else None,
        gated=gated,
        residual=residual if added else None,
    )
    assert made.dtype == dtype and made.shape == (rows, n)
    assert_close(made, exact.to(dtype), atol=ATOL[dtype])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("each", [1, 2])
def test_one_query_attends_up_to_its_place(dtype, atol, each):
    """Rows of several lengths; behind each lies what nobody may read, and what it adds is kept."""
    generator = torch.Generator().manual_seed(0)
    heads, capacity, width = 3, 2 * kernels.KEYS + 128, 16
    places = torch.tensor([0, kernels.KEYS - 1, kernels.KEYS, kernels.KEYS + 1, capacity - 1])
    rows = each * len(places)
    qkv = torch.randn(rows, 3 * heads * width, generator=generator).to(dtype)
    rope = tuple(torch.randn(2, len(places), width, generator=generator).to(dtype))
    buffers = torch.randn(2, rows + 2, heads, capacity, width, generator=generator).to(dtype)
    q, k, v = qkv.view(rows, 3, heads, 1, width).unbind(1)
    q, k = (rotate(x, [p.repeat_interleave(each, 0)[:, None, None] for p in rope]) for x in (q, k))
    every = places.repeat_interleave(each)
    expected = buffers.clone()
    for kept, new in zip(expected, (k, v), strict=True):
        kept[torch.arange(rows), :, every] = new[:, :, 0]
    visible = (torch.arange(capacity) <= every[:, None])[:, None, None]
    attended = products(q, *expected[:, :rows], visible).transpose(1, 2).flatten(1)
    for row, place in enumerate(every):
        buffers[:, row, :, place:] = torch.nan
    assert_close(kernels.attend(qkv, rope, *buffers, places), attended, atol=atol)
    kept, wanted = (x[:, torch.arange(rows), :, every] for x in (buffers, expected))
    assert_close(kept, wanted, atol=atol)
    behind = buffers[:, :rows].isnan()[..., 0]
    assert torch.equal(behind, ~(visible[:, 0].expand(2, rows, heads, -1))), "and nothing else"


def test_great_scores_do_not_overflow():
    heads, width, place = 1, 16, 180
    qkv = torch.cat(
        (torch.full((1, 16), 300.0), torch.full((1, 16), -300.0), torch.zeros(1, 16)), 1
    )
    keys = torch.full((1, heads, 200, width), -300.0)
    keys[0, 0, 150] = 300.0
    values = torch.arange(200.0)[None, None, :, None].expand(1, 1, 200, width).contiguous()
    still = torch.ones(1, width), torch.zeros(1, width)
    made = kernels.attend(qkv, still, keys, values, torch.tensor([place]))
    assert torch.equal(made, torch.full_like(made, 150.0))


@pytest.mark.parametrize("each", [1, 2])
def test_it_draws_what_the_sampler_draws(each):
    """Rows with knobs of all kinds, one of them not finite."""
    generator = torch.Generator().manual_seed(0)
    asked = [
        Sampling(temperature=t, cfg_weight=w, min_p=p, repetition_penalty=r)
        for t in (0.0, 0.5, 1.0, 2.0)
        for w, p in ((0.5, 0.05), (0.0, 0.0), (1.0, 1.0), (0.3, 0.4))
        for r in (1.0, 1.2, 3.0)
    ]
    rows, words = len(asked), 300
    knobs = sampler.Knobs.room(rows)
    for row, one in enumerate(asked):
        knobs.set(row, one)
    logits = 3 * torch.randn(each * rows, words, generator=generator)
    logits[each * (rows - 1), 5] = torch.nan
    logits[each * (rows - 2), 299] = torch.inf
    seen = torch.rand(rows, words, generator=generator) < 0.1
    for _ in range(5):
        noise = torch.empty(rows, words).exponential_(generator=generator)
        found = kernels.sample(logits, seen, knobs.values, noise, sampler.NOT_FINITE)
        expected = sampler.sample(logits, seen, knobs, noise, ranked=False)
        assert torch.equal(found, expected)
        assert expected[-2:].tolist() == [sampler.NOT_FINITE] * 2
    assert len(set(expected.tolist())) > rows / 4


class TestTrying:
    """What the card is asked before it is given these kernels; float16 as for Turing."""

    def test_right_kernels_are_found_right(self):
        assert card.lacks_triton(torch.float16, "cpu") == ""

    @pytest.mark.parametrize("name", ["linear", "attend", "sample"])
    def test_wrong_ones_are_found_wrong(self, name, monkeypatch):
        exact = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *given, **more: exact(*given, **more) * 1.1)
        assert card.lacks_triton(torch.float16, "cpu") == "Triton's kernels are wrong here"

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

        monkeypatch.setattr(kernels, "product", Failing())
        assert "Triton cannot build kernels here" in card.lacks_triton(torch.float16, "cpu")

    def test_old_cards_are_not_asked(self):
        assert "need compute capability 7.5" in hardware._lacks_triton((7, 0))


def test_t3_says_the_same_with_it(engine):
    """The whole loop: utterances of several lengths side by side, one slot used twice."""
    sampling = [Sampling(seed=seed, max_tokens=5 + 3 * seed) for seed in range(3)]
    texts = ("hello.", "a longer one, with a comma.", "no!")
    spoken = [utterance(engine, text, knobs) for text, knobs in zip(texts, sampling, strict=True)]
    with engine._speaker.residency("t3") as t3:
        found = [
            said.tokens
            for said in say_all(t3, spoken, slots=2, way=looking(static=True, fused=True))
        ]
        again = [utterance(engine, t, k) for t, k in zip(texts, sampling, strict=True)]
        assert found == [said.tokens for said in say_all(t3, again, slots=2)]
    assert sum(map(len, found)) > 15
