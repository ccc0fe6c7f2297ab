"""The vocoder whose products are bfloat16 is close to float32's, on the built-in model."""

from __future__ import annotations

import pytest
import torch
from helpers.sound import snr

from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.kernels.cpu.conv import ops as conv_ops
from chatterbox_opt.voice import from_conditionals

pytestmark = pytest.mark.skipif(
    not conv_ops.supports(torch.bfloat16), reason=conv_ops.unsupported_reason(torch.bfloat16)
)


@pytest.fixture(scope="module")
def pico():
    return registry.locate("pico")


def vocoder_of(checkpoint, dtype):
    vocoder = loader.load_vocoder(checkpoint)
    vocoder.use_cpu_kernels(dtype)
    return vocoder


def spectrogram(wave):
    window = torch.hann_window(1024)
    magnitudes = torch.stft(wave, 1024, 256, window=window, return_complex=True).abs()
    return 20 * magnitudes.clamp(min=1e-4).log10()  # as far down as float32 is heard: -80 dB


def test_the_difference_is_far_below_the_signal(pico):
    mel = from_conditionals(pico.path(registry.CONDITIONALS)).mel[0].T
    (exact,), (narrow,) = (
        vocoder_of(pico, dtype)([mel], [torch.Generator().manual_seed(0)])
        for dtype in (torch.float32, torch.bfloat16)
    )
    ratio = snr(narrow.numpy(), exact.numpy())
    distance = (spectrogram(narrow) - spectrogram(exact)).square().mean(0).sqrt().mean()
    print(f"{ratio:.1f} dB, log-spectral distance {distance:.3f} dB")
    assert ratio > 42  # the watermark, which is not heard either, is 16 dB below the signal
    assert distance < 0.2
    assert not torch.equal(narrow, exact), "it is bfloat16"


def test_what_decides_phases_is_float32(pico):
    """F0, the source, and the last stage: their layers are the same as without."""
    exact, narrow = (vocoder_of(pico, dtype) for dtype in (torch.float32, torch.bfloat16))
    mel = torch.randn(1, 80, 50)
    assert torch.equal(exact.pitch(mel), narrow.pitch(mel))
    *early, last = (stage.blocks[0][0].wide.dtype for stage in narrow.generator._stages)
    assert set(early) == {torch.bfloat16} and last == torch.float32
