"""Voice conversion: in float32 one window is upstream's ChatterboxVC; several are one signal."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from helpers.common import SAMPLE
from helpers.upstream_reference import WHOLE_ATOL, Unmarked, empty_s3gen

from chatterbox_opt import Audio, Conversion, Engine, InputError, Request, Sampling, VoiceError
from chatterbox_opt.checkpoints import random_weights, registry
from chatterbox_opt.checkpoints.reader import Tensors
from chatterbox_opt.engine import windows
from chatterbox_opt.voices.store import VoiceStore


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("turbo") / "turbo"
    random_weights.make(directory, "tiny", 3, "turbo")
    return directory


@pytest.fixture(scope="module")
def speech():
    """Ten seconds of speech at 24 kHz."""
    wave, rate = soundfile.read(SAMPLE, dtype="float32")
    assert rate == 24_000 and wave.ndim == 1
    return wave


@pytest.fixture(scope="module")
def short(speech, tmp_path_factory):
    """0.7 s, whose last token is incomplete: 17.5 tokens."""
    path = tmp_path_factory.mktemp("recordings") / "short.wav"
    soundfile.write(path, speech[24_000 : 24_000 + 16_800], 24_000, "FLOAT")
    return path


def upstream_vc(directory, monkeypatch):
    """Upstream's ChatterboxVC over the same files, without its watermark."""
    from chatterbox import vc

    checkpoint = registry.locate(str(directory))
    monkeypatch.setattr(vc.perth, "PerthImplicitWatermarker", Unmarked)
    s3gen = empty_s3gen(checkpoint.config)
    s3gen.load_state_dict(dict(Tensors(checkpoint.s3gen)), strict=False)
    conditionals = torch.load(checkpoint.conditionals, weights_only=True)
    return vc.ChatterboxVC(s3gen.eval(), "cpu", conditionals["gen"])


@pytest.mark.parametrize("kind", ["tiny", "turbo"])
def test_one_window_is_upstreams(kind, request, short, store, monkeypatch):
    directory = request.getfixturevalue(kind)
    upstream = upstream_vc(directory, monkeypatch)
    with Engine.load(str(directory), "dev", device="cpu", store=store, watermark=False) as engine:
        for seed, voice in enumerate((None, SAMPLE)):
            torch.manual_seed(seed)
            expected = upstream.generate(short, voice)[0].numpy()
            audio = engine.convert(short, voice, seed=seed)
            assert len(audio.samples) == 16_800 and len(expected) == 18 * 960
            assert np.abs(audio.samples - expected[:16_800]).max() < 1e-4
            assert audio == engine.convert(short, voice, seed=seed)
