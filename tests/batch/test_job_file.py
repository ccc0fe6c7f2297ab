"""Job files to items, and ids to file names: no engine, no torch."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Sampling
from chatterbox_opt.batch import filenames, job_file
from chatterbox_opt.errors import InputError


def read(file: str, content: str | bytes, **knobs) -> list[job_file.Item]:
    raw = content.encode() if isinstance(content, str) else content
    return job_file.read(file, raw, Sampling(**knobs), "anna").items


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{id:0999999999d}", "at most 120 characters"),
        ("{slug:>1000}", "at most 120 characters"),
        ("{id:.99999999f}", "at most 120 characters"),
        ("{id:" + "9" * 900 + "}", "at most 120 characters"),
        ("a" * 1001, "1,001 characters: give at most 1000"),
    ],
)
def test_a_pattern_that_would_fill_the_memory_is_refused(pattern, reason):
    with pytest.raises(InputError, match=reason):
        filenames.check_pattern(pattern)


def test_names_have_only_what_the_locale_can_encode(monkeypatch):
    ids = ["Übung", "Ubung", "東京", "大阪", "\ud800"]
    in_utf8 = filenames.names([(id, "a") for id in ids], "{id}", ".wav")
    assert in_utf8[:4] == ["Übung.wav", "Ubung.wav", "東京.wav", "大阪.wav"]
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    names = filenames.names([(id, "a") for id in ids], "{id}", ".wav")
    assert all(name.isascii() for name in names)
    assert len(set(names)) == len(ids)
    assert names[1] == "Ubung.wav"


def test_a_line_is_an_item_and_empty_lines_start_chapters():
    items = read("a.txt", "\ufeffOne.\r\n\r\n\r\n  Two. \nThree.\u2028Still three.\n\n", seed=4)
    assert [(i.id, i.row, i.text, i.starts_chapter) for i in items] == [
        ("1", 1, "One.", False), ("2", 4, "Two.", True), ("3", 5, "Three.\u2028Still three.", False)
    ]  # fmt: skip
    assert {(i.voice, i.sampling) for i in items} == {("anna", Sampling(seed=4))}
    assert [i.text for i in read("-", "A\nB")] == ["A", "B"]


def test_rows_have_ids_voices_and_sampling_parameters():
    first, second = read(
        "a.jsonl",
        '{"text": "One.", "id": 7, "voice": "b.wav", "seed": 3, "cfg_weight": 0, "top_p": 0.5}\n\n'
        '{"text": "Two.", "voice": null}\n',
        temperature=0.1,
    )
    assert (first.id, first.voice, first.row) == ("7", "b.wav", 1)
    assert first.sampling == Sampling(seed=3, cfg_weight=0, top_p=0.5, temperature=0.1)
    assert (second.id, second.voice, second.row) == ("2", "anna", 3)
    [row, other] = read("a.csv", 'id,text,max_tokens\nx,"One, and\ntwo.",40\ny,Three.,\n')
    assert (row.id, row.text, row.sampling.max_tokens) == ("x", "One, and\ntwo.", 40)
    assert (other.row, other.sampling.max_tokens) == (4, 1000)


def test_cues_are_words_without_markup():
    srt = (
        "1\n00:00:01,000 --> 00:00:02,000\n<i>Hello</i>\nthere.\n\n"
        "2\n00:00:03,000 --> 00:00:04,000\n{\\an8}Bye.\n\n3\n00:00:05,000 --> 00:00:06,000\n\n"
    )
    assert [(i.id, i.text) for i in read("a.srt", srt)] == [("1", "Hello there."), ("2", "Bye.")]
    vtt = (
        "WEBVTT\n\nNOTE a note\n\nSTYLE\n::cue {}\n\nintro\n00:01.000 --> 00:02.000 align:start\n"
        "<v Anna>Salt &amp; pepper.</v>\n\n00:03.000 --> 00:04.000\nBye."
    )
    assert [i.text for i in read("a.vtt", vtt)] == ["Salt & pepper.", "Bye."]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.doc", "x", "known extension; give .txt, .md"),
        ("a.txt", "\n \n", "has no text to speak; give at least"),
        ("a.txt", b"ok\nca\xe9", "'a.txt' row 2 is not UTF-8"),
        ("-", b"\xff", "standard input row 1"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "voise": "x"}', "row 2: unknown column 'voise'; known: id, text, voice, seed"),
        ("a.jsonl", '{"text": "a"}\n\n{"text"', "row 3 is not JSON"),
        ("a.jsonl", "[1]", "row 1 is not a JSON object"),
        ("a.jsonl", '{"id": 1}', "row 1 has no text"),
        ("a.jsonl", '{"text": 5}', "text is not a string"),
        ("a.jsonl", '{"text": "a", "id": [1]}', "id is not a string"),
        ("a.jsonl", '{"text": "a", "voice": 3}', "voice is not a string"),
        ("a.jsonl", '{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}', "row 2: id 'x' is that of row 1"),
        ("a.jsonl", '{"text": "a", "id": "2"}\n{"text": "b"}', "row 2: id '2' is that of row 1"),
        ("a.jsonl", '{"text": "a", "seed": 1.5}', "row 1: seed is 1.5; give a whole number"),
        ("a.jsonl", '{"text": "a", "seed": true}', "seed is true"),
        ("a.jsonl", '{"text": "a", "top_p": "x"}', "top_p is \"x\"; give a number"),
        ("a.jsonl", '{"text": "a", "top_p": NaN}', "row 1: top_p is nan"),
        ("a.csv", "text,temperature\na,9\n", "row 2: temperature is 9.0"),
        ("a.csv", "text\na,b\n", "row 2 has 2 cells and the header 1"),
        ("a.csv", "text,text\na,b\n", "names a column twice"),
        ("a.csv", "words\na\n", "row 1: unknown column 'words'"),
        ("a.csv", 'text\n"a', "is not CSV"),
        ("a.csv", "", "row 1 has no text"),
    ],
)  # fmt: skip
def test_an_ambiguous_file_is_an_error_with_its_row(file, content, message):
    with pytest.raises(InputError) as caught:
        read(file, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_content_is_items_or_an_error(content):
    raw = content.encode("utf-8", "surrogatepass")
    for kind in ("txt", "jsonl", "csv", "srt", "vtt"):
        try:
            assert job_file.read(f"a.{kind}", raw, Sampling())
        except InputError as error:
            assert f"a.{kind}" in str(error)


def names(*ids: str, pattern: str = "{id}", reserved=()) -> list[str]:
    return filenames.names([(id, "Some words.") for id in ids], pattern, ".wav", reserved)


def test_patterns():
    assert names("7", "intro", pattern="{id:04d}-{slug}") == [
        "0007-some-words.wav", "intro-some-words.wav"
    ]  # fmt: skip
    assert filenames.slug("“Ça va?” he said, and went on and on until the end") == (
        "ça-va-he-said-and-went-on-and-on-until"
    )
    for pattern in ("a/{id}", "..\\{id}", "{nope}", "{id.__class__}", "{id[0]}", "{", "{}", "{id:q}", "{id!r:{slug.x}}"):  # fmt: skip
        with pytest.raises(InputError):
            filenames.check_pattern(pattern)
    for pattern in ("{id}", "{id:04d}-{slug}", "x", "{slug:>20}"):
        filenames.check_pattern(pattern)


def test_names_are_distinct_on_every_file_system():
    found = names("a/b", "a\\b", "a_b", "A_B", "e\u0301", "\u00e9", "7", "007", "CON", "nul.txt", "book", reserved=["Book.wav"])  # fmt: skip
    assert len({name.casefold() for name in found}) == len(found)
    assert found[2] == "a_b.wav"
    assert found[-1].startswith("book~")
    assert found[8].startswith("_CON")
    again = names("new", "a/b", "a\\b")
    assert again[1:] == found[:2], "adding a row does not rename the others"


# inputs that break programs which derive file names from data
HOSTILE_IDS = st.one_of(
    st.text(),
    st.text("./\\~: \0\n", max_size=8),
    st.sampled_from(["..", ".", "", "../../etc/passwd", "C:\\x", "\0", "con", "COM1.wav", "x" * 5000,
                     "\ud800", "-rf", "a.", " a", "é" * 300, "manifest.jsonl", "/", "~root", "aux."]),
)  # fmt: skip


@given(
    st.lists(HOSTILE_IDS, unique=True, max_size=8),
    st.sampled_from(["{id}", "{id:04d}-{slug}", "x"]),
)
def test_no_id_leaves_the_directory(ids, pattern):
    found = filenames.names([(id, id) for id in ids], pattern, ".wav")
    base = Path("out").resolve()
    keys = {unicodedata.normalize("NFKD", name.casefold()) for name in found}
    assert len(keys) == len(ids)
    for name in found:
        assert (base / name).resolve().parent == base
        assert os.path.basename(name) == name
        assert len(name.encode()) <= 160
        assert not set(name) & set('/\\:*?"<>|\0\n\r\t')
        assert not name.startswith((".", "-", " "))
        assert name.removesuffix(".wav")[-1] not in ". "
        assert name.split(".")[0].strip().lower() not in (
            "con",
            "prn",
            "aux",
            "nul",
            "com1",
            "lpt1",
        )
        assert json.loads(json.dumps(name)) == name
