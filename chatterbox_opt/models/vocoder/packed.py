"""HiFT's generator over the compiled convolutions of a CPU.

Responsible for the order of convolutions and for which sums and activations are fused with them.
Not responsible for what the layers compute (hift.py), or for the arithmetic
(kernels/cpu/conv/kernel.py). In float32 equal to hift.py's up to the order of sums.

In bfloat16 it is the factors of products that are rounded, of the residual blocks of all stages
but the last: half of all multiplications. Signals and sums are float32, and so is what decides
phases: the source, and the last stage. docs/accuracy.md says what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.kernels.cpu.conv.ops import Leaky, PackedConv, Signal, Snake, activate
from chatterbox_opt.models.vocoder.hift import (
    LAST_LRELU_SLOPE,
    LRELU_SLOPE,
    Generator,
    ResBlock,
    ResPair,
    Stage,
)
from chatterbox_opt.runtime.bucketing import HostLengths, PaddingMask


class _Pair:
    """See ``hift.ResPair``."""

    def __init__(self, pair: ResPair, dtype: torch.dtype) -> None:
        self.wide, self.narrow = PackedConv(pair.wide, dtype), PackedConv(pair.narrow, dtype)
        self.before = Snake(pair.frequency.flatten().contiguous())
        self.between = Snake(torch.ones_like(self.before.frequency))


class _Scratch:
    """What the residual blocks of a stage write one after the other.

    Attributes:
        first, second: before the first and the second convolution of a pair, activated.
        sums: after a pair, [time, channels].
    """

    def __init__(self, time: int, channels: int, margin: int) -> None:
        self.first, self.second = (Signal.empty(time, channels, margin) for _ in range(2))
        self.sums = torch.empty(time, channels)


class _Stage:
    """See ``hift.Stage``."""

    def __init__(self, stage: Stage, dtype: torch.dtype) -> None:
        self.rate, self.lead = stage.up.rate, stage.up.lead
        # its outputs are one set of channels after the other, as the samples that they become
        conv, rate = stage.up.conv, self.rate
        self.up = PackedConv(_reordered(conv, rate))
        self.source_down = stage.source_down
        self.source_block = self._pairs(stage.source_block, dtype)
        self.blocks = [self._pairs(block, dtype) for block in stage.blocks]
        pairs = [pair for block in (self.source_block, *self.blocks) for pair in block]
        self._margin = max(conv.margin for pair in pairs for conv in (pair.wide, pair.narrow))

    @staticmethod
    def _pairs(block: ResBlock, dtype: torch.dtype) -> list[_Pair]:
        return [_Pair(pair, dtype) for pair in block.pairs]

    def __call__(self, x: Signal, spectrum: Tensor, slope: float, margin: int) -> Signal:
        """One stage.

        Args:
            x: after the leaky ReLU, [time, 2 C].
            spectrum: the source's STFT [18, n].
            slope: of the leaky ReLU after this stage.
            margin: of the result.

        Returns:
            [rate time + lead, C], after that leaky ReLU.
        """
        time, channels = len(x.body) * self.rate + self.lead, self.up.outputs // self.rate
        scratch = _Scratch(time, channels, self._margin)
        # 1) upsampling
        mixed = torch.empty(time, channels)
        self.up(x, out=mixed[self.lead :])
        for i in range(self.lead):  # reflection
            mixed[self.lead - 1 - i] = mixed[self.lead + 1 + i]
        # 2) + the source
        scratch.sums.copy_(self.source_down(spectrum[None])[0].T)
        activate(scratch.sums, self.source_block[0].before, scratch.first.body)
        last, rest = self._all_but_last(self.source_block, scratch.sums, scratch)
        last(scratch.second, residual=rest, total=mixed, out=mixed)
        # 3) the sum of the residual blocks, and the leaky ReLU after it
        out, total = Signal.empty(time, channels, margin), torch.empty(time, channels)
        for i, block in enumerate(self.blocks):
            activate(mixed, block[0].before, scratch.first.body)
            last, rest = self._all_but_last(block, mixed, scratch)
            last(
                scratch.second,
                residual=rest,
                total=total if i else None,
                out=total,
                activation=Leaky(slope),
                activated=out.body,
            )
        return out

    @staticmethod
    def _all_but_last(
        pairs: Sequence[_Pair], x: Tensor, scratch: _Scratch
    ) -> tuple[PackedConv, Tensor]:
        """Run all of a block but its last convolution; return that, and what is added to it.

        Args:
            x: [time, channels]; ``scratch.first`` is its activation.
        """
        following = [pair.before for pair in pairs[1:]]
        for pair, after in zip(pairs, [*following, None], strict=True):
            second = scratch.second.body
            pair.wide(scratch.first, activation=pair.between, activated=second)
            if after is not None:
                first, sums = scratch.first.body, scratch.sums
                pair.narrow(scratch.second, residual=x, out=sums, activation=after, activated=first)
                x = sums
        return pairs[-1].narrow, x


def _reordered(conv: nn.Conv1d, rate: int) -> nn.Conv1d:
    """``conv`` with outputs [channel, phase] in the order [phase, channel]."""
    assert conv.bias is not None
    for tensor in (conv.weight, conv.bias):
        tensor.data = tensor.data.unflatten(0, (-1, rate)).transpose(0, 1).flatten(0, 1)
    return conv


class PackedGenerator(nn.Module):
    """See ``hift.Generator``: the same function, each row by itself."""

    def __init__(self, generator: Generator, dtype: torch.dtype = torch.float32) -> None:
        """Take over the weights of ``generator``, which cannot be used afterwards.

        Args:
            dtype: float32 or bfloat16, see above.
        """
        super().__init__()
        self._enter, self._leave = PackedConv(generator.enter), PackedConv(generator.leave)
        *early, last = generator.stages
        self._stages = [*(_Stage(stage, dtype) for stage in early), _Stage(last, torch.float32)]

    def padded_length(self, length: int) -> int:
        """``length``: nothing is prepared for a length."""
        return length

    def forward(self, mel: Tensor, spectrum: Tensor, mask: PaddingMask) -> Tensor:
        """As ``hift.Generator.forward``; nothing is computed for the padding."""
        assert isinstance(mask, HostLengths), "nothing is captured on a CPU"
        total = spectrum.shape[-1]
        rows = []
        for length, *row in zip(mask.lengths, mel, spectrum, strict=True):
            used = (total - 1) // mel.shape[-1] * length + 1
            out = self._row(row[0][:, :length], row[1][:, :used])
            rows.append(F.pad(out, (0, total - used)))
        return torch.stack(rows)

    def _row(self, mel: Tensor, spectrum: Tensor) -> Tensor:
        following = [*(stage.up for stage in self._stages), self._leave]
        x = Signal.of(mel, self._enter.margin)
        entered = Signal.empty(mel.shape[-1], self._enter.outputs, following[0].margin)
        self._enter(x, activation=Leaky(LRELU_SLOPE), activated=entered.body)
        x = entered
        for stage, after in zip(self._stages, following[1:], strict=True):
            slope = LAST_LRELU_SLOPE if after is self._leave else LRELU_SLOPE
            x = stage(x, spectrum, slope, after.margin)
        out = torch.empty(len(x.body), self._leave.outputs)
        self._leave(x, out=out)
        return out.T
