"""Dimensions and special tokens of a checkpoint.

Responsible for ``config.json``. Not responsible for the values it may have (limits.py), the other
files (checkpoints/registry.py) or tensors. Defaults are those of Chatterbox (English), from
upstream's t3_config.py, llama_configs.py, s3gen.py and voice_encoder/config.py. A checkpoint of
another size has a ``config.json`` with only the fields that differ, one object per part.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatterbox_opt.config import limits
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.utils.small_file import read_at_most

PARTS = ("t3", "flow", "vocoder", "voice")
CONFIG_FILE = "config.json"
MAX_BYTES = 1 << 20  # of it
_AGAIN = "make or copy it again"
# further keys of config.json -> fields that they set
FLAGS = {"made": "random_weights", "spelled": "needs_text_normalization"}
SAMPLE_RATE = 24_000  # Hz, of the output (upstream S3GEN_SR)
TOKEN_RATE = 25  # speech tokens per second
SPEECH_TOKENS = 6561  # 3^8 codes; ids from here on are start, stop and unused
MEL_BINS = 80
MEL_PER_TOKEN = 2  # mel frames (50 per second) per speech token
LLAMA, GPT2 = limits.CHOICES["backbone"]  # T3's transformer
ENGLISH, TURBO_ENGLISH, MULTILINGUAL_TEXT = limits.CHOICES["text"]


@dataclass(frozen=True, slots=True)
class T3Config:
    """Transformer with its conditioning (upstream Llama_520M, GPT2_medium and T3Config).

    Attributes:
        backbone: ``LLAMA`` has RoPE, position embeddings of text and speech, a perceiver and an
            emotion; ``GPT2`` has ``positions`` learned positions of all its inputs instead, and the
            voice's speech tokens as they are.
        positions: of GPT-2; 0 for Llama.
    """

    layers: int = 30
    width: int = 1024
    heads: int = 16
    ffn: int = 4096
    text_vocab: int = 704
    speech_vocab: int = 8194
    text_positions: int = 2050
    speech_positions: int = 4100
    prompt_tokens: int = 150
    speaker: int = 256
    resampler_queries: int = 32
    resampler_heads: int = 4
    start_text: int = 255
    stop_text: int = 0
    start_speech: int = 6561
    stop_speech: int = 6562
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_factor: float = 8.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_context: int = 8192
    backbone: str = LLAMA
    positions: int = 0

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def has_cfg(self) -> bool:
        """Whether a second row without the text can guide a sequence (``cfg_weight``)."""
        return self.backbone == LLAMA

    @property
    def missing_knobs(self) -> tuple[str, ...]:
        """Fields of ``Sampling`` without effect on this T3; others must be refused, not ignored."""
        return () if self.backbone == LLAMA else ("cfg_weight", "exaggeration", "min_p")

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """Fields of ``Sampling`` whose default is another one with this T3 (upstream
        tts_turbo.py; its limit counts from the second token)."""
        if self.backbone == LLAMA:
            return {}
        off = dict.fromkeys(self.missing_knobs, 0)
        return off | {"top_k": 1000, "top_p": 0.95, "max_tokens": 1001}

    @property
    def is_large(self) -> bool:
        """Whether it has more than about 100 million parameters, as Chatterbox's own."""
        return 12 * self.layers * self.width**2 > 100e6


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """Conformer encoder and conditional-flow-matching estimator (upstream s3gen.py).

    Attributes:
        mean_flow: the estimator gets both ends of a step and was distilled with guidance: two
            steps, no guidance rows.
    """

    encoder_width: int = 512
    encoder_heads: int = 8
    encoder_ffn: int = 2048
    encoder_blocks: int = 6
    up_blocks: int = 4
    estimator_width: int = 256
    estimator_heads: int = 8
    estimator_head_dim: int = 64
    estimator_blocks: int = 4
    estimator_mid: int = 12
    xvector: int = 192
    mean_flow: bool = False


@dataclass(frozen=True, slots=True)
class VocoderConfig:
    """HiFT generator and its F0 predictor (upstream s3gen.py)."""

    width: int = 512
    f0_width: int = 512


