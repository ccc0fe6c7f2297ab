"""Converts upstream's T3 state dict to ours.

Responsible for tensor names, shapes and layouts. Not responsible for files or for what T3 computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.t3 import model as t3_model
from chatterbox_opt.runtime import malloc
from chatterbox_opt.utils.skip_init import skip_init


def t3_upstream_names(config: T3Config) -> dict[str, tuple[str, ...]]:
    """Our parameter names, each with the upstream tensors that are stacked into it, in order."""
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
    resampler_names = {"norm": "norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "proj_out"}
    for our_name, upstream_name in resampler_names.items():
        for kind in ("weight", "bias"):
            names[f"resampler.{our_name}.{kind}"] = (
                f"cond_enc.perceiver.attn.{upstream_name}.{kind}",
            )
    for i in range(config.layers):
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


UNUSED = ("tfmr.embed_tokens.weight", "text_head.weight")  # in the file, not used for inference


def t3_from_upstream(
    state: Mapping[str, Tensor], config: T3Config, dtype: torch.dtype, layout: str = ""
) -> t3_model.T3:
    """Build the decoder from upstream's state dict, as strictly as upstream loads it.

    One tensor at a time: with a ``layout`` only one unpacked matrix is in memory.

    Raises:
        WeightsError: a tensor is missing, unknown, without floating-point numbers, or of a shape
            that does not match ``config``.
    """
    model = _empty_t3(config)
    parameters = model.state_dict()
    names = t3_upstream_names(config)
    expected = {name for group in names.values() for name in group} | set(UNUSED)
    if missing := sorted(expected - set(state)):
        raise WeightsError(
            f"t3 is missing {len(missing)} tensors, first {missing[0]}: wrong or old file?"
        )
    if unknown := sorted(set(state) - expected):
        raise WeightsError(
            f"t3 has {len(unknown)} unknown tensors, first {unknown[0]}: wrong model?"
        )
    loaded: dict[str, Tensor] = {}
    for our_name, upstream_names in names.items():
        owner, _, name = our_name.removesuffix(".weight").rpartition(".")
        packs = layout and weight_layout.packable(model.get_submodule(our_name.rpartition(".")[0]))
        # quantize from the stored values, not from values already rounded to bf16/fp16
        parts = [state[n] for n in upstream_names]
        _check_parts(upstream_names, parts, parameters[our_name].shape)
        tensor = torch.cat([part if packs else part.to(dtype) for part in parts])
        del parts
        if packs:
            packed = weight_layout.make_layer(name, tensor, layout)
            setattr(model.get_submodule(owner), name, packed)
            del tensor
            malloc.trim()
        else:
            loaded[our_name] = tensor
    model.load_state_dict(loaded, assign=True)
    return model.eval().requires_grad_(False)


def _check_parts(names: Sequence[str], parts: Sequence[Tensor], stacked: torch.Size) -> None:
    """Check tensors that are stacked: all have the same share of the parameter's rows."""
    expected = [stacked[0] // len(parts), *stacked[1:]]
    for name, part in zip(names, parts, strict=True):
        if not part.is_floating_point() or part.itemsize == 1:  # float8 has lost too much
            raise WeightsError(f"t3 {name} is {part.dtype}: wrong or converted file? get it again")
        if list(part.shape) != expected:
            raise WeightsError(
                f"t3 {name} is {list(part.shape)} where {expected} is expected: "
                "the file and its config.json do not belong together"
            )


def t3_from_tensors(tensors: Mapping[str, Tensor], config: T3Config) -> t3_model.T3:
    """Build the decoder from the tensors of ``weight_layout.packed_tensors``."""
    model = _empty_t3(config)
    model.load_state_dict(weight_layout.restore_packed(model, tensors), assign=True)
    return model.eval().requires_grad_(False)


def _empty_t3(config: T3Config) -> t3_model.T3:
    with skip_init():  # its memory is never touched; the meta device would import sympy
        return t3_model.T3(config)
