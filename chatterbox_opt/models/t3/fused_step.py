"""The T3 decode step in fused GPU kernels: five launches a layer, one before and one after them.

Responsible for which of T3's operations are fused. Not responsible for their arithmetic
(decode_linear.py, decode_attention.py, decode_io.py) or for the loop around a step.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from chatterbox_opt.layers.linear_int import WeightOnlyInt8Linear
from chatterbox_opt.models.t3 import gpt2
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.kv_cache import StaticKVCache
from chatterbox_opt.models.t3.llama import LlamaT3
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.models.t3.sampler import NOT_FINITE, UNFORCED


def supports(t3: T3) -> bool:
    """Whether the kernels support the layout of all of T3's weight matrices."""
    matrices = [t3.get_submodule(path) for path in t3.matrices]
    return all(
        type(part) in (nn.Linear, WeightOnlyInt8Linear) and not parametrize.is_parametrized(part)
        for part in matrices
    )


class FusedStep:
    """A ``decode.DecodeStep`` over slots with a StaticKVCache. Holds no weights of its own."""

    def __init__(self, t3: T3) -> None:
        self._t3 = t3

    def __call__(self, slots: DecodeState, count: int, kv_len: int, *, needs_sort: bool) -> None:
        """Run one step; attention stops at each sequence's length, whatever ``kv_len`` is."""
        from chatterbox_opt.kernels.cuda import (
            decode_attention,
            decode_io,  # needs Triton
            decode_linear,
        )

        cache, t3 = slots.cache, self._t3
        assert isinstance(cache, StaticKVCache)
        counters = slots.last_token[:count], slots.num_generated[:count], slots.position[:count]
        frequencies = t3.frequencies if isinstance(t3, LlamaT3) else None
        x, rope, positions, arrivals = decode_io.embed_tokens(
            counters, t3.tables, frequencies, cache.rows_per_seq, kv_len, t3.config.heads
        )
        linear = decode_linear.linear
        for i, block in enumerate(t3.blocks):
            qkv = linear(x, **_weights(block.qkv), **_norm(block.attention_norm))
            attended = decode_attention.decode_attention(
                qkv, rope, cache.keys[i], cache.values[i], positions, cache.scales(i), arrivals
            )
            x = linear(attended, **_weights(block.out), residual=x, arrivals=arrivals)
            inner = linear(x, **_into_ffn(block), **_norm(block.ffn_norm))
            x = linear(inner, **_weights(block.down), residual=x, arrivals=arrivals)
        logits = slots.logits[: len(x)]
        linear(x, **_weights(t3.head), **_norm(t3.norm), out=logits)
        if needs_sort:
            slots.sample_next(0, count, needs_sort=True)
        else:
            sample_tokens(slots, count)


def sample_tokens(slots: DecodeState, count: int) -> None:
    """``DecodeState.sample_next`` of the first ``count`` slots in one launch, without a sort."""
    from chatterbox_opt.kernels.cuda import decode_io  # Triton is not everywhere

    decode_io.sample_tokens(
        slots.logits[: count * slots.rows_per_seq],
        slots.seen[:count],
        slots.sampling_tensors.values[:count],
        slots.noise[:count],
        slots.token_buffer[:count],
        (slots.last_token[:count], slots.num_generated[:count], slots.position[:count]),
        unforced=UNFORCED,
        not_finite=NOT_FINITE,
        turbo=slots.turbo,
        start=slots.start,
    )


def _weights(layer: Any) -> dict[str, Any]:
    """Arguments of ``decode_linear.linear``: the weight, scales of an int8 one, and the bias."""
    scales = layer.scales if isinstance(layer, WeightOnlyInt8Linear) else None
    return {"weight": layer.weight, "scales": scales, "bias": layer.bias}


def _norm(layer: Any) -> dict[str, Any]:
    """Arguments of ``decode_linear.linear``: RMSNorm (without a bias) or LayerNorm."""
    bias = getattr(layer, "bias", None)
    return {"norm": (layer.weight, layer.eps, *(() if bias is None else (bias,)))}


def _into_ffn(block: Any) -> dict[str, Any]:
    """Arguments of ``decode_linear.linear``: of the FFN's first half, SwiGLU or gelu."""
    if isinstance(block, gpt2.Block):
        return _weights(block.up) | {"gelu": True}
    return _weights(block.gate_up) | {"gated": True}
