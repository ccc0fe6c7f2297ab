from __future__ import annotations

import numpy as np
import pytest
from helpers.common import SAMPLE

from chatterbox_opt.checkpoints import random_weights
from chatterbox_opt.errors import InputError
from chatterbox_opt.provider import (
    EMOTIONS,
    OptimizedChatterboxProvider,
    RealChatterboxProvider,
    sampling_for,
)


def test_the_optimized_provider_synthesizes(tiny):
    with OptimizedChatterboxProvider("cpu", "float32", model=str(tiny)) as provider:
        status = provider.get_provider_status()
        assert status["optimization_enabled"] is True
        assert status["optimization_details"]["dtype"] == "float32"
        assert status["optimization_details"]["compilation"] == "none"
        args = {"text": "Hello.", "voice_path": SAMPLE, "seed": 1}
        neutral = provider.generate(**args)
        again = provider.generate(**args, emotion="neutral", exaggeration=0.5, cfg_weight=0.5)
        assert np.array_equal(neutral.samples, again.samples)
        assert not np.array_equal(
            neutral.samples, provider.generate(**args, emotion="excited").samples
        )


def test_providers_know_the_family(tmp_path):
    random_weights.make(tmp_path / "nano", "tiny", 1, "nano")
    with OptimizedChatterboxProvider("cpu", "float32", model=str(tmp_path / "nano")) as provider:
        details = provider.get_provider_status()["optimization_details"]
        assert details["model"] == str(tmp_path / "nano") and details["languages"] == ["en"]
        assert provider.generate("Hello [laugh].", seed=1, language="EN").duration > 0
        with pytest.raises(InputError, match="only 'neutral': leave it out, or use tags"):
            provider.generate("Hello.", emotion="happy")
        with pytest.raises(InputError, match="language de \\(German\\), only en"):
            provider.generate("Hallo.", language="de")


def test_the_real_provider_uses_the_machines_plan(tiny):
    with RealChatterboxProvider(str(tiny), device="cpu") as provider:
        assert provider.engine.plan.profile == "cpu"
        assert provider.generate("Hello.", seed=1).duration > 0


def test_plain_chatterbox_when_requested(tiny, upstream, engine, monkeypatch):
    """Upstream cannot load the tiny dimensions: from_local is replaced to return its object."""
    from chatterbox_opt.config.model_config import ModelConfig
    from chatterbox_opt.engine import upstream_backend

    monkeypatch.setenv("DISABLE_OPTIMIZATION", "true")
    with pytest.raises(InputError, match="whose dimensions are not its own"):
        RealChatterboxProvider(str(tiny), device="cpu")
    monkeypatch.setattr(
        upstream_backend,
        "ModelConfig",
        lambda: upstream_backend.dataclasses.replace(
            engine.checkpoint.config, random_weights=False
        ),
    )
    monkeypatch.setattr("chatterbox.tts.ChatterboxTTS.from_local", lambda *_: upstream)
    assert ModelConfig() != engine.checkpoint.config
    own = upstream.conds
    with RealChatterboxProvider(str(tiny), device="cpu") as provider:
        assert provider.get_provider_status()["optimization_enabled"] is False
        outputs = provider.generate("Hello.", seed=21)
        with pytest.raises(InputError, match="cfg_weight 0"):
            provider.generate("Hello.", cfg_weight=0)
        with pytest.raises(InputError, match="returns no speech tokens"):
            provider.engine.speech_tokens("Hello.")
    upstream.conds = own
    from chatterbox_opt import Sampling
    from chatterbox_opt.audio.watermark import Watermark

    ours = engine.synthesize("Hello.", None, Sampling(seed=21))
    marked = Watermark().apply(ours.samples)
    assert np.abs(marked - np.clip(outputs.samples, -1, 1)).max() < 1e-3


def test_emotions_are_presets():
    assert sampling_for("neutral", None, 0.5, None).exaggeration == 0.5
    assert sampling_for("excited", 0.2, 0.5, None).exaggeration == 0.2
    assert len(set(EMOTIONS.values())) == len(EMOTIONS)
    with pytest.raises(InputError, match="unknown emotion 'bored'; known: neutral, calm"):
        sampling_for("bored", None, 0.5, None)
