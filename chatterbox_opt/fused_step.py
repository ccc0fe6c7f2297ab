"""T3's step on a card in few launches: five a layer and one for the draw, by kernels of our own.

Knows which of T3's operations go together. Knows nothing of their arithmetic, which is that of
kernels.py, or of the loop around a step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox_opt import sampler
from chatterbox_opt.cache import Cache, StaticCache
from chatterbox_opt.sampler import Knobs
from chatterbox_opt.t3 import T3, RMSNorm
from chatterbox_opt.weight_only import WeightOnlyLinear


def serves(t3: T3) -> bool:
    """Whether all of T3's matrices are such as the kernels read."""
    layers = [part for block in t3.blocks for part in block.children()] + [t3.head]
    matrices = [part for part in layers if not isinstance(part, RMSNorm)]
    return all(
        type(part) in (nn.Linear, WeightOnlyLinear) and not parametrize.is_parametrized(part)
        for part in matrices
    )


class FusedStep:
    """Call it as ``T3.step``, with a StaticCache; it has no weights of its own."""

    def __init__(self, t3: T3) -> None:
        self._t3 = t3

    def __call__(
        self, token: Tensor, spoken: Tensor, position: Tensor, cache: Cache, span: int
    ) -> Tensor:
        """See ``T3.step``; ``span`` is not needed, for each row is read as far as it goes."""
        from chatterbox_opt import kernels  # Triton is not everywhere

        assert isinstance(cache, StaticCache)
        t3 = self._t3
        x = (t3.speech_emb(token) + t3.speech_pos(spoken)).repeat_interleave(cache.each, dim=0)
        rope = t3.rope(position)
        for i, block in enumerate(t3.blocks):
            qkv = kernels.linear(x, *matrix(block.qkv), norm=_norm(block.attention_norm))
            attended = kernels.attend(qkv, rope, cache.keys[i], cache.values[i], position)
            x = kernels.linear(attended, *matrix(block.out), residual=x)
            norm = _norm(block.ffn_norm)
            gated = kernels.linear(x, *matrix(block.gate_up), norm=norm, gated=True)
            x = kernels.linear(gated, *matrix(block.down), residual=x)
        return kernels.linear(x, *matrix(t3.head), norm=_norm(t3.norm))


def sample(logits: Tensor, seen: Tensor, knobs: Knobs, noise: Tensor, *, ranked: bool) -> Tensor:
    """``sampler.sample``, in one launch where nothing is ranked."""
    if ranked:
        return sampler.sample(logits, seen, knobs, noise, ranked=True)
    from chatterbox_opt import kernels  # Triton is not everywhere

    return kernels.sample(logits, seen, knobs.values, noise, sampler.NOT_FINITE)


def matrix(layer: Any) -> tuple[Tensor, Tensor | None]:
    """What ``kernels.linear`` wants of a layer: its weight, and the scales of an int8 one."""
    return layer.weight, layer.scales if isinstance(layer, WeightOnlyLinear) else None


def _norm(layer: Any) -> tuple[Tensor, float]:
    return layer.weight, layer.eps
