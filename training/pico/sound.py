"""An utterance's sound as tensors: wave, mel, and the voice that it is a sample of.

Knows units and upstream's mel. Knows nothing of training.
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
from training.pico.design import SHAPES
from training.pico.utterances import Utterance

Floats = npt.NDArray[np.float32]
BLOCK = round(0.4 * SAMPLE_RATE)  # loudness is measured in blocks of this
LOUDNESS = -22.0  # LUFS, of all that pico learns to say
LIMIT, RATIO = -20.0, 3.0  # dB full scale from which a syllable's level rises by a third only
SYLLABLE = round(0.05 * SAMPLE_RATE)  # window of that level


def wave_of(one: Utterance) -> Tensor:
    """float32 [n] at 24 kHz, as loud as all others and evened out.

    The teacher's low voices are much louder, and some of its vowels boom: 13 dB above the rest of
    the sentence, which a pupil overdoes to full scale.
    """
    assert one.wave is not None
    wave = evened(levelled(one.wave.astype(np.float32) / 32768))
    return torch.from_numpy(levelled(wave))


def levelled(wave: Floats) -> Floats:
    """float32 [n] brought to ``LOUDNESS``."""
    level = loudness(wave)
    assert level is not None
    return wave * np.float32(10 ** ((LOUDNESS - level) / 20))


def evened(wave: Floats) -> Floats:
    """float32 [n] with what is above ``LIMIT`` compressed by ``RATIO``."""
    window = np.hanning(SYLLABLE)
    power = fftconvolve(wave.astype(np.float64) ** 2, window / window.sum(), mode="same")
    above = np.maximum(power, 10 ** (LIMIT / 10)) / 10 ** (LIMIT / 10)
    return (wave * above ** (-(1 - 1 / RATIO) / 2)).astype(np.float32)


def loudness(wave: Floats) -> float | None:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of float32 [n] at 24 kHz; None: silence."""
    import pyloudnorm

    # one word may be shorter than a block; silence is gated away, so it changes nothing else
    padded = np.pad(wave.astype(np.float64), (0, max(0, BLOCK - len(wave))))
    found = float(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(padded))
    return found if np.isfinite(found) else None


def mel_of(wave: Tensor) -> Tensor:
    """Upstream's log-mel: [rows, n] to [rows, 80, n / 480]."""
    mel: Tensor = import_upstream("models.s3gen.utils.mel").mel_spectrogram(wave)
    return mel


def voice_of(one: Utterance) -> Voice:
    """Its voice, from what is known of the speaker rather than from listening."""
    assert one.speaker is not None
    said = torch.from_numpy(one.codes.astype(np.int64))[None]
    return Voice(
        speaker=torch.from_numpy(teacher.voice_vector(one.speaker, SHAPES.t3.speaker))[None],
        prompt=said[:, : SHAPES.t3.prompt_tokens],
        tokens=said,
        mel=mel_of(wave_of(one)[None]).transpose(1, 2)[:, : 2 * said.shape[1]],
        xvector=torch.from_numpy(teacher.x_vector(one.speaker, SHAPES.flow.xvector))[None],
    )
