"""Both KV caches: decode attention, and moving and clearing sequences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.common import assert_close
from helpers.simulated_gpu import SimulatedGPU

from chatterbox_opt.config.plan import INT8_SLOT_MIB, SLOT_MIB
from chatterbox_opt.engine.decoding.decode_graphs import grown_length
from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize
from chatterbox_opt.models.t3.kv_cache import KV_BLOCK, StaticKVCache, round_up_kv_len
from chatterbox_opt.models.t3.ragged_kv_cache import GROWTH, Int8KVCache, RaggedKVCache

LAYERS, HEADS, WIDTH, ROWS_PER_SEQ = 2, 3, 8, 2
KINDS = (StaticKVCache, RaggedKVCache, Int8KVCache)


def empty(kind, num_seqs: int, dtype=torch.float32):
    like = torch.zeros(1, dtype=dtype)
    return kind(
        num_seqs=num_seqs, rows_per_seq=ROWS_PER_SEQ, shape=(LAYERS, HEADS, WIDTH), like=like
    )


class Growing:
    """Upstream's DynamicCache: one sequence, keys and values concatenated at every step."""

    def __init__(self, prefix: int, generator: torch.Generator) -> None:
        size = (LAYERS, ROWS_PER_SEQ, HEADS, prefix, WIDTH)
        self.keys, self.values = (torch.randn(size, generator=generator) for _ in range(2))

    def attend(self, steps: torch.Tensor) -> torch.Tensor:
        """q, k, v of each layer: [layers, 3, rows_per_seq, heads, 1, width] to [layers, rows_per_seq, ...]."""
        self.keys = torch.cat((self.keys, steps[:, 1]), dim=3)
        self.values = torch.cat((self.values, steps[:, 2]), dim=3)
        return F.scaled_dot_product_attention(steps[:, 0], self.keys, self.values)


