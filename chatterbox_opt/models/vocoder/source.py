"""The vocoder's source signal: harmonics of F0 where voiced, noise elsewhere.

Responsible for phases, random numbers, and for continuing a signal whose end is not known yet. Not
responsible for F0 or for the layers that filter the source (model.py). It is computed here because
upstream draws phases and noise from torch's global generator.

A phase is the sum of all F0 before it. So a signal that is made in parts is only continuous if the
phase is carried from part to part, over frames whose F0 is final: one provisional F0 in the sum,
and all that follows is out of phase. What is carried is the phase of the fundamental, in cycles
modulo 1; that of its k-th harmonic is k times as much. The samples of the last frames are kept too,
because the layers need them to the left of the next part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatterbox_opt.config.model_config import SAMPLE_RATE

HOP_LENGTH = 480  # samples per mel frame
# upstream's constants (hifigan.py)
NUM_HARMONICS = 9  # including the fundamental
SINE_AMP, NOISE_STD = 0.1, 0.003  # amplitude of a harmonic, std of its additive noise
VOICED_THRESHOLD = 10.0  # Hz; F0 above it is voiced
LEFT_FRAMES = 16  # before a window; the layers look back at 10
RIGHT_FRAMES = 12  # after one: 10 that the layers look ahead, and 2 behind a part for its watermark


@dataclass(frozen=True, slots=True)
class SourceState:
    """What the next part of a source signal needs of those before.

    Attributes:
        offsets: float32 [9], the random phases of the harmonics in radians; the first is 0.
        cycles: phase of the fundamental at the end of the last final frame, in [0, 1).
        source: float32 [480 left], the samples of the last ``LEFT_FRAMES`` final frames or of all.
    """

    offsets: Tensor
    cycles: float
    source: Tensor

    def after(self, f0: Tensor, source: Tensor) -> SourceState:
        """The state after frames with final F0 [n], of which ``source`` are the last samples."""
        cycles = self.cycles + float(f0.cpu().double().sum()) * HOP_LENGTH / SAMPLE_RATE
        kept = source[-LEFT_FRAMES * HOP_LENGTH :].clone()
        return SourceState(self.offsets, cycles % 1.0, kept)


@dataclass(frozen=True, slots=True)
class VocoderWindow:
    """A part of a mel spectrogram whose end is not known yet.

    Attributes:
        mel: float32 [80, left + new + right]: frames that were given out before and are in
            ``state.source``, new ones, and provisional ones. F0 of a frame depends on 5 frames to
            its right, the waveform on 10: with fewer, new frames sound as if the sound ended there.
        new: number of new frames.
        state: after the frames before the new ones.
        noise: float32 [480 (new + right), 9], normal; that of a frame must be the same in all
            windows.
    """

    mel: Tensor
    new: int
    state: SourceState
    noise: Tensor

    @property
    def left(self) -> int:
        """Number of frames before the new ones."""
        return len(self.state.source) // HOP_LENGTH


def random_phases(generator: torch.Generator | None, device: torch.device, rows: int) -> Tensor:
    """Upstream's random phases: float32 [rows, 9, 1] in radians, 0 for the fundamental."""
    size = (rows, NUM_HARMONICS, 1)
    phases = torch.rand(size, generator=generator, device=device) * (2 * torch.pi) - torch.pi
    phases[:, 0] = 0
    return phases


def source(merge: nn.Linear, f0: Tensor, generator: torch.Generator | None) -> Tensor:
    """The source signal: harmonics of F0 with random phases where voiced, noise elsewhere.

    Upstream hifigan.py, SineGen and SourceModuleHnNSF: the same random numbers in the same order
    for the same generator state.

    Args:
        merge: upstream's l_linear, nine harmonics to one signal; the only trained part.
        f0: float32 [rows, F] in Hz; up to 10 Hz is unvoiced.

    Returns:
        float32 [rows, 480 F].
    """
    with torch.no_grad():
        f0 = f0.repeat_interleave(HOP_LENGTH, dim=1)[:, None]
        orders = torch.arange(1, NUM_HARMONICS + 1, device=f0.device)[None, :, None]
        cycles = torch.cumsum(f0 * orders / SAMPLE_RATE, dim=-1).frac_()
        phases = random_phases(generator, f0.device, len(f0))
        voiced = f0 > VOICED_THRESHOLD
        waves = cycles.mul_(2 * torch.pi).add_(phases).sin_().mul_(SINE_AMP * voiced)
        noise = torch.randn(waves.shape, generator=generator, device=f0.device)
        waves.addcmul_(noise, torch.where(voiced, NOISE_STD, SINE_AMP / 3))
    return torch.tanh(merge(waves.transpose(1, 2))).squeeze(-1)


def continued_source(merge: nn.Linear, f0: Tensor, state: SourceState, noise: Tensor) -> Tensor:
    """``source`` of frames that follow others, with given random numbers.

    The phase at the start of each frame is summed in float64, so that the sum over a long signal
    keeps its precision; within a frame F0 is constant.

    Args:
        f0: float32 [F] in Hz.
        noise: float32 [480 F, 9], normal.

    Returns:
        float32 [480 F].
    """
    per_frame = f0.cpu().double() * (HOP_LENGTH / SAMPLE_RATE)  # not every device has float64
    starts = (state.cycles + per_frame.cumsum(0) - per_frame).frac().to(f0)
    samples = torch.arange(1, HOP_LENGTH + 1, device=f0.device) / SAMPLE_RATE
    cycles = (starts[:, None] + f0[:, None] * samples).flatten()
    orders = torch.arange(1, NUM_HARMONICS + 1, device=f0.device)
    voiced = (f0 > VOICED_THRESHOLD).repeat_interleave(HOP_LENGTH)[:, None]
    waves = (cycles[:, None] * orders).frac_().mul_(2 * torch.pi).add_(state.offsets).sin_()
    waves.mul_(SINE_AMP * voiced).addcmul_(noise, torch.where(voiced, NOISE_STD, SINE_AMP / 3))
    out: Tensor = torch.tanh(merge(waves)).squeeze(-1)
    return out
