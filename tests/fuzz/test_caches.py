"""Any file in a cache: what was written is read, everything else is a miss with one warning."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.fuzz import damage, examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.checkpoints import sealed_file, weight_cache
from chatterbox_opt.kernels.cpu import compile_cache
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices import computed_voices
from chatterbox_opt.voices.store import VoiceStore

KEY = "ab" * 20
IDS = torch.arange(20)[None]
VOICE = Voice(torch.rand(1, 64), IDS, IDS, torch.rand(1, 40, 80), torch.rand(1, 192))
STORED = computed_voices.dump(KEY, VOICE, "")
CODE = bytes(range(256)) * 8


@st.composite
def contents(draw, written: bytes) -> bytes:
    if draw(st.booleans()):
        return damage(draw, written)
    return draw(st.binary(max_size=200) | st.integers(0, 3000).map(bytes))


def is_same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        map(torch.equal, found.values(), expected.values())
    )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "a.kernel"
    compile_cache.write(path, CODE)
    return path


@examples(40)
@given(data=st.data())
def test_any_kernel_file(kernel, tmp_path, data):
    path, written = tmp_path / kernel.name, kernel.read_bytes()
    content = data.draw(contents(written))
    path.write_bytes(content)
    read = compile_cache.read(path)
    assert read == (CODE if content == written else None)
    assert path.exists() == (content == written)


@examples(40)
@given(content=contents(STORED))
def test_any_computed_voice(tmp_path, caplog, content):
    caplog.clear()
    path = tmp_path / "computed" / f"{KEY}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found = VoiceStore(tmp_path).load(KEY)
    # a changed blank in the header changes nothing
    assert found is None or is_same(found[0].tensors(), VOICE.tensors())
    assert path.exists() == (found is not None)
    assert len(caplog.records) == (found is None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("weights") / "a.pt"
    tensors = {"x": torch.arange(2000), "y": torch.ones(3, 4, dtype=torch.bfloat16)}
    torch.save(tensors, path)
    sealed_file.seal(path, path.name)
    return path, tensors


@examples(25)
@given(data=st.data())
def test_any_weights(weights, tmp_path, caplog, data):
    caplog.clear()
    path, written = tmp_path / weights[0].name, weights[0].read_bytes()
    content = data.draw(contents(written))
    path.write_bytes(content)
    found = weight_cache._read(path)
    assert (found is not None) == (content == written) == path.exists()
    assert found is None or is_same(found, weights[1])
    assert len(caplog.records) == (content != written)


@examples(25)
@given(data=st.data())
def test_any_weights_with_a_right_digest(weights, tmp_path, data):
    """Whoever writes in the directory can compute the digest; nothing but tensors comes of it."""
    path, written = tmp_path / weights[0].name, weights[0].read_bytes()
    body = data.draw(contents(written[: -sealed_file.SEAL_BYTES]))
    path.write_bytes(body + bytes(sealed_file.SEAL_BYTES))
    with path.open("r+b") as file:
        file.seek(len(body))
        file.write(sealed_file._seal_of(path, path.name))
    found = weight_cache._read(path)
    assert found is None or all(isinstance(tensor, torch.Tensor) for tensor in found.values())


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
@examples(25)
@given(
    name=st.sampled_from(["a.cubin", "a.json", "__grp__a.json", "a.cubin.digest"]), data=st.data()
)
def test_any_triton_kernel(tmp_path, monkeypatch, name, data):
    pytest.importorskip("triton")
    from chatterbox_opt.kernels.cuda.compile_cache import VerifyingCacheManager

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    manager = VerifyingCacheManager("ab" * 16)
    group = {name: manager.put(CODE, name) for name in ("a.cubin", "a.json")}
    manager.put_group("a.json", group)
    path = Path(manager._make_path(name))
    written = path.read_bytes()
    content = data.draw(contents(written))
    path.write_bytes(content)
    assert manager.get_group("a.json") == (group if content == written else None)
