"""Converts upstream's T3 state dict to ours.

Responsible for tensor names, shapes and layouts. Not responsible for files or for what T3 computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import GPT2, T3Config
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.t3.gpt2 import Gpt2T3
from chatterbox_opt.models.t3.llama import LlamaT3
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.runtime import malloc
from chatterbox_opt.utils.skip_init import skip_init

_KINDS = ("weight", "bias")


def make_t3(config: T3Config) -> T3:
    """A T3 of the backbone in ``config``, with initial values."""
    return Gpt2T3(config) if config.backbone == GPT2 else LlamaT3(config)


def t3_upstream_names(config: T3Config) -> dict[str, tuple[str, ...]]:
    """Our parameter names, each with the upstream tensors that are stacked into it, in order."""
    names = {
        "text_emb.weight": ("text_emb.weight",),
        "speech_emb.weight": ("speech_emb.weight",),
        "speaker.weight": ("cond_enc.spkr_enc.weight",),
        "speaker.bias": ("cond_enc.spkr_enc.bias",),
        "head.weight": ("speech_head.weight",),
    }
    return names | (_gpt2_names(config) if config.backbone == GPT2 else _llama_names(config))


def _llama_names(config: T3Config) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {
        "text_pos.weight": ("text_pos_emb.emb.weight",),
        "speech_pos.weight": ("speech_pos_emb.emb.weight",),
        "emotion.weight": ("cond_enc.emotion_adv_fc.weight",),
        "resampler.queries": ("cond_enc.perceiver.pre_attention_query",),
        "norm.weight": ("tfmr.norm.weight",),
    }
    resampler_names = {"norm": "norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "proj_out"}
    for our_name, upstream_name in resampler_names.items():
        for kind in _KINDS:
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


# GPT-2's are Conv1D modules (transformers), whose matrices are [in, out]
_GPT2_MATRICES = {
    "qkv": "attn.c_attn",
    "out": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_GPT2_NORMS = {"attention_norm": "ln_1", "ffn_norm": "ln_2"}


def _gpt2_names(config: T3Config) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {
        "positions.weight": ("tfmr.wpe.weight",),
        "head.bias": ("speech_head.bias",),
    }
    for kind in _KINDS:
        names[f"norm.{kind}"] = (f"tfmr.ln_f.{kind}",)
        for i in range(config.layers):
            for ours, upstream in (_GPT2_NORMS | _GPT2_MATRICES).items():
                names[f"blocks.{i}.{ours}.{kind}"] = (f"tfmr.h.{i}.{upstream}.{kind}",)
    return names


def unused_names(config: T3Config) -> set[str]:
    """Names that are in upstream's file and not used for inference."""
    table = "tfmr.wte.weight" if config.backbone == GPT2 else "tfmr.embed_tokens.weight"
    return {table, "text_head.weight"}


def t3_from_upstream(
    state: Mapping[str, Tensor], config: T3Config, dtype: torch.dtype, layout: str = ""
) -> T3:
    """Build the decoder from upstream's state dict, as strictly as upstream loads it.

    One tensor at a time: with a ``layout`` only one unpacked matrix is in memory.

    Raises:
        WeightsError: a tensor is missing, unknown, without floating-point numbers, or of a shape
            that does not match ``config``.
    """
    model = _empty_t3(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names, matrices = t3_upstream_names(config), set(model.matrices)
    _check_names(set(state), {n for group in names.values() for n in group} | unused_names(config))

    def read(our_name: str, dtype: torch.dtype | None) -> Tensor:
        path, kind = our_name.rpartition(".")[::2]
        conv1d = config.backbone == GPT2 and path != "head" and path in matrices
        parts = [state[name] for name in names[our_name]]
        transposed = conv1d and kind == "weight"
        _check_parts(names[our_name], parts, shapes[our_name], transposed=transposed)
        if transposed:
            parts = [part.t().contiguous() for part in parts]
        return torch.cat([part if dtype is None else part.to(dtype) for part in parts])

    loaded: dict[str, Tensor] = {}
    for our_name in names:
        path, kind = our_name.rpartition(".")[::2]
        if not (layout and path in matrices):
            loaded[our_name] = read(our_name, dtype)
        elif kind == "weight":
            owner, _, name = path.rpartition(".")
            # quantize from the stored values, not from values already rounded to bf16/fp16
            matrix, bias = read(our_name, None), f"{path}.bias"
            packed = weight_layout.make_layer(
                name, matrix, layout, read(bias, dtype) if bias in names else None
            )
            setattr(model.get_submodule(owner), name, packed)
            del matrix
            malloc.trim()
    model.load_state_dict(loaded, assign=True)
    return model.eval().requires_grad_(False)


def _check_names(names: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - names):
        raise WeightsError(
            f"t3 is missing {len(missing)} tensors, first {missing[0]}: wrong or old file?"
        )
    if unknown := sorted(names - expected):
        raise WeightsError(
            f"t3 has {len(unknown)} unknown tensors, first {unknown[0]}: wrong model?"
        )


def _check_parts(
    names: Sequence[str], parts: Sequence[Tensor], stacked: torch.Size, *, transposed: bool
) -> None:
    """Check tensors that are stacked: all have the same share of the parameter's rows."""
    expected = [stacked[0] // len(parts), *stacked[1:]]
    for name, part in zip(names, parts, strict=True):
        if not part.is_floating_point() or part.itemsize == 1:  # float8 has lost too much
            raise WeightsError(f"t3 {name} is {part.dtype}: wrong or converted file? get it again")
        shape = expected[::-1] if transposed else expected
        if list(part.shape) != shape:
            raise WeightsError(
                f"t3 {name} is {list(part.shape)} where {shape} is expected: "
                "the file and its config.json do not belong together"
            )


def t3_from_tensors(tensors: Mapping[str, Tensor], config: T3Config) -> T3:
    """Build the decoder from the tensors of ``weight_layout.packed_tensors``."""
    model = _empty_t3(config)
    model.load_state_dict(weight_layout.restore_packed(model, tensors), assign=True)
    return model.eval().requires_grad_(False)


def _empty_t3(config: T3Config) -> T3:
    with skip_init():  # its memory is never touched; the meta device would import sympy
        return make_t3(config)
