"""The flow's conformer encoder: upstream's class, built for any widths, and run on padded rows.

Responsible for the encoder and its attention. Not responsible for what is done with its output
(model.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import MEL_PER_TOKEN, FlowConfig
from chatterbox_opt.utils.upstream_import import import_upstream


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Dai et al. 2019, arXiv 1901.02860), in the place and
    with the parameters of upstream's ``RelPositionMultiHeadedAttention``.

    score(i, j) = ((q_i + u) k_j + (q_i + v) p_(i - j)) / sqrt(head_dim)

    The second term is a product with all 2 T - 1 positions, of which row i needs T, from T - 1 - i
    on: here they are a view with another stride, which is the bias of PyTorch's fused attention.
    Upstream pads, copies, adds, scales and masks matrices [heads, T, T].
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u, self.pos_bias_v = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width // heads)))
            for _ in range(2)
        )

    def forward(
        self,
        x: Tensor,
        key: Tensor,  # noqa: ARG002 - x, as the layer calls it
        value: Tensor,  # noqa: ARG002
        mask: Tensor,
        pos_emb: Tensor,
        cache: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: [rows, T, width].
            mask: bool [rows, 1, T], false in the padding.
            pos_emb: [1, 2 T - 1, width], from ``relative_positions``.
            cache: upstream's, not used.

        Returns:
            [rows, T, width], and the cache as it was.
        """
        rows, length, _ = x.shape
        q, k, v, p = (
            linear(of).unflatten(2, (self.heads, -1))
            for linear, of in (
                (self.linear_q, x),
                (self.linear_k, x),
                (self.linear_v, x),
                (self.linear_pos, pos_emb),
            )
        )
        scaled = (q + self.pos_bias_v) * q.shape[-1] ** -0.5
        by_position = scaled.transpose(1, 2) @ p.permute(0, 2, 3, 1)
        row, head, i, j = by_position.stride()
        size = (rows, self.heads, length, length)
        bias = by_position.as_strided(size, (row, head, i - j, j), (length - 1) * j)
        # no value is read back from a GPU
        if bias.device.type != "cpu" or not mask.all():
            bias = bias.masked_fill(~mask[:, None], -torch.inf)
        query = (q + self.pos_bias_u).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            query, k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias
        )
        return self.linear_out(attended.transpose(1, 2).flatten(2)), cache


def build_encoder(config: FlowConfig) -> Any:
    """Upstream's conformer encoder with the widths of ``config`` and our attention."""
    encoder = upstream_encoder(config)
    for layer in (*encoder.encoders, *encoder.up_encoders):
        layer.self_attn = RelativeAttention(config.encoder_heads, config.encoder_width)
    return encoder


def upstream_encoder(config: FlowConfig) -> Any:
    """Instantiate upstream's conformer encoder with the widths of ``config``.

    Upstream hard-codes 512 channels in two layers and four blocks after the upsampling; for a
    smaller model those are replaced by the same classes with other widths.
    """
    layers = import_upstream("models.s3gen.transformer.upsample_encoder")
    width = config.encoder_width
    encoder = layers.UpsampleConformerEncoder(
        input_size=width,
        output_size=width,
        attention_heads=config.encoder_heads,
        linear_units=config.encoder_ffn,
        num_blocks=config.encoder_blocks,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn",
        use_cnn_module=False,
        macaron_style=False,
    )
    if width != encoder.up_layer.channels:
        encoder.pre_lookahead_layer = layers.PreLookaheadLayer(channels=width, pre_lookahead_len=3)
        encoder.up_layer = layers.Upsample1D(
            channels=width, out_channels=width, stride=MEL_PER_TOKEN
        )
    encoder.up_encoders = encoder.up_encoders[: config.up_blocks]
    return encoder


def relative_positions(encoder: Any, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's relative position embeddings for ``length`` tokens: [1, 2 length - 1, width],
    and the same for its upsampled frames.

    Upstream's layers store them and extend, move or cast them on demand, which a captured graph
    must not, so it gets them as arguments.
    """
    embeddings = []
    for embed, size in (
        (encoder.embed, length),
        (encoder.up_embed, MEL_PER_TOKEN * length),
    ):
        embed.pos_enc.extend_pe(like.new_empty(1, size))
        embeddings.append(embed.pos_enc.position_encoding(offset=0, size=size))
    return embeddings[0], embeddings[1]


def encode_padded(
    encoder: Any, x: Tensor, lengths: Tensor, pos_emb: Tensor, up_pos_emb: Tensor
) -> Tensor:
    """Upstream's ``UpsampleConformerEncoder.forward`` for padded rows, without a host sync.

    Upstream's own reads a value back, and does not zero the padding before the look-ahead
    convolution, which would mix in the padding's embeddings. Attention is masked, and all other
    layers are causal.

    Args:
        x: [rows, T, width], padded on the right.
        lengths: int64 [rows].
        pos_emb, up_pos_emb: from ``relative_positions``.

    Returns:
        [rows, 2 T, width]; undefined in the padding.
    """
    valid = valid_mask(x.shape[1], lengths)
    x = encoder.embed.out(x) * encoder.embed.pos_enc.xscale
    x = encoder.pre_lookahead_layer(x.masked_fill(~valid[..., None], 0))
    for layer in encoder.encoders:
        x, *_ = layer(x, valid[:, None], pos_emb)
    x, lengths = encoder.up_layer(x.transpose(1, 2).contiguous(), lengths)
    valid = valid_mask(x.shape[2], lengths)
    x = encoder.up_embed.out(x.transpose(1, 2).contiguous()) * encoder.up_embed.pos_enc.xscale
    for layer in encoder.up_encoders:
        x, *_ = layer(x, valid[:, None], up_pos_emb)
    hidden: Tensor = encoder.after_norm(x)
    return hidden


def valid_mask(length: int, lengths: Tensor) -> Tensor:
    """Mask of the positions that are not padding: bool [rows, length]."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]
