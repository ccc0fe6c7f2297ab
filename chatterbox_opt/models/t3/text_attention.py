"""Where T3 looks in the text while it speaks: the attention of single heads, in one pass.

Responsible for the pass over tokens that are known (teacher forcing). Not responsible for which
heads follow the text (``ModelConfig.alignment_heads``) or for what is made of their attention
(words/timing.py).

Only the layers up to the last of the heads are computed, of that one only queries and keys, and of
all rows only the one with the text: guidance has no part in where the text is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.models.t3.llama import LlamaT3
from chatterbox_opt.models.t3.model import Prompt

Heads = Sequence[tuple[int, int]]


@torch.inference_mode()
def text_attention(
    t3: LlamaT3, prompt: Prompt, tokens: Sequence[int], exaggeration: float, heads: Heads
) -> Tensor:
    """The mean attention of heads to each text token, at the positions that predict the tokens.

    Args:
        prompt: on the model's device.
        tokens: speech tokens of the whole sequence, without stop.
        heads: (layer, head) of each.

    Returns:
        float32 [len(tokens), T] on the model's device; without start and stop of the text. The
        rest of the attention, up to 1, is on other positions.
    """
    device, count = t3.like.device, len(tokens)
    prefix = t3.embed(prompt, exaggeration, rows=1)
    # the prefix's last position predicts the first token, and the last token predicts none of them
    first = prefix.shape[1] - 1
    inputs = torch.tensor(tokens[:-1], dtype=torch.long).to(device)
    numbers = torch.arange(1, count, device=device)
    x, *_ = t3.embed_tokens(inputs, numbers, first + numbers, 1)
    x = torch.cat((prefix, x[None]), dim=1)
    rope = t3.rope(torch.arange(x.shape[1], device=device))
    text = slice(t3.text_start, t3.text_start + len(prompt.text_tokens))
    found = x.new_zeros(count, len(prompt.text_tokens), dtype=torch.float32)
    last = max(layer for layer, _ in heads)
    for i, block in enumerate(t3.blocks[: last + 1]):
        q, k, v = block.project_qkv(x, rope)
        for layer, head in heads:
            if layer == i:
                found += _attention(q[0, head, first:], k[0, head])[:, text] / len(heads)
        if i < last:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = block.out_and_ffn(x, attended)
    return found


def _attention(q: Tensor, k: Tensor) -> Tensor:
    """Causal attention float32 [n, length] of the last n positions to all.

    Args:
        q, k: [n, head_dim], [length, head_dim].
    """
    scores = q.float() @ k.float().t() * q.shape[-1] ** -0.5
    seen = torch.ones_like(scores, dtype=torch.bool).tril(len(k) - len(q))
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)
