"""Loads the stages of a checkpoint: read the files, convert upstream's names, cast, cache.

Responsible for the tensors in the files and the dtype of every stage. Not responsible for choosing
dtypes (config/plan.py) or for requests. Weights are read as safetensors (``.pt`` files with
``weights_only``), so a weights file cannot run code. Real, random and built-in models all use this
module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chatterbox_opt.checkpoints.families import CANGJIE
from chatterbox_opt.checkpoints.reader import Tensors, fill
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.errors import WeightsError, first_line
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.flow import convert as flow_convert
from chatterbox_opt.models.flow import model as flow_model
from chatterbox_opt.models.t3 import model as t3_model
from chatterbox_opt.models.t3.convert import t3_from_tensors, t3_from_upstream
from chatterbox_opt.models.vocoder import model as vocoder_model
from chatterbox_opt.text.tokenizers import loading as tokenizers
from chatterbox_opt.text.tokenizers.loading import TextTokenizer
from chatterbox_opt.utils.damage import DAMAGE_ERRORS
from chatterbox_opt.utils.skip_init import skip_init


def load_t3(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    layout: str = "",
    cache: WeightCache | None = None,
) -> t3_model.T3:
    """Load T3 in ``dtype``; every tensor must be known and present.

    Args:
        layout: of the matrices, see layers/weight_layout.py; "" leaves them plain.
        cache: used for converted weights, if it has a directory.
    """
    config, converted = checkpoint.config.t3, []
    cache = cache or WeightCache(None)

    def convert() -> dict[str, Tensor]:
        upstream = Tensors(checkpoint.t3)
        converted.append(t3_from_upstream(upstream, config, dtype, layout))
        # packing for the file is only needed if a file is written
        return weight_layout.packed_tensors(converted[0]) if cache.directory else {}

    variant = layout or _dtype_name(dtype)
    if layout == weight_layout.WEIGHT_ONLY:
        variant = f"{layout}-{_dtype_name(dtype)}"  # its other tensors have that dtype
    tensors = cache.tensors(checkpoint, "t3", variant, convert)
    if converted:
        return converted[0]
    try:
        scales = (torch.bfloat16,) if layout else ()  # int4's; int8's are float32
        _check_dtypes(tensors, dtype, torch.float32, *scales)
        return t3_from_tensors(tensors, config)
    except (WeightsError, *DAMAGE_ERRORS) as error:
        cache.discard(checkpoint, "t3", variant, first_line(error))
        convert()  # the next start caches them
        return converted[0]


def load_flow(
    checkpoint: Checkpoint, dtype: torch.dtype, cache: WeightCache | None = None
) -> flow_model.Flow:
    """Load the flow in ``dtype``; ``cache`` is used for converted weights."""
    cache, variant, converted = cache or WeightCache(None), _dtype_name(dtype), []

    def convert() -> dict[str, Tensor]:
        converted.append(_empty_flow(checkpoint))
        _read_flow(converted[0], checkpoint)
        _cast_flow(converted[0], dtype)
        return converted[0].state_dict()

    tensors = cache.tensors(checkpoint, "flow", variant, convert)
    stage = converted[0] if converted else _empty_flow(checkpoint)
    try:
        _check_dtypes(tensors, dtype, torch.float32)
        fill(stage, tensors, "flow", assign=True)
    except (WeightsError, *DAMAGE_ERRORS) as error:
        if converted:
            raise
        cache.discard(checkpoint, "flow", variant, first_line(error))
        tensors, stage = convert(), converted[0]
        fill(stage, tensors, "flow", assign=True)
    _cast_flow(stage, dtype)  # buffers that are not in the state dict
    return stage.eval()


def _empty_flow(checkpoint: Checkpoint) -> flow_model.Flow:
    with skip_init():
        return flow_model.Flow(checkpoint.config.flow)


def _read_flow(stage: flow_model.Flow, checkpoint: Checkpoint) -> None:
    tensors = dict(Tensors(checkpoint.s3gen, "flow."))
    prefix = "decoder.estimator."
    upstream = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        estimator = flow_convert.estimator_from_upstream(upstream, checkpoint.config.flow)
    except KeyError as error:
        raise WeightsError(f"flow lacks {prefix}{error.args[0]}: wrong or old file?") from error
    except (RuntimeError, IndexError) as error:
        raise WeightsError(
            f"flow does not fit ({first_line(error)}): "
            "the file and its config.json do not belong together"
        ) from error
    fill(stage, tensors | {f"estimator.{n}": t for n, t in estimator.items()}, "flow")


def _cast_flow(stage: flow_model.Flow, dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        stage.set_precision(dtype)


def _check_dtypes(tensors: Mapping[str, Tensor], *floating: torch.dtype) -> None:
    """Check the floating-point tensors of a cache.

    Raises:
        TypeError: another dtype.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype not in floating:
            raise TypeError(f"{name} is {tensor.dtype}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_vocoder(checkpoint: Checkpoint) -> vocoder_model.Vocoder:
    """Load the vocoder in float32."""
    with skip_init():
        net = vocoder_model.build_hift(checkpoint.config.vocoder)
    fill(net, Tensors(checkpoint.s3gen, "mel2wav."), "vocoder")
    return vocoder_model.Vocoder(net).eval()


def load_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """Load the text tokenizer. Raises as ``text.tokenizers.loading.load``."""
    languages = checkpoint.path(CANGJIE).parent
    return tokenizers.load(checkpoint.directory, checkpoint.config.text, languages)
