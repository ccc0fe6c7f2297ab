"""PerTh, Resemble AI's inaudible watermark, which upstream applies to all of its output.

Responsible for applying and detecting the watermark. Not responsible for how the audio was
generated.

PerTh's own network computes the watermark (its files, its weights). The package's code around it
(perth_watermarker.py and audio_processor.py of resemble-perth 1.0.1) is reimplemented here with the
same arithmetic: importing it imports librosa, numba, scipy.signal and pkg_resources, which took two
of the five seconds from start to first audio.

On a CPU it takes about as long as the flow on a fast GPU, so ``move`` moves the network to a GPU.
Resampling stays on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
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
from chatterbox_opt.runtime.cuda import SideStream
from chatterbox_opt.utils import upstream_import
from chatterbox_opt.utils.damage import DAMAGE_ERRORS
from chatterbox_opt.utils.librosa_import import import_librosa
from chatterbox_opt.utils.skip_init import skip_init
from chatterbox_opt.utils.wave import Wave

log = logging.getLogger(__name__)
STDOUT_LOCK = threading.Lock()  # redirecting standard output affects the whole process
REMEDY = (
    "pip install 'setuptools<81' resemble-perth, or turn it off (watermark=False, --no-watermark)"
)
NETWORK = "perth_net.perth_net_implicit"
WEIGHTS = "perth_net/pretrained/implicit"
FLOOR, HEADROOM = 180.0, 15.0  # dB below and above full scale that the network's input covers


@dataclass(frozen=True, slots=True)
class _Network:
    """PerTh's encoder on one device.

    Attributes:
        stft: arguments of ``torch.stft`` and ``torch.istft``.
        real: combine magnitude and phase with real arithmetic. On a GPU the kernels for complex
            numbers are compiled on first use, which may fail.
    """

    encoder: Any
    stft: Mapping[str, Any]
    real: bool = False

    def mark(self, wave: Tensor) -> Tensor:
        """Add the network's residual to the log-magnitudes; phases are unchanged.

        Args:
            wave: float32 [n] at the network's rate, on its device.
        """
        spectrum = torch.stft(wave[None], **self.stft, return_complex=True)[0]
        if self.real:
            phase = torch.atan2(spectrum.imag, spectrum.real)
            magnitude = torch.hypot(spectrum.real, spectrum.imag)
        else:
            phase, magnitude = torch.angle(spectrum), spectrum.abs()
        decibels = 20 * torch.log10(magnitude.clip(10 ** (-FLOOR / 20)))
        marked, _ = self.encoder(((decibels + FLOOR) / (FLOOR + HEADROOM))[None])
        decibels = marked[0] * (FLOOR + HEADROOM) - FLOOR
        magnitude = 10.0 ** (decibels / 20).clip(max=10)
        spectrum = (
            torch.polar(magnitude, phase) if self.real else magnitude * torch.exp(1.0j * phase)
        )
        return torch.istft(spectrum[None], **self.stft)[0]

    def copy_to(self, device: torch.device) -> _Network:
        """A copy on another device."""
        stft = {**self.stft, "window": self.stft["window"].to(device)}
        return _Network(copy.deepcopy(self.encoder).to(device), stft, real=True)


class _Gpu:
    """The network on a GPU, on its own stream.

    Threads are serialized: memory of the stream is reused in stream order only.
    """

    def __init__(self, network: _Network, device: torch.device) -> None:
        """Copy ``network`` to the device and mark a second of silence, so that libraries are
        initialized and kernels compiled.

        Raises:
            RuntimeError: out of memory, or compilation failed.
        """
        self._network, self._device = network.copy_to(device), device
        self._stream, self._lock = SideStream(device), threading.Lock()
        with torch.inference_mode():
            self.mark(torch.zeros(SAMPLE_RATE))

    def mark(self, wave: Tensor) -> Tensor:
        """As ``_Network.mark``, from and to host memory.

        Raises:
            RuntimeError: out of memory, or another CUDA error.
        """
        with self._lock:
            return self._stream(lambda: self._network.mark(wave.to(self._device)).cpu())()


class Watermark:
    """Applies and detects the watermark. Thread-safe."""

    def __init__(self) -> None:
        """Load PerTh's encoder on the CPU.

        Raises:
            ChatterboxOptError: not installed, or its files are damaged.
        """
        package = upstream_import.package_directory("perth")
        if package is None:
            raise ChatterboxOptError(
                f"the watermarker cannot be loaded (no package perth): {REMEDY}"
            )
        try:
            self._load(package)
        except (ImportError, OSError, *DAMAGE_ERRORS) as error:
            first = " ".join(str(error).split())[:200]
            raise ChatterboxOptError(
                f"the watermarker cannot be loaded ({first}): {REMEDY}"
            ) from error

    def _load(self, package: Path) -> None:
        import yaml

        layers = upstream_import.import_layers(package, f"{NETWORK}.model")
        encoder = upstream_import.import_layers(package, f"{NETWORK}.model.encoder").Encoder
        params = yaml.safe_load((package / WEIGHTS / "hparams.yaml").read_text(encoding="utf-8"))
        config = upstream_import.import_layers(package, f"{NETWORK}.config").PerthConfig(**params)
        newest = sorted((package / WEIGHTS).glob("*.pth.tar"), key=_training_step)[-1]
        state = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)["model"]
        with skip_init(), torch.device("meta"):
            net = encoder(config.hidden_size, layers.compute_subband_freq(config))
        prefix = "encoder."
        own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        net.load_state_dict(own, assign=True)
        self._rate: int = config.sample_rate
        stft = {
            "n_fft": config.n_fft,
            "hop_length": config.hop_size,
            "win_length": config.window_size,
            "window": torch.hann_window(config.window_size),
        }
        self._network = _Network(net, stft)
        self._gpu: _Gpu | None = None

    def move(self, device: torch.device) -> None:
        """Run on a GPU until that fails or ``release`` is called.

        The result equals the CPU's within float32 rounding, or TF32 rounding if torch's
        convolutions use it.
        """
        try:
            self._gpu = _Gpu(self._network, device)
        except RuntimeError as error:
            _warn_cpu_fallback(error)

    def release(self) -> None:
        """Free the GPU's copy of the network and run on the CPU."""
        self._gpu = None

    def apply(self, wave: Wave, before: Wave | None = None, after: Wave | None = None) -> Wave:
        """Mark float32 [n] at 24 kHz; the result is as long or a few samples shorter.

        Args:
            before, after: unmarked sound around a part of a longer signal: without it, the mark of
                one part does not continue that of the other, which clicks.
        """
        parts = [part for part in (before, wave, after) if part is not None]
        whole = np.concatenate(parts) if len(parts) > 1 else wave
        resampled = torch.from_numpy(_resample(whole, SAMPLE_RATE, self._rate))
        with torch.inference_mode():
            marked = self._mark(resampled).numpy()
        result = _resample(marked, self._rate, SAMPLE_RATE)
        start = 0 if before is None else len(before)
        result = result[start : start + len(wave)]
        return np.clip(result, -1.0, 1.0)  # it may overshoot slightly; files would clip anyway

    def _mark(self, wave: Tensor) -> Tensor:
        gpu = self._gpu
        if gpu is not None:
            try:
                return gpu.mark(wave)
            except RuntimeError as error:
                _warn_cpu_fallback(error)
            # outside of the handler, where the traceback no longer keeps GPU tensors alive
            self.release()
        return self._network.mark(wave)

    def strength(self, wave: Wave) -> float:
        """Detect the watermark with PerTh's own package (imported here: 2 s).

        Returns:
            0 to 1: near 1 for marked speech, near 0 for other audio.

        Raises:
            ChatterboxOptError: pkg_resources is missing, which setuptools 81 removed.
        """
        import_librosa()  # before perth does
        import perth

        if perth.PerthImplicitWatermarker is None:  # set to None by perth if its import failed
            raise ChatterboxOptError(f"the watermarker needs pkg_resources: {REMEDY}")
        # it prints to standard output, where a wav may be written
        with STDOUT_LOCK, contextlib.redirect_stdout(io.StringIO()):
            detector = perth.PerthImplicitWatermarker()
        return float(np.mean(detector.get_watermark(wave, sample_rate=SAMPLE_RATE, round=False)))


def _warn_cpu_fallback(error: RuntimeError) -> None:
    reason = first_line(error)
    log.warning("watermarks are computed on the CPU from now on: the GPU cannot (%s)", reason)


def _training_step(path: Path) -> int:
    return int(path.name.removesuffix(".pth.tar").rpartition("_")[2])


def _resample(wave: Wave, rate: int, to: int) -> Wave:
    """As librosa.resample: soxr's high quality, cut or padded to the exact length."""
    import soxr

    if rate == to:
        return wave
    length = -(-len(wave) * to // rate)
    resampled: Wave = soxr.resample(wave, rate, to, quality="soxr_hq")
    return np.pad(resampled[:length], (0, max(0, length - len(resampled))))
