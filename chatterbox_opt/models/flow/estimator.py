"""The velocity field estimator of the flow: upstream's ConditionalDecoder, for inference.

Responsible for one forward pass. Not responsible for noise, ODE steps, CFG or voices.

Upstream (decoder.py, after Matcha-TTS) is channels-first, transposes around every layer norm and
every attention, masks in every layer, and embeds the time in each row. Here everything is
channels-last: a causal convolution is one GEMM over three adjacent frames, q/k/v are one GEMM, and
nothing is transposed. Convolutions are causal, so padding on the right only matters to attention.
What the Euler steps of one solve share (the conditions' part of the first block, which is linear
in its inputs, and the time embeddings) is computed once.

Module names are those of the weight cache and of training checkpoints.
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

KERNEL_SIZE = 3  # of causal convolutions: the current frame and the two before
CONDITIONS = 3 * MEL_BINS  # mu, speaker, prompt
Schedule = tuple[Tensor, Tensor]  # see Estimator.schedule


class Norm(nn.LayerNorm):
    """Layer norm, fused with the residual add before it or the Mish after it.

    Attributes:
        fused: fp16/bf16 tensors on a GPU use a fused kernel (kernels/cuda/flow.py).
    """

    fused = False

    def forward(self, x: Tensor, *, mish: bool = False) -> Tensor:
        """Layer norm, then optionally Mish (Misra 2019)."""
        if bf16_ops.supports(x, self.weight):
            return bf16_ops.layer_norm(self, x, mish=mish)
        if self.fused and is_half_precision(x):
            return self._fused(x, None, mish=mish)[1]
        normed = super().forward(x)
        return F.mish(normed) if mish else normed

    def add_and_norm(self, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x + update`` and its norm. May write to ``x``, the residual stream, in place."""
        if update is None:
            return x, self(x)
        if bf16_ops.supports(x, update, self.weight):
            return x, bf16_ops.add_layer_norm(self, x, update)
        if self.fused and is_half_precision(x):
            return self._fused(x, update)
        x = x + update
        return x, self(x)

    def _fused(
        self, x: Tensor, update: Tensor | None, *, mish: bool = False
    ) -> tuple[Tensor, Tensor]:
        from chatterbox_opt.kernels.cuda import flow as flow_kernels  # Triton is optional

        return flow_kernels.layer_norm(x, self.weight, self.bias, self.eps, update, mish=mish)


def is_half_precision(x: Tensor) -> bool:
    """Whether x is fp16 or bf16, which the fused kernels support."""
    return x.dtype in (torch.float16, torch.bfloat16)


