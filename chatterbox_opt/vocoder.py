"""The vocoder stage: mel spectrogram to wave, and the watermark on the way out.

Knows the F0 predictor, the harmonic source, HiFT and PerTh. Knows nothing of tokens, voices or
files. Always float32: half precision is audible here.

Upstream's modules do the layers (hifigan.py of chatterbox-tts 0.1.7); the source is computed here
because upstream draws its phases and noise from torch's global generator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chatterbox_opt.errors import NumericsError
from chatterbox_opt.lean import upstream
from chatterbox_opt.shapes import MEL_BINS, SAMPLE_RATE, VocoderShape

HOP = 480  # samples per mel frame
FADE = SAMPLE_RATE // 50  # 20 ms of silence, then 20 ms of fade-in (upstream trim_fade)


class Vocoder(nn.Module):
    """HiFT: neural source filter and inverse STFT (Li et al. 2023, arXiv 2309.09493).

    ``net`` holds upstream's HiFTGenerator under upstream's parameter names.
    """

    def __init__(self, shape: VocoderShape) -> None:
        super().__init__()
        self.net: Any = build(shape)

    @property
    def dtype(self) -> torch.dtype:
        """Always float32."""
        return torch.float32

    @torch.inference_mode()
    def forward(self, mel: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn a mel spectrogram into sound.

        Args:
            mel: float32 [1, 80, F], F at least 2.
            generator: on the mel's device; draws the harmonics' phases and the source's noise.

        Returns:
            float32 [480 F] in [-0.99, 0.99] at 24 kHz; the first 40 ms faded in, because the
            voice's prompt spills into them (upstream s3gen.py, trim_fade).

        Raises:
            NumericsError: the wave holds NaN or infinity.
        """
        f0 = self.net.f0_predictor(mel)
        wave: Tensor = self.net.decode(x=mel, s=self.source(f0, generator))[0]
        if not torch.isfinite(wave).all():
            raise NumericsError("vocoder gave a wave with numbers that are not finite")
        wave[: 2 * FADE] *= fade_in(wave.device)
        return wave

    def source(self, f0: Tensor, generator: torch.Generator | None) -> Tensor:
        """Harmonics of F0 with random phases where voiced, noise elsewhere, mixed to one signal.

        Upstream hifigan.py, SineGen and SourceModuleHnNSF: the same numbers in the same order
        from the same generator state.

        Args:
            f0: float32 [1, F] in Hz; up to 10 Hz counts as unvoiced.

        Returns:
            float32 [1, 1, 480 F].
        """
        sines = self.net.m_source.l_sin_gen
        harmonics = self.net.nb_harmonics + 1
        f0 = f0.repeat_interleave(HOP, dim=1)[:, None]
        orders = torch.arange(1, harmonics + 1, device=f0.device)[None, :, None]
        cycles = torch.cumsum(f0 * orders / self.net.sampling_rate, dim=-1) % 1
        drawn = torch.rand(1, harmonics, 1, generator=generator, device=f0.device)
        phases = drawn * (2 * torch.pi) - torch.pi
        phases[:, 0] = 0
        voiced = (f0 > sines.voiced_threshold).float()
        waves = sines.sine_amp * torch.sin(2 * torch.pi * cycles + phases)
        loudness = voiced * sines.noise_std + (1 - voiced) * sines.sine_amp / 3
        noise = torch.randn(waves.shape, generator=generator, device=f0.device)
        waves = waves * voiced + loudness * noise
        mixed: Tensor = torch.tanh(self.net.m_source.l_linear(waves.transpose(1, 2)))
        return mixed.transpose(1, 2)


def fade_in(device: torch.device) -> Tensor:
    """Upstream's trim_fade: float32 [960], 20 ms of zeros, then half a cosine up to 1."""
    fade = torch.zeros(2 * FADE, device=device)
    fade[FADE:] = (torch.cos(torch.linspace(torch.pi, 0, FADE, device=device)) + 1) / 2
    return fade


def build(shape: VocoderShape) -> nn.Module:
    """Instantiate upstream's HiFT with these widths; the rest is as in upstream's s3gen.py."""
    predictor = upstream("models.s3gen.f0_predictor").ConvRNNF0Predictor
    net: nn.Module = upstream("models.s3gen.hifigan").HiFTGenerator(
        in_channels=MEL_BINS,
        base_channels=shape.width,
        sampling_rate=SAMPLE_RATE,
        upsample_rates=[8, 5, 3],
        upsample_kernel_sizes=[16, 11, 7],
        source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        f0_predictor=predictor(in_channels=MEL_BINS, cond_channels=shape.f0_width),
    )
    return net
