"""Whether the files of a checkpoint are large enough for what its config describes.

Responsible for refusing a config before anything of its size is allocated. Not responsible for the
range of single values (config/limits.py) or for tensors (reader.py).
"""

from __future__ import annotations

from pathlib import Path

from chatterbox_opt.config.config_file import CONFIG_FILE
from chatterbox_opt.config.model_config import GPT2, ModelConfig, T3Config
from chatterbox_opt.errors import WeightsError

MAX_VOICE_ENCODER = 64 << 20  # bytes; Chatterbox's has 6 MB


def check(config: ModelConfig, t3: Path, voice_encoder: Path, s3gen: Path) -> None:
    """Compare the sizes of files with the number of parameters; a file may be absent.

    Raises:
        WeightsError: a stage is larger than its file, or the voice encoder is none.
    """
    files = {"t3": t3, "voice encoder": voice_encoder, "s3gen": s3gen}
    for stage, count in _parameters(config).items():
        path = files[stage]
        if not path.is_file():
            continue
        if (size := path.stat().st_size) < count:  # a parameter has a byte or more
            raise WeightsError(
                f"{path} has {size:,} bytes, and {CONFIG_FILE} describes {count:,} parameters or "
                "more: it is half downloaded, or they do not belong together; get it again"
            )
    if voice_encoder.is_file() and (size := voice_encoder.stat().st_size) > MAX_VOICE_ENCODER:
        raise WeightsError(
            f"{voice_encoder} has {size:,} bytes: it is not a voice encoder; get it again"
        )


def _parameters(config: ModelConfig) -> dict[str, int]:
    """Lower bounds of the number of parameters: of T3, of the voice encoder, and of the others."""
    flow, voice, vocoder = config.flow, config.voice, config.vocoder
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
        "t3": _t3_parameters(config.t3),
        "voice encoder": voice.lstm * (20 * voice.lstm + config.t3.speaker),
        "s3gen": encoder + estimator + tokenizer + xvector + vocoder.width**2 + vocoder.f0_width**2,
    }


def _t3_parameters(t3: T3Config) -> int:
    vectors = t3.text_vocab + 2 * t3.speech_vocab + t3.speaker
    if t3.backbone == GPT2:
        return t3.width * (vectors + t3.positions + t3.layers * (4 * t3.width + 2 * t3.ffn))
    vectors += t3.text_positions + t3.speech_positions + t3.resampler_queries + 4 * t3.width
    return t3.width * (vectors + t3.layers * (4 * t3.width + 3 * t3.ffn))
