"""The estimator's weights: upstream's names and ours, and how one becomes the other.

Knows tensors' names and layouts. Knows nothing of files or of what the estimator computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import MEL_BINS, FlowConfig
from chatterbox_opt.models.flow.estimator import CONDITIONS


def estimator_from_upstream(state: dict[str, Tensor], shape: FlowConfig) -> dict[str, Tensor]:
    """Rename and reshape upstream's parameters (names below ``decoder.estimator.``) to ours.

    Raises:
        KeyError: a name is missing.
    """
    made = _Conversion(state, {})
    made.take("time_in", "time_mlp.linear_1")
    made.take("time_out", "time_mlp.linear_2")
    enter, first = "enter.resnet", "down_blocks.0.0"
    made.level("enter", "down_blocks.0", shape.estimator_blocks)
    made.apart(f"{enter}.mel.product", f"{enter}.given.product", f"{first}.block1.block.0")
    made.take(f"{enter}.norm", f"{first}.block1.block.2")
    made.apart(f"{enter}.mel_skip", f"{enter}.given_skip", f"{first}.res_conv")
    made.take("enter_conv.product", "down_blocks.0.2")
    levels = [(f"middle.{i}", f"mid_blocks.{i}") for i in range(shape.estimator_mid)]
    for mine, theirs in (*levels, ("leave", "up_blocks.0")):
        made.level(mine, theirs, shape.estimator_blocks)
        made.norm(f"{mine}.resnet.first", f"{theirs}.0.block1")
        made.take(f"{mine}.resnet.skip", f"{theirs}.0.res_conv")
    made.take("leave_conv.product", "up_blocks.0.2")
    made.norm("final", "final_block")
    made.take("mel", "final_proj")
    return made.ours


@dataclass(frozen=True, slots=True)
class _Conversion:
    state: dict[str, Tensor]
    ours: dict[str, Tensor]

    def take(self, mine: str, theirs: str, kinds: Sequence[str] = ("weight", "bias")) -> None:
        """A layer under another name; a convolution's kernel beside its inputs."""
        for kind in kinds:
            tensor = self.state[f"{theirs}.{kind}"]
            if tensor.dim() == 3:  # [out, in, kernel] to [out, kernel * in]
                tensor = tensor.transpose(1, 2).flatten(1)
            self.ours[f"{mine}.{kind}"] = tensor

    def norm(self, mine: str, theirs: str) -> None:
        """A ``ConvNorm``."""
        self.take(f"{mine}.conv.product", f"{theirs}.block.0")
        self.take(f"{mine}.norm", f"{theirs}.block.2")

    def apart(self, mel: str, given: str, theirs: str) -> None:
        """The inputs' columns: the noisy mel's with the bias, and the conditions'."""
        weight = self.state[f"{theirs}.weight"].transpose(1, 2)
        columns = weight.split((MEL_BINS, CONDITIONS), dim=2)
        for mine, part in zip((mel, given), columns, strict=True):
            self.ours[f"{mine}.weight"] = part.flatten(1)
        self.take(mel, theirs, ("bias",))

    def level(self, mine: str, theirs: str, blocks: int) -> None:
        """What the first level shares with the others."""
        self.take(f"{mine}.resnet.time", f"{theirs}.0.mlp.1")
        self.norm(f"{mine}.resnet.second", f"{theirs}.0.block2")
        for i in range(blocks):
            one, other = f"{mine}.transformers.{i}", f"{theirs}.1.{i}"
            qkv = [self.state[f"{other}.attn1.to_{p}.weight"] for p in "qkv"]
            self.ours[f"{one}.qkv.weight"] = torch.cat(qkv)
            self.take(f"{one}.out", f"{other}.attn1.to_out.0")
            self.take(f"{one}.attention_norm", f"{other}.norm1")
            self.take(f"{one}.ffn_norm", f"{other}.norm3")
            self.take(f"{one}.up", f"{other}.ff.net.0.proj")
            self.take(f"{one}.down", f"{other}.ff.net.2")
