"""T3's step on a card in few launches: five a layer, and one before and one behind them, by kernels
of our own.

Knows which of T3's operations go together. Knows nothing of their arithmetic (decode_linear.py,
decode_attention.py, decode_io.py) or of the loop around a step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox_opt.layers.linear_int import WeightOnlyInt8Linear
from chatterbox_opt.models.t3.decode_state import UNFORCED, DecodeState
from chatterbox_opt.models.t3.kv_cache import StaticKVCache
from chatterbox_opt.models.t3.model import T3, RMSNorm
from chatterbox_opt.models.t3.sampler import NOT_FINITE


def supports(t3: T3) -> bool:
    """Whether all of T3's matrices are such as the kernels read."""
    layers = [part for block in t3.blocks for part in block.children()] + [t3.head]
    matrices = [part for part in layers if not isinstance(part, RMSNorm)]
    return all(
        type(part) in (nn.Linear, WeightOnlyInt8Linear) and not parametrize.is_parametrized(part)
        for part in matrices
    )


class FusedStep:
    """See ``decoding.Step``; for slots over a StaticCache. It has no weights of its own."""

    def __init__(self, t3: T3) -> None:
        self._t3 = t3

    def __call__(self, slots: DecodeState, count: int, span: int, *, ranked: bool) -> None:
        """See ``decoding.Step``; each row is read as far as it goes, whatever ``span`` is."""
        from chatterbox_opt.kernels.cuda import (
            decode_attention,
            decode_io,  # needs Triton
            decode_linear,
        )

        cache, t3 = slots.cache, self._t3
        assert isinstance(cache, StaticKVCache)
        counters = slots.last_token[:count], slots.num_generated[:count], slots.position[:count]
        tables = t3.speech_emb.weight, t3.speech_pos.weight
        x, rope, places, arrivals = decode_io.embed_tokens(
            counters, tables, t3.frequencies, cache.rows_per_seq, span, t3.shape.heads
        )
        linear = decode_linear.linear
        for i, block in enumerate(t3.blocks):
            qkv = linear(x, *matrix(block.qkv), norm=_norm(block.attention_norm))
            attended = decode_attention.decode_attention(
                qkv, rope, cache.keys[i], cache.values[i], places, cache.scales(i), arrivals
            )
            x = linear(attended, *matrix(block.out), residual=x, arrivals=arrivals)
            gated = linear(x, *matrix(block.gate_up), norm=_norm(block.ffn_norm), gated=True)
            x = linear(gated, *matrix(block.down), residual=x, arrivals=arrivals)
        logits = slots.logits[: len(x)]
        linear(x, *matrix(t3.head), norm=_norm(t3.norm), out=logits)
        if ranked:
            slots.draw(0, count, ranked=True)
        else:
            draw(slots, count)


def draw(slots: DecodeState, count: int) -> None:
    """``DecodeState.draw`` of the first ``count`` slots in one launch, nothing being ranked."""
    from chatterbox_opt.kernels.cuda import decode_io  # Triton is not everywhere

    decode_io.sample_tokens(
        slots.logits[: count * slots.rows_per_seq],
        slots.seen[:count],
        slots.knobs.values[:count],
        slots.noise[:count],
        slots.token_buffer[:count],
        (slots.last_token[:count], slots.num_generated[:count], slots.position[:count]),
        unforced=UNFORCED,
        not_finite=NOT_FINITE,
    )


def matrix(layer: Any) -> tuple[Tensor, Tensor | None]:
    """What ``decode_linear.linear`` wants of a layer: its weight, and the scales of an int8 one."""
    return layer.weight, layer.scales if isinstance(layer, WeightOnlyInt8Linear) else None


def _norm(layer: Any) -> tuple[Tensor, float]:
    return layer.weight, layer.eps
