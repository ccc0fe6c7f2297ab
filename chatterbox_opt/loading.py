"""Plan and checkpoint to stages: read, build, cast, store.

Knows files' tensors, upstream's names in them and the precision policy. Knows nothing of requests.
Everything is read as safetensors (conds.pt with ``weights_only``): a weights file cannot run code.
Real weights, made ones and a built-in model all come through here.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox_opt import (
    blocked,
    estimator,
    estimator_weights,
    flow,
    graphs,
    heap,
    models,
    packing,
    quantised,
    t3,
    vocoder,
    voice,
)
from chatterbox_opt.beside import Beside, Here
from chatterbox_opt.blank import uninitialised
from chatterbox_opt.card import FAILURES, CudaRecorder, Side
from chatterbox_opt.decoding import Eager, Forward, Way
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.models import Checkpoint
from chatterbox_opt.offload import NONE, STAGES, Residency
from chatterbox_opt.pipeline import Pipeline
from chatterbox_opt.plan import BESIDE, Plan
from chatterbox_opt.t3_weights import t3_from_upstream, t3_of
from chatterbox_opt.weight_cache import WeightCache

log = logging.getLogger(__name__)

MAPPED = 32 << 20  # bytes read through one mapping of a weights file
GROUP = 8  # utterances that flow and vocoder of a card work at together
# buffers that upstream computes and its loading forgives (S3Tokenizer.ignore_state_dict_missing)
FORGIVEN = ("tokenizer._mel_filters", "tokenizer.window")


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file below a prefix, read when asked for.

    The file is mapped anew now and then: pages that were read count as this process's memory until
    the mapping ends, and one mapping for all would hold the whole file by the last tensor. Not for
    each tensor, for its table of contents is read every time.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Open the file.

        Raises:
            WeightsError: missing, damaged or half downloaded.
        """
        self._path = path
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is damaged or half downloaded ({error}): delete it and get it again"
            ) from error
        if names and all(name.startswith("model.") for name in names):
            prefix = "model." + prefix  # a state dict saved with its wrapper
        self._names = {n[len(prefix) :]: n for n in names if n.startswith(prefix)}
        self._file: Any = None
        self._read = 0  # bytes, through the mapping that is open

    def __getitem__(self, name: str) -> Tensor:
        if self._file is None or self._read > MAPPED:
            self._file, self._read = safe_open(self._path, framework="pt"), 0
        tensor: Tensor = self._file.get_tensor(self._names[name])
        self._read += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False
) -> None:
    """Load ``tensors`` into ``module``; every parameter must be there, further ones are ignored
    (upstream loads S3Gen with ``strict=False``; we do not forgive a missing layer).

    Args:
        assign: take the tensors themselves, with their dtype, in place of copies.

    Raises:
        WeightsError: a tensor is missing or of another shape.
    """
    try:
        loaded = module.load_state_dict(dict(tensors), strict=False, assign=assign)
        missing = loaded.missing_keys
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{what} does not fit ({reason}): the file and its config.json do not belong together"
        ) from error
    if missing := [name for name in missing if name not in FORGIVEN]:
        raise WeightsError(
            f"{what} lacks {len(missing)} tensors, first {missing[0]}: wrong or old file?"
        )
    module.eval().requires_grad_(False)


def load_t3(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    layout: str = "",
    cache: WeightCache | None = None,
) -> t3.T3:
    """Read T3, strictly, in ``dtype``, its matrices laid out as packing.py knows; converted weights
    come from the cache where it has them."""
    shape, built = checkpoint.shapes.t3, []

    def convert() -> dict[str, Tensor]:
        read = Tensors(checkpoint.path(models.T3))
        built.append(t3_from_upstream(read, shape, dtype, layout))
        # without a cache nothing is written, and nothing has to be laid out for it
        return packing.tensors(built[0]) if cache and cache.directory else {}

    form = layout or _name(dtype)
    if layout == packing.WEIGHT_ONLY:
        form = f"{layout}-{_name(dtype)}"  # beside its integers are tensors of that dtype
    tensors = _kept(cache).tensors(checkpoint, "t3", form, convert)
    return built[0] if built else t3_of(tensors, shape)


