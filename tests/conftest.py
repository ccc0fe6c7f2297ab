"""Shared pieces: a tiny checkpoint made on the fly, an engine over it, upstream over it.

The network is closed by pytest-socket; every cache lives in a temporary directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

_SCRATCH = tempfile.mkdtemp(prefix="chatterbox-opt-tests-")
for name in ("CHATTERBOX_DTYPE", "CHATTERBOX_COMPILATION", "CHATTERBOX_CPU_OFFLOAD"):
    os.environ.pop(name, None)
os.environ.pop("DISABLE_OPTIMIZATION", None)
os.environ["TQDM_DISABLE"] = "1"  # upstream's bars would drown a failure's message
os.environ["HF_HOME"] = f"{_SCRATCH}/hf"
os.environ["CHATTERBOX_VOICE_CACHE"] = f"{_SCRATCH}/voices"
os.environ["CHATTERBOX_WEIGHT_CACHE"] = f"{_SCRATCH}/weights"

settings.register_profile("repeatable", derandomize=True)  # the suite does not flake
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent


def pytest_unconfigure():
    shutil.rmtree(_SCRATCH, ignore_errors=True)


SAMPLE = ROOT / "samples" / "speaker.flac"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in upstream's format, 11 MB of random values."""
    from chatterbox_opt.checkpoints.random_weights import make

    directory = tmp_path_factory.mktemp("models") / "tiny"
    make(directory, "tiny", seed=1)
    return directory


@pytest.fixture
def store(tmp_path: Path):
    from chatterbox_opt.voices.store import VoiceStore

    return VoiceStore(tmp_path / "voices")


@pytest.fixture(scope="session")
def engine(tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """Our engine, float32, without watermark."""
    from chatterbox_opt import Engine
    from chatterbox_opt.voices.store import VoiceStore

    voices = VoiceStore(tmp_path_factory.mktemp("voices"))
    with Engine.load(str(tiny), "dev", device="cpu", store=voices, watermark=False) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def upstream(tiny: Path):
    """Upstream's ChatterboxTTS over the same files."""
    from helpers.upstream_reference import upstream_tts

    return upstream_tts(tiny)


@pytest.fixture(scope="session")
def recogniser():
    """Whisper tiny.en, where the extra ``ears`` is installed."""
    from chatterbox_opt.errors import InputError
    from chatterbox_opt.eval.whisper import Recognizer

    try:
        return Recognizer.load("tiny.en")
    except InputError as error:
        pytest.skip(str(error))


def prompt_for(engine, text: str):
    """A normalised text in the model's own voice."""
    from chatterbox_opt.engine.t3_runner import text_tokens
    from chatterbox_opt.models.t3.model import Prompt

    voice = engine.voice()
    return Prompt(text_tokens(engine.pipeline.tokenizer, text), voice.speaker, voice.prompt)


def utterance(engine, text: str, sampling, **more):
    """A normalised text to be said once under the sampling's seed."""
    import torch

    from chatterbox_opt.models.t3.decode_state import DecodeRequest

    generator = torch.Generator().manual_seed(sampling.seed or 0)
    return DecodeRequest(prompt_for(engine, text), sampling, generator, lambda count: None, **more)


def prefilled(t3, prefix):
    """The logits [rows, vocabulary] of the last position of one utterance's prefix."""
    import torch

    from chatterbox_opt.models.t3.kv_cache import StaticKVCache

    cache = StaticKVCache(num_seqs=1, rows_per_seq=len(prefix), shape=t3.kv_shape, like=t3.like)
    cache.reserve(0, prefix.shape[1])
    return t3.prefill(prefix, torch.tensor([prefix.shape[1] - 1]), cache, torch.tensor([0]))


@contextmanager
def as_on_a_card(t3):
    """With plain matrices: a processor has layouts of its own, which no kernel of a card reads."""
    from chatterbox_opt.layers import linear_onednn
    from chatterbox_opt.models.t3 import fused_step

    changed = linear_onednn.use_plain(t3)
    try:
        assert fused_step.supports(t3)
        yield
    finally:
        if changed:
            linear_onednn.use_onednn(t3)


def looking(steps_per_sync: int = 1, step=None, static: bool = False, fused: bool = False):
    """An eager way that looks at the tokens so rarely, and may have another step or cache."""
    from chatterbox_opt.engine.decode import EagerBackend
    from chatterbox_opt.models.t3.decode_state import DecodeState
    from chatterbox_opt.models.t3.kv_cache import StaticKVCache

    def slots(t3, count, rows_per_seq):
        cache = StaticKVCache(
            num_seqs=count, rows_per_seq=rows_per_seq, shape=t3.kv_shape, like=t3.like
        )
        return DecodeState(t3, count, cache)

    way = EagerBackend(fused=fused)
    way.steps_per_sync = steps_per_sync
    if step is not None:
        way.step = lambda model: step
    if static:
        way.slots = slots
    return way


def say_all(t3, utterances, *, slots: int = 1, rows_per_seq: int = 2, way=None):
    """What became of the utterances, in their order."""
    from chatterbox_opt.engine.decode import decode

    left, way = iter(utterances), way or looking()
    said = decode(t3, way.slots(t3, slots, rows_per_seq), lambda: next(left, None), way)
    found = {one.sequence: one for one in said}
    return [found[one] for one in utterances]


def assert_close(actual, expected, *, atol: float) -> None:
    """Compare, and on failure say how far apart, and where that is much."""
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    difference = (actual.double() - expected.double()).abs()
    worst, mean = difference.max().item(), difference.mean().item()
    assert worst <= atol, f"max difference {worst:.3g}, mean {mean:.3g}, allowed {atol:.3g}"
