"""Shared pieces: a tiny checkpoint made on the fly, an engine over it, upstream over it.

The network is closed by pytest-socket; every cache lives in a temporary directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

_SCRATCH = tempfile.mkdtemp(prefix="chatterbox-opt-tests-")
for name in (
    "CHATTERBOX_VOICES",
    "CHATTERBOX_DTYPE",
    "CHATTERBOX_COMPILATION",
    "CHATTERBOX_CPU_OFFLOAD",
):
    os.environ.pop(name, None)
os.environ.pop("DISABLE_OPTIMIZATION", None)
os.environ["TQDM_DISABLE"] = "1"  # upstream's bars would drown a failure's message
os.environ["HF_HOME"] = f"{_SCRATCH}/hf"
os.environ["CHATTERBOX_VOICE_CACHE"] = f"{_SCRATCH}/voices"
os.environ["CHATTERBOX_LEXICON"] = ""  # not the user's own
os.environ["CHATTERBOX_WEIGHT_CACHE"] = f"{_SCRATCH}/weights"

HERE = Path(__file__).parent
settings.register_profile("repeatable", derandomize=True)  # the suite does not flake
settings.load_profile("repeatable")


# whole files go to processes (--dist loadfile): the longest first, so that none is left for the end
LONGEST_FIRST = (
    "engine/test_on_simulated_gpu.py",
    "kernels/test_cuda_kernels.py",
    "words/test_word_times.py",
    "engine/test_renderer.py",
    "engine/test_submit.py",
    "engine/test_conversion.py",
    "e2e/test_pico.py",
    "runtime/test_cuda_graphs.py",
    "engine/test_recovery.py",
    "models/test_t3_parity.py",
    "text/test_english.py",
    "cli/test_main.py",
    "docs/test_docs.py",
    "batch/test_worker_pool.py",
    "batch/test_crashes.py",
    "bench/test_bench.py",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # by cost, as below, and not by the number of tests


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    order = {str(HERE / name): i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(str(item.path), len(order)))


def pytest_unconfigure():
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in upstream's format, 11 MB of random values."""
    from chatterbox_opt.checkpoints.random_weights import make

    if made := os.environ.get("TINY_CHECKPOINT"):  # by the suite that runs this one
        return Path(made)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make(directory, "tiny", seed=1)
    return directory


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory):
    """A function: kind to a tiny checkpoint of that kind (``models make --kind``)."""
    from chatterbox_opt.checkpoints.random_weights import make

    directory = tmp_path_factory.mktemp("family")

    def made(kind: str) -> Path:
        if not (directory / kind).exists():
            make(directory / kind, "tiny", 3, kind)
        return directory / kind

    return made


@pytest.fixture(scope="session")
def turbo(family) -> Path:
    return family("turbo")


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


@pytest.fixture
def vocoder(engine):
    """With weights that sum the harmonics, so that a wrong phase is heard."""
    import torch

    with engine.pipeline.placement("vocoder") as vocoder:
        kept = {name: p.clone() for name, p in vocoder.merge.state_dict().items()}
        with torch.no_grad():
            vocoder.merge.weight.fill_(1.0)
            vocoder.merge.bias.zero_()
        yield vocoder
        vocoder.merge.load_state_dict(kept)


@pytest.fixture
def load(tiny, tmp_path):
    """Loads an engine of a test's own, which it may break."""
    from chatterbox_opt import Engine
    from chatterbox_opt.voices.store import VoiceStore

    def load(**overrides):
        return Engine.load(
            str(tiny), "dev", device="cpu", overrides=overrides, store=VoiceStore(tmp_path),
            watermark=False,
        )  # fmt: skip

    return load


@pytest.fixture(scope="session")
def run_forked(tmp_path_factory: pytest.TempPathFactory):
    """Runs ``chatterbox-opt`` with arguments, in a process that has its imports done."""
    from helpers.command_server import command_server

    script = tmp_path_factory.mktemp("forked") / "run"

    def run(
        *args: str, cwd: Path, stdin: bytes | None = None, stdout=subprocess.PIPE
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(script), *args],
            cwd=cwd, input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=240,
        )  # fmt: skip

    with command_server(script, os.environ | {"OMP_NUM_THREADS": "1"}, "json"):
        yield run


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