@dataclass(frozen=True, slots=True)
class VoiceEncoderConfig:
    """The three encoders of a reference recording."""

    tokenizer_width: int = 1280
    tokenizer_heads: int = 20
    tokenizer_layers: int = 6
    xvector_growth: int = 32
    xvector_bottleneck: int = 4
    xvector_init: int = 128
    lstm: int = 256


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Configuration of all stages of a checkpoint.

    Attributes:
        random_weights: the values are random (``models make``): real speed, but noise as output.
        needs_text_normalization: the model was trained on English words only, so numbers, dates,
            signs and abbreviations are written out first (text/english.py).
        text: whose normaliser and tokenizer it has: ``ENGLISH``, ``TURBO_ENGLISH`` or
            ``MULTILINGUAL_TEXT``.
    """

    t3: T3Config = field(default_factory=T3Config)
    flow: FlowConfig = field(default_factory=FlowConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    voice: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    random_weights: bool = False
    needs_text_normalization: bool = False
    text: str = ENGLISH


TURBO = ModelConfig(
    t3=T3Config(
        layers=24,
        text_vocab=50276,
        speech_vocab=6563,
        prompt_tokens=375,
        backbone=GPT2,
        positions=8196,
    ),
    flow=FlowConfig(mean_flow=True),
    text=TURBO_ENGLISH,
)
NANO = dataclasses.replace(
    TURBO, t3=dataclasses.replace(TURBO.t3, layers=12, width=768, heads=12, ffn=3072)
)
MULTILINGUAL = ModelConfig(t3=T3Config(text_vocab=2454), text=MULTILINGUAL_TEXT)
TINY = ModelConfig(
    t3=T3Config(layers=2, width=64, heads=4, ffn=128, speaker=64, text_positions=514),
    flow=FlowConfig(
        encoder_width=64,
        encoder_heads=2,
        encoder_ffn=96,
        encoder_blocks=1,
        up_blocks=1,
        estimator_width=32,
        estimator_heads=2,
        estimator_head_dim=16,
        estimator_blocks=1,
        estimator_mid=1,
    ),
    vocoder=VocoderConfig(width=32, f0_width=32),
    voice=VoiceEncoderConfig(
        tokenizer_width=64,
        tokenizer_heads=1,  # upstream's rotary table is for heads of 64
        tokenizer_layers=1,
        xvector_growth=4,
        xvector_bottleneck=2,
        xvector_init=16,
        lstm=32,
    ),
)


def read_config(directory: Path) -> ModelConfig:
    """Read ``config.json`` of a checkpoint directory; without one the defaults are returned.

    Raises:
        WeightsError: cannot be read, not JSON, an unknown part or field, or an impossible value.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        return ModelConfig()
    config = _read_json(path)
    known = (*PARTS, *FLAGS)
    if not isinstance(config, dict) or not set(config) & set(known):
        return ModelConfig()  # not our format: hub repositories and fine-tunes often have one
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name not in known:
            raise WeightsError(f"{path}: unknown part {name!r:.60}; known: {', '.join(known)}")
        if name not in FLAGS:
            values[name] = _read_part(path, name, value)
        elif isinstance(value, bool):
            values[FLAGS[name]] = value
        else:
            raise WeightsError(f"{path}: {name} must be true or false; {_AGAIN}")
    result = ModelConfig(**values)
    if reason := _contradiction(result):
        raise WeightsError(f"{path}: {reason}; {_AGAIN}")
    return result


def _contradiction(config: ModelConfig) -> str:
    """Two values that do not go together, in words, or ""."""
    voice = config.voice
    divided = {
        "t3.width": (config.t3.width, config.t3.heads),
        "t3.width (resampler)": (config.t3.width, config.t3.resampler_heads),
        "flow.encoder_width": (config.flow.encoder_width, config.flow.encoder_heads),
        "voice.tokenizer_width": (voice.tokenizer_width, voice.tokenizer_heads),
    }
    for name, (width, heads) in divided.items():
        if width % heads:
            return f"{name} is {width}, which {heads} heads do not divide"
    return _contradiction_in_t3(config.t3)


def _contradiction_in_t3(t3: T3Config) -> str:
    if t3.head_dim % 2:
        return f"t3.width / t3.heads is {t3.head_dim}, which is odd"
    if (t3.backbone == GPT2) != (t3.positions > 0):
        return f"t3.positions is {t3.positions} and t3.backbone is {t3.backbone}"
    if t3.rope_low == t3.rope_high:
        return "t3.rope_low and t3.rope_high are equal"
    if t3.speech_vocab <= SPEECH_TOKENS:
        return f"t3.speech_vocab is {t3.speech_vocab}, at most {SPEECH_TOKENS}"
    for name, vocabulary in (("text", t3.text_vocab), ("speech", t3.speech_vocab)):
        for token in (f"start_{name}", f"stop_{name}"):
            if (id := getattr(t3, token)) >= vocabulary:
                return f"t3.{token} is {id}, beyond t3.{name}_vocab {vocabulary}"
    return ""


def _read_json(path: Path) -> Any:
    try:
        content = read_at_most(path, MAX_BYTES)
        if content is None:
            raise WeightsError(f"{path} has more than {MAX_BYTES >> 20} MiB; {_AGAIN}")
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}): check the permissions, or {_AGAIN}"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is not valid JSON ({reason}); {_AGAIN}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in result if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r:.60} is there more than once")
    return result


def _read_part(path: Path, name: str, values: object) -> Any:
    part = getattr(ModelConfig(), name)
    known = [f.name for f in dataclasses.fields(part)]
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: {name} must map names to numbers; {_AGAIN}")
    if unknown := sorted(set(values) - set(known)):
        raise WeightsError(f"{path}: {name} has no {unknown[0]!r:.60}; known: {', '.join(known)}")
    for key, value in values.items():
        if reason := limits.problem(key, value, getattr(part, key)):
            shown = f"{json.dumps(value):.60}"
            raise WeightsError(f"{path}: {name}.{key} is {shown}; {reason}; {_AGAIN}")
    return type(part)(**values)


def write_config(directory: Path, config: ModelConfig) -> None:
    """Write the fields of ``config`` that differ from the defaults to ``config.json``."""
    defaults = ModelConfig()
    written: dict[str, Any] = {key: True for key, name in FLAGS.items() if getattr(config, name)}
    for part in PARTS:
        values, default = (dataclasses.asdict(getattr(c, part)) for c in (config, defaults))
        if differing := {k: v for k, v in values.items() if v != default[k]}:
            written[part] = differing
    if written:
        (directory / CONFIG_FILE).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
