"""The flow's conformer encoder: upstream's class, built for any widths, and run on padded rows.

Responsible for the encoder. Not responsible for what is done with its output (model.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import MEL_PER_TOKEN, FlowConfig
from chatterbox_opt.utils.upstream_import import import_upstream


def build_encoder(config: FlowConfig) -> Any:
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
