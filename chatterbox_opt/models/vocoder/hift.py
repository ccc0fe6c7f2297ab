"""HiFT's generator and F0 predictor for inference: mel and source to magnitudes and phases.

Responsible for convolutions and Snake activations. Not responsible for the source signal, random
numbers, the STFT or files.

Computes the same as upstream's HiFTGenerator (hifigan.py of chatterbox-tts 0.1.7), whose
parameters are folded once, when a checkpoint is loaded:

- weight norm into the weights;
- Snake, x + sin(a x)^2 / a (Ziyin et al. 2020), computes on y = a x. The convolution after it
  divides by ``a``, and the one before it multiplies by ``a`` where nothing else uses its output.
  What remains is y + sin(y)^2, without parameters;
- a transposed convolution of stride u is one ordinary convolution with u times the channels, one
  set for each of the u output phases. oneDNN's setup of a transposed convolution grows with the
  square of the length: seconds, where the convolution itself takes milliseconds.

Rows may have different lengths: after each convolution the padding of shorter rows is zeroed, so
that the next one computes the same as for the row alone with zero padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.runtime.bucketing import PaddingMask, bucket
from chatterbox_opt.utils.skip_init import skip_init

MIN_ALPHA = 1e-6  # Snake with a smaller alpha is the identity in float32
LRELU_SLOPE = 0.1  # of the leaky ReLU between stages (upstream lrelu_slope)
LAST_LRELU_SLOPE = 0.01  # of that after the last one


def conv_from(weight: Tensor, bias: Tensor, **layout: int) -> nn.Conv1d:
    """Build a float32 convolution from weight [out, in, kernel] and bias [out]."""
    out, channels, kernel = weight.shape
    with skip_init():
        conv = nn.Conv1d(channels, out, kernel, **layout)  # type: ignore[arg-type]
    conv.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    conv.bias = nn.Parameter(bias.float().contiguous(), requires_grad=False)
    return conv


def fold_weight_norm(conv: Any, scale: float = 1.0) -> nn.Conv1d:
    """Fold weight norm, and a factor ``scale`` of the input, into upstream's convolution."""
    layout = {name: getattr(conv, name)[0] for name in ("stride", "padding", "dilation")}
    return conv_from(conv.weight.double() * scale, conv.bias, **layout)


def snake_(y: Tensor) -> Tensor:
    """y + sin(y)^2, in place."""
    sine = y.sin()
    return y.addcmul_(sine, sine)


class ResPair(nn.Module):
    """Residual pair: Snake, dilated convolution, Snake, convolution, plus the input."""

    frequency: Tensor

    def __init__(self, one: Any, two: Any, snake_one: Any, snake_two: Any) -> None:
        """Fold upstream's two convolutions and the activations before them."""
        super().__init__()
        first, second = (self._alpha(snake) for snake in (snake_one, snake_two))
        dilation = one.dilation[0]
        wide = one.weight.double() / first[:, None] * second[:, None, None]
        self.register_buffer("frequency", first[:, None].float())
        self.wide = conv_from(wide, one.bias * second, padding=one.padding[0], dilation=dilation)
        self.narrow = conv_from(
            two.weight.double() / second[:, None], two.bias, padding=two.padding[0]
        )

    @staticmethod
    def _alpha(snake: Any) -> Tensor:
        alpha: Tensor = snake.alpha.double()
        return torch.where(alpha.abs() < MIN_ALPHA, MIN_ALPHA, alpha)

    def forward(self, x: Tensor, mask: PaddingMask) -> Tensor:
        y = mask.zero_(self.wide(snake_(x * self.frequency)))
        return mask.zero_(self.narrow(snake_(y))).add_(x)


