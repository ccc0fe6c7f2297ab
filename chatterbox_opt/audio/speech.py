"""Reads a whole recording, for voice conversion: mono, at the rate that the tokenizer hears.

Responsible for what a recording of speech must be, and for its samples. Not responsible for formats
(audio/decoders.py), for a voice's reference (audio/files.py) or for tokens; imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.audio import decoders, levels, recordings
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import VoiceError
from chatterbox_opt.utils.librosa_import import import_librosa

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

MIN_SECONDS = 0.1  # two or three tokens


@dataclass(frozen=True, slots=True)
class Speech:
    """A recording of speech.

    Attributes:
        wave: float32 [n], mono, at the rate that was asked for.
        length: samples of the same duration at 24 kHz.
        remark: what is odd in the recording and what was corrected, or "".
    """

    wave: Wave
    length: int
    remark: str = ""


def check_speech(path: Path) -> None:
    """Check that a recording can be opened; reads nothing.

    Raises:
        VoiceError: no such file, a directory or a device, empty, too large.
    """
    recordings.check_file(path, recordings.SPEECH)


def read_speech(path: Path, rate: int, name: str | None = None) -> Speech:
    """Decode a recording, or what a pipe sends; ``decoders`` has the bounds.

    A file that soundfile reads has the samples of ``librosa.load`` bit for bit, unless its levels
    are not plausible (audio/levels.py).

    Args:
        rate: of the result in Hz.
        name: of the file in messages, if it is a copy.

    Raises:
        VoiceError: as ``check_speech``; not audio, too short or too long, silent, NaN/Inf samples.
    """
    name = name or str(path)
    with recordings.regular_file(path, recordings.SPEECH) as file:
        sound = decoders.decode(file, name, whole=True)
    speech = resampled(sound.samples, sound.rate, rate, name)
    return Speech(
        speech.wave, speech.length, "; ".join(filter(None, (*sound.remarks, speech.remark)))
    )


def resampled(samples: Wave, rate: int, to: int, name: str) -> Speech:
    """The speech of samples in memory.

    Args:
        samples: float32 [n, 1] at ``rate``.
        name: of them in messages.

    Raises:
        VoiceError: too short, silent, NaN/Inf.
    """
    import numpy as np

    if len(samples) < MIN_SECONDS * rate:
        raise VoiceError(
            f"'{name}' lasts {len(samples) / rate:.2f} s; {MIN_SECONDS} s of speech are needed"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(samples.max() - samples.min())
    if not finite:
        raise VoiceError(f"'{name}' has NaN/Inf samples; export it again")
    wave, remarks = levels.normalize(samples, rate)
    if max(wave.max(), -wave.min()) < levels.SILENCE_PEAK:
        raise VoiceError(f"'{name}' is silent; use a recording of speech")
    wave = import_librosa().resample(wave, orig_sr=rate, target_sr=to)
    return Speech(wave, -(-len(samples) * SAMPLE_RATE // rate), "; ".join(remarks))
