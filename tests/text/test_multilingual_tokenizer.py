from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

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


@pytest.mark.parametrize("language", sorted(set(languages.LIBRARIES) - {languages.AUTO}))
def test_ids_equal_upstreams_with_the_library_itself(tmp_path, monkeypatch, language):
    """What is skipped here is compared over a pretended library only, above."""
    path = tokenizer_files.write_multilingual(tmp_path)
    ours = loading.load(tmp_path, MULTILINGUAL_TEXT)
    try:
        ours.encode("x", language)
    except InputError as error:
        pytest.skip(str(error))
    table = str(tmp_path / "Cangjie5_TC.json")
    monkeypatch.setattr(upstream, "hf_hub_download", lambda **_: table)
    if language != "zh":  # upstream asks for its dictionary even so
        monkeypatch.setattr(upstream.ChineseCangjieConverter, "_init_segmenter", lambda self: None)
    for name in ("_kakasi", "_dicta", "_russian_stresser"):
        monkeypatch.setattr(upstream, name, None)
    theirs = upstream.MTLTokenizer(str(path))
    for text in texts_of(language):
        text = normalize(text, MULTILINGUAL_TEXT)
        assert ours.encode(text, language) == theirs.encode(text, language_id=language), text


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


PACKAGES = {
    "he": ("dicta_onnx", "dicta_onnx.py", "class Dicta"),
    "ja": ("pykakasi", "pykakasi.py", "class kakasi"),
    "ru": (
        *("russian_text_stresser", "russian_text_stresser/text_stresser.py"),
        "class RussianTextStresser",
    ),
    "zh": ("spacy_pkuseg", "spacy_pkuseg.py", "class pkuseg"),
}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Puts a module with this content in place of a language's library."""

    def put(language: str, content: str) -> loading.TextTokenizer:
        package, file, head = PACKAGES[language]
        path = tmp_path / "libraries" / file
        path.parent.mkdir(parents=True)
        if path.name != file:
            (path.parent / "__init__.py").touch()
        path.write_text(content.replace("HEAD", head))
        forget(package)
        monkeypatch.syspath_prepend(tmp_path / "libraries")
        return loading.load(
            tokenizer_files.write_multilingual(tmp_path / "m").parent, MULTILINGUAL_TEXT
        )

    def forget(package: str) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)

    yield put
    for package, _, _ in PACKAGES.values():
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]


LONG = "HTTPSConnectionPool(host='x', port=443): Max retries exceeded with url: /model.zip " * 9
OFFLINE = f"HEAD:\n    def __init__(self, *_):\n        raise ConnectionError({LONG!r})\n"
REMEDIES = {  # of a library that is there, without its data
    "he": "put dicta-1.0.onnx into '",
    "ja": "pip install --force-reinstall --no-deps pykakasi",
    "ru": "connect and run again, or copy russian_dict.db",
    "zh": "connect and run again, or copy the directory ~/.pkuseg",
}


@pytest.mark.parametrize("language", PACKAGES)
def test_a_library_without_its_data_is_one_line_with_the_remedy(library, language):
    tokenizer = library(language, OFFLINE)
    with pytest.raises(InputError) as caught:
        tokenizer.encode("x", language)
    message = str(caught.value)
    assert REMEDIES[language] in message and len(message) < 280, message
    assert PACKAGES[language][0] in message
    assert tokenizer.encode("x", "de"), "other languages go on"


@pytest.mark.parametrize("language", PACKAGES)
@pytest.mark.parametrize(
    "raised", ["sqlite3.OperationalError('odd\\nodd')", "zlib.error('odd')", "ValueError('odd')"]
)
def test_a_broken_library_is_an_error_and_not_other_sounds(library, language, raised):
    method = {"he": "add_diacritics", "ja": "convert", "ru": "stress_text", "zh": "cut"}[language]
    content = "import sqlite3, zlib\nHEAD:\n    def __init__(self, *_):\n        pass\n"
    tokenizer = library(
        language, f"{content}    def {method}(self, text):\n        raise {raised}\n"
    )
    with pytest.raises(InputError, match=r"fails \(\w+: odd\): pip install ") as caught:
        tokenizer.encode("x", language)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("language", PACKAGES)
def test_a_library_that_misses_another_is_named(library, language):
    tokenizer = library(language, "import nothing_of_that_name")
    with pytest.raises(InputError, match="nothing_of_that_name") as caught:
        tokenizer.encode("x", language)
    assert str(caught.value).endswith(languages.LIBRARIES[language][1])


def test_a_damaged_network_is_named(library, tmp_path):
    onnx = pytest.importorskip("onnxruntime")
    assert onnx
    tokenizer = library(
        "he",
        "import onnxruntime\nHEAD:\n    def __init__(self, path):\n"
        "        onnxruntime.InferenceSession(path)\n",
    )
    with pytest.raises(InputError, match="it is not here: put dicta-1.0.onnx into"):
        tokenizer.encode("x", "he")
    (tmp_path / "m" / "dicta-1.0.onnx").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"dicta-1.0.onnx' is not one, or damaged: put"):
        tokenizer.encode("x", "he")


def test_russian_is_stressed_by_one_thread_and_prints_nothing(library, capsys):
    """Its database answers only the thread that opened it; standard output may be audio."""
    tokenizer = library(
        "ru",
        "import sqlite3\nHEAD:\n    def __init__(self):\n"
        "        print('Downloading...')\n        self.base = sqlite3.connect(':memory:')\n"
        "    def stress_text(self, text):\n        print('Apparently')\n"
        "        return self.base.execute('select ?', (text,)).fetchone()[0]\n",
    )
    with ThreadPoolExecutor(1) as other:
        ids = other.submit(tokenizer.encode, "он", "ru").result()
    assert tokenizer.encode("он", "ru") == ids
    assert capsys.readouterr().out == ""


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
