"""Where T3 looks in the text while it speaks: the attention of single heads, in one pass.

Responsible for the pass over tokens that are known (teacher forcing). Not responsible for which
heads follow the text (``ModelConfig.alignment_heads``) or for what is made of their attention
(words/timing.py).

The voice's part of the prefix is the one that the decode steps have (``T3.conditioning``). Only the
layers up to the last of the heads are computed, of that one only queries and keys, and of all rows
only the one with the text: guidance has no part in where the text is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.models.t3.llama import LlamaT3
from chatterbox_opt.models.t3.model import Prompt

Heads = Sequence[tuple[int, int]]
TEXT_START = 1  # of the text in what ``LlamaT3.embed`` makes: the start token is before it


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
    kept, text = t3.conditioning(prompt, exaggeration), t3.embed(prompt, rows=1)
    voice, length = kept.shape[3], text.shape[1]
    # the text's last position predicts the first token, and the last token predicts none of them
    inputs = torch.tensor(tokens[:-1], dtype=torch.long).to(device)
    numbers = torch.arange(1, count, device=device)
    x, *_ = t3.embed_tokens(inputs, numbers, voice + length - 1 + numbers, 1)
    x = torch.cat((text, x[None]), dim=1)
    positions = torch.arange(voice + x.shape[1], device=device)
    rope, visible = t3.rope(positions[voice:]), positions <= positions[voice:, None]
    columns = slice(voice + TEXT_START, voice + TEXT_START + len(prompt.text_tokens))
    found = x.new_zeros(count, len(prompt.text_tokens), dtype=torch.float32)
    last = max(layer for layer, _ in heads)
    for i, (block, old) in enumerate(zip(t3.blocks[: last + 1], kept, strict=False)):
        q, *new = block.project_qkv(x, rope)
        k, v = (torch.cat((one[None], y), dim=2) for one, y in zip(old, new, strict=True))
        for layer, head in heads:
            if layer == i:
                seen = visible[length - 1 :]
                found += _attention(q[0, head, length - 1 :], k[0, head], seen)[:, columns]
        if i < last:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
            x = block.out_and_ffn(x, attended)
    return found / len(heads)


def _attention(q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    """Attention float32 [n, length] to the visible positions.

    Args:
        q, k: [n, head_dim], [length, head_dim].
        visible: bool [n, length].
    """
    scores = q.float() @ k.float().t() * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)
