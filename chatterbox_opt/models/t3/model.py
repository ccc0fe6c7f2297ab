"""The t3 stage: text and voice to speech tokens, by our own decoder.

Knows the transformer and its conditioning. Knows nothing of files, devices, profiles, or what the
tokens sound like.

Two functions do the work: ``prefill`` (the whole prefix, fills the cache) and ``step`` (one token
of each utterance in, logits out; tensors only, no branch on their values). The loop around them
is in decode.py. Upstream's loop (t3.py of chatterbox-tts 0.1.7) grows its cache, keeps all
attentions and hidden states and sorts the vocabulary at every step; ours does the same arithmetic
without that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.errors import TextError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.t3.kv_cache import KVCache
from chatterbox_opt.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Prompt:
    """What T3 is given.

    Attributes:
        text_tokens: int64 [T], without start and stop.
        speaker: float32 [1, speaker], the voice encoder's embedding.
        speech_tokens: int64 [1, P], the voice's own speech.
    """

    text_tokens: Tensor
    speaker: Tensor
    speech_tokens: Tensor


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 whatever the input (Zhang & Sennrich 2019; HF Llama)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions (Su et al. 2021; halves as in HF Llama): [..., length, head_dim].

    Args:
        rope: from ``T3.rope``: the minus of the second half is in the sines.
    """
    cos, sin = rope
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class Block(nn.Module):
    """One Llama layer with q/k/v in one product and gate/up in another."""

    def __init__(self, shape: T3Config) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.attention_norm = RMSNorm(shape.width, shape.norm_eps)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = RMSNorm(shape.width, shape.norm_eps)
        self.gate_up = nn.Linear(shape.width, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.width, bias=False)

    def heads_of(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """[rows, length, width] to rotated q, k and plain v: [rows, heads, length, head_dim]."""
        rows, length, _ = x.shape
        split = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, self.head_dim)
        split = split.permute(2, 0, 3, 1, 4)
        q, k = apply_rope(split[:2], rope)
        return q, k, split[2]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add attention's output and the SwiGLU feed-forward to the residual stream."""
        rows, length, width = x.shape
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Resampler(nn.Module):
    """Upstream's Perceiver: queries read the voice's speech, then each other, same weights."""

    def __init__(self, shape: T3Config) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.resampler_heads
        self.queries = nn.Parameter(torch.zeros(1, shape.resampler_queries, width))
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
        read = self._attend(self.queries.expand(speech.shape[0], -1, -1), speech)
        return self._attend(read, read)


