"""Plan and checkpoint to stages: read, build, cast, store.

Knows files' tensors, upstream's names in them and the precision policy. Knows nothing of requests.
Everything is read as safetensors (conds.pt with ``weights_only``): a weights file cannot run code.
Real weights, made ones and a built-in model all come through here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from chatterbox_opt import blocked, estimator, flow, graphs, models, packing, t3, vocoder, voice
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.models import Checkpoint
from chatterbox_opt.offload import Residency
from chatterbox_opt.pipeline import Pipeline
from chatterbox_opt.plan import Plan
from chatterbox_opt.shapes import T3Shape

log = logging.getLogger(__name__)

# buffers that upstream computes and its loading forgives (S3Tokenizer.ignore_state_dict_missing)
FORGIVEN = ("tokenizer._mel_filters", "tokenizer.window")


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file below a prefix, read when asked for."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Open the file.

        Raises:
            WeightsError: missing, damaged or half downloaded.
        """
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is damaged or half downloaded ({error}): delete it and get it again"
            ) from error
        names = self._file.keys()
        if names and all(name.startswith("model.") for name in names):
            prefix = "model." + prefix  # a state dict saved with its wrapper
        self._names = {n[len(prefix) :]: n for n in names if n.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._names[name])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _SkipInit(TorchFunctionMode):
    """Leave new parameters as they are: all are overwritten from the file a moment later."""

    NAMES = frozenset(
        ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_")
    )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.NAMES:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Build modules without drawing initial values (2 s for upstream's flow, and a draw from the
    global generator that is none of ours)."""
    with _SkipInit():
        yield


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load ``tensors`` into ``module``; every parameter must be there, further ones are ignored
    (upstream loads S3Gen with ``strict=False``; we do not forgive a missing layer).

    Raises:
        WeightsError: a tensor is missing or of another shape.
    """
    try:
        missing = module.load_state_dict(dict(tensors), strict=False).missing_keys
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


def load_t3(checkpoint: Checkpoint, dtype: torch.dtype) -> t3.T3:
    """Read T3, strictly, in ``dtype``."""
    tensors = Tensors(checkpoint.path(models.T3))
    return t3_from_upstream(tensors, checkpoint.shapes.t3, dtype)


def load_flow(checkpoint: Checkpoint, dtype: torch.dtype) -> flow.Flow:
    """Read the flow in ``dtype``."""
    with uninitialised():
        stage = flow.Flow(checkpoint.shapes.flow)
    tensors = dict(Tensors(checkpoint.path(models.S3GEN), "flow."))
    prefix = "decoder.estimator."
    theirs = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        ours = estimator.from_upstream(theirs, checkpoint.shapes.flow)
    except KeyError as error:
        raise WeightsError(f"flow lacks {prefix}{error.args[0]}: wrong or old file?") from error
    fill(stage, tensors | {f"estimator.{n}": t for n, t in ours.items()}, "flow")
    if dtype != torch.float32:
        stage.set_precision(dtype)
    return stage.eval()


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


def load_pipeline(checkpoint: Checkpoint, plan: Plan) -> Pipeline:
    """Load the stages as the plan says: cast or store, place, compile."""
    t3_dtype, flow_dtype = (getattr(torch, plan.compute or name) for name in (plan.t3, plan.flow))
    stages = {
        "t3": load_t3(checkpoint, t3_dtype),
        "flow": load_flow(checkpoint, flow_dtype),
        "vocoder": load_vocoder(checkpoint),
    }
    if plan.device == "cpu" and t3_dtype == torch.bfloat16 and packing.supported():
        packing.pack(stages["t3"])
    if plan.device == "cpu" and not plan.compute and blocked.supported():
        blocked.block(stages["flow"])
    if plan.compute:
        store(stages["t3"], getattr(torch, plan.t3))
        store(stages["flow"], getattr(torch, plan.flow))
    device, offload = torch.device(plan.device), plan.offload == "stages"
    try:
        residency = Residency(stages, device, offload=offload)
    except torch.OutOfMemoryError:
        log.warning("the card has no room for all stages: they take turns on it")
        residency = Residency(stages, device, offload=True)
    step = None
    if plan.compile != "none":
        with residency("t3") as stage:
            step = _compiled(cast(t3.T3, stage), plan.compile)
    return Pipeline(load_tokenizer(checkpoint), residency, step)


def _compiled(model: t3.T3, backend: str) -> t3.Step | None:
    try:
        return graphs.compiled_step(model, backend)
    except graphs.FAILURES as error:
        log.warning("%s", graphs.failure(error))
        return None


def t3_upstream_names(shape: T3Shape) -> dict[str, tuple[str, ...]]:
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


def t3_from_upstream(state: Mapping[str, Tensor], shape: T3Shape, dtype: torch.dtype) -> t3.T3:
    """Build the decoder from upstream's state dict, as strictly as upstream loads it.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another shape than ``shape`` says.
    """
    with torch.device("meta"):
        model = t3.T3(shape)
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
    parameters = dict(model.named_parameters())
    loaded: dict[str, Tensor] = {}
    for mine, theirs in names.items():
        tensor = torch.cat([state[name].to(dtype) for name in theirs])
        if tensor.shape != parameters[mine].shape:
            raise WeightsError(
                f"t3 {theirs[0]} is {list(tensor.shape)} where {list(parameters[mine].shape)} is "
                "expected: the file and its config.json do not belong together"
            )
        loaded[mine] = tensor
    model.load_state_dict(loaded, assign=True)
    model.frequencies = t3.rope_frequencies(shape)  # a derived table, not in the file
    return model.eval().requires_grad_(False)