class CausalConv(nn.Module):
    """Causal Conv1d over [rows, frames, channels] as a GEMM (upstream CausalConv1d)."""

    def __init__(self, channels: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.product = nn.Linear(KERNEL_SIZE * channels, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, frames, channels = x.shape
        padded = F.pad(x, (0, 0, KERNEL_SIZE - 1, 0))
        # KERNEL_SIZE adjacent frames are contiguous in memory, so that im2col is a view
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
    """Two convolutions, the time embedding added between them (upstream CausalResnetBlock1D)."""

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
    """The part of the computation that all ODE steps share.

    Attributes:
        first, skip: [rows, frames, width], the conditions' part of the first block.
        mask: bool [rows, 1, 1, frames], the attention mask; None: no padding.
        lengths: int32 [rows], valid frames of each row; None: no padding.
    """

    first: Tensor
    skip: Tensor
    mask: Tensor | None
    lengths: Tensor | None


class InputResNet(nn.Module):
    """The first residual block, split into the noisy mel's part and the conditions' part."""

    def __init__(self, out: int, time: int) -> None:
        super().__init__()
        self.mel, self.given = CausalConv(MEL_BINS, out), CausalConv(CONDITIONS, out, bias=False)
        self.norm, self.second = Norm(out), ConvNorm(out, out)
        self.time = nn.Linear(time, out)
        self.mel_skip = nn.Linear(MEL_BINS, out)
        self.given_skip = nn.Linear(CONDITIONS, out, bias=False)

    def forward(self, x: Tensor, conditioning: Conditioning, shift: Tensor) -> Tensor:
        """[n, frames, 80] with ``rows`` conditions, a multiple of n, to [rows, frames, width]."""
        repeats = (conditioning.first.shape[0] // x.shape[0], 1, 1)
        first = self.norm(self.mel(x).repeat(repeats) + conditioning.first, mish=True)
        convolved: Tensor = self.second(first + shift)
        return convolved + self.mel_skip(x).repeat(repeats) + conditioning.skip


class Transformer(nn.Module):
    """Self-attention over all frames and an FFN (diffusers' BasicTransformerBlock).

    Attributes:
        fused: see ``Norm``.
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

    def forward(
        self, x: Tensor, update: Tensor | None, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Map (residual stream, its pending update) to the same after this block."""
        x, inner = self.attention_norm.add_and_norm(x, update)
        qkv = self.qkv(inner)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        x, inner = self.ffn_norm.add_and_norm(x, self.out(self._attend(q, k, v, conditioning)))
        return x, self.down(F.gelu(self.up(inner)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, conditioning: Conditioning) -> Tensor:
        if self.fused and is_half_precision(q):
            from chatterbox_opt.kernels.cuda import flow as flow_kernels  # Triton is optional

            return flow_kernels.attention(q, k, v, conditioning.lengths)
        return attend(q, k, v, conditioning.mask)


class Level(nn.Module):
    """A residual block and the transformer blocks after it (one level of upstream's U-Net)."""

    def __init__(self, resnet: InputResNet | ResNet, config: FlowConfig) -> None:
        super().__init__()
        width = config.estimator_width
        self.resnet = resnet
        self.transformers = nn.ModuleList(
            Transformer(width, config.estimator_heads, config.estimator_head_dim)
            for _ in range(config.estimator_blocks)
        )

    def shift(self, time: Tensor) -> Tensor:
        """Project a time embedding [..., 4 width] for the residual block, [..., width]."""
        shifted: Tensor = self.resnet.time(time)
        return shifted

    def forward(self, conditioning: Conditioning, *inputs: object) -> Tensor:
        """Run the level; ``inputs`` are the residual block's arguments."""
        x: Tensor = self.resnet(*inputs)
        update: Tensor | None = None
        for transformer in self.transformers:
            x, update = transformer(x, update, conditioning)
        return x if update is None else x + update


class Estimator(nn.Module):
    """Velocity of the mel at a time, conditioned on the encoder output, speaker and prompt."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width, inputs = config.estimator_width, MEL_BINS + CONDITIONS
        time = 4 * width
        self.time_in, self.time_out = nn.Linear(inputs, time), nn.Linear(time, time)
        self.mean_flow = config.mean_flow
        if config.mean_flow:
            self.time_mixer = nn.Linear(2 * time, time, bias=False)
        self.enter = Level(InputResNet(width, time), config)
        self.enter_conv = CausalConv(width, width)
        self.middle = nn.ModuleList(
            Level(ResNet(width, width, time), config) for _ in range(config.estimator_mid)
        )
        self.leave = Level(ResNet(2 * width, width, time), config)
        self.leave_conv = CausalConv(width, width)
        self.final = ConvNorm(width, width)
        self.mel = nn.Linear(width, MEL_BINS)

    def fuse(self) -> None:
        """Use the fused GPU kernels for fp16/bf16 from now on."""
        for part in self.modules():
            if isinstance(part, Norm):
                part.fused = True
            elif isinstance(part, Transformer):
                part.fused = part.head_dim >= 16 and part.head_dim.bit_count() == 1

    def schedule(self, steps: int, device: torch.device) -> Schedule:
        """The times of the ODE's steps, and what they are for the levels: equal steps of a mean
        flow, a cosine schedule otherwise (upstream flow_matching.py).

        Returns:
            float32 [steps + 1], from 0 to 1; [levels, steps, width], see ``time_shifts``.
        """
        times = torch.linspace(0, 1, steps + 1, device=device)
        if self.mean_flow:
            return times, self.time_shifts(times[:-1], times[1:])
        times = 1 - torch.cos(times * 0.5 * torch.pi)
        return times, self.time_shifts(times[:-1])

    def time_shifts(self, times: Tensor, ends: Tensor | None = None) -> Tensor:
        """Embed float32 times [n] in [0, 1] for each level: [levels, n, width].

        Sines and cosines of 1000 t (upstream matcha/decoder.py, SinusoidalPosEmb) through layers
        that stay in float32: fp16 angles are off by half a radian.

        Args:
            ends: float32 [n], of the steps that begin at ``times``; mean flow only, which needs
                them (upstream's ``r``).
        """
        embedded = self._embed(times)
        if ends is not None:
            embedded = self.time_mixer(torch.cat((embedded, self._embed(ends)), dim=-1))
        embedded = F.mish(embedded).to(self.dtype)
        levels: tuple[Any, ...] = (self.enter, *self.middle, self.leave)
        return torch.stack([level.shift(embedded) for level in levels])

    def _embed(self, times: Tensor) -> Tensor:
        """Float32 times [n] to [n, 4 width]."""
        half = (MEL_BINS + CONDITIONS) // 2
        exponents = torch.arange(half, device=times.device) * (-math.log(10_000) / (half - 1))
        angles = 1000 * times[:, None] * exponents.exp()[None]
        features = torch.cat((angles.sin(), angles.cos()), dim=-1)
        embedded: Tensor = self.time_out(F.silu(self.time_in(features)))
        return embedded

    def keep_time_in_float32(self) -> None:
        """Cast the layers of the time embedding back, after a cast of the whole module."""
        for name, layer in self.named_children():
            if name.startswith("time_"):
                layer.float()

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.final.norm.weight.dtype

    def condition(self, conditions: Tensor, mask: Tensor | None = None) -> Conditioning:
        """Compute what all ODE steps share.

        Args:
            conditions: [rows, frames, 240]: mu, speaker and prompt, concatenated.
            mask: bool [rows, frames], true for valid frames, which come first; None: no padding.
        """
        block = cast(InputResNet, self.enter.resnet)
        first, skip = block.given(conditions), block.given_skip(conditions)
        if mask is None:
            return Conditioning(first, skip, None, None)
        return Conditioning(first, skip, mask[:, None, None], mask.sum(dim=-1, dtype=torch.int32))

    def forward(self, x: Tensor, conditioning: Conditioning, shifts: Tensor) -> Tensor:
        """Evaluate the velocity field.

        Args:
            x: noisy mel [n, frames, 80]; rows are n or a multiple of it.
            shifts: [levels, width], one time of ``time_shifts``; or [levels, rows, 1, width], one
                time per row.

        Returns:
            [rows, frames, 80].
        """
        enter, *middle, leave = shifts
        hidden = self.enter(conditioning, x, conditioning, enter)
        x = self.enter_conv(hidden)
        for level, shift in zip(self.middle, middle, strict=True):
            x = level(conditioning, x, shift)
        x = self.leave(conditioning, torch.cat((x, hidden), dim=-1), leave)
        return self.mel(self.final(self.leave_conv(x)))
