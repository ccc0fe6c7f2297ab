"""A vocoder's start and its target: what they are is known exactly, without any training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.pico import vocoder_start
from training.pico.harmonics import contrast
from training.pico.source_filter import averaged, filtered_source, wave_distance
from training.pico.train_vocoder import TrainableHiFT

FRAMES = 60
BAND = (100, 5000)  # Hz
SILENT = -11.5  # a mel's value for nothing


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def voiced() -> torch.Tensor:
    """F0 of a voice that begins after a consonant: float32 [1, 60] in Hz."""
    pitch = torch.full((1, FRAMES), 140.0)
    pitch[:, :10] = 0
    return pitch


def test_an_average_over_one_harmonic_is_flat():
    """Whatever the width is, a fraction too."""
    lines = torch.zeros(1, 513, 1)
    lines[:, ::10] = 30.0
    flat = averaged(lines, torch.tensor([[10.0]]))[0, :500]
    assert torch.allclose(flat, torch.tensor(3.0), atol=1e-4), "mirrored at 0 Hz, where a line is"
    ramp = torch.arange(513.0)[None, :, None]
    inner = averaged(ramp, torch.tensor([[7.3]]))[0, 10:500, 0]
    assert torch.allclose(inner, ramp[0, 10:500, 0], atol=1e-3)


def test_a_filtered_source_has_the_level_and_its_own_phases(voiced):
    net = TrainableHiFT()
    signal = net.signal(voiced)
    assert torch.allclose(filtered_source(signal, signal, voiced), signal, atol=1e-4)
    other = net.signal(voiced)  # other random phases and noise
    made = filtered_source(other, 0.1 * signal, voiced)
    assert made.square().mean().sqrt() == pytest.approx(
        0.1 * signal.square().mean().sqrt().item(), rel=0.2
    )
    one, two = made[0, 9600:], other[0, 9600:]
    assert torch.corrcoef(torch.stack((one, two)))[0, 1] > 0.9


def test_the_distance_to_a_target_is_relative_and_knows_phases(voiced):
    signal = TrainableHiFT().signal(voiced)
    assert wave_distance(signal, signal, BAND) == 0
    half = wave_distance(signal + 0.01 * torch.randn(1, 28800), signal, BAND)
    for factor in (0.1, 1.0):  # speech that is soft counts alike
        noisy = factor * (signal + 0.01 * torch.randn(1, 28800))
        assert wave_distance(noisy, factor * signal, BAND) == pytest.approx(half.item(), rel=0.1)
    assert wave_distance(-signal, signal, BAND) > 10 * half, "magnitudes are equal, waves are not"
    assert wave_distance(signal + 0.1, signal, BAND) < 0.01 * half, (
        "a source's constant is not learned"
    )


def test_the_start_passes_the_source_on(voiced):
    """With levels that hardly depend on the mel, the output is the source, to first order."""

    def start(level: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        net = TrainableHiFT()
        signal = net.signal(voiced)
        vocoder_start.start(net.net, torch.full((9, 80), 1e-3), torch.full((9,), level))
        with torch.no_grad():
            wave = net(torch.full((1, 80, FRAMES), SILENT), signal)
        return wave[0, 4800:-4800], signal[0, 4800:-4800]

    wave, signal = start(-3.0)
    assert min(contrast([(wave.numpy(), voiced[0, 10:-10].numpy())])[:4]) > 12, "up to 4 kHz"
    louder, same = start(-2.0)
    assert torch.equal(signal, same)
    assert (louder - np.e * wave).std() < 0.1 * louder.std()


def test_levels_are_fitted_to_the_mel(voiced):
    """Sources at levels that one band of the mel tells are given back at those levels."""
    net, rng = TrainableHiFT(), torch.Generator().manual_seed(0)
    loud = torch.rand(16, 1, generator=rng).mul(4).sub(6).expand(-1, FRAMES)
    mels = 0.3 * torch.randn(16, 80, FRAMES, generator=rng)
    mels[:, 20] = loud
    signals = net.signal(voiced.expand(16, -1))
    waves = signals * loud.exp().repeat_interleave(480, dim=1)
    weights, bias = vocoder_start.fit_levels(mels, signals, waves)
    assert weights[:, 20].tolist() == pytest.approx([1.0] * 9, abs=0.15)
    assert np.delete(weights.numpy(), 20, 1) == pytest.approx(0.0, abs=0.15)
    e = vocoder_start._gains()
    assert bias[2:].tolist() == pytest.approx((-e[2:].log()).tolist(), abs=0.6)


def test_muon_leaves_the_last_stage_to_adam():
    net = TrainableHiFT().net
    gently = vocoder_start.trained_gently(net)
    names = {name for name, parameter in net.named_parameters() if id(parameter) in gently}
    assert {name.split(".")[0] for name in names} == {
        "ups", "resblocks", "source_resblocks", "conv_post",
    }  # fmt: skip
    assert not any(name.startswith(("ups.0", "ups.1", "resblocks.5")) for name in names)
    assert any(name.startswith("resblocks.8") for name in names)
