"""T3's weights: upstream's names and ours, and how one becomes the other.

Knows tensors' names, shapes and layouts. Knows nothing of files or of what T3 computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.t3 import model as t3_model
from chatterbox_opt.runtime import malloc
from chatterbox_opt.utils.skip_init import skip_init


def t3_upstream_names(shape: T3Config) -> dict[str, tuple[str, ...]]:
    """Our parameter names, each with the upstream names whose rows it stacks, in order."""
    names: dict[str, tuple[str, ...]] = {
        "text_emb.weight": ("text_emb.weight",),
        "text_pos.weight": ("text_pos_emb.emb.weight",),
        "speech_emb.weight": ("speech_emb.weight",),
        "speech_pos.weight": ("speech_pos_emb.emb.weight",),
        "speaker.weight": ("cond_enc.spkr_enc.weight",),
        "speaker.bias": ("cond_enc.spkr_enc.bias",),
        "emotion.weight": ("cond_enc.emotion_adv_fc.weight",),
        "resampler.queries": ("cond_enc.perceiver.pre_attention_query",),
        "norm.weight": ("tfmr.norm.weight",),
        "head.weight": ("speech_head.weight",),
    }
    ours = {"norm": "norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "proj_out"}
    for mine, theirs in ours.items():
        for kind in ("weight", "bias"):
            names[f"resampler.{mine}.{kind}"] = (f"cond_enc.perceiver.attn.{theirs}.{kind}",)
    for i in range(shape.layers):
        layer = f"tfmr.layers.{i}."
        attention = [f"{layer}self_attn.{p}_proj.weight" for p in ("q", "k", "v", "o")]
        ffn = [f"{layer}mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
        names |= {
            f"blocks.{i}.attention_norm.weight": (f"{layer}input_layernorm.weight",),
            f"blocks.{i}.qkv.weight": tuple(attention[:3]),
            f"blocks.{i}.out.weight": (attention[3],),
            f"blocks.{i}.ffn_norm.weight": (f"{layer}post_attention_layernorm.weight",),
            f"blocks.{i}.gate_up.weight": tuple(ffn[:2]),
            f"blocks.{i}.down.weight": (ffn[2],),
        }
    return names


UNUSED = ("tfmr.embed_tokens.weight", "text_head.weight")  # in the file, never read when speaking


def t3_from_upstream(
    state: Mapping[str, Tensor], shape: T3Config, dtype: torch.dtype, layout: str = ""
) -> t3_model.T3:
    """Build the decoder from upstream's state dict, as strictly as upstream loads it.

    One tensor at a time: with a ``layout`` no more than one matrix is ever there as a plain one.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another shape than ``shape`` says.
    """
    model = _empty_t3(shape)
    parameters = model.state_dict()
    names = t3_upstream_names(shape)
    expected = {name for group in names.values() for name in group} | set(UNUSED)
    if missing := sorted(expected - set(state)):
        raise WeightsError(
            f"t3 lacks {len(missing)} tensors, first {missing[0]}: wrong or old file?"
        )
    if unknown := sorted(set(state) - expected):
        raise WeightsError(
            f"t3 has {len(unknown)} unknown tensors, first {unknown[0]}: wrong model?"
        )
    loaded: dict[str, Tensor] = {}
    for mine, theirs in names.items():
        owner, _, name = mine.removesuffix(".weight").rpartition(".")
        packs = layout and weight_layout.packable(model.get_submodule(mine.rpartition(".")[0]))
        # what is rounded to integers is not rounded to a half before
        tensor = torch.cat([state[n] if packs else state[n].to(dtype) for n in theirs])
        if tensor.shape != parameters[mine].shape:
            raise WeightsError(
                f"t3 {theirs[0]} is {list(tensor.shape)} where {list(parameters[mine].shape)} is "
                "expected: the file and its config.json do not belong together"
            )
        if packs:
            packed = weight_layout.make_layer(name, tensor, layout)
            setattr(model.get_submodule(owner), name, packed)
            del tensor
            malloc.trim()
        else:
            loaded[mine] = tensor
    model.load_state_dict(loaded, assign=True)
    return model.eval().requires_grad_(False)


def t3_of(tensors: Mapping[str, Tensor], shape: T3Config) -> t3_model.T3:
    """Build the decoder from what ``packing.tensors`` gave of it."""
    model = _empty_t3(shape)
    model.load_state_dict(weight_layout.restore_packed(model, tensors), assign=True)
    return model.eval().requires_grad_(False)


def _empty_t3(shape: T3Config) -> t3_model.T3:
    with skip_init():  # its pages are never touched; the meta device would import sympy
        return t3_model.T3(shape)
