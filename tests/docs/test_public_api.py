from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import chatterbox_opt
from chatterbox_opt import Audio, Engine, Metrics, Request, RequestHandle, Result, Sampling, Voice


def test_the_names():
    assert chatterbox_opt.__all__ == [
        "Audio", "ChatterboxOptError", "Engine", "Guard", "Metrics", "Piece", "Progress",
        "Request", "RequestHandle", "Result", "Sampling", "Voice"
    ]  # fmt: skip
    assert all(getattr(chatterbox_opt, name) for name in chatterbox_opt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        chatterbox_opt.Nope  # noqa: B018


def test_the_engine():
    public = [name for name in vars(Engine) if not name.startswith("_")]
    assert public == [
        "load", "close", "voice", "warm_up",
        "pieces", "stream", "synthesize", "batch", "submit", "speech_tokens"
    ]  # fmt: skip
    assert list(inspect.signature(Engine.synthesize).parameters) == [
        "self", "text", "voice", "sampling", "observe"
    ]  # fmt: skip
    assert list(inspect.signature(Engine.batch).parameters) == ["self", "requests", "guard"]
    assert list(inspect.signature(Engine.submit).parameters) == [
        "self", "request", "guard", "observe", "timeout"
    ]  # fmt: skip


def test_the_handle():
    public = [name for name in vars(RequestHandle) if not name.startswith("_")]
    assert public == ["id", "seed", "done", "metrics", "cancel", "result"]
    assert all(hasattr(RequestHandle, f"__{name}__") for name in ("iter", "next", "aiter", "await"))


def test_the_values():
    assert dataclasses.asdict(Sampling()) == {
        "seed": None,
        "temperature": 0.8,
        "cfg_weight": 0.5,
        "exaggeration": 0.5,
        "min_p": 0.05,
        "top_p": 1.0,
        "repetition_penalty": 1.2,
        "max_tokens": 1000,
        "cfm_steps": 10,
        "top_k": 0,
    }
    with pytest.raises(TypeError):
        Sampling(3)
    with pytest.raises(AttributeError):
        Sampling().seed = 3
    assert [f for f in Voice.__slots__] == ["speaker", "prompt", "tokens", "mel", "xvector"]
    assert [f for f in Request.__slots__] == ["id", "text", "voice", "sampling"]
    assert [f for f in Result.__slots__] == ["id", "seed", "pieces", "error", "metrics"]
    assert [f for f in Metrics.__slots__] == [
        "queued", "prefill", "first_token", "first_audio", "done", "tokens_per_second"
    ]  # fmt: skip
    assert [f for f in Audio.__slots__] == ["samples", "sample_rate", "seed", "tokens", "seconds"]


def test_importing_the_package_imports_no_torch():
    code = "import sys, chatterbox_opt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
