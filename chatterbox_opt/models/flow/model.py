"""The flow stage: speech tokens and voices to mel spectrograms, by conditional flow matching.

Responsible for the conformer encoder, the ODE solver (Euler) and CFG. Not responsible for text,
voice files, devices or waveforms.

The conformer encoder is upstream's class, the velocity field estimator is ours (estimator.py);
this module replaces the code around them (flow.py and flow_matching.py of chatterbox-tts 0.1.7).
There are two kinds of estimators:

    flow matching   velocity at a time; 10 steps on a cosine schedule, with and without conditions
    mean flow       mean velocity between two times; 2 equal steps, conditioned only, because it
                    was distilled from guided velocities (Geng et al. 2025; Turbo and Nano)

Noise is drawn in float32 from the caller's generator: an fp16 or bf16 draw gives other random
numbers and hence other audio.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.config.model_config import MEL_BINS, MEL_PER_TOKEN, SPEECH_TOKENS, FlowConfig
from chatterbox_opt.errors import NumericsError
from chatterbox_opt.layers import linear_int, linear_onednn
from chatterbox_opt.models.flow.encoder import (
    build_encoder,
    encode_padded,
    relative_positions,
    valid_mask,
)
from chatterbox_opt.models.flow.estimator import Estimator, Schedule
from chatterbox_opt.runtime.bucketing import EagerExecutor, Executor, group_by_length
from chatterbox_opt.runtime.core_threads import CoreThreads
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.voice import Voice

CFG_RATE = 0.7  # upstream's inference_cfg_rate (s3gen/configs.py)


@dataclass(frozen=True, slots=True)
class FlowWindow:
    """The last frames of a sequence of which T tokens are known so far.

    Attributes:
        tokens: int64 [T], from the first one on.
        voice: on the same device.
        noise: float32 [prompt + 2 T, 80]; that of a frame must be the same in all windows.
        first: frames of the sequence before the window.
    """

    tokens: Tensor
    voice: Voice
    noise: Tensor
    first: int


class Flow(nn.Module):
    """Conditional flow matching from noise to mel (Lipman et al. 2023; Matcha-TTS; CosyVoice 2).

    Parameters outside the estimator have upstream's names (CausalMaskedDiffWithXvec).
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.input_embedding = nn.Embedding(SPEECH_TOKENS, width)
        self.spk_embed_affine_layer = nn.Linear(config.xvector, MEL_BINS)
        self.encoder: Any = build_encoder(config)
        self.encoder_proj = nn.Linear(width, MEL_BINS)
        self.estimator = Estimator(config)
        self.mean_flow, self.steps = config.mean_flow, config.steps
        self._int8_layers: list[tuple[nn.Module, str, linear_int.Int8Linear]] = []
        self.executor: Executor = EagerExecutor()  # runs encoder and ODE: eager, or CUDA graphs
        self._threads: CoreThreads | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.estimator.dtype

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast to compute in ``dtype``; the time embedding stays in float32.

        oneDNN-packed matrices (linear_onednn.py) are packed again. Int8 layers are dequantized to
        float32, and restored on the return to bfloat16.
        """
        was_packed = linear_onednn.use_plain(self)
        if dtype == torch.bfloat16:
            for owner, name, layer in self._int8_layers:
                setattr(owner, name, layer)
            self._int8_layers = []
        else:
            self._int8_layers += linear_int.dequantize_layers(self)
        self.to(dtype)
        self.estimator.keep_time_in_float32()
        if was_packed:
            linear_onednn.use_onednn(self)

    def use_core_threads(self) -> None:
        """Solve several sequences at the same time, each on its share of a CPU's cores.

        For int8 transformers, whose kernels give the same bits on any number of cores.
        """
        self._threads = CoreThreads()

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[Tensor],
        voices: Sequence[Voice],
        generators: Sequence[torch.Generator | None],
        steps: int = 0,
    ) -> list[Tensor]:
        """Turn speech tokens of several sequences into mel spectrograms, independent of each other.

        Args:
            tokens: int64 [T_i] each, below 6561, each T_i at least 1.
            voices: one for each sequence, on the same device.
            generators: one for each sequence, on the same device; see ``_noise``.
            steps: Euler steps of the ODE; 0 is the model's own number.

        Returns:
            float32 [80, 2 T_i] each, without the voice's prompt.

        Raises:
            NumericsError: a mel contains NaN or Inf.
        """
        conditions = [
            self.encode(new[None], voice)[0] for new, voice in zip(tokens, voices, strict=True)
        ]
        noises = [
            self._noise(len(c), MEL_PER_TOKEN * len(new), generator, c.device)
            for c, new, generator in zip(conditions, tokens, generators, strict=True)
        ]
        mels = self._solve_rows(noises, conditions, steps or self.steps)
        return [
            mel[voice.mel.shape[1] :].T.contiguous()
            for mel, voice in zip(mels, voices, strict=True)
        ]

    def _noise(
        self, frames: int, new: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Draw the normal random numbers of a sequence, in upstream's order.

        For a mean flow upstream draws those of the new frames first (s3gen.py, flow_inference), and
        then those of all frames, of which only the prompt's are used (flow_matching.py, forward).

        Args:
            frames: of prompt and new ones.

        Returns:
            float32 [frames, 80].
        """

        def draw(count: int) -> Tensor:
            return torch.randn(1, MEL_BINS, count, generator=generator, device=device)[0].T

        first = draw(new) if self.mean_flow else None
        noise = draw(frames)
        return noise if first is None else torch.cat((noise[: frames - new], first))

    @torch.inference_mode()
    def extend(self, windows: Sequence[FlowWindow], steps: int = 0) -> list[Tensor]:
        """Compute the last frames of several sequences that are not complete yet.

        The encoder sees prompt and tokens whole. The ODE is solved for the prompt and the window;
        frames between them are left out, which costs little (see config/hop_schedule.py).

        Args:
            steps: as of ``forward``.

        Returns:
            float32 [80, 2 T - first] for each window.

        Raises:
            NumericsError: a mel contains NaN or Inf.
        """
        conditions: list[Tensor] = []
        noises: list[Tensor] = []
        for window in windows:
            prompt = window.voice.mel.shape[1]
            start = prompt + window.first
            for rows, whole in (
                (conditions, self.encode(window.tokens[None], window.voice)[0]),
                (noises, window.noise),
            ):
                rows.append(torch.cat((whole[:prompt], whole[start:])) if window.first else whole)
        mels = self._solve_rows(noises, conditions, steps or self.steps)
        return [
            mel[window.voice.mel.shape[1] :].T.contiguous()
            for mel, window in zip(mels, windows, strict=True)
        ]

    def _solve_rows(
        self, noises: Sequence[Tensor], conditions: Sequence[Tensor], steps: int
    ) -> list[Tensor]:
        """Solve sequences of different lengths, together where the device gains from it.

        Args:
            noises: float32 [F_i, 80] each.
            conditions: [F_i, 240] each.

        Returns:
            float32 [F_i, 80] each.

        Raises:
            NumericsError: one of them contains NaN or Inf.
        """
        # on all cores: PyTorch's float32 layers may give other bits on a group's share of them
        schedule = self.estimator.schedule(steps, noises[0].device)

        def solved(rows: list[int]) -> list[tuple[int, Tensor]]:
            frames = [len(noises[i]) for i in rows]
            longest = self.executor.padded_length(max(frames))
            noise, padded_conditions = (
                torch.stack([F.pad(each[i], (0, 0, 0, longest - len(each[i]))) for i in rows])
                for each in (noises, conditions)
            )
            padded = self.solve(noise, padded_conditions, frames, schedule)
            return [(i, mel[:length]) for i, length, mel in zip(rows, frames, padded, strict=True)]

        groups = group_by_length([len(noise) for noise in noises], noises[0].device)
        work = [functools.partial(solved, rows) for rows in groups]
        # dequantized layers are PyTorch's, which may give other bits on fewer cores
        threads = None if self._int8_layers else self._threads
        found = threads.run(work) if threads else [one() for one in work]
        mels = dict(pair for pairs in found for pair in pairs)
        if not all(torch.isfinite(mel).all() for mel in mels.values()):
            raise NumericsError("flow computed a mel spectrogram with NaN or Inf")
        return [mels[i] for i in range(len(noises))]

    def encode(self, tokens: Tensor, voice: Voice) -> Tensor:
        """Encode prompt and new tokens of one sequence (upstream flow.py, inference).

        For CUDA graphs the sequence is padded to a bucket.

        Args:
            tokens: int64 [1, T].

        Returns:
            [1, F, 240] over prompt and new frames: mu (the encoder's mel estimate), the speaker
            embedding, and the voice's mel, zero at the new frames.
        """
        all_tokens = torch.cat((voice.tokens, tokens), dim=1)
        length = all_tokens.shape[1]
        if not self.executor.captures:
            lengths = to_device(torch.tensor([length]), all_tokens.device)
            hidden, _ = self.encoder(self.input_embedding(all_tokens), lengths)
            return self._conditions(hidden, voice.xvector, voice.mel)
        padding = self.executor.padded_length(length) - length
        mel_padding = MEL_PER_TOKEN * (length + padding) - voice.mel.shape[1]
        encoded = self.executor(
            "encode",
            self._encode,
            F.pad(all_tokens, (0, padding)),
            all_tokens.new_full((1,), length),
            voice.xvector,
            F.pad(voice.mel, (0, 0, 0, mel_padding)),
            *relative_positions(self.encoder, length + padding, self.input_embedding.weight),
        )
        return encoded[:, : MEL_PER_TOKEN * length]

    def _encode(
        self,
        tokens: Tensor,
        lengths: Tensor,
        xvector: Tensor,
        mel: Tensor,
        pos_emb: Tensor,
        up_pos_emb: Tensor,
    ) -> Tensor:
        """``encode`` in tensor operations only, so that it can be captured.

        Args:
            tokens: int64 [1, T], padded; the first ``lengths`` are valid.
            mel: float32 [1, 2 T, 80], the voice's, then zeros.
            pos_emb, up_pos_emb: from ``relative_positions``.
        """
        hidden = encode_padded(
            self.encoder, self.input_embedding(tokens), lengths, pos_emb, up_pos_emb
        )
        return self._conditions(hidden, xvector, mel)

    def _conditions(self, hidden: Tensor, xvector: Tensor, mel: Tensor) -> Tensor:
        """Estimator inputs from the encoder output [1, F, width]; the mel is zero-padded."""
        speaker = F.normalize(xvector, dim=1).to(self.dtype)
        speaker = self.spk_embed_affine_layer(speaker)
        mu = self.encoder_proj(hidden)
        prompt = torch.zeros_like(mu)
        prompt[:, : mel.shape[1]] = mel
        return torch.cat((mu, speaker[:, None].expand_as(mu), prompt), dim=-1)

    def solve(
        self, noise: Tensor, conditions: Tensor, frames: Sequence[int], schedule: Schedule
    ) -> Tensor:
        """Integrate the ODE from noise to mel (upstream solve_euler, or basic_euler of mean flow).

        The ODE state stays in float32; only the estimator computes in its own dtype. CFG runs
        conditional and unconditional rows in one batch: v = (1 + w) v_cond - w v_uncond.

        Args:
            noise: float32 [rows, F, 80].
            conditions: [rows, F, 240], see ``encode``.
            frames: valid frames of each row; the padding after them does not affect them.
            schedule: of the estimator.

        Returns:
            float32 [rows, F, 80]; undefined in the padding.
        """
        masks: tuple[Tensor, ...] = ()
        if min(frames) < noise.shape[1]:  # attention without a mask is faster on GPUs
            masks = (valid_mask(noise.shape[1], to_device(torch.tensor(frames), noise.device)),)
        steps = len(schedule[0]) - 1
        return self.executor(steps, self._integrate, noise, conditions, *schedule, *masks)

    def _integrate(
        self, x: Tensor, conditions: Tensor, times: Tensor, shifts: Tensor, *masks: Tensor
    ) -> Tensor:
        """``solve`` in tensor operations only, so that it can be captured.

        Args:
            times, shifts: of the schedule.
            masks: one, bool [rows, F], true for valid frames; none: no padding.
        """
        estimator, dtype = self.estimator, conditions.dtype
        if not self.mean_flow:
            conditions = torch.cat((conditions, torch.zeros_like(conditions)))
            masks = tuple(mask.repeat(2, 1) for mask in masks)
        conditioning = estimator.condition(conditions, *masks)
        for i in range(shifts.shape[1]):
            velocity = estimator(x.to(dtype), conditioning, shifts[:, i]).float()
            if not self.mean_flow:
                cond, uncond = velocity.chunk(2)
                velocity = (1.0 + CFG_RATE) * cond - CFG_RATE * uncond
            x = x + (times[i + 1] - times[i]) * velocity
        return x
