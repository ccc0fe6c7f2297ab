from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.common import ROOT

import chatterbox_opt
from chatterbox_opt import (
    Audio,
    Conversion,
    Engine,
    Metrics,
    Request,
    RequestHandle,
    Result,
    Sampling,
    Voice,
    Word,
    errors,
)


def test_the_names():
    assert chatterbox_opt.__all__ == [
        "Audio", "Cast", "ChatterboxOptError", "Conversion", "DeviceError", "Engine", "Guard", "HopSchedule", "InputError", "Lexicon", "Metrics",
        "NumericsError", "OptimizedChatterboxProvider", "OutputError", "Piece", "Plan", "ProfileError", "Progress",
        "QueueFullError", "RealChatterboxProvider", "Request", "RequestCancelledError", "RequestHandle", "Result",
        "Sampling", "SilenceError", "TextError", "Voice", "VoiceError", "VoiceStore", "WeightCache", "WeightsError",
        "Word", "WorkerError",
    ]  # fmt: skip
    assert all(getattr(chatterbox_opt, name).__name__ == name for name in chatterbox_opt.__all__)
    assert set(chatterbox_opt.__all__) <= set(dir(chatterbox_opt))
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        chatterbox_opt.Nope  # noqa: B018


def test_all_errors_and_all_documented_names_are_public():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.__name__ for kind in kinds} <= set(chatterbox_opt.__all__)
    shown = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z][a-z]\w+)", shown))
    for block in re.findall(r"^```python\n(.*?)^```", shown, re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("chatterbox_opt"):
                assert node.module == "chatterbox_opt"
                named |= {alias.name for alias in node.names}
    assert len(named) > 20
    assert named - set(chatterbox_opt.__all__) == {"ChatterboxProvider"}, (
        "what they are adapters to"
    )


def test_type_checkers_use_the_annotations():
    assert (Path(chatterbox_opt.__file__).parent / "py.typed").is_file()


def test_the_engine():
    public = [name for name in vars(Engine) if not name.startswith("_")]
    assert public == [
        "load", "close", "voice", "warm_up",
        "pieces", "stream", "synthesize", "batch", "submit", "speech_tokens"
    ]  # fmt: skip
    assert list(inspect.signature(Engine.synthesize).parameters) == [
        "self", "text", "voice", "sampling", "observe", "language", "rate"
    ]  # fmt: skip
    assert list(inspect.signature(Engine.batch).parameters) == ["self", "requests", "guard"]
    assert list(inspect.signature(Engine.submit).parameters) == [
        "self", "request", "guard", "observe", "timeout"
    ]  # fmt: skip


def test_the_engine_that_converts():
    """What ``Engine`` inherits; it needs no T3."""
    public = [name for name in dir(Engine) if not name.startswith("_") and name not in vars(Engine)]
    assert public == ["convert", "convert_many", "converted_pieces", "load_converter"]
    assert list(inspect.signature(Engine.convert).parameters) == [
        "self", "source", "voice", "seed", "cfm_steps"
    ]  # fmt: skip
    assert list(inspect.signature(Engine.convert_many).parameters) == ["self", "conversions"]
    assert [f for f in Conversion.__slots__] == ["id", "source", "voice", "seed", "cfm_steps"]


def test_the_handle():
    public = [name for name in vars(RequestHandle) if not name.startswith("_")]
    assert public == ["id", "seed", "done", "text_tokens", "metrics", "cancel", "result"]
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
    assert [f for f in Request.__slots__] == [
        "id", "text", "voice", "sampling", "latency", "language", "rate", "markup", "lexicon", "cast",
        "timestamps"
    ]  # fmt: skip
    assert [f for f in Result.__slots__] == ["id", "seed", "pieces", "error", "metrics"]
    assert [f for f in Metrics.__slots__] == [
        "queued", "prefill", "first_token", "first_audio", "done", "tokens_per_second"
    ]  # fmt: skip
    assert [f for f in Audio.__slots__] == [
        "samples", "sample_rate", "seed", "tokens", "seconds", "words"
    ]  # fmt: skip
    assert [f for f in Word.__slots__] == ["text", "start", "end", "chunk"]


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, chatterbox_opt as c; c.Request, c.Guard, c.TextError, c.VoiceStore, dir(c);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_version_is_that_of_the_distribution():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{chatterbox_opt.__version__}"\n' in project