def load_flow(
    checkpoint: Checkpoint, dtype: torch.dtype, cache: WeightCache | None = None
) -> flow.Flow:
    """Read the flow in ``dtype``; converted weights come from the cache where it has them."""
    with uninitialised():
        stage = flow.Flow(checkpoint.shapes.flow)

    def convert() -> dict[str, Tensor]:
        _read_flow(stage, checkpoint)
        _cast_flow(stage, dtype)
        return stage.state_dict()

    fill(
        stage, _kept(cache).tensors(checkpoint, "flow", _name(dtype), convert), "flow", assign=True
    )
    _cast_flow(stage, dtype)  # the tables that are in no state dict
    return stage.eval()


def _read_flow(stage: flow.Flow, checkpoint: Checkpoint) -> None:
    tensors = dict(Tensors(checkpoint.path(models.S3GEN), "flow."))
    prefix = "decoder.estimator."
    theirs = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        ours = estimator_weights.from_upstream(theirs, checkpoint.shapes.flow)
    except KeyError as error:
        raise WeightsError(f"flow lacks {prefix}{error.args[0]}: wrong or old file?") from error
    fill(stage, tensors | {f"estimator.{n}": t for n, t in ours.items()}, "flow")


def _cast_flow(stage: flow.Flow, dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        stage.set_precision(dtype)


def _kept(cache: WeightCache | None) -> WeightCache:
    return cache or WeightCache(None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_vocoder(checkpoint: Checkpoint) -> vocoder.Vocoder:
    """Read the vocoder in float32."""
    with uninitialised():
        net = vocoder.build(checkpoint.shapes.vocoder)
    fill(net, Tensors(checkpoint.path(models.S3GEN), "mel2wav."), "vocoder")
    return vocoder.Vocoder(net).eval()


def load_encoders(checkpoint: Checkpoint) -> voice.Encoders:
    """Read the encoders of a new voice in float32 (about 0.5 GB at the true shapes)."""
    shapes = checkpoint.shapes
    with uninitialised():
        encoders = voice.Encoders(shapes.voice, shapes.t3.speaker)
    s3gen = Tensors(checkpoint.path(models.S3GEN))
    reader = Tensors(checkpoint.path(models.VOICE_ENCODER))
    known = set(encoders.voice_encoder.state_dict())
    if unknown := sorted(set(reader) - known):
        raise WeightsError(f"the voice encoder has an unknown tensor {unknown[0]}: wrong file?")
    parts = ("tokenizer.", "speaker_encoder.")
    named = {name: s3gen[name] for name in s3gen if name.startswith(parts)}
    fill(encoders, named | {f"voice_encoder.{n}": reader[n] for n in reader}, "the voice encoders")
    return encoders


def load_voice(path: Path) -> voice.Voice:
    """Read a named voice that comes with a checkpoint; stored in half precision, used in float32.

    Raises:
        WeightsError: damaged.
    """
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in Tensors(path).items()}
    try:
        return voice.from_tensors(tensors)
    except KeyError as error:
        raise WeightsError(f"{path} is not a voice ({error}): get it again") from error


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Read the text tokenizer.

    Raises:
        WeightsError: damaged, or without the start and stop tokens.
    """
    path = checkpoint.path(models.TOKENIZER)
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


class _Widen(nn.Module):
    """A stored weight, widened each time it is used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, stored: Tensor) -> Tensor:
        return stored.to(self.dtype)


