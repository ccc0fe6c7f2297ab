"""Plan and checkpoint to stages: read, build, cast, store.

Knows files' tensors, upstream's names in them and the precision policy. Knows nothing of requests.
Everything is read as safetensors (conds.pt with ``weights_only``): a weights file cannot run code.
Real weights, made ones and a built-in model all come through here.
"""

from __future__ import annotations

import json
import logging

import torch
from tokenizers import Tokenizer
from torch import Tensor

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.reader import Tensors, fill
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.flow import convert as flow_convert
from chatterbox_opt.models.flow import model as flow_model
from chatterbox_opt.models.t3 import model as t3_model
from chatterbox_opt.models.t3.convert import t3_from_tensors, t3_from_upstream
from chatterbox_opt.models.vocoder import model as vocoder_model
from chatterbox_opt.utils.skip_init import skip_init

log = logging.getLogger(__name__)


def load_t3(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    layout: str = "",
    cache: WeightCache | None = None,
) -> t3_model.T3:
    """Read T3, strictly, in ``dtype``, its matrices laid out as weight_layout.py knows; converted weights
    come from the cache where it has them."""
    shape, built = checkpoint.config.t3, []

    def convert() -> dict[str, Tensor]:
        read = Tensors(checkpoint.path(registry.T3))
        built.append(t3_from_upstream(read, shape, dtype, layout))
        # without a cache nothing is written, and nothing has to be laid out for it
        return weight_layout.packed_tensors(built[0]) if cache and cache.directory else {}

    form = layout or _name(dtype)
    if layout == weight_layout.WEIGHT_ONLY:
        form = f"{layout}-{_name(dtype)}"  # beside its integers are tensors of that dtype
    tensors = _kept(cache).tensors(checkpoint, "t3", form, convert)
    return built[0] if built else t3_from_tensors(tensors, shape)


def load_flow(
    checkpoint: Checkpoint, dtype: torch.dtype, cache: WeightCache | None = None
) -> flow_model.Flow:
    """Read the flow in ``dtype``; converted weights come from the cache where it has them."""
    with skip_init():
        stage = flow_model.Flow(checkpoint.config.flow)

    def convert() -> dict[str, Tensor]:
        _read_flow(stage, checkpoint)
        _cast_flow(stage, dtype)
        return stage.state_dict()

    fill(
        stage, _kept(cache).tensors(checkpoint, "flow", _name(dtype), convert), "flow", assign=True
    )
    _cast_flow(stage, dtype)  # the tables that are in no state dict
    return stage.eval()


def _read_flow(stage: flow_model.Flow, checkpoint: Checkpoint) -> None:
    tensors = dict(Tensors(checkpoint.path(registry.S3GEN), "flow."))
    prefix = "decoder.estimator."
    theirs = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        ours = flow_convert.estimator_from_upstream(theirs, checkpoint.config.flow)
    except KeyError as error:
        raise WeightsError(f"flow lacks {prefix}{error.args[0]}: wrong or old file?") from error
    fill(stage, tensors | {f"estimator.{n}": t for n, t in ours.items()}, "flow")


def _cast_flow(stage: flow_model.Flow, dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        stage.set_precision(dtype)


def _kept(cache: WeightCache | None) -> WeightCache:
    return cache or WeightCache(None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_vocoder(checkpoint: Checkpoint) -> vocoder_model.Vocoder:
    """Read the vocoder in float32."""
    with skip_init():
        net = vocoder_model.build_hift(checkpoint.config.vocoder)
    fill(net, Tensors(checkpoint.path(registry.S3GEN), "mel2wav."), "vocoder")
    return vocoder_model.Vocoder(net).eval()


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Read the text tokenizer.

    Raises:
        WeightsError: damaged, or without the start and stop tokens.
    """
    path = checkpoint.path(registry.TOKENIZER)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} is damaged ({error}): delete it and get it again") from error
    if not isinstance(content, dict) or "type" not in (content.get("model") or {}):
        raise WeightsError(f"{path} is not a tokenizer: get it again")
    tokenizer = Tokenizer.from_str(text)
    if None in (tokenizer.token_to_id("[START]"), tokenizer.token_to_id("[STOP]")):
        raise WeightsError(f"{path} has no [START] or [STOP]: it is not Chatterbox's tokenizer")
    return tokenizer
