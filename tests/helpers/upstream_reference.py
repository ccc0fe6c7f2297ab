"""The slow references: upstream's own objects, with smaller shapes where a test asks for them.

Everything runs upstream's code from the installed chatterbox-tts; only shapes are replaced.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
from chatterbox.models.t3.modules.perceiver import Perceiver
from chatterbox.models.t3.modules.t3_config import T3Config
from chatterbox.models.tokenizers import EnTokenizer
from chatterbox.tts import ChatterboxTTS, Conditionals
from safetensors.torch import load_file
from torch import Tensor, nn

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.random_weights import llama_config, upstream_flow
from chatterbox_opt.config.config_file import read_config
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.models import voice_encoders
from chatterbox_opt.models.vocoder import model as vocoder_model

# the vocoder integrates F0 to a phase: a mel that differs in its last bits drifts as time goes on
WHOLE_ATOL = 1e-3


class Unmarked:
    """In place of upstream's watermarker."""

    def apply_watermark(self, wave, sample_rate):
        return wave


@contextmanager
def small_llama(shapes: ModelConfig):
    """Register the backbone's shape where upstream looks it up, for the time of a build."""
    name = "chatterbox-opt-test"
    LLAMA_CONFIGS[name] = llama_config(shapes.t3, LLAMA_CONFIGS["Llama_520M"])
    try:
        yield name
    finally:
        del LLAMA_CONFIGS[name]


def upstream_t3(directory: Path, shapes: ModelConfig) -> T3:
    """Upstream's T3 in these shapes, loaded strictly from upstream's file."""
    shape = shapes.t3
    with small_llama(shapes) as name:
        hp = T3Config(shape.text_vocab)
        hp.llama_config_name = name
        hp.speaker_embed_size = shape.speaker
        hp.max_text_tokens = shape.text_positions - 2
        t3 = T3(hp)
    t3.cond_enc.perceiver = Perceiver(
        shape.resampler_queries, shape.width, shape.width, shape.resampler_heads
    )
    t3.load_state_dict(load_file(directory / registry.T3))
    return t3.eval()


def empty_s3gen(shapes: ModelConfig) -> S3Gen:
    """Upstream's S3Gen around smaller parts, without weights."""
    encoders = voice_encoders.Encoders(shapes.voice, shapes.t3.speaker)
    s3gen = S3Gen.__new__(S3Gen)
    nn.Module.__init__(s3gen)
    s3gen.tokenizer = encoders.tokenizer
    s3gen.speaker_encoder = encoders.speaker_encoder
    s3gen.flow = upstream_flow(shapes.flow)
    s3gen.mel2wav = vocoder_model.build_hift(shapes.vocoder)
    from chatterbox.models.s3gen.utils.mel import mel_spectrogram

    s3gen.mel_extractor = mel_spectrogram
    s3gen.meanflow, s3gen.resamplers = shapes.flow.mean_flow, {}
    s3gen.estimator_dtype = "fp32"
    fade = torch.zeros(960)
    fade[480:] = (torch.cos(torch.linspace(torch.pi, 0, 480)) + 1) / 2
    s3gen.register_buffer("trim_fade", fade, persistent=False)
    return s3gen


def upstream_s3gen(directory: Path, shapes: ModelConfig) -> S3Gen:
    """Upstream's S3Gen around smaller parts, loaded as upstream loads it."""
    s3gen = empty_s3gen(shapes)
    s3gen.load_state_dict(load_file(directory / registry.S3GEN), strict=False)
    return s3gen.eval()


def upstream_tts(directory: Path) -> ChatterboxTTS:
    """Upstream's ChatterboxTTS from a checkpoint directory of any shape."""
    shapes = read_config(directory)
    if shapes.t3 == ModelConfig().t3:
        return ChatterboxTTS.from_local(directory, "cpu")
    encoder = voice_encoders._voice_encoder(shapes.voice, shapes.t3.speaker)
    encoder.load_state_dict(load_file(directory / registry.VOICE_ENCODER))
    return ChatterboxTTS(
        upstream_t3(directory, shapes),
        upstream_s3gen(directory, shapes),
        encoder.eval(),
        EnTokenizer(str(directory / registry.TOKENIZER)),
        "cpu",
        conds=Conditionals.load(directory / registry.CONDITIONALS),
    )


