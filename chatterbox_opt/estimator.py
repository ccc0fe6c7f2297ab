"""The flow's velocity field: upstream's ConditionalDecoder, written for the way it is used.

Knows one forward pass of the estimator. Knows nothing of noise, steps, guidance or voices.

Upstream (decoder.py, after Matcha-TTS) keeps channels first, transposes around every layer norm
and every attention, adds a mask that is all ones for one utterance, and embeds the time in each
row. Here time comes before channels throughout: a causal convolution is one matrix product over
three neighbouring frames, q/k/v are one product, and nothing is transposed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.shapes import MEL_BINS, FlowShape

KERNEL = 3  # frames that a causal convolution sees: this one and the two before


class CausalConv(nn.Linear):
    """Conv1d over [rows, frames, channels] that sees the past only (upstream CausalConv1d)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(KERNEL * channels, out)

    def forward(self, x: Tensor) -> Tensor:
        rows, frames, channels = x.shape
        padded = F.pad(x, (0, 0, KERNEL - 1, 0))
        # KERNEL neighbouring frames lie one after the other in memory
        strides = (padded.stride(0), channels, 1)
        windows = padded.as_strided((rows, frames, KERNEL * channels), strides)
        return super().forward(windows)


class ConvNorm(nn.Module):
    """Causal convolution, layer norm, Mish (upstream CausalBlock1D)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, out)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(self.norm(self.conv(x)))


class ResNet(nn.Module):
    """Two convolutions with the time in between (upstream CausalResnetBlock1D)."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(channels, out), ConvNorm(out, out)
        self.time = nn.Linear(time, out)
        self.skip = nn.Linear(channels, out)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.second(self.first(x) + self.time(time)) + self.skip(x)


class Transformer(nn.Module):
    """Self-attention over all frames and a feed-forward (diffusers' BasicTransformerBlock)."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        attended = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x))))


class Level(nn.Module):
    """A residual block and the transformers after it."""

    def __init__(self, channels: int, shape: FlowShape) -> None:
        super().__init__()
        width = shape.estimator_width
        self.resnet = ResNet(channels, width, 4 * width)
        self.transformers = nn.Sequential(
            *(
                Transformer(width, shape.estimator_heads, shape.estimator_head_dim)
                for _ in range(shape.estimator_blocks)
            )
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        transformed: Tensor = self.transformers(self.resnet(x, time))
        return transformed


class Estimator(nn.Module):
    """Velocity of the mel at a time, given what the encoder, the speaker and the prompt say."""

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        width, inputs = shape.estimator_width, 4 * MEL_BINS
        self.time_in, self.time_out = nn.Linear(inputs, 4 * width), nn.Linear(4 * width, 4 * width)
        self.enter = Level(inputs, shape)
        self.enter_conv = CausalConv(width, width)
        self.middle = nn.ModuleList(Level(width, shape) for _ in range(shape.estimator_mid))
        self.leave = Level(2 * width, shape)
        self.leave_conv = CausalConv(width, width)
        self.final = ConvNorm(width, width)
        self.mel = nn.Linear(width, MEL_BINS)

    def times(self, times: Tensor) -> Tensor:
        """Embed float32 times [n] in [0, 1]: [n, 4 width], once for all steps and rows.

        Sines and cosines of 1000 t (upstream matcha/decoder.py, SinusoidalPosEmb) through two
        layers that stay in float32: half precision is off by half a radian there.
        """
        half = self.time_in.in_features // 2
        exponents = torch.arange(half, device=times.device) * (-math.log(10_000) / (half - 1))
        angles = 1000 * times[:, None] * exponents.exp()[None]
        features = torch.cat((angles.sin(), angles.cos()), dim=-1)
        embedded = self.time_out(F.silu(self.time_in(features)))
        return F.mish(embedded).to(self.mel.weight.dtype)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """One evaluation.

        Args:
            x: [rows, frames, 320]: noisy mel, mu, speaker and prompt side by side.
            time: [4 width], a row of ``times``.

        Returns:
            [rows, frames, 80].
        """
        entered = self.enter(x, time)
        x = self.enter_conv(entered)
        for level in self.middle:
            x = level(x, time)
        x = self.leave(torch.cat((x, entered), dim=-1), time)
        return self.mel(self.final(self.leave_conv(x)))


def from_upstream(state: dict[str, Tensor], shape: FlowShape) -> dict[str, Tensor]:
    """Rename and reshape upstream's parameters (names below ``decoder.estimator.``) to ours.

    Raises:
        KeyError: a name is missing.
    """
    ours: dict[str, Tensor] = {}

    def take(mine: str, theirs: str, *kinds: str) -> None:
        for kind in kinds or ("weight", "bias"):
            tensor = state[f"{theirs}.{kind}"]
            if tensor.dim() == 3:  # [out, in, kernel] to [out, kernel * in]
                tensor = tensor.transpose(1, 2).flatten(1)
            ours[f"{mine}.{kind}"] = tensor

    def level(mine: str, theirs: str) -> None:
        for name, block in (("first", "block1"), ("second", "block2")):
            take(f"{mine}.resnet.{name}.conv", f"{theirs}.0.{block}.block.0")
            take(f"{mine}.resnet.{name}.norm", f"{theirs}.0.{block}.block.2")
        take(f"{mine}.resnet.time", f"{theirs}.0.mlp.1")
        take(f"{mine}.resnet.skip", f"{theirs}.0.res_conv")
        for i in range(shape.estimator_blocks):
            one, other = f"{mine}.transformers.{i}", f"{theirs}.1.{i}"
            qkv = [state[f"{other}.attn1.to_{p}.weight"] for p in "qkv"]
            ours[f"{one}.qkv.weight"] = torch.cat(qkv)
            take(f"{one}.out", f"{other}.attn1.to_out.0")
            take(f"{one}.attention_norm", f"{other}.norm1")
            take(f"{one}.ffn_norm", f"{other}.norm3")
            take(f"{one}.up", f"{other}.ff.net.0.proj")
            take(f"{one}.down", f"{other}.ff.net.2")

    take("time_in", "time_mlp.linear_1")
    take("time_out", "time_mlp.linear_2")
    level("enter", "down_blocks.0")
    take("enter_conv", "down_blocks.0.2")
    for i in range(shape.estimator_mid):
        level(f"middle.{i}", f"mid_blocks.{i}")
    level("leave", "up_blocks.0")
    take("leave_conv", "up_blocks.0.2")
    take("final.conv", "final_block.block.0")
    take("final.norm", "final_block.block.2")
    take("mel", "final_proj")
    return ours
