"""Dimensions and special tokens of a checkpoint.

Responsible for these values. Not responsible for their file (config_file.py), for the values it may
have (limits.py), the other files (checkpoints/registry.py) or tensors. Defaults are those of
Chatterbox (English), from upstream's t3_config.py, llama_configs.py, s3gen.py and
voice_encoder/config.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from chatterbox_opt.config import limits
from chatterbox_opt.config.reference import ReferenceConfig, turbo_reference

SAMPLE_RATE = 24_000  # Hz, of the output (upstream S3GEN_SR)
TOKEN_RATE = 25  # speech tokens per second
SPEECH_TOKENS = 6561  # 3^8 codes; ids from here on are start, stop and unused
MEL_BINS = 80
MEL_PER_TOKEN = 2  # mel frames (50 per second) per speech token
CFM_STEPS, MEAN_FLOW_STEPS = 10, 2  # Euler steps (upstream s3gen.py, flow_inference)
SILENCE = 4299  # a speech token (upstream S3GEN_SIL)
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
    def rows_per_seq(self) -> int:
        """Rows of a sequence, at most: one more where there is guidance."""
        return 2 if self.has_cfg else 1

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

    @property
    def steps(self) -> int:
        """Euler steps where a request has no number of its own."""
        return MEAN_FLOW_STEPS if self.mean_flow else CFM_STEPS


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
            signs and abbreviations are written out first (text/english/normalizer.py).
        text: whose normaliser and tokenizer it has: ``ENGLISH``, ``TURBO_ENGLISH`` or
            ``MULTILINGUAL_TEXT``.
        languages: codes of those that it was trained for; () are all of its kind of text
            (text/languages.py).
    """

    t3: T3Config = field(default_factory=T3Config)
    flow: FlowConfig = field(default_factory=FlowConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    voice: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    random_weights: bool = False
    needs_text_normalization: bool = False
    text: str = ENGLISH
    languages: tuple[str, ...] = ()

    @property
    def reference(self) -> ReferenceConfig:
        """How a recording becomes a voice."""
        return turbo_reference() if self.t3.backbone == GPT2 else ReferenceConfig()

    @property
    def missing_knobs(self) -> tuple[str, ...]:
        """Fields of ``Sampling`` that it does not have; to set one is an error."""
        return self.t3.missing_knobs

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """Fields of ``Sampling`` whose default is another one with this model."""
        own = self.t3.sampling_defaults
        if self.text == MULTILINGUAL_TEXT:
            own |= {"repetition_penalty": 2.0}  # upstream mtl_tts.py
        return own | {"cfm_steps": self.flow.steps} if self.flow.mean_flow else own

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...]:
        """Layer and head of T3's attention that follow the text; () if none are known.

        Of Llama the heads that upstream's alignment_stream_analyzer.py watches, of the built-in
        model the one whose attention was guided (training/pico/train_t3.py).
        """
        if self.t3.backbone == GPT2:
            return ()
        guided = self.needs_text_normalization
        heads = ((1, 0),) if guided else ((9, 2), (12, 15), (13, 11))
        return heads if max(layer for layer, _ in heads) < self.t3.layers else ()

    @property
    def silence(self) -> tuple[int, ...]:
        """Speech tokens that the flow gets after those of T3 (upstream tts_turbo.py, generate)."""
        return (SILENCE,) * 3 if self.t3.backbone == GPT2 else ()


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
