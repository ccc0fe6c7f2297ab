"""The flow's velocity field: upstream's ConditionalDecoder, written for the way it is used.

Knows one forward pass of the estimator. Knows nothing of noise, steps, guidance or voices.

Upstream (decoder.py, after Matcha-TTS) keeps channels first, transposes around every layer norm
and every attention, masks in every layer, and embeds the time in each row. Here time comes before
channels throughout: a causal convolution is one matrix product over three neighbouring frames,
q/k/v are one product, and nothing is transposed. Convolutions look back only, so padding on the
right matters to attention alone. What the steps of one solution share (the conditions' part of the
first block, which is linear in its inputs, and the times) is computed once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import MEL_BINS, FlowConfig
from chatterbox_opt.kernels.cpu import bf16_ops
from chatterbox_opt.layers.attention import attend

KERNEL_SIZE = 3  # frames that a causal convolution sees: this one and the two before
CONDITIONS = 3 * MEL_BINS  # mu, speaker, prompt


class Norm(nn.LayerNorm):
    """Layer norm with what stands around it.

    Attributes:
        fused: on a card, halves go through a kernel of our own (kernels/cuda/flow.py).
    """

    fused = False

    def forward(self, x: Tensor, *, mish: bool = False) -> Tensor:
        """The norm, and Mish (Misra 2019) after it: the same shape."""
        if bf16_ops.supports(x, self.weight):
            return bf16_ops.layer_norm(self, x, mish=mish)
        if self.fused and is_half(x):
            return self._fused(x, None, mish=mish)[1]
        plain = super().forward(x)
        return F.mish(plain) if mish else plain

    def of_sum(self, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x + more``, and its norm. ``x`` may have changed: it is the residual stream."""
        if more is None:
            return x, self(x)
        if bf16_ops.supports(x, more, self.weight):
            return x, bf16_ops.add_layer_norm(self, x, more)
        if self.fused and is_half(x):
            return self._fused(x, more)
        x = x + more
        return x, self(x)

    def _fused(
        self, x: Tensor, more: Tensor | None, *, mish: bool = False
    ) -> tuple[Tensor, Tensor]:
        from chatterbox_opt.kernels.cuda import flow as flow_kernels  # Triton is not everywhere

        return flow_kernels.layer_norm(x, self.weight, self.bias, self.eps, more, mish=mish)


def is_half(x: Tensor) -> bool:
    """Whether x is in a half precision; the kernels are for those."""
    return x.dtype in (torch.float16, torch.bfloat16)


