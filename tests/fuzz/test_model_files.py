"""Damaged model files: each is read, or the message names the file and what to do."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import torch
from helpers.fuzz import damage, examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.checkpoints.reader import Tensors
from chatterbox_opt.config.config_file import PARTS, read_config
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.voice import from_conditionals
from chatterbox_opt.voices.library import load_voice


def saved(tensors) -> bytes:
    """The bytes of a torch file."""
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


PICO = registry.built_in("pico")
CONDITIONALS = (PICO / registry.CONDITIONALS).read_bytes()
TOKENIZER = (PICO / registry.TOKENIZER).read_bytes()
WEIGHTS = saved({"lstm.weight": torch.ones(9, 4), "lstm.bias": torch.zeros(4), "n": torch.ones(1)})
VOICE = next(iter(registry.shipped_voices("pico").values())).read_bytes()
FIELDS = sorted({name for part in PARTS for name in getattr(ModelConfig(), part).__slots__})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
VALUES = JSON | st.integers(-2, 300) | st.sampled_from([0, 10**9, 10**30, 0.5, 64.0, 1e300])
PART = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3)
CONFIG = st.dictionaries(st.sampled_from([*PARTS, "made", "spelled", "x"]), PART | JSON)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    return damage(draw, content)


def ours(read, path, content: bytes) -> None:
    """Read a file; an error must be ours, short, and name the file."""
    path.write_bytes(content)
    try:
        read(path)
    except WeightsError as error:
        message = str(error)
        assert str(path.parent) in message
        assert "again" in message or "known: " in message
        assert len(message) < 1000
        assert "\n" not in message


@examples(40)
@given(content=CONFIG.map(lambda c: json.dumps(c).encode()) | damaged(b'{"t3": {"layers": 3}}'))
def test_any_config(tmp_path, content):
    ours(lambda path: read_config(path.parent), tmp_path / "config.json", content)


@examples(15)
@given(content=damaged(TOKENIZER))
def test_damaged_tokenizer(tmp_path, content):
    def read(path):
        checkpoint = registry.Checkpoint("x", path.parent, ModelConfig(), "")
        loader.load_tokenizer(checkpoint)

    ours(read, tmp_path / registry.TOKENIZER, content)


@examples(15)
@given(content=damaged(CONDITIONALS) | st.binary())
def test_damaged_conditionals(tmp_path, content):
    ours(from_conditionals, tmp_path / "conds.pt", content)


def with_damaged_pickle(draw, archive: bytes) -> bytes:
    """Damaged inside of an intact archive, whose checksums find any other damage."""
    copied = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(copied, "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = draw(damaged(content))
            target.writestr(name, content)
    return copied.getvalue()


@examples(15)
@given(data=st.data())
def test_damaged_pickle_within_conditionals(tmp_path, data):
    ours(from_conditionals, tmp_path / "conds.pt", with_damaged_pickle(data.draw, CONDITIONALS))


def read_all(path):
    """Read every tensor of a weights file, copied."""
    for tensor in Tensors(path).values():
        tensor.clone()


@examples(30)
@given(data=st.data())
def test_damaged_torch_file(tmp_path, data):
    """Of weights: damaged anywhere, or in its pickle alone."""
    whole = data.draw(st.booleans())
    content = data.draw(damaged(WEIGHTS)) if whole else with_damaged_pickle(data.draw, WEIGHTS)
    ours(read_all, tmp_path / "ve.pt", content)


@examples(15)
@given(content=damaged(VOICE))
def test_damaged_voice(tmp_path, content):
    ours(load_voice, tmp_path / "anna.safetensors", content)


@examples(15)
@given(
    header=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(
                    ["F32", "F16", "I64", "BOOL", "F8_E4M3", "U16", "F4", "X"]
                ),
                "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 40) | st.integers(), max_size=3),
            }
        ),
        max_size=3,
    ),
    size=st.none() | st.integers(0, 2**64 - 1),
    body=st.binary(max_size=40),
)
def test_any_safetensors(tmp_path, header, size, body):
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if size is None else size) + text + body
    ours(lambda path: dict(Tensors(path)), tmp_path / "t3.safetensors", content)
