"""Random checkpoints in upstream's exact file format (``models make``).

Responsible for upstream's classes, tensor names and file layout. Not responsible for using the
files. The full size is for measuring speed, which does not depend on the values; the tiny one is
for tests. The audio is noise, and ``config.json`` marks the checkpoint as random.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chatterbox_opt import voice
from chatterbox_opt.checkpoints import families, random_tokenizers
from chatterbox_opt.checkpoints.families import RANDOM_KINDS, Kind
from chatterbox_opt.checkpoints.reader import COMPUTED_BUFFERS
from chatterbox_opt.config.config_file import CONFIG_FILE, write_config
from chatterbox_opt.config.model_config import (
    GPT2,
    MEL_BINS,
    SPEECH_TOKENS,
    TINY,
    FlowConfig,
    ModelConfig,
    T3Config,
)
from chatterbox_opt.models import voice_encoders
from chatterbox_opt.models.flow import encoder as flow_encoder
from chatterbox_opt.models.vocoder import model as vocoder_model
from chatterbox_opt.utils.atomic_file import remove_stale, temporary_directory
from chatterbox_opt.utils.librosa_import import import_librosa
from chatterbox_opt.utils.skip_init import skip_init

SIZES = ("tiny", "full")
# of a tiny GPT-2: a vocabulary of bytes, some pairs and the tags; room for 40 s of speech
TINY_GPT2 = {"ffn": 256, "text_vocab": 320, "positions": 2048}
TINY_NANO = {"width": 32, "heads": 2, "ffn": 128}
HEAD_GAIN = 3.0  # spreads the T3 logits, so that the top token leads by more than rounding
STOP_GAIN = 1.8  # makes the stop token likely enough that sequences end by themselves
ATTENTION_GAIN = 2.0  # sharpens attention, so that the output depends on the prefix
F0_HZ = 150.0  # mean of the random F0 predictor, so that the harmonic source is active


def config_of(kind: str, size: str) -> ModelConfig:
    """The config of a kind in a size, without the mark that its weights are random."""
    full = RANDOM_KINDS[kind].config
    if size == "full":
        return full
    shapes: dict[str, Any] = {
        name: getattr(full.t3, name)
        for name in ("text_vocab", "speech_vocab", "prompt_tokens", "backbone")
    }
    if full.t3.backbone == GPT2:
        shapes |= TINY_GPT2 | (TINY_NANO if kind == "nano" else {})
    return dataclasses.replace(
        TINY,
        t3=dataclasses.replace(TINY.t3, **shapes),
        flow=dataclasses.replace(TINY.flow, mean_flow=full.flow.mean_flow),
        text=full.text,
    )


def make(directory: Path, size: str, seed: int, kind: str = families.DEFAULT) -> None:
    """Write a checkpoint of random values.

    The files are written to a temporary directory and renamed when all are complete. A kill while
    an existing checkpoint is replaced leaves one that is incomplete, never a mixture.

    Args:
        directory: created if missing; files of the same names are replaced.
        size: "tiny" (a few MB) or "full" (the kind's own size, 2 or 3 GB).
        seed: the same seed writes the same bytes.
        kind: one of ``families.RANDOM_KINDS``.

    Raises:
        OSError: not writable, or the disk is full.
    """
    directory = Path(os.path.realpath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    # in an existing directory, which may be on a disk of its own, else next to the new one
    existing = directory.is_dir()
    remove_stale(directory.parent)
    with temporary_directory(directory if existing else directory.parent) as complete:
        _write(complete, RANDOM_KINDS[kind], config_of(kind, size), size, seed)
        if existing:
            _replace(directory, complete, RANDOM_KINDS[kind])
        else:
            complete.rename(directory)


def make_flow(directory: Path, size: str, seed: int) -> None:
    """Write the S3Gen of ``make``'s Turbo and its config.json only; for ``--flow DIR``.

    Args:
        directory: an empty one.
    """
    kind, config = families.TURBO_KIND, config_of("turbo", size)
    _save_weights(directory, kind, config, seed, (kind.s3gen,))
    write_config(directory, dataclasses.replace(config, random_weights=True), kind.config)


def _replace(directory: Path, complete: Path, kind: Kind) -> None:
    """Move the files of a checkpoint to a directory, in place of an older checkpoint's.

    The first is config.json: with it the directory counts as one of random weights again.
    """
    os.replace(complete / CONFIG_FILE, directory / CONFIG_FILE)
    for name in families.ALL_FILES:
        (directory / name).unlink(missing_ok=True)
    for name in kind.files:
        os.replace(complete / name, directory / name)


def _write(directory: Path, kind: Kind, config: ModelConfig, size: str, seed: int) -> None:
    """Write all files to an empty directory."""
    _save_weights(directory, kind, config, seed, (kind.voice_encoder, kind.s3gen, kind.t3))
    for name, content in random_tokenizers.files(config).items():
        (directory / name).write_text(content, encoding="utf-8")
    # torch names the archive as the file: written under another name it would have other bytes
    generator = _generator(seed, families.CONDITIONALS)
    torch.save(conditionals(config, size, generator), directory / families.CONDITIONALS)
    write_config(directory, dataclasses.replace(config, random_weights=True), kind.config)


def _save_weights(
    directory: Path, kind: Kind, config: ModelConfig, seed: int, names: Sequence[str]
) -> None:
    with skip_init():
        encoders = voice_encoders.Encoders(config.voice, config.t3.speaker)
        parts: dict[str, nn.Module] = {
            "tokenizer": encoders.tokenizer,
            "speaker_encoder": encoders.speaker_encoder,
            "flow": upstream_flow(config.flow),
            "mel2wav": vocoder_model.build_hift(config.vocoder),
        }
    s3gen = {f"{part}.{n}": t for part, m in parts.items() for n, t in m.state_dict().items()}
    # upstream loads Chatterbox's S3Gen without these and the others' strictly
    computed = {} if kind is families.CHATTERBOX else {n: s3gen[n] for n in COMPUTED_BUFFERS}
    files: dict[str, Mapping[str, Tensor]] = {
        kind.voice_encoder: encoders.voice_encoder.state_dict(),
        kind.s3gen: {name: t for name, t in s3gen.items() if name not in COMPUTED_BUFFERS},
        kind.t3: t3_template(config.t3),
    }
    for name in names:
        template = files[name]
        generator = _generator(seed, name)
        tensors = {n: random_tensor(n, t, generator) for n, t in template.items()}
        save = torch.save if name.endswith(".pt") else save_file
        save(tensors | computed if name == kind.s3gen else tensors, directory / name)
        del tensors


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def t3_template(config: T3Config) -> dict[str, Tensor]:
    """Names and shapes (as meta tensors) of upstream's T3, from upstream's classes."""
    import_librosa()  # before chatterbox does
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules.cond_enc import T3CondEnc
    from chatterbox.models.t3.modules.learned_pos_emb import LearnedPositionEmbeddings
    from chatterbox.models.t3.modules.perceiver import Perceiver
    from chatterbox.models.t3.modules.t3_config import T3Config as UpstreamConfig
    from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

    class SizedConfig(UpstreamConfig):  # type: ignore[misc]
        n_channels = config.width

    sized = SizedConfig(config.text_vocab)
    sized.speaker_embed_size = config.speaker
    is_gpt2 = config.backbone == GPT2
    sized.use_perceiver_resampler = sized.emotion_adv = not is_gpt2
    with torch.device("meta"):
        net = nn.ModuleDict()
        if is_gpt2:
            upstream = gpt2_config(config, LLAMA_CONFIGS["GPT2_medium"])
            net["tfmr"] = GPT2Model(GPT2Config(**upstream))
            net["cond_enc"] = T3CondEnc(sized)
        else:
            upstream = llama_config(config, LLAMA_CONFIGS["Llama_520M"])
            net["tfmr"] = LlamaModel(LlamaConfig(**upstream))
            net["cond_enc"] = T3CondEnc(sized)
            net["cond_enc"].perceiver = Perceiver(
                config.resampler_queries, config.width, config.width, config.resampler_heads
            )
        net["text_emb"] = nn.Embedding(config.text_vocab, config.width)
        net["speech_emb"] = nn.Embedding(config.speech_vocab, config.width)
        if not is_gpt2:
            for part, count in (
                ("text", config.text_positions),
                ("speech", config.speech_positions),
            ):
                net[f"{part}_pos_emb"] = LearnedPositionEmbeddings(count, config.width)
        net["text_head"] = nn.Linear(config.width, config.text_vocab, bias=False)
        net["speech_head"] = nn.Linear(config.width, config.speech_vocab, bias=is_gpt2)
    return dict(net.state_dict())


def upstream_flow(config: FlowConfig) -> nn.Module:
    """Upstream's whole flow in this size, for its tensor names and shapes (and for tests)."""
    import_librosa()  # before chatterbox does
    from chatterbox.models.s3gen.configs import CFM_PARAMS
    from chatterbox.models.s3gen.decoder import ConditionalDecoder
    from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
    from chatterbox.models.s3gen.flow_matching import CausalConditionalCFM

    width = config.encoder_width
    estimator = ConditionalDecoder(
        in_channels=4 * MEL_BINS,
        out_channels=MEL_BINS,
        causal=True,
        channels=[config.estimator_width],
        dropout=0.0,
        attention_head_dim=config.estimator_head_dim,
        n_blocks=config.estimator_blocks,
        num_mid_blocks=config.estimator_mid,
        num_heads=config.estimator_heads,
        act_fn="gelu",
        meanflow=config.mean_flow,
    )
    decoder = CausalConditionalCFM(spk_emb_dim=MEL_BINS, cfm_params=CFM_PARAMS, estimator=estimator)
    net: nn.Module = CausalMaskedDiffWithXvec(
        input_size=width,
        output_size=MEL_BINS,
        spk_embed_dim=config.xvector,
        vocab_size=SPEECH_TOKENS,
        encoder=flow_encoder.upstream_encoder(config),
        decoder=decoder,
    )
    return net


def llama_config(config: T3Config, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Upstream's backbone configuration with the dimensions of ``config``."""
    return dict(upstream) | {
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.head_dim,
    }


def gpt2_config(config: T3Config, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Upstream's GPT-2 configuration with the dimensions of ``config``."""
    return dict(upstream) | {
        "n_embd": config.width,
        "hidden_size": config.width,
        "n_inner": config.ffn,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.positions,
        "n_ctx": config.positions,
        "vocab_size": config.text_vocab,
    }


def random_tensor(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Values that keep activations near unit variance through the layers, without overflow."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    values = torch.randn(like.shape, generator=generator)
    if name.endswith(("running_var", "original0")):
        return values.abs() * 0.1 + 0.9
    if name.endswith("f0_predictor.classifier.bias"):
        return values + F0_HZ
    if like.dim() <= 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.05 * values
    if name.endswith(("_emb.weight", "emb.emb.weight", "wte.weight", "wpe.weight")):
        return 0.5 * values
    if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):  # GPT-2's are [in, out]
        values = values * like.shape[0] ** -0.5
        return values * ATTENTION_GAIN if "attn" in name else values
    values = values * (like.numel() / like.shape[0]) ** -0.5
    if name.endswith(("q_proj.weight", "o_proj.weight")):
        values *= ATTENTION_GAIN
    if name == "speech_head.weight":
        values *= HEAD_GAIN
        values[T3Config().stop_speech] *= STOP_GAIN
    return values


def conditionals(config: ModelConfig, size: str, generator: torch.Generator) -> dict[str, Any]:
    """A voice in the format of upstream's conds.pt (``Conditionals.save``)."""
    tokens = {"tiny": 12, "full": 250}[size]

    def ids(count: int) -> Tensor:
        return torch.randint(0, SPEECH_TOKENS, (1, count), generator=generator)

    speaker = torch.rand(1, config.t3.speaker, generator=generator)
    return voice.to_conditionals(
        voice.Voice(  # this order of draws defines the bytes of a seed
            speaker=speaker / speaker.norm(),
            prompt=ids(config.t3.prompt_tokens),
            tokens=ids(tokens),
            mel=torch.randn(1, 2 * tokens, MEL_BINS, generator=generator) * 2 - 5,
            xvector=torch.randn(1, config.flow.xvector, generator=generator),
        )
    )
