"""The libraries of languages: present, missing, without their data, broken."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from chatterbox.models.tokenizers import tokenizer as upstream
from helpers import tokenizer_files
from helpers.languages import texts_of

from chatterbox_opt.config.model_config import MULTILINGUAL_TEXT
from chatterbox_opt.errors import InputError
from chatterbox_opt.text import languages
from chatterbox_opt.text.normalizers import normalize
from chatterbox_opt.text.tokenizers import loading

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


@pytest.mark.parametrize("language", sorted(set(languages.LIBRARIES) - {languages.AUTO}))
def test_ids_equal_upstreams_with_the_library_itself(tmp_path, monkeypatch, language):
    """What is skipped here is compared over a pretended library only (test_multilingual_tokenizer.py)."""
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
