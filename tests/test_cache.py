from __future__ import annotations

import torch
import torch.nn.functional as F
from conftest import assert_close

from chatterbox_opt.cache import SPAN, StaticCache, blocks


def test_a_static_cache_attends_as_a_growing_one():
    generator = torch.Generator().manual_seed(0)
    rows, heads, width, prefix, steps = 2, 3, 8, SPAN - 3, 6  # crosses a block boundary
    cache = StaticCache(
        layers=1, utterances=1, each=rows, heads=heads, head_dim=width, capacity=prefix + steps, like=torch.zeros(1)
    )  # fmt: skip
    keys = torch.randn(rows, heads, prefix, width, generator=generator)
    values = torch.randn(rows, heads, prefix, width, generator=generator)
    cache.fill(0, 0, keys, values)
    for i in range(steps):
        position = torch.tensor([prefix + i] * rows)
        q, k, v = torch.randn(3, rows, heads, 1, width, generator=generator)
        keys, values = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        cache.put(0, position, k[:, :, 0], v[:, :, 0])
        span = blocks(prefix + i + 1)
        mask = cache.visible(position, span)
        ours = F.scaled_dot_product_attention(q, *cache.read(0, rows, span), attn_mask=mask)
        assert_close(ours, F.scaled_dot_product_attention(q, keys, values), atol=1e-6)


def small(utterances: int) -> StaticCache:
    like = torch.zeros(1)
    return StaticCache(
        layers=1, utterances=utterances, each=2, heads=1, head_dim=2, capacity=SPAN + 1, like=like
    )


def test_capacity_is_whole_blocks():
    assert small(1).capacity == 2 * SPAN
    assert (blocks(1), blocks(SPAN), blocks(SPAN + 1)) == (SPAN, SPAN, 2 * SPAN)


def test_a_cache_grows_moves_and_clears_utterance_by_utterance():
    cache = small(3)
    filled = torch.arange(8.0).view(2, 1, 2, 2) + 1
    cache.fill(0, 4, filled, -filled)
    cache.reserve(SPAN)
    assert cache.capacity == 2 * SPAN, "never smaller"
    cache.reserve(2 * SPAN + 1)
    assert cache.capacity == 3 * SPAN
    assert cache.visible(torch.tensor([2 * SPAN + 5]), 3 * SPAN).sum() == 2 * SPAN + 6
    cache.move(2, 0)
    cache.clear(2)
    assert torch.equal(cache.keys[0, :2, :, :2], filled)
    assert torch.equal(cache.values[0, :2, :, :2], -filled)
    assert not cache.keys[0, 2:].any() and not cache.values[0, 2:].any()
