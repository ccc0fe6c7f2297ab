"""What Triton's kernels compute, by its interpreter; run by test_kernels.py in a process of its own,
for Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_close, looking, say_all, utterance
from triton.runtime.errors import OutOfResources

from chatterbox_opt import card, hardware, kernels
from chatterbox_opt.cache import products
from chatterbox_opt.sampling import Sampling

ATOL = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 4e-2}  # values up to 4
CASES = [(rows, dtype) for rows in (1, 2, 3, 5, 70) for dtype in ATOL]


@pytest.mark.parametrize(("rows", "dtype"), CASES)
def test_the_int8_product_is_the_widened_one(rows, dtype):
    """Sizes that are no multiple of any tile."""
    if rows > kernels.FEW and dtype == torch.bfloat16:
        pytest.skip("the interpreter's tl.dot takes bfloat16 for integers")
    generator = torch.Generator().manual_seed(rows)
    k, n = 600, 37
    x = torch.randn(rows, k, generator=generator).to(dtype)
    weight = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
    scales = torch.rand(n, generator=generator) / 1000
    exact = (x.double() @ weight.double().t() * scales.double()).to(dtype)
    made = kernels.int8_product(x, weight, scales)
    assert made.dtype == dtype
    assert_close(made, exact, atol=ATOL[dtype])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_one_query_attends_up_to_its_place(dtype, atol):
    """Rows of several lengths; behind each lies what nobody may read."""
    generator = torch.Generator().manual_seed(0)
    rows, heads, capacity, width = 4, 3, 384, 16
    places = torch.tensor([0, kernels.KEYS - 1, kernels.KEYS, capacity - 1])
    q = torch.randn(rows, heads, 1, width, generator=generator).to(dtype)
    buffers = torch.randn(2, rows + 2, heads, capacity, width, generator=generator).to(dtype)
    visible = (torch.arange(capacity) <= places[:, None])[:, None, None]
    expected = products(q, *buffers[:, :rows], visible)
    for row, place in enumerate(places):
        buffers[:, row, :, place + 1 :] = torch.nan
    assert_close(kernels.attend(q, *buffers, places), expected, atol=atol)


def test_great_scores_do_not_overflow():
    q = torch.full((1, 1, 1, 16), 300.0)
    keys = torch.full((1, 1, 200, 16), -300.0)
    keys[0, 0, 150] = 300.0
    values = torch.arange(200.0)[None, None, :, None].expand(1, 1, 200, 16).contiguous()
    made = kernels.attend(q, keys, values, torch.tensor([180]))
    assert torch.equal(made, torch.full_like(made, 150.0))


class TestTrying:
    """What the card is asked before it is given these kernels; float16 as for Turing."""

    def test_right_kernels_are_found_right(self):
        assert card.lacks_triton(torch.float16, "cpu") == ""

    @pytest.mark.parametrize("name", ["int8_product", "attend"])
    def test_wrong_ones_are_found_wrong(self, name, monkeypatch):
        exact = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *given: exact(*given) * 1.01)
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