@pytest.mark.parametrize(
    ("kind", "dtype", "atol"),
    [
        (StaticKVCache, torch.float32, 1e-6),
        (StaticKVCache, torch.bfloat16, 3e-2),
        (RaggedKVCache, torch.float32, 1e-6),
        (RaggedKVCache, torch.bfloat16, 3e-2),
        (Int8KVCache, torch.float32, 3e-2),
    ],
)
def test_attention_matches_a_growing_cache(kind, dtype, atol):
    """Sequences of several lengths, across block boundaries; one finishes and another replaces it."""
    generator = torch.Generator().manual_seed(0)
    prefixes = [KV_BLOCK - 3, 5, GROWTH - 1]
    grown = [Growing(length, generator) for length in prefixes]
    cache = empty(kind, len(prefixes), dtype)

    def prefill(sequence: int) -> None:
        one = grown[sequence]
        cache.reserve(sequence, one.keys.shape[3])
        for layer in range(LAYERS):
            cache.write_prefix(
                layer,
                torch.tensor([sequence]),
                one.keys[layer].to(dtype),
                one.values[layer].to(dtype),
            )

    for sequence in range(len(grown)):
        prefill(sequence)
    for step in range(8):
        if step == 4:
            cache.clear(0)
            cache.move(2, 0)
            grown[0] = grown.pop()
        if step == 6:
            grown.append(Growing(2, generator))
            prefill(2)
        steps = torch.randn(
            len(grown), LAYERS, 3, ROWS_PER_SEQ, HEADS, 1, WIDTH, generator=generator
        )
        positions = [one.keys.shape[3] for one in grown]
        for sequence, position in enumerate(positions):
            cache.reserve(sequence, position + 1)
        attend = cache.decode_attention(
            torch.tensor(positions).repeat_interleave(ROWS_PER_SEQ),
            round_up_kv_len(max(positions) + 1),
        )
        expected = torch.stack([one.attend(s) for one, s in zip(grown, steps, strict=True)])
        for layer in range(LAYERS):
            qkv = steps[:, layer].to(dtype).transpose(0, 1).flatten(1, 2)
            assert_close(attend(layer, *qkv), expected[:, layer].flatten(0, 1), atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_clear_removes_nan(kind):
    """An attention weight of 0 times NaN is NaN: no NaN may remain in reused memory."""
    cache = empty(kind, 1)
    bad = torch.full((ROWS_PER_SEQ, HEADS, 70, WIDTH), torch.nan)
    good = torch.ones(ROWS_PER_SEQ, HEADS, 3, WIDTH)
    for prefix in (bad, good):
        cache.reserve(0, prefix.shape[2] + 1)
        for layer in range(LAYERS):
            cache.write_prefix(layer, torch.tensor([0]), prefix, prefix)
        attend = cache.decode_attention(torch.tensor([prefix.shape[2]] * ROWS_PER_SEQ), KV_BLOCK)
        one = torch.ones(ROWS_PER_SEQ, HEADS, 1, WIDTH)
        outputs = [attend(layer, one, one, one) for layer in range(LAYERS)]
        cache.clear(0)
    assert all(torch.allclose(x, torch.ones(())) for x in outputs)


def test_static_cache_grows_by_whole_blocks_and_never_shrinks():
    assert (round_up_kv_len(1), round_up_kv_len(KV_BLOCK), round_up_kv_len(KV_BLOCK + 1)) == (
        KV_BLOCK,
        KV_BLOCK,
        2 * KV_BLOCK,
    )
    cache = empty(StaticKVCache, 3)
    for requested, capacity in (
        (KV_BLOCK + 1, 2 * KV_BLOCK),
        (1, 2 * KV_BLOCK),
        (2 * KV_BLOCK + 1, 3 * KV_BLOCK),
    ):
        cache.reserve(1, requested)
        assert cache.capacity == capacity


@pytest.mark.parametrize(
    ("dtype", "planned"), [(torch.float16, SLOT_MIB), (torch.int8, INT8_SLOT_MIB)]
)
def test_a_static_cache_takes_no_more_memory_while_it_grows_than_is_planned(
    monkeypatch, dtype, planned
):
    """Keys grow and the old ones are freed before values grow."""
    shape, full = (3, 2, 64), (30, 16, 64)
    with SimulatedGPU().plugged(monkeypatch) as gpu:
        like = torch.zeros(1, dtype=torch.float16, device="cuda")
        quantized = dtype if dtype == torch.int8 else None
        cache = StaticKVCache(
            num_seqs=1,
            rows_per_seq=2,
            shape=shape,
            like=like,
            capacity_for=grown_length,
            dtype=quantized,
        )
        for positions in (1000, 1100):
            torch.cuda.reset_peak_memory_stats()
            cache.reserve(0, positions)
        assert cache.capacity == 1536
        overhead = 8 * (1024 + 1536) + 64  # numbers of positions, the old and the new
        peak = (gpu.peak - overhead) * math.prod(full) / math.prod(shape)
    assert 0.95 < peak / (planned << 20) <= 1


def test_ragged_cache_allocates_at_most_one_block_in_excess():
    cache = empty(RaggedKVCache, 2)
    cache.reserve(0, 3 * GROWTH + 1)
    cache.reserve(1, 5)
    assert [layers[0][0].shape[1] for layers in cache._buffers] == [4 * GROWTH, GROWTH]
    assert cache.capacities.tolist() == [4 * GROWTH, GROWTH]


def test_a_ragged_int8_cache_is_half_of_a_float16_one():
    cache = empty(Int8KVCache, 1)
    cache.reserve(0, GROWTH)
    keys, values, *scales = cache._buffers[0][1]
    assert keys.dtype == values.dtype == torch.int8
    assert keys.nbytes == GROWTH * WIDTH * HEADS * ROWS_PER_SEQ
    addresses = [buffer.data_ptr() for buffer in (keys, values, *scales)]
    assert cache.addresses[1, 0].tolist() == addresses


def test_int8_cache_is_close_and_keeps_sequences_apart():
    """Against a float32 cache: prefill, steps, growth, a move and a clear."""
    generator = torch.Generator().manual_seed(0)
    like, shape = torch.zeros(1), (LAYERS, HEADS, WIDTH)
    exact, int8 = (
        StaticKVCache(num_seqs=2, rows_per_seq=ROWS_PER_SEQ, shape=shape, like=like, dtype=dtype)
        for dtype in (None, torch.int8)
    )
    lengths = [KV_BLOCK - 2, 7]
    assert int8.scales(0) is not None and exact.scales(0) is None
    before = int8.addresses

    def both(name, *args):
        for cache in (exact, int8):
            getattr(cache, name)(*args)

    def step(positions):
        q, k, v = torch.randn(3, len(positions), HEADS, 1, WIDTH, generator=generator)
        kv_len = round_up_kv_len(int(positions.max()) + 1)
        outputs = [cache.decode_attention(positions, kv_len)(1, q, k, v) for cache in (exact, int8)]
        assert_close(outputs[1], outputs[0], atol=0.03)
        assert not torch.equal(*outputs)

    for sequence, length in enumerate(lengths):
        both("reserve", sequence, length + 4)
        keys, values = torch.randn(2, ROWS_PER_SEQ, HEADS, length, WIDTH, generator=generator)
        both("write_prefix", 1, torch.tensor([sequence]), keys, values)
    assert int8.addresses != before and int8.keys.dtype == torch.int8
    for i in range(4):
        step(torch.tensor(lengths).repeat_interleave(ROWS_PER_SEQ) + i)
    both("move", 1, 0)
    step(torch.tensor([lengths[1] + 4] * ROWS_PER_SEQ))
    both("clear", 0)
    assert not any(buffer[:, :ROWS_PER_SEQ].any() for buffer in (int8.keys, int8.key_scales))


def test_int8_quantization_propagates_nan_and_inf():
    x = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0], [0.0, 0.0], [-1.0, 0.5]])
    quantized, scales = quantize(x)
    restored = dequantize(quantized, scales, torch.float32)
    assert not restored[:2].isfinite().all(dim=1).any()
    assert torch.equal(restored[2], torch.zeros(2))
    assert_close(restored[3], x[3], atol=1 / 127)