def store(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep matrices in ``dtype`` while arithmetic stays in their present one.

    For cards whose half-precision arithmetic is slow or unsafe (GTX 10xx: 1/64 rate): half of the
    memory, float32 results from rounded weights.
    """
    for part in list(module.modules()):
        if isinstance(part, (nn.Linear, nn.Conv1d)) and not parametrize.is_parametrized(part):
            wide = part.weight.dtype
            part.weight.data = part.weight.data.to(dtype)
            parametrize.register_parametrization(part, "weight", _Widen(wide), unsafe=True)


def load_pipeline(checkpoint: Checkpoint, plan: Plan, cache: WeightCache | None = None) -> Pipeline:
    """Load the stages as the plan says: cast or store, place, compile."""
    t3_dtype = packing.arithmetic(plan.compute or plan.t3)
    integers = plan.flow == "int8"  # its values are bfloat16
    flow_dtype = packing.arithmetic(plan.compute or ("bfloat16" if integers else plan.flow))
    layout = packing.layout(plan.compute or plan.t3, plan.device)
    if layout == packing.WEIGHT_ONLY:
        t3_dtype = flow_dtype  # the values between its matrices are the card's halves
    # the flow is read whole before it is narrowed: first, while there is nothing beside it
    flow_stage, hift = load_flow(checkpoint, flow_dtype, cache), load_vocoder(checkpoint)
    heap.trim()
    stages = {
        "t3": load_t3(checkpoint, t3_dtype, layout, cache),
        "flow": flow_stage,
        "vocoder": hift,
    }
    if integers:  # of bfloat16 numbers: their rounding is a thirtieth of that to int8
        quantised.round_transformers(flow_stage, estimator.Transformer)
    if plan.device == "cpu" and not plan.compute and blocked.supported():
        blocked.block(stages["flow"])
        # narrower ones have layouts of their own, and a compiler wants plain layers
        if (plan.t3, plan.compile) == ("float32", "none"):
            blocked.block(stages["t3"])
    if "flow" in plan.fused:
        flow_stage.estimator.fuse()
    if plan.compute:
        store(stages["t3"], getattr(torch, plan.t3))
        store(stages["flow"], getattr(torch, plan.flow))
    device = torch.device(plan.device)
    if plan.device == "cpu":
        heap.trim()
        heap.keep()
    try:
        residency = Residency(stages, device, offload=plan.offload)
    except torch.OutOfMemoryError:
        log.warning("the card has no room for all stages: they take turns on it")
        residency = Residency(stages, device, offload=STAGES)
    group = 1 if plan.device == "cpu" else GROUP
    beside = plan.sound == BESIDE and residency.offload == NONE
    sound = Beside(Side(device)) if beside else Here()
    way = _way(plan, residency, beside=beside)
    return Pipeline(load_tokenizer(checkpoint), residency, way, group, sound)


def _way(plan: Plan, residency: Residency, *, beside: bool) -> Way:
    """How T3's steps are run; on a card, flow and vocoder are recorded too when T3 is.

    Args:
        beside: the flow may work while T3 does.
    """
    forward, compile = None, plan.compile
    if compile == "inductor":
        with residency("t3") as stage:
            forward = _compiled(cast(t3.T3, stage))
    fused = "t3" in plan.fused and forward is None  # inductor makes kernels of its own
    kv_cache = torch.int8 if plan.kv_cache == "int8" else None
    if compile == "none" or residency.device.type != "cuda":
        return Eager(forward, fused=fused, kv_cache=kv_cache)
    # captures collect nothing (``card.uncollected``), so what cycles of old hold of the GPU would
    # lie beside the recordings' memory. Once, for where there are many objects it takes long
    gc.collect()
    record = CudaRecorder(residency.device)
    solver = cast(flow.Flow, residency.module("flow"))
    apart = record.apart() if beside else record  # one pool of memory is enough for turns
    solver.through = graphs.Replayed(apart, solver, "the flow")
    hift = cast(vocoder.Vocoder, residency.module("vocoder"))
    hift.through = graphs.Replayed(apart, hift, "the vocoder")
    return graphs.Captured(record, forward, fused=fused, kv_cache=kv_cache)


def _compiled(model: t3.T3) -> Forward | None:
    try:
        return graphs.compiled_step(model)
    except FAILURES as error:
        log.warning("%s", graphs.failure(error))
        return None
