"""The vocoder stage: mel spectrograms to waveforms.

Responsible for STFT and inverse STFT, windows of unfinished mels, and the fade-in. Not responsible
for tokens, voices or files. Float32: lower precision throughout would be audible. On a CPU the
products of some layers may be bfloat16 (packed.py).

The generator's layers are in hift.py, the harmonic source is in source.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chatterbox_opt.config.model_config import MEL_BINS, SAMPLE_RATE, VocoderConfig
from chatterbox_opt.errors import NumericsError
from chatterbox_opt.kernels.cpu.conv import ops as conv_ops
from chatterbox_opt.models.vocoder.hift import F0Predictor, Generator
from chatterbox_opt.models.vocoder.packed import PackedGenerator
from chatterbox_opt.models.vocoder.source import (
    HOP_LENGTH,
    SourceState,
    VocoderWindow,
    continued_source,
    source,
)
from chatterbox_opt.runtime.bucketing import (
    EagerExecutor,
    Executor,
    group_by_length,
    pad_rows,
)
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.utils.upstream_import import import_upstream

FADE_LENGTH = SAMPLE_RATE // 50  # 20 ms of silence, then 20 ms of fade-in (upstream trim_fade)
# upstream's constants of the last layer (hifigan.py)
N_FFT, STFT_HOP = 16, 4  # samples of an STFT window and between two
MAX_MAGNITUDE = 100.0  # of an STFT bin
AUDIO_LIMIT = 0.99  # peak of the waveform
Generators = Sequence[torch.Generator | None]


class Vocoder(nn.Module):
    """HiFT: neural source-filter model with inverse STFT (Li et al. 2023, arXiv 2309.09493)."""

    window: Tensor

    def __init__(self, net: Any) -> None:
        """Fold upstream's HiFTGenerator (see ``build_hift``), whose parameters are not changed."""
        super().__init__()
        with torch.no_grad():
            self.pitch = F0Predictor(net.f0_predictor)
            self.generator: Generator | PackedGenerator = Generator(net)
        self.merge: nn.Linear = net.m_source.l_linear
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.executor: Executor = EagerExecutor()  # eager, or CUDA graphs

    @property
    def dtype(self) -> torch.dtype:
        """Always float32, of signals and sums."""
        return torch.float32

    def use_cpu_kernels(self, dtype: torch.dtype) -> None:
        """Run the generator's convolutions by our own kernel, if this CPU can.

        Args:
            dtype: of products, float32 or bfloat16.
        """
        if isinstance(self.generator, Generator) and conv_ops.supports(dtype):
            self.generator = PackedGenerator(self.generator, dtype)

    @torch.inference_mode()
    def forward(self, mels: Sequence[Tensor], generators: Generators) -> list[Tensor]:
        """Turn mel spectrograms into waveforms, independent of each other.

        Args:
            mels: float32 [80, F_i], each F_i at least 2.
            generators: one for each mel, on its device; draws the phases of the harmonics and the
                noise of the source.

        Returns:
            float32 [480 F_i] in [-0.99, 0.99] at 24 kHz; the first 40 ms faded in, because the
            voice's prompt leaks into them (upstream s3gen.py, trim_fade).

        Raises:
            NumericsError: a waveform contains NaN or Inf.
        """
        waves = self.decode(mels, generators)
        _check_finite(waves)
        fade = fade_in(mels[0].device)
        for wave in waves:
            wave[: 2 * FADE_LENGTH] *= fade
        return waves

    def decode(self, mels: Sequence[Tensor], generators: Generators) -> list[Tensor]:
        """``forward`` without the fade-in and the NaN check.

        F0 and source are computed per row: a phase is the sum of all previous F0, so that
        differences in the last bit become audible.
        """
        sources = [
            source(self.merge, self.pitch(mel[None]), generator)[0]
            for mel, generator in zip(mels, generators, strict=True)
        ]
        return self._filter(mels, sources)

    @torch.inference_mode()
    def extend(self, windows: Sequence[VocoderWindow]) -> list[tuple[Tensor, SourceState]]:
        """Waveforms of the last frames of mel spectrograms that are not complete yet.

        Returns:
            for each window, float32 [480 (new + right)] in [-0.99, 0.99], of which the last 480
            ``right`` samples are provisional, and the state for the next window. The first window
            is not faded in.

        Raises:
            NumericsError: a waveform contains NaN or Inf.
        """
        sources, states = [], []
        for window in windows:
            left = window.left
            f0 = self.pitch(window.mel[None])[0]
            new = continued_source(self.merge, f0[left:], window.state, window.noise)
            sources.append(torch.cat((window.state.source[-left * HOP_LENGTH :], new)))
            end = (left + window.new) * HOP_LENGTH
            states.append(window.state.after(f0[left : left + window.new], sources[-1][:end]))
        waves = self._filter([window.mel for window in windows], sources)
        cut = [
            wave[window.left * HOP_LENGTH :] for wave, window in zip(waves, windows, strict=True)
        ]
        _check_finite(cut)
        return list(zip(cut, states, strict=True))

    def _filter(self, mels: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Tensor]:
        """Waveforms [480 F_i] of source signals [480 F_i]: together where the device gains."""
        waves: dict[int, Tensor] = {}
        for rows in group_by_length([mel.shape[-1] for mel in mels], mels[0].device):
            filtered = self._filter_group([mels[i] for i in rows], [sources[i] for i in rows])
            waves |= zip(rows, filtered, strict=True)
        return [waves[i] for i in range(len(mels))]

    def _filter_group(self, mels: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Tensor]:
        """``_filter`` for rows of similar lengths, padded to a bucket."""
        lengths = [mel.shape[-1] for mel in mels]
        size = self.generator.padded_length(max(lengths))
        spectra = [self._stft(wave) for wave in sources]
        spectrum = pad_rows(spectra, size * HOP_LENGTH // STFT_HOP + 1)
        rows = pad_rows(mels, size), spectrum, to_device(torch.tensor(lengths), spectrum.device)
        outputs = self.executor("layers", self._generate, *rows)
        return [
            self._inverse_stft(row[:, : s.shape[1]])
            for row, s in zip(outputs, spectra, strict=True)
        ]

    def _generate(self, mel: Tensor, spectrum: Tensor, lengths: Tensor) -> Tensor:
        """The part that can be captured: tensor operations only."""
        out: Tensor = self.generator(mel, spectrum, self.executor.padding_mask(lengths))
        return out

    def _stft(self, wave: Tensor) -> Tensor:
        """A signal [480 F] to its STFT [18, 120 F + 1]: real parts, then imaginary parts."""
        spectrum = torch.stft(wave, N_FFT, STFT_HOP, N_FFT, self.window, return_complex=True)
        return torch.cat((spectrum.real, spectrum.imag))

    def _inverse_stft(self, row: Tensor) -> Tensor:
        """Generator output [18, n / 4 + 1] to a waveform [n]."""
        bins = N_FFT // 2 + 1
        magnitude, phase = row[:bins].exp().clamp(max=MAX_MAGNITUDE), row[bins:].sin()
        spectrum = torch.polar(magnitude, phase)
        return torch.istft(spectrum, N_FFT, STFT_HOP, N_FFT, self.window).clamp_(
            -AUDIO_LIMIT, AUDIO_LIMIT
        )


def _check_finite(waves: Sequence[Tensor]) -> None:
    """Raise NumericsError if a waveform contains NaN or Inf."""
    if not all(torch.isfinite(wave).all() for wave in waves):
        raise NumericsError("vocoder computed a waveform with NaN or Inf")


def fade_in(device: torch.device) -> Tensor:
    """Upstream's trim_fade: float32 [960], 20 ms of zeros, then half a cosine up to 1."""
    fade = torch.zeros(2 * FADE_LENGTH, device=device)
    fade[FADE_LENGTH:] = (
        torch.cos(torch.linspace(torch.pi, 0, FADE_LENGTH, device=device)) + 1
    ) / 2
    return fade


def build_hift(config: VocoderConfig) -> nn.Module:
    """Instantiate upstream's HiFT with the widths of ``config``; otherwise as its s3gen.py."""
    predictor = import_upstream("models.s3gen.f0_predictor").ConvRNNF0Predictor
    net: nn.Module = import_upstream("models.s3gen.hifigan").HiFTGenerator(
        in_channels=MEL_BINS,
        base_channels=config.width,
        sampling_rate=SAMPLE_RATE,
        upsample_rates=[8, 5, 3],
        upsample_kernel_sizes=[16, 11, 7],
        source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        f0_predictor=predictor(in_channels=MEL_BINS, cond_channels=config.f0_width),
    )
    return net
