"""A language from the caller to the tokens, and tags that a model does not know."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace

import pytest
from chatterbox import mtl_tts
from helpers import tokenizer_files
from typer.testing import CliRunner

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.batch import job_file, resuming, runner
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli.application import app
from chatterbox_opt.config.model_config import (
    ENGLISH,
    MULTILINGUAL,
    MULTILINGUAL_TEXT,
    TURBO_ENGLISH,
    ModelConfig,
)
from chatterbox_opt.engine import texts
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError
from chatterbox_opt.text import languages, tags

SHORT = Sampling(seed=1, max_tokens=6)


@pytest.mark.parametrize("code", mtl_tts.SUPPORTED_LANGUAGES)
def test_known_languages(code):
    assert Request("a", "x", language=code.upper()).language == code
    assert languages.languages_of(MULTILINGUAL) == tuple(mtl_tts.SUPPORTED_LANGUAGES)


@pytest.mark.parametrize("language", ["xx", "", "german", "de-DE", "de ", "\n", 7, b"de", ["de"]])
def test_an_unknown_language_is_one_line_with_the_known_ones(language):
    with pytest.raises(InputError, match="^language is ") as caught:
        Request("a", "x", language=language)
    assert "\n" not in str(caught.value) and "de" in str(caught.value)


@pytest.mark.parametrize("kind", [ENGLISH, TURBO_ENGLISH])
def test_a_language_that_the_model_does_not_know(kind):
    languages.check_model("en", ModelConfig(text=kind))
    languages.check_model(None, ModelConfig(text=kind))
    with pytest.raises(InputError, match=r"does not know the language de \(German\), only en: "):
        languages.check_model("de", ModelConfig(text=kind))
    assert languages.remark(None, ModelConfig(text=kind)) == ""


def test_a_multilingual_model_wants_to_know():
    assert "--language" in languages.remark(None, MULTILINGUAL)
    assert languages.remark("de", MULTILINGUAL) == ""


def test_auto_is_the_likeliest_that_the_model_knows(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(languages.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            InputError, match='auto needs the library py3langid: pip install "chatt'
        ):
            texts.chunks("Guten Tag.", MULTILINGUAL, "auto")
    assert texts.chunks("Guten Tag.", ModelConfig(), "auto")[0].language == "en"
    tokenizer_files.write_libraries(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "py3langid", raising=False)
    found = [
        texts.chunks(t, MULTILINGUAL, "auto")[0].language for t in ("Guten Tag.", "Jeg.", "Hau.")
    ]
    assert found == ["de", "no", "en"]
    assert Request("a", "x", language="AUTO").language == "auto"
    assert texts.rules(MULTILINGUAL, "auto").language is None
    monkeypatch.delitem(sys.modules, "py3langid", raising=False)


PACKS = {
    "zh-cmn": "zh", "es-mx-latam": "es", "es-es": "es", "pt-br": "pt", "pt-pt": "pt", "hi": "hi",
}  # fmt: skip


@pytest.mark.parametrize(("pack", "language"), PACKS.items())
def test_a_pack_knows_one_language_and_need_not_be_told(pack, language):
    config = registry.known_config(f"multilingual-{pack}")
    assert languages.languages_of(config) == (language,)
    assert languages.remark(None, config) == ""
    assert [languages.chosen(code, config) for code in (None, "auto", "de")] == [
        *(language, language, "de")
    ]
    languages.check_model(None, config)
    with pytest.raises(InputError, match=rf"language de \(German\), only {language}: use"):
        languages.check_model("de", config)
    assert texts.rules(config).language == language
    assert {chunk.language for chunk in texts.chunks("Um.", config)} == {language}
    assert {chunk.language for chunk in texts.chunks("Um.", config, "auto")} == {language}


def test_a_packs_library_is_missed_without_a_language(monkeypatch):
    monkeypatch.setattr(languages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="Chinese needs the library spacy_pkuseg"):
        languages.check_model(None, registry.known_config("multilingual-zh-cmn"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "multilingual-hi", "--language", "de"], "German), only hi: use --model mul"),
        (["--model", "turbo", "--language", "de"], "German), only en: use --model mul"),
        (["--model", "nano", "--exaggeration", "0.7"], "exaggeration is 0.7, and this model has"),
        (["--model", "multilingual", "--language", "he"], "Hebrew needs the library dicta_onnx: "),
    ],
)
@pytest.mark.parametrize("command", ["synth", "batch", "preview"])
def test_what_a_model_does_not_have_is_refused_by_its_name(
    command, options, message, tmp_path, no_load
):
    """Before anything is downloaded, loaded or written."""
    (tmp_path / "x.txt").write_text("Hello.")
    commands = {
        "synth": ["synth", "Hello.", "-o", "x.wav"],
        "batch": ["batch", "x.txt", "--out-dir", "out"],
        "preview": ["batch", "x.txt", "--dry-run"],
    }
    done = CliRunner().invoke(app, [*commands[command], *options])
    assert isinstance(done.exception, InputError), done.output
    assert message in str(done.exception) and done.output == ""
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_a_pack_is_accepted_without_a_language(tmp_path, no_load):
    done = CliRunner().invoke(app, ["synth", "Hello.", "--model", "multilingual-hi"])
    assert "loaded" in str(done.exception)


def test_a_preview_names_languages_and_rows(tmp_path, no_load):
    (tmp_path / "x.csv").write_text("text,language\nHello.,hi\n...,\nHm.,\n")
    preview = ["batch", "x.csv", "--dry-run", "--model", "multilingual-hi"]
    *lines, _ = CliRunner().invoke(app, [*preview, "--json"]).stdout.splitlines()
    assert [json.loads(line)["language"] for line in lines] == ["hi", None, "hi"]
    assert "(hi)  Hm." in CliRunner().invoke(app, preview).stdout
    done = CliRunner().invoke(app, ["batch", "x.csv", "--dry-run", "--model", "pico"])
    assert str(done.exception).startswith("row 2: this model does not know the language hi")


@pytest.fixture
def no_load(tmp_path, monkeypatch):
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("load", "resolve"):
        monkeypatch.setattr(EngineSpec, name, load)
    find = languages.importlib.util.find_spec
    monkeypatch.setattr(
        *(languages.importlib.util, "find_spec", lambda n: None if n == "dicta_onnx" else find(n))
    )


def test_texts_are_split_by_the_language():
    chunks = texts.chunks("今天天气很好，我们去公园玩。" * 20, MULTILINGUAL, "ja")
    assert len(chunks) == 3 and {chunk.language for chunk in chunks} == {"ja"}
    assert len(texts.chunks("今天天气很好，我们去公园玩。" * 20, ModelConfig())) == 1


def test_a_language_reaches_the_tokens(tiny, monkeypatch):
    seen = []

    class Tokenizer:
        tags = frozenset()

        def encode(self, text, language):
            seen.append((text, language))
            return [5, 6, 7]

    with Engine.load(tiny, "dev", watermark=False) as engine:
        monkeypatch.setattr(engine.pipeline.decoder, "tokenizer", Tokenizer())
        config = replace(engine.checkpoint.config, text=MULTILINGUAL_TEXT)
        monkeypatch.setattr(engine, "_requests", replace(engine._requests, config=config))
        monkeypatch.setattr(engine, "checkpoint", replace(engine.checkpoint, config=config))
        engine.synthesize("Guten Tag", sampling=SHORT, language="de")
        engine.speech_tokens("Guten Tag", sampling=SHORT, language="DE")
        list(engine.stream("Bonjour。", sampling=SHORT, language="fr"))
        list(
            engine.batch(
                [Request("a", "Hei", None, SHORT, language="fi"), Request("b", "Hm", None, SHORT)]
            )
        )
        engine.submit(Request("a", "Hej", None, SHORT, language="sv")).result()
        list(
            engine.pieces(
                iter(["Am 3. Mai kam", " er. Gut", " so."]), sampling=SHORT, language="de"
            )
        )
        with pytest.raises(InputError, match="known: ar"):
            engine.pieces("Hello.", language="xx")
    assert seen == [
        ("Guten Tag.", "de"), ("Guten Tag.", "de"), ("Bonjour。", "fr"), ("Hei.", "fi"), ("Hm.", None),
        ("Hej.", "sv"), ("Am 3. Mai kam er.", "de"), ("Gut so.", "de"),
    ]  # fmt: skip


def test_a_language_that_the_engines_model_does_not_know(tiny):
    with Engine.load(tiny, "dev", watermark=False) as engine:
        for call in (
            lambda: engine.pieces("Hallo.", language="de"),
            lambda: engine.pieces(iter(["Hallo."]), language="de"),
            lambda: engine.submit(Request("a", "Hallo.", language="de")),
        ):
            with pytest.raises(InputError, match="does not know the language de"):
                call()
        [result] = engine.batch([Request("a", "Hallo.", language="de")])
        assert "does not know" in str(result.error)


def read(content: str, language: str | None = None) -> list[job_file.Item]:
    return job_file.read("a.jsonl", content.encode(), Sampling(), None, None, language).items


def test_rows_have_languages():
    lines = (
        '{"text": "One.", "language": "DE"}\n{"text": "Two."}\n{"text": "Three.", "language": ""}'
    )
    assert [item.language for item in read(lines)] == ["de", None, None]
    assert [item.language for item in read(lines, "fr")] == ["de", "fr", "fr"]
    assert [runner._request(item).language for item in read(lines, "fr")] == ["de", "fr", "fr"]
    with pytest.raises(InputError, match="row 1: language is 'xx'; known: ar, da"):
        read('{"text": "One.", "language": "xx"}')
    with pytest.raises(InputError, match="row 1: language is 5"):
        read('{"text": "One.", "language": 5}')


def test_a_languages_detector_that_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "py3langid.py").write_text("def rank(text):\n    raise OSError('no model' * 99)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "py3langid", raising=False)
    with pytest.raises(InputError, match=r"language auto needs, fails \(OSError") as caught:
        texts.chunks("Guten Tag.", MULTILINGUAL, "auto")
    assert str(caught.value).endswith("--no-deps py3langid") and len(str(caught.value)) < 250
    monkeypatch.delitem(sys.modules, "py3langid", raising=False)


def test_another_language_is_another_item_and_none_is_what_it_was():
    def prepared(language: str | None) -> job_file.Item:
        return resuming.prepare(read('{"text": "x"}', language), ["1.wav"], "m", lambda v: "v")[0]

    hashes = [prepared(language).settings_hash for language in (None, "de", "fr")]
    assert len(set(hashes)) == 3
    assert hashes[0] == "ecb7e1fa61ac1039e2031277", "manifests of earlier versions stay valid"


@pytest.mark.parametrize(
    "command", [["synth", "x", "-o", "x.wav"], ["batch", "x.txt", "--dry-run"]]
)
def test_the_command_line_refuses_an_unknown_language_at_once(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("Hello.")
    done = CliRunner().invoke(app, [*command, "--language", "xx"])
    assert isinstance(done.exception, InputError), done.output
    assert str(done.exception).startswith("language is 'xx'; known: ar, da, de")


# --- tags -------------------------------------------------------------------------------------

TURBO_TAGS = frozenset({*tags.SOUNDS, "[angry]"})


@pytest.mark.parametrize(
    ("text", "known", "named"),
    [
        ("Hello [laugh] there [sigh].", TURBO_TAGS, []),
        ("Hello [angry] [clear throat]", TURBO_TAGS, []),
        ("Hello [laughs] [yawn] [yawn]", TURBO_TAGS, ["[laughs]", "[yawn]"]),
        ("Hello [laugh] [yawn]", (), ["[laugh]"]),
        ("See [3], [sic] and [Smith 2001]; a[i]", (), []),
    ],
)
def test_unknown_tags(text, known, named):
    assert tags.unknown_tags(text, known) == named
    warning = tags.warning(text, known)
    assert bool(warning) == bool(named) and "\n" not in warning
    assert all(tag in warning for tag in named)


def test_one_warning_names_the_tags_of_a_text(caplog):
    with caplog.at_level(logging.WARNING, "chatterbox_opt"):
        chunks = texts.chunks("Well [laugh]. [sigh] So [laugh].", ModelConfig())
        turbo = texts.chunks(
            "Well [laugh] [yawn].", ModelConfig(text=TURBO_ENGLISH), None, TURBO_TAGS
        )
    assert [chunk.text for chunk in (*chunks, *turbo)] == [
        "Well [laugh]. [sigh] So [laugh].",
        "Well [laugh] [yawn].",
    ]
    first, second = (record.getMessage() for record in caplog.records)
    assert "[laugh], [sigh] aloud" in first and "[yawn]" in second
