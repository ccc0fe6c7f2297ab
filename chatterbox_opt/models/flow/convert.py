"""Converts upstream's estimator state dict to ours.

Responsible for tensor names and layouts. Not responsible for files or for what the estimator
computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import MEL_BINS, FlowConfig
from chatterbox_opt.models.flow.estimator import CONDITIONS


def estimator_from_upstream(state: dict[str, Tensor], config: FlowConfig) -> dict[str, Tensor]:
    """Rename and reshape upstream's parameters (names below ``decoder.estimator.``) to ours.

    Raises:
        KeyError: a name is missing.
    """
    conversion = _Conversion(state, {})
    conversion.rename("time_in", "time_mlp.linear_1")
    conversion.rename("time_out", "time_mlp.linear_2")
    enter, first = "enter.resnet", "down_blocks.0.0"
    conversion.level("enter", "down_blocks.0", config.estimator_blocks)
    conversion.split_inputs(
        f"{enter}.mel.product", f"{enter}.given.product", f"{first}.block1.block.0"
    )
    conversion.rename(f"{enter}.norm", f"{first}.block1.block.2")
    conversion.split_inputs(f"{enter}.mel_skip", f"{enter}.given_skip", f"{first}.res_conv")
    conversion.rename("enter_conv.product", "down_blocks.0.2")
    levels = [(f"middle.{i}", f"mid_blocks.{i}") for i in range(config.estimator_mid)]
    for mine, theirs in (*levels, ("leave", "up_blocks.0")):
        conversion.level(mine, theirs, config.estimator_blocks)
        conversion.norm(f"{mine}.resnet.first", f"{theirs}.0.block1")
        conversion.rename(f"{mine}.resnet.skip", f"{theirs}.0.res_conv")
    conversion.rename("leave_conv.product", "up_blocks.0.2")
    conversion.norm("final", "final_block")
    conversion.rename("mel", "final_proj")
    return conversion.ours


@dataclass(frozen=True, slots=True)
class _Conversion:
    state: dict[str, Tensor]
    ours: dict[str, Tensor]

    def rename(self, mine: str, theirs: str, kinds: Sequence[str] = ("weight", "bias")) -> None:
        """Rename a layer; flatten a convolution's kernel into its input dimension."""
        for kind in kinds:
            tensor = self.state[f"{theirs}.{kind}"]
            if tensor.dim() == 3:  # [out, in, kernel] to [out, kernel * in]
                tensor = tensor.transpose(1, 2).flatten(1)
            self.ours[f"{mine}.{kind}"] = tensor

    def norm(self, mine: str, theirs: str) -> None:
        """Convert a ``ConvNorm``."""
        self.rename(f"{mine}.conv.product", f"{theirs}.block.0")
        self.rename(f"{mine}.norm", f"{theirs}.block.2")

    def split_inputs(self, mel: str, conditions: str, theirs: str) -> None:
        """Split a layer by its inputs: the noisy mel (with the bias) and the conditions."""
        weight = self.state[f"{theirs}.weight"].transpose(1, 2)
        columns = weight.split((MEL_BINS, CONDITIONS), dim=2)
        for mine, part in zip((mel, conditions), columns, strict=True):
            self.ours[f"{mine}.weight"] = part.flatten(1)
        self.rename(mel, theirs, ("bias",))

    def level(self, mine: str, theirs: str, blocks: int) -> None:
        """Convert the time projection, second convolution and transformers of a level."""
        self.rename(f"{mine}.resnet.time", f"{theirs}.0.mlp.1")
        self.norm(f"{mine}.resnet.second", f"{theirs}.0.block2")
        for i in range(blocks):
            ours, upstream = f"{mine}.transformers.{i}", f"{theirs}.1.{i}"
            qkv = [self.state[f"{upstream}.attn1.to_{p}.weight"] for p in "qkv"]
            self.ours[f"{ours}.qkv.weight"] = torch.cat(qkv)
            self.rename(f"{ours}.out", f"{upstream}.attn1.to_out.0")
            self.rename(f"{ours}.attention_norm", f"{upstream}.norm1")
            self.rename(f"{ours}.ffn_norm", f"{upstream}.norm3")
            self.rename(f"{ours}.up", f"{upstream}.ff.net.0.proj")
            self.rename(f"{ours}.down", f"{upstream}.ff.net.2")
