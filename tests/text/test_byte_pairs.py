from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import tokenizer_files
from helpers.texts import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.config.model_config import TURBO_ENGLISH
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.text.normalizers import normalize
from chatterbox_opt.text.tags import SOUNDS
from chatterbox_opt.text.tokenizers import loading

WITH_TAGS = (
    "Hello [laugh] there.",
    "[clear throat] Well, [sigh]so[chuckle] it is.",
    "[Laugh] [laughs] [clear  throat] [unknown] [shush][shush]",
    "An end <|endoftext|> in the middle.",
    "Emoji 🎉 and  two blanks\u00a0here.",
    "word " * 60,
)


def reference(directory):
    """transformers' tokenizer, called as upstream does (tts_turbo.py)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def encode(text):
        ids = tokenizer(text, return_tensors="pt", padding=True, truncation=True).input_ids
        return ids[0].tolist()

    return encode


@pytest.fixture(
    scope="module", params=["1024", "20", "no limit", "legacy", "prefix", "with tokenizer.json"]
)
def pair(request, tmp_path_factory):
    """Our tokenizer and transformers' of the same files."""
    directory = tmp_path_factory.mktemp("turbo")
    limit = None if request.param == "no limit" else 20 if request.param == "20" else 1024
    tokenizer_files.write_byte_pairs(directory, limit=limit, legacy=request.param == "legacy")
    if request.param == "prefix":
        config = json.loads((directory / "tokenizer_config.json").read_text())
        (directory / "tokenizer_config.json").write_text(
            json.dumps(config | {"add_prefix_space": True})
        )
    if request.param == "with tokenizer.json":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(directory).backend_tokenizer.save(
            str(directory / "tokenizer.json")
        )
    return loading.load(directory, TURBO_ENGLISH), reference(directory)


@pytest.mark.parametrize("text", [*TEXTS, *WITH_TAGS])
def test_ids_equal_those_of_transformers(pair, text):
    ours, theirs = pair
    text = normalize(text, TURBO_ENGLISH)
    assert ours.encode(text) == theirs(text)


@given(
    st.text(min_size=1)
    | st.lists(st.sampled_from([*SOUNDS, "[", "]", "a", " ", "the", "'s", "é", "1"])).map("".join)
)
@settings(max_examples=150, deadline=None)
def test_ids_of_every_string_equal_those_of_transformers(pair, text):
    ours, theirs = pair
    text = normalize(text, TURBO_ENGLISH)
    assert ours.encode(text) == theirs(text)


def test_sounds_are_one_token_each(pair):
    ours, _ = pair
    assert ours.tags == {"[angry]", *SOUNDS}
    for tag in SOUNDS:
        assert len(ours.encode(f"{tag}")) <= 2  # a prefix space may be its own
    assert len(ours.encode("[laughing]")) > 2


def test_long_texts_are_cut_at_the_models_limit(tmp_path):
    tokenizer_files.write_byte_pairs(tmp_path, limit=7)
    ids = loading.load(tmp_path, TURBO_ENGLISH).encode("the dog " * 9)
    assert len(ids) == 7


def test_transformers_is_not_imported(tmp_path):
    tokenizer_files.write_byte_pairs(tmp_path)
    code = (
        "import pathlib, sys\n"
        "from chatterbox_opt.text.tokenizers import loading\n"
        "assert 'tokenizers' not in sys.modules\n"
        f"loading.load(pathlib.Path({str(tmp_path)!r}), 'turbo').encode('Hello [laugh].')\n"
        "assert not {'transformers', 'torch', 'pykakasi', 'spacy_pkuseg'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vocab.json", None), ("vocab.json", "["), ("vocab.json", '["a"]'), ("vocab.json", '{"a": "b"}'),
        ("merges.txt", None), ("merges.txt", "a b c\n"), ("merges.txt", "qq zz\n"), ("merges.txt", b"\xff\xfe"),
        ("tokenizer_config.json", "[]"), ("tokenizer_config.json", '{"added_tokens_decoder": {"a": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", '{"add_bos_token": true}'),
        ("tokenizer_config.json", '{"model_max_length": "x"}'),
    ],
)  # fmt: skip
def test_missing_and_damaged_files_are_named(tmp_path, file, content):
    tokenizer_files.write_byte_pairs(tmp_path)
    path = tmp_path / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsError, match=file) as caught:
        loading.load(tmp_path, TURBO_ENGLISH)
    assert "\n" not in str(caught.value)
