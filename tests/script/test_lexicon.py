"""Lexicons: which words are found, how they are said, and that nothing else changes."""

from __future__ import annotations

import unicodedata

import pytest
from helpers.fuzz import soon
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Lexicon
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.script import lexicon as lexicons
from chatterbox_opt.script.reader import read

WORDS = Lexicon.of({
    "nguyen": "win", "SQL": "sequel", "New York": "noo york", "new york city": "the city", "C++": "see plus plus",
    "a": "uh", "b": "a", r"/v(\d+)\.(\d+)/": r"version \1 point \2", "東京": "とうきょう", "de": {"Chef": "Scheff"},
})  # fmt: skip


def heard(text: str, lexicon: Lexicon = WORDS, language: str | None = None) -> str:
    return read(text, lexicon=lexicon, language=language).text


def test_whole_words_in_their_case():
    assert heard("Nguyen, NGUYEN and nguyen's") == "Win, Win and win's"
    assert heard("Nguyens, unguyen, nguyen_x") == "Nguyens, unguyen, nguyen_x"
    assert heard("SQL, not sql or Sql") == "sequel, not sql or Sql"


def test_phrases_across_lines_and_the_longest_first():
    assert heard("In New\nYork, new york") == "In noo york, new york"
    assert heard("in New York City") == "in The city"
    assert heard("C++ or C+") == "see plus plus or C+"


def test_a_word_is_found_however_it_is_encoded():
    cafe = Lexicon.of({"café": "kaffay", "O'Brien": "o brine", "don't": "dohnt", "한국": "hanguk"})
    for form in ("NFC", "NFD"):
        written = unicodedata.normalize(form, "café, Café or cafés")
        assert heard(written, cafe) == unicodedata.normalize(form, "kaffay, Kaffay or cafés")
    assert heard("O’Brien, O'Brien don’t, donʼt", cafe) == "o brine, o brine dohnt, dohnt"
    assert heard(unicodedata.normalize("NFD", "한국"), cafe) == "hanguk"


def test_a_mark_belongs_to_its_letter():
    assert heard("राम रामायण", Lexicon.of({"राम": "RAM"}), "hi") == "RAM रामायण"
    bare = Lexicon.of({"cafe": "kaff"})
    assert heard("cafe cafe\u0301 \u0301cafe", bare) == "kaff cafe\u0301 \u0301cafe"


def test_what_was_replaced_is_not_read_again():
    assert heard("a b") == "uh a"


def test_patterns_and_scripts_without_spaces():
    assert heard("v1.2 now") == "version 1 point 2 now"
    assert heard("私は東京です") == "私はとうきょうです"


def test_a_language_has_words_of_its_own():
    assert heard("Der Chef", language="de") == "Der Scheff"
    assert heard("The Chef") == heard("The Chef", language="en") == "The Chef"
    both = Lexicon.of({"chef": "shef", "de": {"chef": "scheff"}})
    assert heard("chef", both, "de") == "scheff" and heard("chef", both) == "shef"


def test_later_words_win_and_markup_wins_over_all():
    both = WORDS + Lexicon.of({"nguyen": "noo yen"})
    assert heard("nguyen", both) == "noo yen"
    both = Lexicon.of({"東京": "x", "/z+/": "x"}) + Lexicon.of({"東京": "y", "/z+/": "y"})
    assert heard("東京 zz", both) == "y y"
    assert read("[say:x]nguyen[/say] nguyen", markup=True, lexicon=WORDS).text == "x win"


@given(st.text(alphabet="xyzXYZ.,[]\n é語", max_size=50))
def test_a_text_without_a_hit_is_untouched(text):
    assert read(text, lexicon=WORDS) == read(text)


@given(st.lists(st.sampled_from(["nguyen", "SQL", "other", "New York", "C++"]), max_size=12))
def test_every_word_is_read_once_in_order(words):
    readings = {"nguyen": "win", "SQL": "sequel", "New York": "noo york", "C++": "see plus plus"}
    script = read("; ".join(words), lexicon=WORDS)
    assert script.text == "; ".join(readings.get(word, word) for word in words)
    assert script.written == "; ".join(words)
    assert [hit.written for hit in script.hits] == [word for word in words if word in readings]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"/(a/": "b"}, "pattern '(a' is wrong"),
        ({r"/a(b)/": r"\2"}, "invalid group reference"),
        ({"/a*/": "b"}, "matches no letter"),
        ({"a": ["b"]}, "is said as ['b']"),
        ({"xx": {"a": "b"}}, "is no language's code"),
        ({"...": "b"}, "has no letter"),
        ({"a": " "}, "has no letter"),
        ({"a" * 1001: "b"}, "more than 1000 letters"),
        ({f"/{number}/": "b" for number in range(101)}, "more than 100 patterns"),
    ],
)
def test_a_wrong_lexicon_is_an_error(words, problem):
    with pytest.raises(InputError, match="lexicon") as caught:
        Lexicon.of(words)
    assert problem in str(caught.value)


def test_a_pattern_that_takes_too_long_is_refused():
    slow = Lexicon.of({"/(a|aa)+$/": "b"})
    with soon(), pytest.raises(TextError, match="takes longer than 1 s over a text"):
        read("a" * 5000 + "!", lexicon=slow)


def test_files(tmp_path, monkeypatch):
    path = tmp_path / "words.yaml"
    path.write_text("nguyen: win\nde:\n  Chef: Scheff\n1: one\n")
    assert heard("Nguyen 1", Lexicon.load(path)) == "Win one"
    for content in (
        "- a\n",
        "a: &x b\nc: *x\n",
        "a: b\na: c\n",
        "a:\n  b:\n    c: d\n",
        "a: !!int b\n",
        "\0",
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=r"lexicon '.*words.yaml'"):
            Lexicon.load(path)
    path.write_text("a: b\n" * 100_000)
    with pytest.raises(InputError, match="more than 256 KiB"):
        Lexicon.load(path)
    path.write_text("")
    assert Lexicon.load(path) == Lexicon()


def test_the_users_own(tmp_path, monkeypatch):
    path = tmp_path / "chatterbox-opt" / "lexicon.yaml"
    monkeypatch.delenv(lexicons.VARIABLE)
    monkeypatch.setattr("platformdirs.user_config_dir", lambda name: str(tmp_path / name))
    assert lexicons.users_own() == Lexicon()
    path.parent.mkdir()
    path.write_text("nguyen: win\n")
    assert lexicons.users_own() == Lexicon.of({"nguyen": "win"})
    monkeypatch.setenv(lexicons.VARIABLE, "")
    assert lexicons.users_own() == Lexicon()
    monkeypatch.setenv(lexicons.VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="cannot be read"):
        lexicons.users_own()


def test_a_large_lexicon_over_a_long_text_is_fast():
    large = Lexicon.of({f"word{number}": f"said{number}" for number in range(5000)})
    text = " ".join(f"word{number % 6000} and so on" for number in range(20_000))
    with soon():
        assert read(text, lexicon=large).text.count("said") > 15_000
