"""T3's Llama backbone: RMSNorm, RoPE, SwiGLU, and conditioning by perceiver and emotion.

Responsible for what differs from GPT-2 (gpt2.py). Not responsible for the passes through the layers
(model.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.models.t3.model import T3, Prompt, too_long


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 for every input dtype (HF Llama; Zhang
    & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def apply_rope(x: Tensor, rope: Sequence[Tensor]) -> Tensor:
    """Apply RoPE (Su et al. 2021; half rotation as in HF Llama): [..., length, head_dim].

    Args:
        rope: from ``LlamaT3.rope``: its sines contain the minus of the rotated half.
    """
    cos, sin = rope
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class Block(nn.Module):
    """One Llama layer with fused q/k/v and gate/up projections."""

    MATRICES: ClassVar = ("qkv", "out", "gate_up", "down")

    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.gate_up = nn.Linear(config.width, 2 * config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def project_qkv(self, x: Tensor, rope: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """QKV and RoPE: [rows, length, width] to q, k, v [rows, heads, length, head_dim]."""
        rows, length, _ = x.shape
        split = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, self.head_dim)
        split = split.permute(2, 0, 3, 1, 4)
        q, k = apply_rope(split[:2], rope)
        return q, k, split[2]

    def out_and_ffn(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the output projection of attention and the SwiGLU FFN to the residual stream."""
        rows, length, width = x.shape
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Resampler(nn.Module):
    """Perceiver: queries attend to the voice's speech, then to themselves, same weights."""

    def __init__(self, config: T3Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.resampler_heads
        self.queries = nn.Parameter(torch.zeros(1, config.resampler_queries, width))
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def _attend(self, x: Tensor, memory: Tensor) -> Tensor:
        normed, source = self.norm(x), self.norm(memory)
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.q(normed), self.k(source), self.v(source))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(1, 2).flatten(2))

    def forward(self, speech: Tensor) -> Tensor:
        """[1, P, width] to [1, queries, width]."""
        latents = self._attend(self.queries.expand(speech.shape[0], -1, -1), speech)
        return self._attend(latents, latents)


class LlamaT3(T3):
    """T3 of Chatterbox, English and multilingual.

    Attributes:
        frequencies: float32 [head_dim / 2], inverse RoPE frequencies.
    """

    frequencies: Tensor

    def __init__(self, config: T3Config) -> None:
        super().__init__(config)
        self.text_emb = nn.Embedding(config.text_vocab, config.width)
        self.text_pos = nn.Embedding(config.text_positions, config.width)
        self.speech_emb = nn.Embedding(config.speech_vocab, config.width)
        self.speech_pos = nn.Embedding(config.speech_positions, config.width)
        self.speaker = nn.Linear(config.speaker, config.width)
        self.emotion = nn.Linear(1, config.width, bias=False)
        self.resampler = Resampler(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.speech_vocab, bias=False)
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)

    def rope(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Cosines and sines for int64 ``positions`` [n]: two of [n, head_dim], model dtype.

        The first half of the sines is negative, for ``apply_rope``.
        """
        angles = positions.float()[:, None] * self.frequencies[None]
        cos, sin = angles.cos(), angles.sin()
        pairs = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return pairs[0].to(self.like.dtype), pairs[1].to(self.like.dtype)

    def embed_conditioning(self, prompt: Prompt, exaggeration: float) -> Tensor:
        """Build the voice's part of the prefix: speaker, resampled prompt, emotion."""
        device, dtype = self.like.device, self.like.dtype
        prompt_tokens = prompt.speech_tokens.to(device)
        speech = self.speech_emb(prompt_tokens) + self.speech_pos.weight[: prompt_tokens.shape[1]]
        emotion = torch.full((1, 1, 1), exaggeration, device=device, dtype=dtype)
        speaker = self.speaker(prompt.speaker.to(device, dtype))[:, None]
        return torch.cat((speaker, self.resampler(speech), self.emotion(emotion)), dim=1)

    def embed(self, prompt: Prompt, rows: int) -> Tensor:
        """Build the rest of the prefix: text, and two start-of-speech.

        Two rows with CFG, else one: the second row's text embeddings are zeroed before its position
        embeddings are added (upstream t3.py, prepare_input_embeds). The start token appears twice
        because upstream embeds it once there and once more before its loop.
        """
        config = self.config
        ids = F.pad(prompt.text_tokens.to(self.like.device), (1, 0), value=config.start_text)
        ids = F.pad(ids, (0, 1), value=config.stop_text)
        if len(ids) > config.text_positions:
            raise too_long(len(ids), config.text_positions)
        text = self.text_emb(ids).expand(rows, -1, -1).clone()
        text[1:] = 0
        text = text + self.text_pos.weight[: len(ids)]
        start = self.speech_emb.weight[config.start_speech] + self.speech_pos.weight[0]
        return torch.cat((text, start.expand(rows, 2, -1)), dim=1)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        return self.speech_emb.weight, self.speech_pos.weight

    def embed_tokens(
        self, token: Tensor, num_generated: Tensor, position: Tensor, rows_per_seq: int
    ) -> tuple[Tensor, ...]:
        """A step's embeddings, with the position among the speech tokens, and its RoPE cosines and
        sines, two of [n * rows_per_seq, head_dim]."""
        x = self.speech_emb(token) + self.speech_pos(num_generated)
        cos, sin = self.rope(position)
        return (
            x.repeat_interleave(rows_per_seq, dim=0),
            cos.repeat_interleave(rows_per_seq, dim=0),
            sin.repeat_interleave(rows_per_seq, dim=0),
        )


def rope_frequencies(config: T3Config) -> Tensor:
    """Inverse RoPE frequencies float32 [head_dim / 2] with Llama 3's scaling of low frequencies.

    Source: Llama 3.1 (Meta), as transformers computes it for rope_type "llama3".
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponents)
    wavelengths = 2 * math.pi / inverse
    low, high = (config.rope_context / f for f in (config.rope_low, config.rope_high))
    smooth = (config.rope_context / wavelengths - config.rope_low) / (
        config.rope_high - config.rope_low
    )
    blended = (1 - smooth) * (inverse / config.rope_factor) + smooth * inverse
    scaled = torch.where(wavelengths > low, inverse / config.rope_factor, inverse)
    return torch.where((wavelengths <= low) & (wavelengths >= high), blended, scaled)
