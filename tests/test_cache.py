from __future__ import annotations

import torch
import torch.nn.functional as F
from conftest import assert_close

from chatterbox_opt.cache import SPAN, StaticCache


def test_a_static_cache_attends_as_a_growing_one():
    generator = torch.Generator().manual_seed(0)
    rows, heads, width, prefix, steps = 2, 3, 8, SPAN - 3, 6  # crosses a block boundary
    cache = StaticCache(
        layers=1, rows=rows, heads=heads, head_dim=width, capacity=prefix + steps, like=torch.zeros(1)
    )  # fmt: skip
    keys = torch.randn(rows, heads, prefix, width, generator=generator)
    values = torch.randn(rows, heads, prefix, width, generator=generator)
    cache.fill(0, keys, values)
    for i in range(steps):
        position = torch.tensor([prefix + i])
        q, k, v = torch.randn(3, rows, heads, 1, width, generator=generator)
        keys, values = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        cache.put(0, position, k, v)
        span = cache.span(prefix + i + 1)
        mask = (torch.arange(span) <= position)[None, None, None]
        ours = F.scaled_dot_product_attention(
            q, cache.keys[0, :, :, :span], cache.values[0, :, :, :span], attn_mask=mask
        )
        assert_close(ours, F.scaled_dot_product_attention(q, keys, values), atol=1e-6)


def test_capacity_and_span_are_whole_blocks():
    like = torch.zeros(1)
    cache = StaticCache(layers=1, rows=1, heads=1, head_dim=2, capacity=SPAN + 1, like=like)
    assert cache.capacity == 2 * SPAN
    assert (cache.span(1), cache.span(SPAN), cache.span(SPAN + 1)) == (SPAN, SPAN, 2 * SPAN)