def text_ids(tts: ChatterboxTTS, text: str, rows: int) -> Tensor:
    """Normalised text to start, ids, stop (upstream tts.py, generate)."""
    ids = tts.tokenizer.text_to_tokens(text).repeat(rows, 1)
    hp = tts.t3.hp
    ids = torch.nn.functional.pad(ids, (1, 0), value=hp.start_text_token)
    return torch.nn.functional.pad(ids, (0, 1), value=hp.stop_text_token)


def set_exaggeration(tts: ChatterboxTTS, exaggeration: float) -> Any:
    """A fresh T3Cond, because upstream's inference writes into the one it is given."""
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    cond = tts.conds.t3
    return T3Cond(
        speaker_emb=cond.speaker_emb,
        cond_prompt_speech_tokens=cond.cond_prompt_speech_tokens,
        emotion_adv=exaggeration * torch.ones(1, 1, 1),
    )


def sampled_tokens(
    tts: ChatterboxTTS,
    text: str,
    *,
    seed: int,
    exaggeration: float,
    cfg_weight: float,
    max_tokens: int,
    **knobs: float,
) -> list[int]:
    """Upstream's own ``T3.inference`` under a seed, stop token removed."""
    torch.manual_seed(seed)
    tokens = tts.t3.inference(
        t3_cond=set_exaggeration(tts, exaggeration),
        text_tokens=text_ids(tts, text, rows=2),
        max_new_tokens=max_tokens,
        cfg_weight=cfg_weight,
        **{"temperature": 0.8, "min_p": 0.05, "top_p": 1.0, "repetition_penalty": 1.2, **knobs},
    )[0].tolist()
    return tokens[:-1] if tokens[-1] == tts.t3.hp.stop_speech_token else tokens


def backend_and_prefix(tts: ChatterboxTTS, text: str, *, exaggeration: float, cfg_weight: float):
    """Upstream's backend and the embeddings that its loop starts from (models/t3/model.py, inference)."""
    from chatterbox.models.t3.inference.t3_hf_backend import T3HuggingfaceBackend

    t3, rows = tts.t3, 2 if cfg_weight > 0 else 1
    start = torch.full((rows, 1), t3.hp.start_speech_token)
    embeds, _ = t3.prepare_input_embeds(
        t3_cond=set_exaggeration(tts, exaggeration),
        text_tokens=text_ids(tts, text, rows),
        speech_tokens=start,
        cfg_weight=cfg_weight,
    )
    backend = T3HuggingfaceBackend(
        config=t3.cfg, llama=t3.tfmr, speech_enc=t3.speech_emb, speech_head=t3.speech_head
    )
    bos = t3.speech_emb(start) + t3.speech_pos_emb.get_fixed_embedding(0)
    return backend, torch.cat([embeds, bos], dim=1)


@torch.inference_mode()
def first_logits(tts: ChatterboxTTS, text: str, **knobs: float) -> Tensor:
    """Logits [rows, V] of the prefix's last position."""
    backend, prefix = backend_and_prefix(tts, text, **knobs)
    return backend(inputs_embeds=prefix, past_key_values=None).logits[:, -1]


@torch.inference_mode()
def greedy_tokens(
    tts: ChatterboxTTS, text: str, *, exaggeration: float, cfg_weight: float, max_tokens: int
) -> list[int]:
    """Upstream's loop (models/t3/model.py) over upstream's own backend with argmax in place of the draw.

    Upstream only samples, and its loop fails at cfg_weight 0 (one row meets a doubled start
    embedding); this one takes as many rows as guidance needs.
    """
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    t3, rows = tts.t3, 2 if cfg_weight > 0 else 1
    knobs = {"exaggeration": exaggeration, "cfg_weight": cfg_weight}
    backend, prefix = backend_and_prefix(tts, text, **knobs)
    penalty = RepetitionPenaltyLogitsProcessor(penalty=1.2)
    output = backend(inputs_embeds=prefix, past_key_values=None)
    seen, tokens = torch.tensor([[t3.hp.start_speech_token]]), []
    for i in range(max_tokens):
        logits = output.logits[:, -1]
        if rows == 2:
            logits = logits[:1] + cfg_weight * (logits[:1] - logits[1:])
        token = penalty(seen, logits[:1]).argmax(dim=-1, keepdim=True)
        if token.item() == t3.hp.stop_speech_token:
            break
        tokens.append(token.item())
        seen = torch.cat([seen, token], dim=1)
        embed = t3.speech_emb(token) + t3.speech_pos_emb.get_fixed_embedding(i + 1)
        output = backend(
            inputs_embeds=embed.expand(rows, -1, -1), past_key_values=output.past_key_values
        )
    return tokens
