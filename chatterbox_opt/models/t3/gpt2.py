"""T3's GPT-2 backbone (Turbo, Nano): LayerNorm, biases, gelu, one table of learned positions.

Responsible for what differs from Llama (llama.py). Not responsible for the passes through the
layers (model.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.models.t3.model import T3, Prompt, too_long
from chatterbox_opt.sampling import Sampling


class Block(nn.Module):
    """One GPT-2 layer (Radford et al. 2019)."""

    MATRICES: ClassVar = ("qkv", "out", "up", "down")

    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.attention_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.ffn_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.up = nn.Linear(config.width, config.ffn)
        self.down = nn.Linear(config.ffn, config.width)

    def project_qkv(self, x: Tensor, rope: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor, Tensor]:
        """[rows, length, width] to q, k, v [rows, heads, length, head_dim]; ``rope`` is empty."""
        rows, length, _ = x.shape
        split = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        return q, k, v

    def out_and_ffn(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the output projection of attention and the FFN to the residual stream."""
        rows, length, width = x.shape
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x)), approximate="tanh"))


class Gpt2T3(T3):
    """T3 of Chatterbox Turbo and Nano.

    Every input has the learned position of its place in the KV cache, and no other. There is no
    guidance and no emotion: rows of a sequence are equal.
    """

    turbo_sampling = True

    def __init__(self, config: T3Config) -> None:
        super().__init__(config)
        self.text_emb = nn.Embedding(config.text_vocab, config.width)
        self.speech_emb = nn.Embedding(config.speech_vocab, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.speaker = nn.Linear(config.speaker, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.speech_vocab)

    def embed_conditioning(self, prompt: Prompt, exaggeration: float) -> Tensor:  # noqa: ARG002
        """Build the voice's part of the prefix: speaker, prompt."""
        device, dtype = self.like.device, self.like.dtype
        speaker = self.speaker(prompt.speaker.to(device, dtype))
        x = torch.cat((speaker, self.speech_emb(prompt.speech_tokens.to(device))[0]))
        return (x + self.positions.weight[: len(x)])[None]

    def embed(self, prompt: Prompt, rows: int) -> Tensor:
        """Build the rest of the prefix: text without start and stop, one start-of-speech."""
        config, ids = self.config, prompt.text_tokens.to(self.like.device)
        first = 1 + prompt.speech_tokens.shape[1]
        room = config.positions - first - 2  # the start, and one token
        if len(ids) > room:
            raise too_long(len(ids), room)
        start = self.speech_emb.weight[config.start_speech][None]
        x = torch.cat((self.text_emb(ids), start))
        return (x + self.positions.weight[first : first + len(x)]).expand(rows, -1, -1)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        return self.speech_emb.weight, self.positions.weight

    def embed_tokens(
        self,
        token: Tensor,
        num_generated: Tensor,  # noqa: ARG002
        position: Tensor,
        rows_per_seq: int,
    ) -> tuple[Tensor, ...]:
        """A step's embeddings, with their position in the KV cache."""
        # steps continue after a sequence's end until the readback
        position = position.clamp(max=self.config.positions - 1)
        x = self.speech_emb(token) + self.positions(position)
        return (x.repeat_interleave(rows_per_seq, dim=0),)

    def max_tokens(self, sampling: Sampling, prefix: int) -> int:
        """The token limit of a sequence: also what the table of positions has after the prefix."""
        return min(super().max_tokens(sampling, prefix), self.config.positions - prefix)
