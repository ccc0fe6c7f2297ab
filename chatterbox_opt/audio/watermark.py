"""PerTh, Resemble AI's inaudible watermark, as upstream puts it on everything it says.

Knows how PerTh marks a wave, and where its package keeps the network. Knows nothing of how the
sound was made.

PerTh's own network does the marking (its files, its weights). What the package does around it
(perth_watermarker.py and audio_processor.py of resemble-perth 1.0.1) is done here, number for
number: importing it brings librosa, numba, scipy.signal and pkg_resources, two of the five seconds
that a first word took.

On a processor that takes about as long as the flow does on a fast GPU, so ``move`` brings the
network to a GPU. Resampling stays where the wave is.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import ChatterboxOptError, first_line
from chatterbox_opt.request import Wave
from chatterbox_opt.runtime.cuda import SideStream
from chatterbox_opt.utils import upstream_import
from chatterbox_opt.utils.skip_init import skip_init

log = logging.getLogger(__name__)
QUIETLY = threading.Lock()  # redirecting standard output is global: one at a time
REMEDY = "pip install 'setuptools<81' resemble-perth, or speak without it (--no-watermark)"
NETWORK = "perth_net.perth_net_implicit"
WEIGHTS = "perth_net/pretrained/implicit"
FLOOR, HEADROOM = 180.0, 15.0  # dB: what counts as silence, and room above full scale
_DAMAGED = (ImportError, OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError,
            pickle.UnpicklingError)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Network:
    """PerTh's encoder on one device.

    Attributes:
        frames: of the short-time Fourier transform and its inverse, as ``torch.stft`` takes them.
        real: magnitudes and phases are put together by functions of real numbers. On a GPU those
            of complex ones are compiled when they are first asked for, and that may fail.
    """

    encoder: Any
    frames: Mapping[str, Any]
    real: bool = False

    def mark(self, wave: Tensor) -> Tensor:
        """Add the network's residual to the log-magnitudes; phases stay as they are.

        Args:
            wave: float32 [n] at the network's rate, on its device.
        """
        spectrum = torch.stft(wave[None], **self.frames, return_complex=True)[0]
        phase = torch.angle(spectrum)
        size = torch.hypot(spectrum.real, spectrum.imag) if self.real else spectrum.abs()
        loudness = 20 * torch.log10(size.clip(10 ** (-FLOOR / 20)))
        marked, _ = self.encoder(((loudness + FLOOR) / (FLOOR + HEADROOM))[None])
        decibels = marked[0] * (FLOOR + HEADROOM) - FLOOR
        size = 10.0 ** (decibels / 20).clip(max=10)
        spectrum = torch.polar(size, phase) if self.real else size * torch.exp(1.0j * phase)
        return torch.istft(spectrum[None], **self.frames)[0]

    def copied(self, device: torch.device) -> _Network:
        """The same on another device."""
        frames = {**self.frames, "window": self.frames["window"].to(device)}
        return _Network(copy.deepcopy(self.encoder).to(device), frames, real=True)


class _Gpu:
    """The network on a GPU, on a stream of its own.

    Threads take turns: one stream's order is what keeps their memory apart.
    """

    def __init__(self, network: _Network, device: torch.device) -> None:
        """Copy ``network`` there, and mark a second of silence: what must be built is built.

        Raises:
            RuntimeError: no room (an OutOfMemoryError is one), or something cannot be built.
        """
        self._network, self._device = network.copied(device), device
        self._side, self._turn = SideStream(device), threading.Lock()
        with torch.inference_mode():
            self.mark(torch.zeros(SAMPLE_RATE))

    def mark(self, wave: Tensor) -> Tensor:
        """See ``_Network``; a wave of the host to a wave of the host.

        Raises:
            RuntimeError: no room, or whatever a device says.
        """
        with self._turn:
            return self._side(lambda: self._network.mark(wave.to(self._device)).cpu())()


class Watermark:
    """Marks waves and finds the mark again; in several threads if need be."""

    def __init__(self) -> None:
        """Load PerTh's encoder, on the processor.

        Raises:
            ChatterboxOptError: not installed, or not as it should be.
        """
        package = upstream_import.package_directory("perth")
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

        layers = upstream_import.import_layers(package, f"{NETWORK}.model")
        encoder = upstream_import.import_layers(package, f"{NETWORK}.model.encoder").Encoder
        known = yaml.safe_load((package / WEIGHTS / "hparams.yaml").read_text(encoding="utf-8"))
        how = upstream_import.import_layers(package, f"{NETWORK}.config").PerthConfig(**known)
        saved = sorted((package / WEIGHTS).glob("*.pth.tar"), key=_training_step)[-1]
        state = torch.load(saved, map_location="cpu", weights_only=True, mmap=True)["model"]
        with skip_init(), torch.device("meta"):
            net = encoder(how.hidden_size, layers.compute_subband_freq(how))
        own = {n.removeprefix("encoder."): t for n, t in state.items() if n.startswith("encoder.")}
        net.load_state_dict(own, assign=True)
        self._rate: int = how.sample_rate
        frames = {
            "n_fft": how.n_fft,
            "hop_length": how.hop_size,
            "win_length": how.window_size,
            "window": torch.hann_window(how.window_size),
        }
        self._network = _Network(net, frames)
        self._gpu: _Gpu | None = None

    def move(self, device: torch.device) -> None:
        """Mark on a GPU from now on, as long as that works; ``release`` ends it.

        Its numbers are the processor's but for float32's rounding, and that of TF32 if torch's
        convolutions use it.
        """
        try:
            self._gpu = _Gpu(self._network, device)
        except RuntimeError as error:
            _not_there(error)

    def release(self) -> None:
        """Leave the GPU; waves are marked on the processor then."""
        self._gpu = None

    def apply(self, wave: Wave) -> Wave:
        """Mark float32 [n] at 24 kHz; the result is as long or a few samples shorter."""
        wide = torch.from_numpy(_resample(wave, SAMPLE_RATE, self._rate))
        with torch.inference_mode():
            marked = self._mark(wide).numpy()
        narrow = _resample(marked, self._rate, SAMPLE_RATE)
        return np.clip(narrow, -1.0, 1.0)  # marking may overshoot by a hair; files clip anyway

    def _mark(self, wave: Tensor) -> Tensor:
        gpu = self._gpu
        if gpu is not None:
            try:
                return gpu.mark(wave)
            except RuntimeError as error:
                _not_there(error)
            # out here the failure's frames are gone, and with them the memory that they held
            self.release()
        return self._network.mark(wave)

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


def _not_there(error: RuntimeError) -> None:
    reason = first_line(error)
    log.warning("the CPU makes the watermark from now on: the GPU cannot (%s)", reason)


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
