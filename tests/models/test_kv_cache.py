"""Both caches: what attention makes of them, and what becomes of an utterance's rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.common import assert_close

from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize
from chatterbox_opt.models.t3.kv_cache import SPAN, StaticKVCache, round_up_to_span
from chatterbox_opt.models.t3.ragged_kv_cache import STRIP, RaggedKVCache

LAYERS, HEADS, WIDTH, ROWS_PER_SEQ = 2, 3, 8, 2
KINDS = (StaticKVCache, RaggedKVCache)


def empty(kind, utterances: int, dtype=torch.float32):
    like = torch.zeros(1, dtype=dtype)
    return kind(
        utterances=utterances, rows_per_seq=ROWS_PER_SEQ, shape=(LAYERS, HEADS, WIDTH), like=like
    )


class Growing:
    """Upstream's way: keys and values as they come, one utterance, attention over all of them."""

    def __init__(self, prefix: int, generator: torch.Generator) -> None:
        size = (LAYERS, ROWS_PER_SEQ, HEADS, prefix, WIDTH)
        self.keys, self.values = (torch.randn(size, generator=generator) for _ in range(2))

    def attend(self, steps: torch.Tensor) -> torch.Tensor:
        """q, k, v of each layer: [layers, 3, each, heads, 1, width] to [layers, each, ...]."""
        self.keys = torch.cat((self.keys, steps[:, 1]), dim=3)
        self.values = torch.cat((self.values, steps[:, 2]), dim=3)
        return F.scaled_dot_product_attention(steps[:, 0], self.keys, self.values)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_attends_as_a_growing_cache(kind, dtype, atol):
    """Utterances of several lengths, over the edges of blocks and strips; one leaves midway and
    another takes its place."""
    generator = torch.Generator().manual_seed(0)
    prefixes = [SPAN - 3, 5, STRIP - 1]
    grown = [Growing(length, generator) for length in prefixes]
    cache = empty(kind, len(prefixes), dtype)

    def enter(utterance: int) -> None:
        one = grown[utterance]
        cache.reserve(utterance, one.keys.shape[3])
        for layer in range(LAYERS):
            cache.fill(
                layer,
                torch.tensor([utterance]),
                one.keys[layer].to(dtype),
                one.values[layer].to(dtype),
            )

    for utterance in range(len(grown)):
        enter(utterance)
    for turn in range(8):
        if turn == 4:
            cache.clear(0)
            cache.move(2, 0)
            grown[0] = grown.pop()
        if turn == 6:
            grown.append(Growing(2, generator))
            enter(2)
        steps = torch.randn(
            len(grown), LAYERS, 3, ROWS_PER_SEQ, HEADS, 1, WIDTH, generator=generator
        )
        positions = [one.keys.shape[3] for one in grown]
        for utterance, position in enumerate(positions):
            cache.reserve(utterance, position + 1)
        attend = cache.at(
            torch.tensor(positions).repeat_interleave(ROWS_PER_SEQ),
            round_up_to_span(max(positions) + 1),
        )
        expected = torch.stack([one.attend(s) for one, s in zip(grown, steps, strict=True)])
        for layer in range(LAYERS):
            given = steps[:, layer].to(dtype).transpose(0, 1).flatten(1, 2)
            assert_close(attend(layer, *given), expected[:, layer].flatten(0, 1), atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_finite_is_gone_once_cleared(kind):
    """A weight of 0 times NaN is NaN: nothing may be left of it where others read."""
    cache = empty(kind, 1)
    bad = torch.full((ROWS_PER_SEQ, HEADS, 70, WIDTH), torch.nan)
    good = torch.ones(ROWS_PER_SEQ, HEADS, 3, WIDTH)
    for prefix in (bad, good):
        cache.reserve(0, prefix.shape[2] + 1)
        for layer in range(LAYERS):
            cache.fill(layer, torch.tensor([0]), prefix, prefix)
        attend = cache.at(torch.tensor([prefix.shape[2]] * ROWS_PER_SEQ), SPAN)
        one = torch.ones(ROWS_PER_SEQ, HEADS, 1, WIDTH)
        found = [attend(layer, one, one, one) for layer in range(LAYERS)]
        cache.clear(0)
    assert all(torch.allclose(x, torch.ones(())) for x in found)


def test_a_static_cache_is_whole_blocks_and_never_smaller():
    assert (round_up_to_span(1), round_up_to_span(SPAN), round_up_to_span(SPAN + 1)) == (
        SPAN,
        SPAN,
        2 * SPAN,
    )
    cache = empty(StaticKVCache, 3)
    for wanted, capacity in ((SPAN + 1, 2 * SPAN), (1, 2 * SPAN), (2 * SPAN + 1, 3 * SPAN)):
        cache.reserve(1, wanted)
        assert cache.capacity == capacity


def test_a_ragged_cache_holds_no_more_than_a_strip_in_excess():
    cache = empty(RaggedKVCache, 2)
    cache.reserve(0, 3 * STRIP + 1)
    cache.reserve(1, 5)
    assert [layers[0][0].shape[1] for layers in cache._strips] == [4 * STRIP, STRIP]


def test_float16_keys_end_at_its_range():
    """Infinity times a weight of 0 would be no number, and a whole sentence lost."""
    like = torch.empty(0, dtype=torch.float16)
    cache = RaggedKVCache(utterances=1, rows_per_seq=1, shape=(1, 1, 4), like=like)
    cache.reserve(0, 3)
    far = torch.tensor([1e9, -1e9, 2.0, 65504.0]).expand(1, 1, 3, 4)
    cache.fill(0, torch.tensor([0]), far, far)
    keys, values = cache._strips[0][0]
    assert keys[0, 0].tolist() == values[0, :, 0].tolist() == [65504.0, -65504.0, 2.0, 65504.0]


def test_int8_keys_and_values_are_near_and_stay_with_their_utterance():
    """Against a cache that rounds nothing: entering, steps, growth, a move and a departure."""
    generator = torch.Generator().manual_seed(0)
    like, shape = torch.zeros(1), (LAYERS, HEADS, WIDTH)
    wide, narrow = (
        StaticKVCache(utterances=2, rows_per_seq=ROWS_PER_SEQ, shape=shape, like=like, dtype=dtype)
        for dtype in (None, torch.int8)
    )
    lengths = [SPAN - 2, 7]
    assert narrow.scales(0) is not None and wide.scales(0) is None
    before = narrow.addresses

    def both(name, *given):
        for cache in (wide, narrow):
            getattr(cache, name)(*given)

    def step(places):
        q, k, v = torch.randn(3, len(places), HEADS, 1, WIDTH, generator=generator)
        span = round_up_to_span(int(places.max()) + 1)
        found = [cache.at(places, span)(1, q, k, v) for cache in (wide, narrow)]
        assert_close(found[1], found[0], atol=0.03)
        assert not torch.equal(*found)

    for utterance, length in enumerate(lengths):
        both("reserve", utterance, length + 4)
        keys, values = torch.randn(2, ROWS_PER_SEQ, HEADS, length, WIDTH, generator=generator)
        both("fill", 1, torch.tensor([utterance]), keys, values)
    assert narrow.addresses != before and narrow.keys.dtype == torch.int8
    for i in range(4):
        step(torch.tensor(lengths).repeat_interleave(ROWS_PER_SEQ) + i)
    both("move", 1, 0)
    step(torch.tensor([lengths[1] + 4] * ROWS_PER_SEQ))
    both("clear", 0)
    assert not any(kept[:, :ROWS_PER_SEQ].any() for kept in (narrow.keys, narrow.key_scales))


def test_what_int8_cannot_hold_is_not_hidden():
    x = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0], [0.0, 0.0], [-1.0, 0.5]])
    numbers, scales = quantize(x)
    again = dequantize(numbers, scales, torch.float32)
    assert not again[:2].isfinite().all(dim=1).any()
    assert torch.equal(again[2], torch.zeros(2))
    assert_close(again[3], x[3], atol=1 / 127)
