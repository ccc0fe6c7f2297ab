"""Which values a ``config.json`` may have: types, ranges, and what must fit together.

Responsible for refusing a config before anything of the sizes in it is allocated. Not responsible
for reading it (model_config.py) or for the shapes of single tensors (checkpoints/reader.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatterbox_opt.config.model_config import ModelConfig, T3Config

COUNT, WIDTH, ROWS = 256, 16_384, 1 << 20  # largest number of layers, of columns, of vectors
_COUNTS = (
    *("layers", "heads", "resampler_heads", "encoder_heads", "encoder_blocks", "up_blocks"),
    *("estimator_heads", "estimator_blocks", "estimator_mid"),
    *("tokenizer_heads", "tokenizer_layers"),
)
_ROWS = (
    *("text_vocab", "speech_vocab", "text_positions", "speech_positions", "prompt_tokens"),
    *("rope_context", "start_text", "stop_text", "start_speech", "stop_speech"),
)
_FROM_ZERO = ("start_text", "stop_text", "up_blocks", "estimator_mid")
_LARGEST_FLOAT = 1e9


def problem(name: str, value: object, default: float) -> str:
    """What is wrong with one value, as the end of "t3.layers is 0; ", or "".

    Args:
        default: of the same field; a float's may be a float.
    """
    if isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = fits and math.isfinite(value) and 0 < value <= _LARGEST_FLOAT  # type: ignore[arg-type, operator]
        return "" if good else f"it must be a number above 0, at most {_LARGEST_FLOAT:.0e}"
    low = int(name not in _FROM_ZERO)
    high = COUNT if name in _COUNTS else ROWS if name in _ROWS else WIDTH
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    return "" if good else f"it must be a whole number from {low} to {high}"


def contradiction(config: ModelConfig, speech_tokens: int) -> str:
    """Two values that do not go together, in words, or "".

    Args:
        speech_tokens: how many codes a recording's speech tokens have.
    """
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
    return _contradiction_in_t3(config.t3, speech_tokens)


def _contradiction_in_t3(t3: T3Config, speech_tokens: int) -> str:
    if t3.head_dim % 2:
        return f"t3.width / t3.heads is {t3.head_dim}, which is odd"
    if t3.rope_low == t3.rope_high:
        return "t3.rope_low and t3.rope_high are equal"
    if t3.speech_vocab <= speech_tokens:
        return f"t3.speech_vocab is {t3.speech_vocab}, at most {speech_tokens}"
    for name, vocabulary in (("text", t3.text_vocab), ("speech", t3.speech_vocab)):
        for token in (f"start_{name}", f"stop_{name}"):
            if (id := getattr(t3, token)) >= vocabulary:
                return f"t3.{token} is {id}, beyond t3.{name}_vocab {vocabulary}"
    return ""


def parameters(config: ModelConfig) -> dict[str, int]:
    """Lower bounds of the number of parameters: of T3, of the voice encoder, and of the others."""
    t3, flow, voice, vocoder = config.t3, config.flow, config.voice, config.vocoder
    vectors = t3.text_vocab + t3.text_positions + 2 * t3.speech_vocab + t3.speech_positions
    attended = flow.estimator_heads * flow.estimator_head_dim
    encoder = (flow.encoder_blocks + flow.up_blocks) * (
        4 * flow.encoder_width**2 + 2 * flow.encoder_width * flow.encoder_ffn
    )
    estimator = (flow.estimator_mid + 2) * (
        3 * flow.estimator_width**2 + flow.estimator_blocks * 4 * flow.estimator_width * attended
    )
    tokenizer = voice.tokenizer_layers * 12 * voice.tokenizer_width**2
    xvector = voice.xvector_growth * voice.xvector_bottleneck * voice.xvector_init
    return {
        "t3": t3.width * (vectors + t3.resampler_queries + t3.speaker + 4 * t3.width)
        + t3.layers * t3.width * (4 * t3.width + 3 * t3.ffn),
        "voice encoder": voice.lstm * (20 * voice.lstm + t3.speaker),
        "s3gen": encoder + estimator + tokenizer + xvector + vocoder.width**2 + vocoder.f0_width**2,
    }
