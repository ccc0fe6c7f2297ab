from __future__ import annotations

import json
import sys

import pytest
from chatterbox import mtl_tts
from chatterbox.models.tokenizers import tokenizer as upstream
from helpers import tokenizer_files
from helpers.languages import SENTENCES, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.config.model_config import MULTILINGUAL, MULTILINGUAL_TEXT
from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.text import languages
from chatterbox_opt.text.normalizers import normalize
from chatterbox_opt.text.tokenizers import loading

PLAIN = [code for code in languages.LANGUAGES if code not in languages.LIBRARIES]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our tokenizer and upstream's of the same files, over the same pretended libraries."""
    directory, libraries = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("libraries")
    path = tokenizer_files.write_multilingual(directory)
    tokenizer_files.write_libraries(libraries)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(libraries)
        for name in ("spacy_pkuseg", "dicta_onnx", "russian_text_stresser"):
            patch.delitem(sys.modules, name, raising=False)
        table = str(directory / "Cangjie5_TC.json")
        patch.setattr(upstream, "hf_hub_download", lambda **_: table)
        for name in ("_kakasi", "_dicta", "_russian_stresser"):
            patch.setattr(upstream, name, None)
        yield loading.load(directory, MULTILINGUAL_TEXT), upstream.MTLTokenizer(str(path))


def test_the_languages_are_upstreams():
    assert languages.LANGUAGES == mtl_tts.SUPPORTED_LANGUAGES
    assert set(SENTENCES) == set(languages.LANGUAGES)


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_ids_equal_upstreams(pair, language):
    """200 texts of each language."""
    ours, theirs = pair
    lines = texts_of(language)
    pairs = (f"{a}{gap}{b}" for gap in (" ", "", " – ") for a in lines for b in lines)
    texts = list(dict.fromkeys([*lines, *pairs]))[:200]
    assert len(texts) == 200
    for text in texts:
        text = normalize(text, MULTILINGUAL_TEXT)
        ids = ours.encode(text, language)
        assert ids == theirs.encode(text, language_id=language), text
        assert ids != ours.encode(text), "the language has a token"


@given(st.text(), st.sampled_from([None, *languages.LANGUAGES]))
@settings(max_examples=400, deadline=None)
def test_ids_of_every_string_equal_upstreams(pair, text, language):
    ours, theirs = pair
    text = normalize(text, MULTILINGUAL_TEXT)
    assert ours.encode(text, language) == theirs.encode(text, language_id=language)


@given(st.text(st.sampled_from("日昌明萌朋好葉書母は花へカメラ a、。ｶﾞ가값힣ᄀ힤"), max_size=20))
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_ids_of_eastern_texts_equal_upstreams(pair, language, text):
    ours, theirs = pair
    assert ours.encode(text, language) == theirs.encode(text, language_id=language)


def test_what_the_steps_do(pair):
    ours, _ = pair
    read = {code: ours._step(code) for code in ("ja", "ko", "zh", "he", "ru", "de")}
    assert read["zh"]("明朋") == "[cj_a][cj_j][cj_b][cj_.][cj_a][cj_j][cj_b][cj_2][cj_.]"
    assert read["ja"]("母と葉書") == " ははとはか\u3099き"[0:1] + "ははと" + " はか\u3099き"
    assert read["ko"](" 값 ") == "\u1100\u1161\u11b9"
    assert read["de"]("Größe") == "Größe"
    assert read["ru"]("он") == "о\u0301н"
    assert read["he"]("ש") == "ש\u05b8"


@pytest.mark.parametrize("language", sorted(set(languages.LIBRARIES) - {languages.AUTO}))
def test_a_missing_library_is_named_with_its_command(tmp_path, monkeypatch, language):
    package, command = languages.LIBRARIES[language]
    path = tokenizer_files.write_multilingual(tmp_path).parent
    find = languages.importlib.util.find_spec
    monkeypatch.setattr(
        languages.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    tokenizer = loading.load(path, MULTILINGUAL_TEXT)
    with pytest.raises(InputError) as caught:
        tokenizer.encode("x", language)
    assert package in str(caught.value) and str(caught.value).endswith(command)
    assert tokenizer.encode("x", "de"), "other languages go on"
    with pytest.raises(InputError, match=package):
        languages.check_model(language, MULTILINGUAL)


def test_a_network_in_the_models_directory_is_used(tmp_path, monkeypatch):
    (tmp_path / "dicta_onnx.py").write_text(
        "class Dicta:\n    def __init__(self, path):\n        self.path = path\n"
        "    def add_diacritics(self, text):\n        return self.path[-4:]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dicta_onnx", raising=False)
    tokenizer = loading.load(
        tokenizer_files.write_multilingual(tmp_path / "m").parent, MULTILINGUAL_TEXT
    )
    (tmp_path / "m" / "dicta-1.0.int8.onnx").touch()
    assert tokenizer.encode("שלום", "he") == tokenizer.encode("onnx")[:0] + tokenizer.encode(
        "[he]onnx"
    )
    monkeypatch.delitem(sys.modules, "dicta_onnx", raising=False)


@pytest.mark.parametrize("content", [None, "[", '{"a": 1}', "[1]", '["a"]'])
def test_a_missing_or_damaged_table_of_codes(pair, tmp_path, content):
    directory = tokenizer_files.write_multilingual(tmp_path).parent
    table = directory / "Cangjie5_TC.json"
    table.unlink() if content is None else table.write_text(content)
    with pytest.raises(WeightsError, match="Cangjie5_TC.json"):
        loading.load(directory, MULTILINGUAL_TEXT).encode("日", "zh")


def test_the_table_is_in_upstreams_format(tmp_path):
    tokenizer_files.write_multilingual(tmp_path)
    entries = json.loads((tmp_path / "Cangjie5_TC.json").read_text(encoding="utf-8"))
    assert all("\t" in entry for entry in entries)