class CausalConv(nn.Module):
    """Conv1d over [rows, frames, channels] that sees the past only (upstream CausalConv1d)."""

    def __init__(self, channels: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.product = nn.Linear(KERNEL_SIZE * channels, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, frames, channels = x.shape
        padded = F.pad(x, (0, 0, KERNEL_SIZE - 1, 0))
        # KERNEL neighbouring frames lie one after the other in memory
        strides = (padded.stride(0), channels, 1)
        windows = padded.as_strided((rows, frames, KERNEL_SIZE * channels), strides)
        convolved: Tensor = self.product(windows)
        return convolved


class ConvNorm(nn.Module):
    """Causal convolution, layer norm, Mish (upstream CausalBlock1D)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, out)
        self.norm = Norm(out)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.conv(x), mish=True))


class ResNet(nn.Module):
    """Two convolutions with the time in between (upstream CausalResnetBlock1D)."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(channels, out), ConvNorm(out, out)
        self.time = nn.Linear(time, out)
        self.skip = nn.Linear(channels, out)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        convolved: Tensor = self.second(self.first(x) + shift)
        return convolved + self.skip(x)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What all steps share.

    Attributes:
        first, skip: [rows, frames, width], the conditions' part of the first block.
        mask: bool [rows, 1, 1, frames], which frames may be attended to; None for all.
        lengths: int32 [rows], how many those are, the first ones; None for all.
    """

    first: Tensor
    skip: Tensor
    mask: Tensor | None
    lengths: Tensor | None


class InputResNet(nn.Module):
    """The first residual block: what depends on the noisy mel, and what does not, apart."""

    def __init__(self, out: int, time: int) -> None:
        super().__init__()
        self.mel, self.given = CausalConv(MEL_BINS, out), CausalConv(CONDITIONS, out, bias=False)
        self.norm, self.second = Norm(out), ConvNorm(out, out)
        self.time = nn.Linear(time, out)
        self.mel_skip = nn.Linear(MEL_BINS, out)
        self.given_skip = nn.Linear(CONDITIONS, out, bias=False)

    def forward(self, x: Tensor, given: Conditioning, shift: Tensor) -> Tensor:
        """[n, frames, 80] with ``rows`` conditions, a multiple of n, to [rows, frames, width]."""
        times = (given.first.shape[0] // x.shape[0], 1, 1)
        first = self.norm(self.mel(x).repeat(times) + given.first, mish=True)
        convolved: Tensor = self.second(first + shift)
        return convolved + self.mel_skip(x).repeat(times) + given.skip


class Transformer(nn.Module):
    """Self-attention over all frames and a feed-forward (diffusers' BasicTransformerBlock).

    Attributes:
        fused: as of ``Norm``.
    """

    fused = False

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.attention_norm, self.ffn_norm = Norm(width), Norm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, more: Tensor | None, given: Conditioning) -> tuple[Tensor, Tensor]:
        """The residual stream and what is still to be added to it, before and after."""
        x, inner = self.attention_norm.of_sum(x, more)
        qkv = self.qkv(inner)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        x, inner = self.ffn_norm.of_sum(x, self.out(self._attend(q, k, v, given)))
        return x, self.down(F.gelu(self.up(inner)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, given: Conditioning) -> Tensor:
        if self.fused and is_half(q):
            from chatterbox_opt.kernels.cuda import flow as flow_kernels  # Triton is not everywhere

            return flow_kernels.attention(q, k, v, given.lengths)
        return attend(q, k, v, given.mask)


class Level(nn.Module):
    """A residual block and the transformers after it."""

    def __init__(self, resnet: InputResNet | ResNet, shape: FlowConfig) -> None:
        super().__init__()
        width = shape.estimator_width
        self.resnet = resnet
        self.transformers = nn.ModuleList(
            Transformer(width, shape.estimator_heads, shape.estimator_head_dim)
            for _ in range(shape.estimator_blocks)
        )

    def shift(self, time: Tensor) -> Tensor:
        """An embedded time [..., 4 width] as the residual block adds it, [..., width]."""
        shifted: Tensor = self.resnet.time(time)
        return shifted

    def forward(self, given: Conditioning, *inputs: object) -> Tensor:
        """``inputs`` are the residual block's."""
        x: Tensor = self.resnet(*inputs)
        more: Tensor | None = None
        for transformer in self.transformers:
            x, more = transformer(x, more, given)
        return x if more is None else x + more


class Estimator(nn.Module):
    """Velocity of the mel at a time, given what the encoder, the speaker and the prompt say."""

    def __init__(self, shape: FlowConfig) -> None:
        super().__init__()
        width, inputs = shape.estimator_width, MEL_BINS + CONDITIONS
        time = 4 * width
        self.time_in, self.time_out = nn.Linear(inputs, time), nn.Linear(time, time)
        self.enter = Level(InputResNet(width, time), shape)
        self.enter_conv = CausalConv(width, width)
        self.middle = nn.ModuleList(
            Level(ResNet(width, width, time), shape) for _ in range(shape.estimator_mid)
        )
        self.leave = Level(ResNet(2 * width, width, time), shape)
        self.leave_conv = CausalConv(width, width)
        self.final = ConvNorm(width, width)
        self.mel = nn.Linear(width, MEL_BINS)

    def fuse(self) -> None:
        """Have halves go through a card's kernels of our own from now on."""
        for part in self.modules():
            if isinstance(part, Norm):
                part.fused = True
            elif isinstance(part, Transformer):
                part.fused = part.head_dim >= 16 and part.head_dim.bit_count() == 1

    def times(self, times: Tensor) -> Tensor:
        """Embed float32 times [n] in [0, 1]: [levels, n, width], once for all steps and rows.

        Sines and cosines of 1000 t (upstream matcha/decoder.py, SinusoidalPosEmb) through two
        layers that stay in float32: half precision is off by half a radian there.
        """
        half = (MEL_BINS + CONDITIONS) // 2
        exponents = torch.arange(half, device=times.device) * (-math.log(10_000) / (half - 1))
        angles = 1000 * times[:, None] * exponents.exp()[None]
        features = torch.cat((angles.sin(), angles.cos()), dim=-1)
        embedded = F.mish(self.time_out(F.silu(self.time_in(features)))).to(self.dtype)
        levels: tuple[Any, ...] = (self.enter, *self.middle, self.leave)
        return torch.stack([level.shift(embedded) for level in levels])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return self.final.norm.weight.dtype

    def given(self, conditions: Tensor, mask: Tensor | None) -> Conditioning:
        """Compute what all steps share.

        Args:
            conditions: [rows, frames, 240]: mu, speaker and prompt side by side.
            mask: bool [rows, frames], which frames are there, the first ones; None for all.
        """
        entry = cast(InputResNet, self.enter.resnet)
        first, skip = entry.given(conditions), entry.given_skip(conditions)
        if mask is None:
            return Conditioning(first, skip, None, None)
        return Conditioning(first, skip, mask[:, None, None], mask.sum(dim=-1, dtype=torch.int32))

    def forward(self, x: Tensor, given: Conditioning, shifts: Tensor) -> Tensor:
        """One evaluation.

        Args:
            x: noisy mel [n, frames, 80]; rows are n or a multiple of it.
            shifts: [levels, width], one time of ``times``; [levels, rows, 1, width] for a time of
                each row's own.

        Returns:
            [rows, frames, 80].
        """
        enter, *middle, leave = shifts
        entered = self.enter(given, x, given, enter)
        x = self.enter_conv(entered)
        for level, shift in zip(self.middle, middle, strict=True):
            x = level(given, x, shift)
        x = self.leave(given, torch.cat((x, entered), dim=-1), leave)
        return self.mel(self.final(self.leave_conv(x)))
