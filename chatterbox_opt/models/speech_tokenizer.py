"""The S3 tokenizer: speech to the tokens that the flow renders, 25 per second.

Responsible for recordings of any length. Not responsible for files, voices or what the tokens
become.

Up to 30 s are one window, as in upstream's ``S3Tokenizer.forward``. A longer recording is cut as
s3tokenizer's ``quantize`` cuts it: windows of 30 s that overlap by 4 s, and of each overlap the
first half is of the one before, the second of the one behind; what a token depends on is within 2 s
of it. All windows have the floor of the loudest frame of the whole recording. They run one after
the other, so memory does not grow with their number. It differs from upstream at one place: there a
last window of at most 4 s, which the one before contains, ends the tokens up to 2 s early.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chatterbox_opt.config.model_config import SPEECH_TOKENS, VoiceEncoderConfig
from chatterbox_opt.utils.librosa_import import import_librosa
from chatterbox_opt.utils.upstream_import import import_upstream
from chatterbox_opt.utils.wave import Wave

TOKENIZER_RATE = 16_000  # Hz
HOP, N_FFT = 160, 400  # samples between two frames, and of a frame
FRAMES_PER_TOKEN = 4
WINDOW, OVERLAP = 3000, 400  # frames of a window, and those that it has in common with the next
FLOOR = 8.0  # powers of ten below the loudest bin that are heard


def build_tokenizer(config: VoiceEncoderConfig) -> Any:
    """Upstream's S3Tokenizer in the config's size, without weights."""
    import_librosa()  # before upstream's files do
    from s3tokenizer.model_v2 import AudioEncoderV2, FSQVectorQuantization

    net: Any = import_upstream("models.s3tokenizer.s3tokenizer").S3Tokenizer()
    if config.tokenizer_width != net.config.n_audio_state:
        # upstream's class has no size parameters: replace its parts by smaller ones
        width, heads = config.tokenizer_width, config.tokenizer_heads
        layers, mels = config.tokenizer_layers, net.config.n_mels
        net.encoder = AudioEncoderV2(mels, width, heads, layers, 2, net.config.use_sdpa)
        net.quantizer = FSQVectorQuantization(width, SPEECH_TOKENS)
    return net


class SpeechTokenizer(nn.Module):
    """Upstream's tokenizer (float32) for recordings of any length."""

    def __init__(self, config: VoiceEncoderConfig) -> None:
        super().__init__()
        self.tokenizer: Any = build_tokenizer(config)

    @torch.inference_mode()
    def tokens(self, wave: Wave) -> list[int]:
        """The speech tokens of a recording, one for each 40 ms.

        Args:
            wave: float32 [n], mono, 16 kHz, n at least ``N_FFT``.
        """
        frames = len(wave) // HOP
        if frames <= WINDOW:
            device = self.tokenizer.device
            codes, _ = self.tokenizer(torch.from_numpy(wave).to(device)[None])
            return _ids(codes[0])
        loudest = max(self._log_mel(wave, *window).max().item() for window in windows(frames))
        tokens: list[int] = []
        kept = OVERLAP // 2 // FRAMES_PER_TOKEN
        for first, last in windows(frames):
            mel = torch.clamp(self._log_mel(wave, first, last), min=loudest - FLOOR)
            length = torch.tensor([last - first], device=mel.device)
            codes, _ = self.tokenizer.quantize((mel[None] + 4.0) / 4.0, length)
            ids = _ids(codes[0])
            tokens += ids[kept if first else 0 : None if last == frames else -kept]
        return tokens

    def _log_mel(self, wave: Wave, first: int, last: int) -> Tensor:
        """Upstream's ``log_mel_spectrogram`` of frames first to last - 1, before its floor.

        Returns:
            float32 [128, last - first], powers of ten.
        """
        net, half = self.tokenizer, N_FFT // 2
        start, stop = first * HOP - half, (last - 1) * HOP + half
        part = wave[max(start, 0) : stop]
        before, after = max(-start, 0), max(stop - len(wave), 0)
        if before or after:  # as torch.stft does at both ends of the whole
            part = np.pad(part, (before, after), mode="reflect")
        samples, window = torch.from_numpy(part).to(net.device), net.window
        spectrum = torch.stft(samples, N_FFT, HOP, window=window, center=False, return_complex=True)
        mel: Tensor = net._mel_filters @ spectrum.abs() ** 2
        return torch.clamp(mel, min=1e-10).log10()


def windows(frames: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) frame of each window of a recording."""
    first = 0
    while True:
        last = min(first + WINDOW, frames)
        yield first, last
        if last == frames:
            return
        first += WINDOW - OVERLAP


def _ids(codes: Tensor) -> list[int]:
    ids: list[int] = codes.tolist()
    return ids
