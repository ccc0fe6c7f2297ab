"""A computed voice that is not what was written is found out, deleted and computed again."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save_file

from chatterbox_opt.voice import Voice
from chatterbox_opt.voices import computed_voices

KEY = "a1b2"


def random_voice() -> Voice:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 6561, (1, 20), generator=g)
    return Voice(torch.rand(1, 64, generator=g), ids, ids, torch.rand(1, 40, 80, generator=g), torch.rand(1, 192, generator=g))  # fmt: skip


def metadata(tensors: dict[str, torch.Tensor], key: str = KEY) -> dict[str, str]:
    """As ``dump`` writes it: the digest of a file whose tensors are wrong by themselves."""
    digest = computed_voices._digest(key, "", tensors)
    return {"format": str(computed_voices.FORMAT), "remark": "", "digest": digest}


@pytest.fixture
def path(store):
    store.save(KEY, random_voice(), "only its first 300 s are used")
    return store.directory / "computed" / f"{KEY}.safetensors"


def is_refused(store, path, caplog) -> bool:
    """Whether the file is deleted, with one warning."""
    caplog.clear()
    refused = store.load(KEY) is None
    assert refused == ("computed again" in caplog.text) == (not path.is_file())
    assert len(caplog.records) == refused
    return refused


def test_a_voice_and_its_remark_are_restored(store, path):
    voice, remark = store.load(KEY)
    assert all(torch.equal(t, voice.tensors()[n]) for n, t in random_voice().tensors().items())
    assert remark == "only its first 300 s are used"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: torch.zeros_like(t) for name, t in tensors.items()},
        lambda tensors: tensors | {"mel": tensors["mel"] * 1.5},
        lambda tensors: tensors | {"mel": tensors["mel"][:, :30]},
        lambda tensors: tensors | {"mel": tensors["mel"].reshape(1, 80, 40)},
        lambda tensors: tensors | {"xvector": tensors["xvector"].half()},
        lambda tensors: tensors | {"tokens": tensors["tokens"].int()},
        lambda tensors: tensors | {"other": tensors["mel"].clone()},
        lambda tensors: {"mel": tensors["mel"]},
        lambda tensors: {"weight": torch.ones(3)},
    ],
)
def test_changed_tensors_are_refused(store, path, caplog, change):
    """Under the metadata of the original, and without any."""
    changed = change(load(path.read_bytes()))
    for note in (metadata(random_voice().tensors()), None):
        save_file({n: t.contiguous() for n, t in changed.items()}, path, note)
        assert is_refused(store, path, caplog)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"mel": tensors["mel"].reshape(1, 80, 40)},
        lambda tensors: tensors | {"xvector": tensors["xvector"].half()},
        lambda tensors: tensors | {"speaker": tensors["speaker"][0]},
        lambda tensors: tensors | {"tokens": tensors["tokens"][:, :0]},
        lambda tensors: tensors | {"prompt": tensors["prompt"].float()},
        lambda tensors: {"mel": tensors["mel"]},
    ],
)
def test_wrong_shapes_and_dtypes_are_refused_whatever_the_digest(store, path, caplog, change):
    changed = {name: t.contiguous() for name, t in change(load(path.read_bytes())).items()}
    save_file(changed, path, metadata(changed))
    assert is_refused(store, path, caplog)


def test_another_voices_file_is_refused(store, path, caplog):
    tensors = random_voice().tensors()
    save_file({n: t.clone() for n, t in tensors.items()}, path, metadata(tensors, "other"))
    assert is_refused(store, path, caplog)


def test_a_file_of_another_format_is_refused(store, path, caplog):
    tensors = random_voice().tensors()
    save_file({n: t.clone() for n, t in tensors.items()}, path, metadata(tensors) | {"format": "1"})
    assert is_refused(store, path, caplog)


def test_a_large_file_is_not_read(store, path, caplog):
    with path.open("r+b") as file:
        file.truncate(computed_voices.MAX_BYTES + 1)
    assert is_refused(store, path, caplog)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_directory_or_pipe_in_its_place_is_removed(store, path, make, caplog):
    path.unlink()
    make(path)
    assert store.load(KEY) is None
    store.save(KEY, random_voice())
    assert store.load(KEY) is not None
    assert len(caplog.records) == 1


def test_files_in_a_directory_in_its_place_are_kept(store, path, caplog):
    path.unlink()
    path.mkdir()
    (path / "mine").touch()
    assert store.load(KEY) is None
    store.save(KEY, random_voice())
    assert "was not cached" in caplog.text


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_changed_byte_is_found(store, path, caplog, data):
    store.save(KEY, random_voice())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        place = data.draw(st.one_of(st.integers(0, 900), st.integers(0, len(content) - 1)))
        before, content[place] = content[place], data.draw(st.integers(0, 255))
        changed = before != content[place]
    else:
        content, changed = content[: data.draw(st.integers(0, len(content) - 1))], True
    path.write_bytes(content)
    if changed:
        loaded = store.load(KEY)
        same = loaded and all(
            torch.equal(t, loaded[0].tensors()[n]) for n, t in random_voice().tensors().items()
        )
        assert loaded is None or same  # a changed blank in the header changes nothing
