"""Random checkpoints of full size in upstream's own loaders: minutes and 8 GB (make test-slow)."""

from __future__ import annotations

import gc

import chatterbox.mtl_tts
import chatterbox.tts_turbo
import pytest
from helpers.upstream_reference import Unmarked

from chatterbox_opt.checkpoints import random_weights, registry
from chatterbox_opt.text.tags import SOUNDS

pytestmark = pytest.mark.slow
TEXT = "Hello there, how are you? [laugh] Fine."


@pytest.fixture
def made(request, tmp_path):
    """A random checkpoint of full size: 2 to 3 GB on disk, deleted afterwards."""
    directory = tmp_path / request.param
    random_weights.make(directory, "full", 0, request.param)
    yield directory
    for path in directory.iterdir():
        path.unlink()
    gc.collect()


@pytest.mark.parametrize("made", ["turbo"], indirect=True)
def test_turbo_loads_as_it_is(made, monkeypatch):
    module = chatterbox.tts_turbo
    monkeypatch.setattr(module.perth, "PerthImplicitWatermarker", Unmarked)
    config = registry.locate(str(made)).config
    model = module.ChatterboxTurboTTS.from_local(made, "cpu")
    assert len(model.tokenizer) == config.t3.text_vocab == 50_276
    ids = model.tokenizer(TEXT).input_ids
    assert max(ids) == 50_257 + SOUNDS.index("[laugh]")
    assert len(ids) < len(TEXT) / 2, "letters are merged, as by upstream's vocabulary"
    assert model.tokenizer.decode(ids) == TEXT


@pytest.mark.parametrize("made", ["multilingual"], indirect=True)
def test_multilingual_loads_as_it_is(made, monkeypatch):
    module = chatterbox.mtl_tts
    monkeypatch.setattr(module.perth, "PerthImplicitWatermarker", Unmarked)
    tokenizers = "chatterbox.models.tokenizers.tokenizer."
    monkeypatch.setattr(f"{tokenizers}ChineseCangjieConverter.__init__", lambda *_: None)
    config = registry.locate(str(made)).config
    model = module.ChatterboxMultilingualTTS.from_local(made, "cpu")
    assert model.t3.text_emb.num_embeddings == config.t3.text_vocab == 2454
