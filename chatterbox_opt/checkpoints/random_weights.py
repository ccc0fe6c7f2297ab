"""Checkpoints made here: upstream's exact file format with random values (``models make``).

Knows upstream's classes, names and file layout. Knows nothing of what is done with the files. Full
shapes measure speed, which does not depend on the values; tiny ones serve tests. Spoken, they are
noise, and ``config.json`` says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chatterbox_opt import voice
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.reader import FORGIVEN
from chatterbox_opt.config.model_config import (
    MEL_BINS,
    SPEECH_TOKENS,
    TINY,
    FlowConfig,
    ModelConfig,
    T3Config,
    write_config,
)
from chatterbox_opt.models import voice_encoders
from chatterbox_opt.models.flow import model as flow_model
from chatterbox_opt.models.vocoder import model as vocoder_model
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.utils.skip_init import skip_init

SIZES = {"tiny": TINY, "full": ModelConfig()}
HEAD_GAIN = 3.0  # spreads the T3 logits, so that the likeliest token leads by more than rounding
STOP_GAIN = 1.8  # and the stop token comes up now and then: a made model falls silent by itself
ATTENTION_GAIN = 2.0  # sharpens attention, so that the prefix decides what is said, as when trained
F0_HZ = 150.0  # the made F0 predictor hovers here, so that the harmonic source is at work


def make(directory: Path, size: str, seed: int) -> None:
    """Write a checkpoint of random values.

    Args:
        directory: made if missing; files of the same names are replaced.
        size: "tiny" (a few MB) or "full" (the true shapes, 3 GB).
        seed: the same seed gives the same bytes.

    Raises:
        OSError: not writable, or the disk is full.
    """
    config = SIZES[size]
    directory.mkdir(parents=True, exist_ok=True)
    with skip_init():
        encoders = voice_encoders.Encoders(config.voice, config.t3.speaker)
        parts: dict[str, nn.Module] = {
            "tokenizer": encoders.tokenizer,
            "speaker_encoder": encoders.speaker_encoder,
            "flow": upstream_flow(config.flow),
            "mel2wav": vocoder_model.build_hift(config.vocoder),
        }
    s3gen = {f"{part}.{n}": t for part, m in parts.items() for n, t in m.state_dict().items()}
    files: dict[str, Mapping[str, Tensor]] = {
        registry.VOICE_ENCODER: encoders.voice_encoder.state_dict(),
        registry.S3GEN: {name: t for name, t in s3gen.items() if name not in FORGIVEN},
        registry.T3: t3_template(config.t3),
    }
    for name, template in files.items():
        generator = _generator(seed, name)
        tensors = {n: random_tensor(n, t, generator) for n, t in template.items()}
        with atomic_write(directory / name) as part:
            save_file(tensors, part)
        del tensors
    with atomic_write(directory / registry.TOKENIZER) as part:
        part.write_text(json.dumps(tokenizer(config.t3), ensure_ascii=False), encoding="utf-8")
    with atomic_write(directory / registry.CONDITIONALS) as part:
        torch.save(conditionals(config, size, _generator(seed, registry.CONDITIONALS)), part)
    write_config(
        directory,
        ModelConfig(config.t3, config.flow, config.vocoder, config.voice, random_weights=True),
    )


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def t3_template(shape: T3Config) -> dict[str, Tensor]:
    """Names and shapes (meta tensors) of upstream's T3, from upstream's classes."""
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules.cond_enc import T3CondEnc
    from chatterbox.models.t3.modules.learned_pos_emb import LearnedPositionEmbeddings
    from chatterbox.models.t3.modules.perceiver import Perceiver
    from chatterbox.models.t3.modules.t3_config import T3Config
    from transformers import LlamaConfig, LlamaModel

    class Config(T3Config):  # type: ignore[misc]
        n_channels = shape.width

    config = Config(shape.text_vocab)
    config.speaker_embed_size = shape.speaker
    with torch.device("meta"):
        conditioning = T3CondEnc(config)
        conditioning.perceiver = Perceiver(
            shape.resampler_queries, shape.width, shape.width, shape.resampler_heads
        )
        net = nn.ModuleDict(
            {
                "tfmr": LlamaModel(LlamaConfig(**llama_config(shape, LLAMA_CONFIGS["Llama_520M"]))),
                "cond_enc": conditioning,
                "text_emb": nn.Embedding(shape.text_vocab, shape.width),
                "speech_emb": nn.Embedding(shape.speech_vocab, shape.width),
                "text_pos_emb": LearnedPositionEmbeddings(shape.text_positions, shape.width),
                "speech_pos_emb": LearnedPositionEmbeddings(shape.speech_positions, shape.width),
                "text_head": nn.Linear(shape.width, shape.text_vocab, bias=False),
                "speech_head": nn.Linear(shape.width, shape.speech_vocab, bias=False),
            }
        )
    return dict(net.state_dict())


def upstream_flow(shape: FlowConfig) -> nn.Module:
    """Upstream's whole flow in these shapes, for its names and shapes (and for the tests)."""
    from chatterbox.models.s3gen.configs import CFM_PARAMS
    from chatterbox.models.s3gen.decoder import ConditionalDecoder
    from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
    from chatterbox.models.s3gen.flow_matching import CausalConditionalCFM

    width = shape.encoder_width
    estimator = ConditionalDecoder(
        in_channels=4 * MEL_BINS,
        out_channels=MEL_BINS,
        causal=True,
        channels=[shape.estimator_width],
        dropout=0.0,
        attention_head_dim=shape.estimator_head_dim,
        n_blocks=shape.estimator_blocks,
        num_mid_blocks=shape.estimator_mid,
        num_heads=shape.estimator_heads,
        act_fn="gelu",
    )
    decoder = CausalConditionalCFM(spk_emb_dim=MEL_BINS, cfm_params=CFM_PARAMS, estimator=estimator)
    net: nn.Module = CausalMaskedDiffWithXvec(
        input_size=width,
        output_size=MEL_BINS,
        spk_embed_dim=shape.xvector,
        vocab_size=SPEECH_TOKENS,
        encoder=flow_model.build_encoder(shape),
        decoder=decoder,
    )
    return net


