"""The flow stage: speech tokens and voices to mel spectrograms.

Knows the conformer encoder, the Euler loop and its guidance. Knows nothing of text, voice files,
devices or waves.

Upstream's encoder class does the encoding, our estimator (estimator.py) the velocity; this file
does what upstream does around them (flow.py and flow_matching.py of chatterbox-tts 0.1.7), with
the noise drawn in float32 from the caller's generator: a half-precision draw is another sequence,
another sound.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import MEL_BINS, MEL_PER_TOKEN, SPEECH_TOKENS, FlowConfig
from chatterbox_opt.errors import NumericsError
from chatterbox_opt.layers import linear_int, linear_onednn
from chatterbox_opt.models.flow.estimator import Estimator
from chatterbox_opt.runtime.bucketing import EagerExecutor, Executor, group_by_length
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.sampling import CFM_STEPS
from chatterbox_opt.utils.upstream_import import import_upstream
from chatterbox_opt.voice import Voice

CFG_RATE = 0.7  # upstream's inference_cfg_rate (s3gen/configs.py)


class Flow(nn.Module):
    """Conditional flow matching from noise to mel (Lipman et al. 2023; Matcha-TTS; CosyVoice 2).

    Parameters outside the estimator have upstream's names (CausalMaskedDiffWithXvec).
    """

    def __init__(self, shape: FlowConfig) -> None:
        super().__init__()
        width = shape.encoder_width
        self.input_embedding = nn.Embedding(SPEECH_TOKENS, width)
        self.spk_embed_affine_layer = nn.Linear(shape.xvector, MEL_BINS)
        self.encoder: Any = build_encoder(shape)
        self.encoder_proj = nn.Linear(width, MEL_BINS)
        self.estimator = Estimator(shape)
        self._aside: list[tuple[nn.Module, str, linear_int.Int8Linear]] = []
        self.executor: Executor = (
            EagerExecutor()
        )  # how encoder and ODE are run: launched, or replayed

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return self.estimator.dtype

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast for arithmetic in ``dtype``; the time embedding stays in float32.

        Blocked matrices (linear_onednn.py) are blocked again. Integers become the float32 numbers that
        they stand for, and come back with bfloat16.
        """
        was_blocked = linear_onednn.use_plain(self)
        if dtype == torch.bfloat16:
            for owner, name, layer in self._aside:
                setattr(owner, name, layer)
            self._aside = []
        else:
            self._aside += linear_int.clone_outliers(self)
        self.to(dtype)
        self.estimator.time_in.float()
        self.estimator.time_out.float()
        if was_blocked:
            linear_onednn.use_onednn(self)

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[Tensor],
        voices: Sequence[Voice],
        generators: Sequence[torch.Generator | None],
        steps: int = CFM_STEPS,
    ) -> list[Tensor]:
        """Turn utterances' speech tokens into mel spectrograms, each as if it were alone.

        Args:
            tokens: int64 [T_i] each, below 6561, each T_i at least 1.
            voices: one for each, on the same device.
            generators: one for each, on the same device; [1, 80, prompt + 2 T_i] normal numbers
                are drawn.
            steps: Euler steps of the ODE.

        Returns:
            float32 [80, 2 T_i] each, the voice's prompt cut off.

        Raises:
            NumericsError: a mel holds NaN or infinity.
        """
        lengths = [
            voice.tokens.shape[1] + len(said) for said, voice in zip(tokens, voices, strict=True)
        ]
        mels: dict[int, Tensor] = {}
        for rows in group_by_length([MEL_PER_TOKEN * n for n in lengths], tokens[0].device):
            conditions = [self.encode(tokens[i][None], voices[i])[0] for i in rows]
            noises = [
                torch.randn(1, MEL_BINS, len(c), generator=generators[i], device=c.device)[0].T
                for i, c in zip(rows, conditions, strict=True)
            ]
            frames = [len(noise) for noise in noises]
            longest = self.executor.room(max(frames))
            noise, given = (
                torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in each])
                for each in (noises, conditions)
            )
            for i, length, mel in zip(
                rows, frames, self.solve(noise, given, frames, steps), strict=True
            ):
                mels[i] = mel[voices[i].mel.shape[1] : length].T.contiguous()
        if not all(torch.isfinite(mel).all() for mel in mels.values()):
            raise NumericsError("flow gave a mel spectrogram with numbers that are not finite")
        return [mels[i] for i in range(len(tokens))]

    def encode(self, tokens: Tensor, voice: Voice) -> Tensor:
        """Condition on the voice (upstream flow.py, inference).

        One utterance at a time. Where it is replayed it is padded to a bucket.

        Args:
            tokens: int64 [1, T].

        Returns:
            [1, F, 240] over prompt and new frames: mu (the encoder's estimate), the speaker, and
            the voice's mel with zeros where the new frames go.
        """
        whole = torch.cat((voice.tokens, tokens), dim=1)
        length = whole.shape[1]
        if not self.executor.records:
            lengths = to_device(torch.tensor([length]), whole.device)
            hidden, _ = self.encoder(self.input_embedding(whole), lengths)
            return self._conditions(hidden, voice.xvector, voice.mel)
        beyond = self.executor.room(length) - length
        missing = MEL_PER_TOKEN * (length + beyond) - voice.mel.shape[1]
        found = self.executor(
            "encode",
            self._encode,
            F.pad(whole, (0, beyond)),
            whole.new_full((1,), length),
            voice.xvector,
            F.pad(voice.mel, (0, 0, 0, missing)),
            *relative_positions(self.encoder, length + beyond, self.input_embedding.weight),
        )
        return found[:, : MEL_PER_TOKEN * length]

    def _encode(
        self,
        tokens: Tensor,
        lengths: Tensor,
        xvector: Tensor,
        mel: Tensor,
        near: Tensor,
        far: Tensor,
    ) -> Tensor:
        """See ``encode``; all of it is tensors, so that it can be recorded.

        Args:
            tokens: int64 [1, T], padded; ``lengths`` of them are there.
            mel: float32 [1, 2 T, 80], the voice's and then zeros.
            near, far: from ``relative_positions``.
        """
        hidden = encode_padded(self.encoder, self.input_embedding(tokens), lengths, near, far)
        return self._conditions(hidden, xvector, mel)

    def _conditions(self, hidden: Tensor, xvector: Tensor, mel: Tensor) -> Tensor:
        """What the estimator is given, of the encoder's [1, F, width]; zeros follow the mel."""
        speaker = F.normalize(xvector, dim=1).to(self.dtype)
        speaker = self.spk_embed_affine_layer(speaker)
        mu = self.encoder_proj(hidden)
        prompt = torch.zeros_like(mu)
        prompt[:, : mel.shape[1]] = mel
        return torch.cat((mu, speaker[:, None].expand_as(mu), prompt), dim=-1)

    def solve(self, noise: Tensor, conditions: Tensor, frames: Sequence[int], steps: int) -> Tensor:
        """Integrate the ODE from noise to mel on a cosine schedule (upstream solve_euler).

        The state stays in float32; only the estimator works in its own dtype. Conditional and
        unconditional rows go together: v = (1 + w) v_cond - w v_uncond.

        Args:
            noise: float32 [rows, F, 80].
            conditions: [rows, F, 240], see ``encode``.
            frames: how many of F each row has; what is beyond them is not seen by the others.

        Returns:
            float32 [rows, F, 80]; whatever beyond each row's frames.
        """
        masks: tuple[Tensor, ...] = ()
        if min(frames) < noise.shape[1]:  # kernels without a mask are faster on a card
            masks = (valid_mask(noise.shape[1], to_device(torch.tensor(frames), noise.device)),)
        solve = functools.partial(self._integrate, steps)
        return self.executor(steps, solve, noise, conditions, *masks)

    def _integrate(
        self, steps: int, x: Tensor, conditions: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """See ``solve``; all of it is tensors, so that it can be recorded.

        Args:
            mask: bool [rows, F], which frames are there; None for all.
        """
        estimator = self.estimator
        mask = None if mask is None else mask.repeat(2, 1)
        given = estimator.given(torch.cat((conditions, torch.zeros_like(conditions))), mask)
        times = 1 - torch.cos(torch.linspace(0, 1, steps + 1, device=x.device) * 0.5 * torch.pi)
        shifts = estimator.times(times[:-1])
        for i in range(steps):
            both = estimator(x.to(conditions.dtype), given, shifts[:, i]).float()
            cond, uncond = both.chunk(2)
            velocity = (1.0 + CFG_RATE) * cond - CFG_RATE * uncond
            x = x + (times[i + 1] - times[i]) * velocity
        return x


def build_encoder(shape: FlowConfig) -> Any:
    """Instantiate upstream's encoder with these shapes; the true ones give upstream's own module.

    Upstream hard-codes 512 channels in two layers and four blocks after the upsampling; for a
    smaller model those are replaced by the same classes in the right size.
    """
    layers = import_upstream("models.s3gen.transformer.upsample_encoder")
    width = shape.encoder_width
    encoder = layers.UpsampleConformerEncoder(
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
        encoder.pre_lookahead_layer = layers.PreLookaheadLayer(channels=width, pre_lookahead_len=3)
        encoder.up_layer = layers.Upsample1D(
            channels=width, out_channels=width, stride=MEL_PER_TOKEN
        )
    encoder.up_encoders = encoder.up_encoders[: shape.up_blocks]
    return encoder


def relative_positions(encoder: Any, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's tables of relative positions for ``length`` tokens: [1, 2 length - 1, width],
    and as many for its frames.

    Upstream's layers keep them, longer and bring them to another place or dtype when they are
    asked; a recording must not, so it gets them as arguments.
    """
    found = []
    for embed, size in (
        (encoder.embed, length),
        (encoder.up_embed, MEL_PER_TOKEN * length),
    ):
        embed.pos_enc.extend_pe(like.new_empty(1, size))
        found.append(embed.pos_enc.position_encoding(offset=0, size=size))
    return found[0], found[1]


def encode_padded(encoder: Any, x: Tensor, lengths: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Upstream's ``UpsampleConformerEncoder.forward`` for rows of different lengths.

    Its own reads a value back, and pads on the right of the padding: the convolution that looks
    ahead would see what embedding and norm make of it. Attention has its mask, all other layers
    look back only.

    Args:
        x: [rows, T, width], padded on the right.
        lengths: int64 [rows].
        near, far: from ``relative_positions``.

    Returns:
        [rows, 2 T, width]; whatever beyond each row's frames.
    """
    there = valid_mask(x.shape[1], lengths)
    x = encoder.embed.out(x) * encoder.embed.pos_enc.xscale
    x = encoder.pre_lookahead_layer(x.masked_fill(~there[..., None], 0))
    for layer in encoder.encoders:
        x, *_ = layer(x, there[:, None], near)
    x, lengths = encoder.up_layer(x.transpose(1, 2).contiguous(), lengths)
    there = valid_mask(x.shape[2], lengths)
    x = encoder.up_embed.out(x.transpose(1, 2).contiguous()) * encoder.up_embed.pos_enc.xscale
    for layer in encoder.up_encoders:
        x, *_ = layer(x, there[:, None], far)
    hidden: Tensor = encoder.after_norm(x)
    return hidden


def valid_mask(length: int, lengths: Tensor) -> Tensor:
    """Which of ``length`` places are not padding: bool [rows, length]."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]
