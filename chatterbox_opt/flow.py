"""The flow stage: speech tokens and voice to a mel spectrogram, by upstream's own modules.

Knows the conformer encoder, the CFM estimator and the Euler loop around it. Knows nothing of text,
voice files, devices or waves.

Upstream's modules (S3Gen, after CosyVoice 2) do the layers; this file does what upstream does
around them (flow.py and flow_matching.py of chatterbox-tts 0.1.7), with the noise drawn in
float32 from the caller's generator: a half-precision draw is another sequence, another sound.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.errors import NumericsError
from chatterbox_opt.shapes import MEL_BINS, MEL_PER_TOKEN, SPEECH_TOKENS, FlowShape
from chatterbox_opt.voice import Voice

CFM_STEPS = 10  # upstream's number of Euler steps


class Flow(nn.Module):
    """Conditional flow matching from noise to mel (Lipman et al. 2023; Matcha-TTS; CosyVoice 2).

    ``net`` holds upstream's CausalMaskedDiffWithXvec under upstream's parameter names.
    """

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        self.net: Any = build(shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic (layer norms always have it, stored matrices may not)."""
        return self.net.encoder.after_norm.weight.dtype

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast for arithmetic in ``dtype``; the time embedding stays in float32."""
        estimator = self.net.decoder.estimator
        mlp = getattr(estimator.time_mlp, "mlp", estimator.time_mlp)
        self.net.to(dtype)
        estimator.time_mlp = TimeEmbedding(mlp, dtype)

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,
        voice: Voice,
        generator: torch.Generator | None = None,
        steps: int = CFM_STEPS,
    ) -> Tensor:
        """Turn speech tokens into a mel spectrogram.

        Args:
            tokens: int64 [1, T], each below 6561, T at least 1.
            voice: on the same device.
            generator: on the same device; [1, 80, prompt + 2 T] normal numbers are drawn.
            steps: Euler steps of the ODE.

        Returns:
            float32 [1, 80, 2 T], the voice's prompt cut off.

        Raises:
            NumericsError: the mel holds NaN or infinity.
        """
        mu, speaker, prompt = self.encode(tokens, voice)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        mel = self.solve(noise, mu, speaker, prompt, steps)[:, :, voice.mel.shape[1] :]
        if not torch.isfinite(mel).all():
            raise NumericsError("flow gave a mel spectrogram with numbers that are not finite")
        return mel

    def encode(self, tokens: Tensor, voice: Voice) -> tuple[Tensor, Tensor, Tensor]:
        """Condition on the voice (upstream flow.py, inference).

        Returns:
            mu [1, 80, F], the encoder's estimate over prompt and new frames; speaker [1, 80];
            prompt [1, 80, F], the voice's mel with zeros where the new frames go.
        """
        speaker = F.normalize(voice.xvector, dim=1).to(self.dtype)
        speaker = self.net.spk_embed_affine_layer(speaker)
        whole = torch.cat((voice.tokens, tokens), dim=1)
        length = torch.tensor([whole.shape[1]], device=whole.device)
        hidden, _ = self.net.encoder(self.net.input_embedding(whole), length)
        mu = self.net.encoder_proj(hidden).transpose(1, 2).contiguous()
        prompt = torch.zeros_like(mu)
        prompt[:, :, : voice.mel.shape[1]] = voice.mel.transpose(1, 2)
        return mu, speaker, prompt

    def solve(
        self, noise: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, steps: int
    ) -> Tensor:
        """Integrate the ODE from noise to mel on a cosine schedule (upstream solve_euler).

        The state stays in float32; only the estimator works in its own dtype. Conditional and
        unconditional rows go together: v = (1 + w) v_cond - w v_uncond, with upstream's w = 0.7.
        """
        estimator, weight = self.net.decoder.estimator, self.net.decoder.inference_cfg_rate
        times = 1 - torch.cos(torch.linspace(0, 1, steps + 1, device=mu.device) * 0.5 * torch.pi)
        rows_mu, rows_speaker, rows_prompt = (
            torch.cat((x, torch.zeros_like(x))) for x in (mu, speaker, prompt)
        )
        mask = torch.ones(2, 1, mu.shape[2], device=mu.device, dtype=self.dtype)
        x = noise
        for now, following in zip(times[:-1], times[1:], strict=True):
            velocity = estimator(
                x=x.to(self.dtype).expand(2, -1, -1),
                mask=mask,
                mu=rows_mu,
                t=now.expand(2),
                spks=rows_speaker,
                cond=rows_prompt,
            ).float()
            cond, uncond = velocity.split(1)
            x = x + (following - now) * ((1.0 + weight) * cond - weight * uncond)
        return x


class TimeEmbedding(nn.Module):
    """Sinusoidal time features through upstream's MLP, in float32, cast at the end.

    Replaces upstream's pair (matcha/decoder.py, SinusoidalPosEmb and TimestepEmbedding) in half
    precision: its features are sines of 1000 t, and bfloat16's t is off by half a radian there.
    """

    def __init__(self, mlp: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.mlp, self.dtype = mlp.float(), dtype

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.mlp(features)
        return out.to(self.dtype)


def build(shape: FlowShape) -> nn.Module:
    """Instantiate upstream's flow with these shapes; the true ones give upstream's own module.

    Upstream hard-codes 512 channels in two layers of its encoder and four blocks after the
    upsampling; for a smaller model those are replaced by the same classes in the right size.
    """
    from chatterbox.models.s3gen.configs import CFM_PARAMS
    from chatterbox.models.s3gen.decoder import ConditionalDecoder
    from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
    from chatterbox.models.s3gen.flow_matching import CausalConditionalCFM
    from chatterbox.models.s3gen.transformer.upsample_encoder import (
        PreLookaheadLayer,
        Upsample1D,
        UpsampleConformerEncoder,
    )

    width = shape.encoder_width
    encoder = UpsampleConformerEncoder(
        input_size=width,
        output_size=width,
        attention_heads=shape.encoder_heads,
        linear_units=shape.encoder_ffn,
        num_blocks=shape.encoder_blocks,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn",
        use_cnn_module=False,
        macaron_style=False,
    )
    if width != encoder.up_layer.channels:
        encoder.pre_lookahead_layer = PreLookaheadLayer(channels=width, pre_lookahead_len=3)
        encoder.up_layer = Upsample1D(channels=width, out_channels=width, stride=MEL_PER_TOKEN)
    encoder.up_encoders = encoder.up_encoders[: shape.up_blocks]
    estimator = ConditionalDecoder(
        in_channels=4 * MEL_BINS,
        out_channels=MEL_BINS,
        causal=True,
        channels=[shape.estimator_width],
        dropout=0.0,
        attention_head_dim=shape.estimator_head_dim,
        n_blocks=shape.estimator_blocks,
        num_mid_blocks=shape.estimator_mid,
        num_heads=shape.estimator_heads,
        act_fn="gelu",
    )
    decoder = CausalConditionalCFM(spk_emb_dim=MEL_BINS, cfm_params=CFM_PARAMS, estimator=estimator)
    net: nn.Module = CausalMaskedDiffWithXvec(
        input_size=width,
        output_size=MEL_BINS,
        spk_embed_dim=shape.xvector,
        vocab_size=SPEECH_TOKENS,
        encoder=encoder,
        decoder=decoder,
    )
    return net
