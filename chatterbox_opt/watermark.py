"""PerTh, Resemble AI's inaudible watermark, as upstream puts it on everything it says.

Knows how PerTh marks a wave, and where its package keeps the network. Knows nothing of how the
sound was made.

PerTh's own network does the marking (its files, its weights). What the package does around it
(perth_watermarker.py and audio_processor.py of resemble-perth 1.0.1) is done here, number for
number: importing it brings librosa, numba, scipy.signal and pkg_resources, two of the five seconds
that a first word took.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chatterbox_opt import lean
from chatterbox_opt.blank import uninitialised
from chatterbox_opt.errors import ChatterboxOptError
from chatterbox_opt.shapes import SAMPLE_RATE

Wave = npt.NDArray[np.float32]
QUIETLY = threading.Lock()  # redirecting standard output is global: one at a time
REMEDY = "pip install 'setuptools<81' resemble-perth, or speak without it (--no-watermark)"
NETWORK = "perth_net.perth_net_implicit"
WEIGHTS = "perth_net/pretrained/implicit"
FLOOR, HEADROOM = 180.0, 15.0  # dB: what counts as silence, and room above full scale
_DAMAGED = (ImportError, OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError,
            pickle.UnpicklingError)  # fmt: skip


class Watermark:
    """Marks waves and finds the mark again."""

    def __init__(self) -> None:
        """Load PerTh's encoder.

        Raises:
            ChatterboxOptError: not installed, or not as it should be.
        """
        package = lean.place("perth")
        if package is None:
            raise ChatterboxOptError(
                f"the watermarker cannot be loaded (no package perth): {REMEDY}"
            )
        try:
            self._load(package)
        except _DAMAGED as error:
            first = " ".join(str(error).split())[:200]
            raise ChatterboxOptError(
                f"the watermarker cannot be loaded ({first}): {REMEDY}"
            ) from error

    def _load(self, package: Path) -> None:
        import yaml

        layers = lean.layers(package, f"{NETWORK}.model")
        encoder = lean.layers(package, f"{NETWORK}.model.encoder").Encoder
        known = yaml.safe_load((package / WEIGHTS / "hparams.yaml").read_text(encoding="utf-8"))
        how = lean.layers(package, f"{NETWORK}.config").PerthConfig(**known)
        saved = sorted((package / WEIGHTS).glob("*.pth.tar"), key=_training_step)[-1]
        state = torch.load(saved, map_location="cpu", weights_only=True, mmap=True)["model"]
        with uninitialised(), torch.device("meta"):
            self._encoder: Any = encoder(how.hidden_size, layers.compute_subband_freq(how))
        own = {n.removeprefix("encoder."): t for n, t in state.items() if n.startswith("encoder.")}
        self._encoder.load_state_dict(own, assign=True)
        self._rate: int = how.sample_rate
        self._frames = {
            "n_fft": how.n_fft,
            "hop_length": how.hop_size,
            "win_length": how.window_size,
            "window": torch.hann_window(how.window_size),
        }

    def apply(self, wave: Wave) -> Wave:
        """Mark float32 [n] at 24 kHz; the result is as long or a few samples shorter."""
        wide = torch.from_numpy(_resample(wave, SAMPLE_RATE, self._rate))
        with torch.inference_mode():
            marked = self._mark(wide).numpy()
        narrow = _resample(marked, self._rate, SAMPLE_RATE)
        return np.clip(narrow, -1.0, 1.0)  # marking may overshoot by a hair; files clip anyway

    def _mark(self, wave: Tensor) -> Tensor:
        """Add the network's residual to the log-magnitudes; phases stay as they are."""
        spectrum = torch.stft(wave[None], **self._frames, return_complex=True)[0]
        phase = torch.angle(spectrum)
        loudness = 20 * torch.log10(spectrum.abs().clip(10 ** (-FLOOR / 20)))
        marked, _ = self._encoder(((loudness + FLOOR) / (FLOOR + HEADROOM))[None])
        decibels = marked[0] * (FLOOR + HEADROOM) - FLOOR
        spectrum = 10.0 ** (decibels / 20).clip(max=10) * torch.exp(1.0j * phase)
        return torch.istft(spectrum[None], **self._frames)[0]

    def strength(self, wave: Wave) -> float:
        """How much of the mark PerTh's own package finds, 0 to 1 (imports it: 2 s); marked speech
        is near 1, other sound near 0.

        Raises:
            ChatterboxOptError: its package lacks pkg_resources, which setuptools 81 dropped.
        """
        import perth

        if perth.PerthImplicitWatermarker is None:  # how it hides a failed import of its own
            raise ChatterboxOptError(f"the watermarker lacks pkg_resources: {REMEDY}")
        # it announces itself where a wav may go
        with QUIETLY, contextlib.redirect_stdout(io.StringIO()):
            reader = perth.PerthImplicitWatermarker()
        return float(np.mean(reader.get_watermark(wave, sample_rate=SAMPLE_RATE, round=False)))


def _training_step(path: Path) -> int:
    return int(path.name.removesuffix(".pth.tar").rpartition("_")[2])


def _resample(wave: Wave, rate: int, to: int) -> Wave:
    """As librosa.resample: soxr's high quality, cut or filled to the length that is due."""
    import soxr

    if rate == to:
        return wave
    due = -(-len(wave) * to // rate)
    resampled: Wave = soxr.resample(wave, rate, to, quality="soxr_hq")
    return np.pad(resampled[:due], (0, max(0, due - len(resampled))))
