"""An utterance's audio as tensors: wave, mel, and its voice.

Responsible for levels and upstream's mel. Not responsible for training.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import fftconvolve
from torch import Tensor

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.utils.upstream_import import import_upstream
from chatterbox_opt.voice import Voice
from training.pico import teacher
from training.pico.design import PICO_CONFIG
from training.pico.utterances import Utterance

Floats = npt.NDArray[np.float32]
BLOCK = round(0.4 * SAMPLE_RATE)  # samples of a loudness block
LOUDNESS = -22.0  # LUFS, of all training audio
THRESHOLD, RATIO = -20.0, 3.0  # of the compressor, dBFS; levels above rise by a third
SYLLABLE = round(0.05 * SAMPLE_RATE)  # window of the compressor's level


def wave_of(one: Utterance) -> Tensor:
    """float32 [n] at 24 kHz, normalized in loudness and compressed.

    The teacher's low voices are much louder, and some of its vowels are 13 dB above the rest of the
    sentence, which a student exaggerates to full scale.
    """
    assert one.wave is not None
    wave = compress(normalize_loudness(one.wave.astype(np.float32) / 32768))
    return torch.from_numpy(normalize_loudness(wave))


def normalize_loudness(wave: Floats) -> Floats:
    """Scale float32 [n] to ``LOUDNESS``."""
    level = loudness(wave)
    assert level is not None
    return wave * np.float32(10 ** ((LOUDNESS - level) / 20))


def compress(wave: Floats) -> Floats:
    """Compress float32 [n] above ``THRESHOLD`` by ``RATIO``."""
    window = np.hanning(SYLLABLE)
    power = fftconvolve(wave.astype(np.float64) ** 2, window / window.sum(), mode="same")
    above = np.maximum(power, 10 ** (THRESHOLD / 10)) / 10 ** (THRESHOLD / 10)
    return (wave * above ** (-(1 - 1 / RATIO) / 2)).astype(np.float32)


def loudness(wave: Floats) -> float | None:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of float32 [n] at 24 kHz; None: silence."""
    import pyloudnorm

    # a word may be shorter than a block; the padding's silence is gated, so it has no effect
    padded = np.pad(wave.astype(np.float64), (0, max(0, BLOCK - len(wave))))
    lufs = float(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(padded))
    return lufs if np.isfinite(lufs) else None


def mel_of(wave: Tensor) -> Tensor:
    """Upstream's log-mel: [rows, n] to [rows, 80, n / 480]."""
    mel: Tensor = import_upstream("models.s3gen.utils.mel").mel_spectrogram(wave)
    return mel


def spectrum(wave: Tensor, size: int, hop: int) -> Tensor:
    """Complex spectra in Hann windows of ``size`` samples: [..., n] to [..., size / 2 + 1, frames].

    Frames are centered at multiples of ``hop`` samples.
    """
    return torch.stft(wave, size, hop, size, torch.hann_window(size), return_complex=True)


def log_spectral_difference(one: Tensor, two: Tensor) -> Tensor:
    """In nepers, of magnitudes above -60 dB: waves [..., n] to [..., 513, frames of 256]."""
    a, b = (spectrum(x, 1024, 256).abs().clamp(min=1e-3).log() for x in (one, two))
    return a - b


def voice_of(one: Utterance) -> Voice:
    """The voice of an utterance, from the speaker's parameters instead of the encoders."""
    assert one.speaker is not None
    tokens = torch.from_numpy(one.codes.astype(np.int64))[None]
    return Voice(
        speaker=torch.from_numpy(teacher.voice_vector(one.speaker, PICO_CONFIG.t3.speaker))[None],
        prompt=tokens[:, : PICO_CONFIG.t3.prompt_tokens],
        tokens=tokens,
        mel=mel_of(wave_of(one)[None]).transpose(1, 2)[:, : 2 * tokens.shape[1]],
        xvector=torch.from_numpy(teacher.x_vector(one.speaker, PICO_CONFIG.flow.xvector))[None],
    )
