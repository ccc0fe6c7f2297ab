"""Pico's model configuration and text tokenizer.

Responsible for sizes. Not responsible for training.

The same architecture as Chatterbox, every part narrower: 17.6 million parameters for 788.
"""

from __future__ import annotations

from typing import Any

from chatterbox_opt.checkpoints import random_tokenizers
from chatterbox_opt.config.model_config import (
    FlowConfig,
    ModelConfig,
    T3Config,
    VocoderConfig,
    VoiceEncoderConfig,
)

PICO_CONFIG = ModelConfig(
    t3=T3Config(
        layers=6,
        width=256,
        heads=4,
        ffn=704,
        text_vocab=256,
        speech_vocab=6563,
        text_positions=1026,
        speech_positions=1026,
        prompt_tokens=75,
        resampler_queries=8,
    ),
    flow=FlowConfig(
        encoder_width=160,
        encoder_heads=4,
        encoder_ffn=480,
        encoder_blocks=3,
        up_blocks=2,
        estimator_width=128,
        estimator_heads=4,
        estimator_head_dim=32,
        estimator_blocks=1,
        estimator_mid=4,
    ),
    vocoder=VocoderConfig(width=112, f0_width=64),
    voice=VoiceEncoderConfig(
        tokenizer_width=128,
        tokenizer_heads=2,
        tokenizer_layers=3,
        xvector_growth=8,
        xvector_bottleneck=2,
        xvector_init=32,
        lstm=128,
    ),
    needs_text_normalization=True,
)


def tokenizer() -> dict[str, Any]:
    """Build a character tokenizer, case-insensitive, in upstream's file format."""
    spec = random_tokenizers.characters(PICO_CONFIG.t3)
    spec["normalizer"] = {"type": "Lowercase"}
    return spec