def llama_config(shape: T3Config, true: Mapping[str, Any]) -> dict[str, Any]:
    """Upstream's backbone configuration with this shape's widths."""
    return dict(true) | {
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
    }


def random_tensor(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Values that keep signals near unit size through the layers, so that nothing overflows."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    values = torch.randn(like.shape, generator=generator)
    if name.endswith(("running_var", "original0")):
        return values.abs() * 0.1 + 0.9
    if name.endswith("f0_predictor.classifier.bias"):
        return values + F0_HZ
    if like.dim() <= 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.05 * values
    if name.endswith("_emb.weight") or name.endswith("emb.emb.weight"):
        return 0.5 * values
    values = values * (like.numel() / like.shape[0]) ** -0.5
    if name.endswith(("q_proj.weight", "o_proj.weight")):
        values *= ATTENTION_GAIN
    if name == "speech_head.weight":
        values *= HEAD_GAIN
        values[T3Config().stop_speech] *= STOP_GAIN
    return values


def tokenizer(shape: T3Config) -> dict[str, Any]:
    """A character tokenizer in the format of upstream's tokenizer.json, special ids in place."""
    special = {"[STOP]": shape.stop_text, "[UNK]": 1, "[SPACE]": 2, "[START]": shape.start_text}
    printable = [chr(c) for c in range(33, 0x250) if chr(c).isprintable() and not chr(c).isspace()]
    free = (i for i in range(shape.text_vocab) if i not in special.values())
    vocabulary = special | dict(zip(printable, free, strict=False))
    for i in free:
        vocabulary[f"[PLACEHOLDER{i}]"] = i
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "special": True, "content": c, **flags} for c, i in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def conditionals(config: ModelConfig, size: str, generator: torch.Generator) -> dict[str, Any]:
    """A voice in the format of upstream's conds.pt (``Conditionals.save``)."""
    tokens = {"tiny": 12, "full": 250}[size]

    def ids(count: int) -> Tensor:
        return torch.randint(0, SPEECH_TOKENS, (1, count), generator=generator)

    speaker = torch.rand(1, config.t3.speaker, generator=generator)
    return voice.to_conditionals(
        voice.Voice(  # in this order: the same seed gives the same bytes
            speaker=speaker / speaker.norm(),
            prompt=ids(config.t3.prompt_tokens),
            tokens=ids(tokens),
            mel=torch.randn(1, 2 * tokens, MEL_BINS, generator=generator) * 2 - 5,
            xvector=torch.randn(1, config.flow.xvector, generator=generator),
        )
    )