class ResBlock(nn.Module):
    """Residual pairs of increasing dilation (upstream ResBlock)."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        parts = (block.convs1, block.convs2, block.activations1, block.activations2)
        self.pairs = nn.ModuleList(ResPair(*pair) for pair in zip(*parts, strict=True))

    def forward(self, x: Tensor, mask: PaddingMask) -> Tensor:
        for pair in self.pairs:
            x = pair(x, mask)
        return x


class Upsample(nn.Module):
    """A transposed convolution as an ordinary one with kernel size 3."""

    def __init__(self, conv: Any, scale: float, lead: int) -> None:
        """Fold upstream's layer.

        Args:
            scale: factor of the input.
            lead: samples of reflection padding before the output (upstream's reflection_pad).
        """
        super().__init__()
        self.rate, self.lead = conv.stride[0], lead
        weight = conv.weight.double() * scale  # [in, out, kernel]
        channels, out, kernel = weight.shape
        phases = weight.new_zeros(out, self.rate, channels, 3)
        for phase in range(self.rate):
            for tap in range(3):
                source = phase + conv.padding[0] + self.rate * (1 - tap)
                if 0 <= source < kernel:
                    phases[:, phase, :, tap] = weight[:, :, source].T
        self.conv = conv_from(
            phases.flatten(0, 1), conv.bias.repeat_interleave(self.rate), padding=1
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, _, time = x.shape
        phases = self.conv(x).unflatten(1, (-1, self.rate))
        out = x.new_empty(rows, phases.shape[1], self.lead + self.rate * time)
        body = out[..., self.lead :]
        body.unflatten(2, (time, self.rate)).copy_(phases.transpose(2, 3))
        for i in range(self.lead):
            out[..., self.lead - 1 - i] = body[..., 1 + i]
        return out


class Stage(nn.Module):
    """Upsampling, the source's STFT added, and the mean of residual blocks of several kernels.

    The division of the mean is folded into the next stage's weights.
    """

    def __init__(self, net: Any, index: int) -> None:
        super().__init__()
        count, last = net.num_kernels, index == net.num_upsamples - 1
        self.up = Upsample(net.ups[index], 1 / count if index else 1.0, lead=int(last))
        self.source_down = fold_weight_norm(net.source_downs[index])
        self.source_block = ResBlock(net.source_resblocks[index])
        blocks = net.resblocks[index * count : (index + 1) * count]
        self.blocks = nn.ModuleList(ResBlock(block) for block in blocks)

    def forward(self, x: Tensor, spectrum: Tensor, mask: PaddingMask) -> Tensor:
        """[rows, 2 C, T] and the source's STFT to [rows, C, rate T + lead].

        Args:
            mask: padding of the result.
        """
        x = mask.zero_(self.up(F.leaky_relu(x, LRELU_SLOPE)))
        source = mask.zero_(self.source_down(spectrum))
        x += self.source_block(source, mask)
        total: Tensor = self.blocks[0](x, mask)
        for block in self.blocks[1:]:
            total += block(x, mask)
        return total


class Generator(nn.Module):
    """Mel and the source's STFT to magnitudes and phases of the waveform's STFT."""

    def __init__(self, net: Any) -> None:
        """Fold upstream's HiFTGenerator."""
        super().__init__()
        self.enter = fold_weight_norm(net.conv_pre)
        self.stages = nn.ModuleList(Stage(net, i) for i in range(net.num_upsamples))
        self.leave = fold_weight_norm(net.conv_post, 1 / net.num_kernels)

    def padded_length(self, length: int) -> int:
        """The length to pad a mel to: few lengths, see ``bucket``."""
        return bucket(length)

    def forward(self, mel: Tensor, spectrum: Tensor, mask: PaddingMask) -> Tensor:
        """Run the generator.

        Args:
            mel: float32 [rows, 80, F], zero in the padding.
            spectrum: float32 [rows, 18, 120 F + 1], real parts, then imaginary parts, zero in the
                padding.
            mask: padding of the mel.

        Returns:
            float32 [rows, 18, 120 F + 1]: log magnitudes, then arguments of the phases' sine;
            undefined in the padding.
        """
        x = mask.zero_(self.enter(mel))
        for stage in self.stages:
            mask = mask.after_layer(stage.up.rate, stage.up.lead)
            x = stage(x, spectrum, mask)
        return self.leave(F.leaky_relu_(x, LAST_LRELU_SLOPE))


class F0Predictor(nn.Module):
    """Mel to F0 (upstream ConvRNNF0Predictor)."""

    def __init__(self, predictor: Any) -> None:
        """Fold upstream's layer."""
        super().__init__()
        convs = (layer for layer in predictor.condnet if hasattr(layer, "weight"))
        self.convs = nn.ModuleList(fold_weight_norm(conv) for conv in convs)
        self.out = predictor.classifier

    def forward(self, mel: Tensor) -> Tensor:
        """Float32 [rows, 80, F] to [rows, F] in Hz."""
        for conv in self.convs:
            mel = F.elu_(conv(mel))
        return torch.abs(self.out(mel.transpose(1, 2)).squeeze(-1))
