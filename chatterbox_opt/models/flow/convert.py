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
        RuntimeError: the parameters are a mean flow's, and ``config`` is not.
    """
    if not config.mean_flow and "time_embed_mixer.weight" in state:
        raise RuntimeError("it is a mean flow, as Turbo's")
    conversion = _Conversion(state, {})
    conversion.rename("time_in", "time_mlp.linear_1")
    conversion.rename("time_out", "time_mlp.linear_2")
    if config.mean_flow:
        conversion.rename("time_mixer", "time_embed_mixer", ("weight",))
    enter, first = "enter.resnet", "down_blocks.0.0"
    conversion.level("enter", "down_blocks.0", config.estimator_blocks)
    conversion.split_inputs(
        f"{enter}.mel.product", f"{enter}.given.product", f"{first}.block1.block.0"
    )
    conversion.rename(f"{enter}.norm", f"{first}.block1.block.2")
    conversion.split_inputs(f"{enter}.mel_skip", f"{enter}.given_skip", f"{first}.res_conv")
    conversion.rename("enter_conv.product", "down_blocks.0.2")
    levels = [(f"middle.{i}", f"mid_blocks.{i}") for i in range(config.estimator_mid)]
    for our_name, upstream_name in (*levels, ("leave", "up_blocks.0")):
        conversion.level(our_name, upstream_name, config.estimator_blocks)
        conversion.norm(f"{our_name}.resnet.first", f"{upstream_name}.0.block1")
        conversion.rename(f"{our_name}.resnet.skip", f"{upstream_name}.0.res_conv")
    conversion.rename("leave_conv.product", "up_blocks.0.2")
    conversion.norm("final", "final_block")
    conversion.rename("mel", "final_proj")
    return conversion.ours


@dataclass(frozen=True, slots=True)
class _Conversion:
    state: dict[str, Tensor]
    ours: dict[str, Tensor]

    def rename(
        self, our_name: str, upstream_name: str, kinds: Sequence[str] = ("weight", "bias")
    ) -> None:
        """Rename a layer; flatten a convolution's kernel into its input dimension."""
        for kind in kinds:
            tensor = self.state[f"{upstream_name}.{kind}"]
            if tensor.dim() == 3:  # [out, in, kernel] to [out, kernel * in]
                tensor = tensor.transpose(1, 2).flatten(1)
            self.ours[f"{our_name}.{kind}"] = tensor

    def norm(self, our_name: str, upstream_name: str) -> None:
        """Convert a ``ConvNorm``."""
        self.rename(f"{our_name}.conv.product", f"{upstream_name}.block.0")
        self.rename(f"{our_name}.norm", f"{upstream_name}.block.2")

    def split_inputs(self, mel: str, conditions: str, upstream_name: str) -> None:
        """Split a layer by its inputs: the noisy mel (with the bias) and the conditions."""
        weight = self.state[f"{upstream_name}.weight"].transpose(1, 2)
        columns = weight.split((MEL_BINS, CONDITIONS), dim=2)
        for our_name, part in zip((mel, conditions), columns, strict=True):
            self.ours[f"{our_name}.weight"] = part.flatten(1)
        self.rename(mel, upstream_name, ("bias",))

    def level(self, our_name: str, upstream_name: str, blocks: int) -> None:
        """Convert the time projection, second convolution and transformers of a level."""
        self.rename(f"{our_name}.resnet.time", f"{upstream_name}.0.mlp.1")
        self.norm(f"{our_name}.resnet.second", f"{upstream_name}.0.block2")
        for i in range(blocks):
            our_block, upstream_block = f"{our_name}.transformers.{i}", f"{upstream_name}.1.{i}"
            qkv = [self.state[f"{upstream_block}.attn1.to_{p}.weight"] for p in "qkv"]
            self.ours[f"{our_block}.qkv.weight"] = torch.cat(qkv)
            self.rename(f"{our_block}.out", f"{upstream_block}.attn1.to_out.0")
            self.rename(f"{our_block}.attention_norm", f"{upstream_block}.norm1")
            self.rename(f"{our_block}.ffn_norm", f"{upstream_block}.norm3")
            self.rename(f"{our_block}.up", f"{upstream_block}.ff.net.0.proj")
            self.rename(f"{our_block}.down", f"{upstream_block}.ff.net.2")
