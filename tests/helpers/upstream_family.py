"""Upstream's own classes of the family, loaded by their ``from_local`` in a checkpoint's size."""

from __future__ import annotations

from typing import Any

import chatterbox.mtl_tts
import chatterbox.tts_turbo
from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
from chatterbox.models.t3.modules import cond_enc
from chatterbox.models.t3.modules.t3_config import T3Config
from helpers import upstream_reference

from chatterbox_opt.checkpoints import families, random_weights, registry
from chatterbox_opt.config.model_config import FlowConfig
from chatterbox_opt.models import voice_encoders


class NoAnalyzer:
    """In place of the analyzer that watches attentions, which upstream's master has removed."""

    def __init__(self, *_: object, eos_idx: int, **__: object) -> None:
        self.eos_idx = eos_idx

    def step(self, logits, **_):
        return logits


def _sized(module, directory, patch) -> None:
    """Replace what a module's ``from_local`` builds by what has the checkpoint's size."""
    config = registry.locate(str(directory)).config
    patch.setattr(module.perth, "PerthImplicitWatermarker", upstream_reference.Unmarked)
    for name, sized in (
        ("Llama_520M", random_weights.llama_config),
        ("GPT2_medium", random_weights.gpt2_config),
    ):
        patch.setitem(LLAMA_CONFIGS, name, sized(config.t3, LLAMA_CONFIGS[name]))
    if config.flow.encoder_width == FlowConfig().encoder_width:
        return  # of full size: the classes as they are

    class Sized(T3Config):
        def __init__(self, text_tokens_dict_size=704):
            super().__init__(config.t3.text_vocab)
            self.speaker_embed_size = config.t3.speaker
            self.max_text_tokens = config.t3.text_positions - 2

        @classmethod
        def multilingual(cls):
            return cls()

    perceiver, t3 = cond_enc.Perceiver, config.t3
    patch.setattr(module, "T3Config", Sized)
    patch.setattr(
        cond_enc,
        "Perceiver",
        lambda: perceiver(t3.resampler_queries, t3.width, t3.width, t3.resampler_heads),
    )
    patch.setattr(
        module, "VoiceEncoder", lambda: voice_encoders._voice_encoder(config.voice, t3.speaker)
    )
    patch.setattr(module, "S3Gen", lambda meanflow=False: upstream_reference.empty_s3gen(config))


def upstream_turbo(directory, patch) -> Any:
    """Upstream's ChatterboxTurboTTS of a checkpoint of Turbo or Nano of any size.

    Args:
        patch: pytest's MonkeyPatch, in force as long as the model is used.
    """
    module = chatterbox.tts_turbo
    _sized(module, directory, patch)
    read, nano = module.load_file, directory / families.NANO_KIND.t3
    patch.setattr(module, "load_file", lambda path: read(path if path.exists() else nano))
    return chatterbox.tts_turbo.ChatterboxTurboTTS.from_local(directory, "cpu")


def upstream_multilingual(directory, patch) -> Any:
    """Upstream's ChatterboxMultilingualTTS of a checkpoint of any size, without its analyzer of
    attentions; arguments as above."""
    module = chatterbox.mtl_tts
    _sized(module, directory, patch)
    tokenizers = "chatterbox.models.tokenizers.tokenizer."
    patch.setattr(
        f"{tokenizers}hf_hub_download", lambda repo_id, filename, cache_dir: directory / filename
    )
    patch.setattr(f"{tokenizers}ChineseCangjieConverter._init_segmenter", lambda self: None)
    patch.setattr("chatterbox.models.t3.t3.AlignmentStreamAnalyzer", NoAnalyzer)
    return module.ChatterboxMultilingualTTS.from_local(directory, "cpu")
