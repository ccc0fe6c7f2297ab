"""T3, the token decoder: text and voice to speech tokens, over one of two backbones.

Responsible for the passes through the transformer. Not responsible for its layers, positions and
conditioning (llama.py, gpt2.py), or for files, devices, profiles or audio.

The entry points are ``conditioning`` (keys and values of a voice, kept from text to text),
``prefill`` (the text after them, fills the KV cache) and ``step`` (one token of each sequence in,
logits out; tensor operations only, no branch on their values). A prefix always runs in these two
parts, so that its numbers do not depend on what was kept. The loop
around them is in decode.py. Upstream's loops (t3.py of chatterbox-tts 0.1.7) grow their cache, and
Llama's keeps all attentions and hidden states and sorts the vocabulary at every step; ours compute
the same without that.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.errors import TextError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.t3.conditioning import KeptConditionings
from chatterbox_opt.models.t3.kv_cache import KVCache
from chatterbox_opt.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Prompt:
    """The inputs of T3.

    Attributes:
        text_tokens: int64 [T], without start and stop.
        speaker: float32 [1, speaker], the voice encoder's embedding.
        speech_tokens: int64 [1, P], speech tokens of the reference audio.
    """

    text_tokens: Tensor
    speaker: Tensor
    speech_tokens: Tensor

    def voice_key(self) -> Hashable:
        """Equal for equal voices, whatever the text and the device."""
        return tuple(x.detach().cpu().numpy().tobytes() for x in (self.speaker, self.speech_tokens))


class T3(nn.Module):
    """A transformer with its conditioning: what Llama (llama.py) and GPT-2 (gpt2.py) share.

    A backbone creates the layers below and implements ``embed_conditioning``, ``embed`` and
    ``embed_tokens``. Each of its
    blocks has ``MATRICES``, the names of its four linear layers in the order of their use, and

        project_qkv(x, rope)      [rows, length, width] to q, k, v [rows, heads, length, head_dim]
        out_and_ffn(x, attended)  the rest of the layer

    Attributes:
        config: widths, depths and special tokens.
        packs: whether weights are packed for oneDNN in bfloat16.
        kept: keys and values of voices; freed when the precision changes.
        turbo_sampling: tokens are sampled as upstream's ``inference_turbo`` does, see
            ``sampler.sample``: its history for the repetition penalty has the start token only
            before the first token, and a stop token that is the first one does not end it.
    """

    turbo_sampling: ClassVar[bool] = False
    text_emb: nn.Embedding
    speech_emb: nn.Embedding
    speaker: nn.Linear
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Linear

    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.config = config
        self.packs = False
        self.kept = KeptConditionings()

    @property
    def like(self) -> Tensor:
        """A tensor with the device and compute dtype."""
        weight = self.norm.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """Shape of a KV cache: layers, heads, head_dim."""
        return self.config.layers, self.config.heads, self.config.head_dim

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.like.dtype

    @property
    def matrices(self) -> list[str]:
        """The linear layers that a step multiplies with, as paths of submodules, in their order."""
        blocks = enumerate(self.blocks)
        return [*(f"blocks.{i}.{name}" for i, block in blocks for name in block.MATRICES), "head"]

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast all weights; the RoPE frequencies stay in float32.

        Packed matrices (weight_layout.py) are unpacked, and packed again on the return to bfloat16.
        """
        self.kept.clear()
        self.packs |= weight_layout.unpack(self)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        if self.packs and dtype == torch.bfloat16:
            weight_layout.pack(self, self.matrices)

    def rope(self, positions: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """What ``project_qkv`` needs for int64 ``positions`` [n] of a prefix: nothing, or RoPE's
        cosines and sines [n, head_dim]."""
        return ()

    def embed_conditioning(self, prompt: Prompt, exaggeration: float) -> Tensor:
        """Build the first part of the prefix [1, n, width], that of the voice."""
        raise NotImplementedError

    def embed(self, prompt: Prompt, rows: int) -> Tensor:
        """Build the rest of the prefix [rows, length, width]: text, start-of-speech.

        Raises:
            TextError: more text tokens than the model has positions.
        """
        raise NotImplementedError

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The embeddings of speech tokens [speech_vocab, width] and of positions [n, width]: with
        Llama those among the speech tokens, with GPT-2 those in the KV cache."""
        raise NotImplementedError

    def embed_tokens(
        self, token: Tensor, num_generated: Tensor, position: Tensor, rows_per_seq: int
    ) -> tuple[Tensor, ...]:
        """A step's embeddings [n * rows_per_seq, width], then ``rope`` of the same rows.

        Args:
            token, num_generated, position: see ``step``.
        """
        raise NotImplementedError

    def conditioning(self, prompt: Prompt, exaggeration: float) -> Tensor:
        """Keys and values [layers, 2, heads, n, head_dim] of the first part of a prefix.

        They are the same for all rows of a sequence: only the text differs under guidance.
        """
        key = (prompt.voice_key(), exaggeration)
        return self.kept.get(key, lambda: self._run_conditioning(prompt, exaggeration))

    @torch.no_grad()
    def _run_conditioning(self, prompt: Prompt, exaggeration: float) -> Tensor:
        x = self.embed_conditioning(prompt, exaggeration)
        length = x.shape[1]
        rope = self.rope(torch.arange(length, device=x.device))
        layers, heads, head_dim = self.kv_shape
        out = x.new_empty(layers, 2, heads, length, head_dim)
        for block, kept in zip(self.blocks, out, strict=True):
            q, k, v = block.project_qkv(x, rope)
            kept[0], kept[1] = k[0], v[0]
            x = block.out_and_ffn(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return out

    def prefill(
        self, x: Tensor, last: Tensor, conditioning: Tensor, cache: KVCache, sequence: Tensor
    ) -> Tensor:
        """Run the second part of one sequence's prefix and fill the KV cache.

        Like ``step`` it can be captured as a CUDA graph.

        Args:
            x: [rows, length, width], see ``embed``; possibly padded on the right.
            last: int64 [1], the last position of ``x`` that is not padding.
            conditioning: keys and values of the first part.
            sequence: int64 [1], whose rows of the cache are filled, by both parts.

        Returns:
            logits [rows, speech_vocab] of position ``last``.
        """
        (rows, length), first = x.shape[:2], conditioning.shape[3]
        positions = torch.arange(first + length, device=x.device)
        rope = self.rope(positions[first:])
        visible = positions <= positions[first:, None]
        for i, (block, kept) in enumerate(zip(self.blocks, conditioning, strict=True)):
            q, *new = block.project_qkv(x, rope)
            parts = zip(kept, new, strict=True)
            k, v = (torch.cat((old.expand(rows, -1, -1, -1), y), dim=2) for old, y in parts)
            cache.write_prefix(i, sequence, k, v)
            x = block.out_and_ffn(x, F.scaled_dot_product_attention(q, k, v, attn_mask=visible))
        logits: Tensor = self.head(self.norm(x.index_select(1, last)[:, 0]))
        return logits

    def step(
        self, token: Tensor, num_generated: Tensor, position: Tensor, cache: KVCache, kv_len: int
    ) -> Tensor:
        """Run one token of each of n sequences through the decoder.

        No value is read back or branched on: over a static cache the step can be captured.

        Args:
            token: int64 [n].
            num_generated: int64 [n], its index among the speech tokens (the start token is 0).
            position: int64 [n], its position in the KV cache.
            cache: written at ``position`` and attended up to there.
            kv_len: see ``KVCache.decode_attention``.

        Returns:
            logits [n or 2 n, speech_vocab].
        """
        x, *rope = self.embed_tokens(token, num_generated, position, cache.rows_per_seq)
        x, rope = x[:, None], [part[:, None, None] for part in rope]
        attend = cache.decode_attention(
            position.repeat_interleave(cache.rows_per_seq, dim=0), kv_len
        )
        for i, block in enumerate(self.blocks):
            x = block.out_and_ffn(x, attend(i, *block.project_qkv(x, rope)))
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits

    def max_tokens(self, sampling: Sampling, prefix: int) -> int:  # noqa: ARG002
        """The token limit of a sequence: the requested one, or the size of the tables.

        Args:
            prefix: its length in positions.
        """
        return min(sampling.max_tokens, self.config.speech_positions - 1)


def too_long(tokens: int, limit: int) -> TextError:
    """The error of a text with more tokens than the model has positions."""
    return TextError(
        f"one chunk has {tokens} text tokens, the model takes {limit}: "
        "give a shorter word or lower the chunk limit"
    )