class T3(nn.Module):
    """Token-to-token decoder: the Llama backbone of Chatterbox with its conditioning."""

    frequencies: Tensor

    def __init__(self, shape: T3Config) -> None:
        super().__init__()
        self.shape = shape
        self.text_emb = nn.Embedding(shape.text_vocab, shape.width)
        self.text_pos = nn.Embedding(shape.text_positions, shape.width)
        self.speech_emb = nn.Embedding(shape.speech_vocab, shape.width)
        self.speech_pos = nn.Embedding(shape.speech_positions, shape.width)
        self.speaker = nn.Linear(shape.speaker, shape.width)
        self.emotion = nn.Linear(1, shape.width, bias=False)
        self.resampler = Resampler(shape)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_eps)
        self.head = nn.Linear(shape.width, shape.speech_vocab, bias=False)
        self.packs = False
        self.register_buffer("frequencies", rope_frequencies(shape), persistent=False)

    @property
    def like(self) -> Tensor:
        """A tensor with the device and dtype of the arithmetic."""
        return self.norm.weight

    @property
    def cached(self) -> tuple[int, int, int]:
        """What a cache keeps of a position: layers, heads, head_dim."""
        return self.shape.layers, self.shape.heads, self.shape.head_dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return self.like.dtype

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast all weights; the table of rotary frequencies stays in float32.

        Packed matrices (weight_layout.py) are unpacked, and packed again when bfloat16 comes back.
        """
        self.packs |= weight_layout.unpack(self)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        if self.packs and dtype == torch.bfloat16:
            weight_layout.pack(self)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for int64 ``positions`` [n]: two of [n, head_dim], model dtype.

        The first half of the sines is negative, for ``apply_rope``.
        """
        angles = positions.float()[:, None] * self.frequencies[None]
        cos, sin = angles.cos(), angles.sin()
        pairs = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return pairs[0].to(self.like.dtype), pairs[1].to(self.like.dtype)

    def embed(self, prompt: Prompt, exaggeration: float, rows: int) -> Tensor:
        """Build the prefix [rows, length, width]: conditioning, text, and two start-of-speech.

        Two rows under CFG, else one: the second row's text is zeroed before its positions are added
        (upstream t3.py, prepare_input_embeds). The start token stands twice because upstream
        embeds it once there and once more before its loop.
        """
        shape, device, dtype = self.shape, self.like.device, self.like.dtype
        num_generated = prompt.speech_tokens.to(device)
        speech = self.speech_emb(num_generated) + self.speech_pos.weight[: num_generated.shape[1]]
        emotion = torch.full((1, 1, 1), exaggeration, device=device, dtype=dtype)
        speaker = self.speaker(prompt.speaker.to(device, dtype))[:, None]
        conditioning = torch.cat((speaker, self.resampler(speech), self.emotion(emotion)), dim=1)

        ids = F.pad(prompt.text_tokens.to(device), (1, 0), value=shape.start_text)
        ids = F.pad(ids, (0, 1), value=shape.stop_text)
        if len(ids) > shape.text_positions:
            raise TextError(
                f"one chunk has {len(ids)} text tokens and the model takes {shape.text_positions}: "
                "give a shorter word or lower the chunk limit"
            )
        text = self.text_emb(ids).expand(rows, -1, -1).clone()
        text[1:] = 0
        text = text + self.text_pos.weight[: len(ids)]
        start = self.speech_emb.weight[shape.start_speech] + self.speech_pos.weight[0]
        return torch.cat(
            (conditioning.expand(rows, -1, -1), text, start.expand(rows, 2, -1)), dim=1
        )

    def prefill(self, x: Tensor, last: Tensor, cache: KVCache, utterance: Tensor) -> Tensor:
        """Run the prefix of one utterance and fill the cache with it.

        Like ``step`` it can be captured.

        Args:
            x: [rows, length, width], see ``embed``; padded on the right or not.
            last: int64 [1], the position of the last that is no padding.
            utterance: int64 [1], whose rows of the cache are filled.

        Returns:
            logits [rows, speech_vocab] of position ``last``.
        """
        rope = self.rope(torch.arange(x.shape[1], device=x.device))
        for i, block in enumerate(self.blocks):
            q, k, v = block.heads_of(x, rope)
            cache.fill(i, utterance, k, v)
            x = block.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.head(self.norm(x.index_select(1, last)[:, 0]))

    def step(
        self, token: Tensor, num_generated: Tensor, position: Tensor, cache: KVCache, span: int
    ) -> Tensor:
        """Run one token of each of n utterances through the decoder.

        No value is read back and nothing is branched on: over a static cache the step can be
        captured.

        Args:
            token: int64 [n].
            num_generated: int64 [n], its place among the speech tokens (the start token is 0).
            position: int64 [n], its place in the cache.
            cache: written at ``position`` and read up to there.
            span: see ``KVCache.at``.

        Returns:
            logits [n or 2 n, speech_vocab].
        """
        x, *rope = self.entering(token, num_generated, position, cache.rows_per_seq)
        x, (cos, sin) = x[:, None], (part[:, None, None] for part in rope)
        attend = cache.at(position.repeat_interleave(cache.rows_per_seq, dim=0), span)
        for i, block in enumerate(self.blocks):
            x = block.finish(x, attend(i, *block.heads_of(x, (cos, sin))))
        return self.head(self.norm(x[:, -1]))

    def entering(
        self, token: Tensor, num_generated: Tensor, position: Tensor, rows_per_seq: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a step's first layer gets: [n * each, width], and two of [n * each, head_dim]."""
        x = self.speech_emb(token) + self.speech_pos(num_generated)
        cos, sin = self.rope(position)
        return (
            x.repeat_interleave(rows_per_seq, dim=0),
            cos.repeat_interleave(rows_per_seq, dim=0),
            sin.repeat_interleave(rows_per_seq, dim=0),
        )

    def bound(self, sampling: Sampling) -> int:
        """The most tokens of one run: what was asked for, or a small model's table."""
        return min(sampling.max_tokens, self.shape.speech_positions - 1)


def rope_frequencies(shape: T3Config) -> Tensor:
    """Inverse frequencies float32 [head_dim / 2] with Llama 3's stretching of the long waves.

    Source: Llama 3.1 (Meta), as transformers computes it for rope_type "llama3".
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    plain = 1.0 / (shape.rope_theta**exponents)
    wavelengths = 2 * math.pi / plain
    low, high = (shape.rope_context / f for f in (shape.rope_low, shape.rope_high))
    smooth = (shape.rope_context / wavelengths - shape.rope_low) / (
        shape.rope_high - shape.rope_low
    )
    blended = (1 - smooth) * (plain / shape.rope_factor) + smooth * plain
    stretched = torch.where(wavelengths > low, plain / shape.rope_factor, plain)
    return torch.where((wavelengths <= low) & (wavelengths >= high), blended, stretched)
