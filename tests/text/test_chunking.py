from __future__ import annotations

import re
import time
import unicodedata

import pytest
from chatterbox.tts import punc_norm
from helpers.texts import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.errors import TextError
from chatterbox_opt.text.chunking import (
    LIMIT,
    PARAGRAPH_PAUSE,
    SCENE_PAUSE,
    SENTENCE_PAUSE,
    clean,
    split,
)
from chatterbox_opt.text.normalizers import normalize

LONG = (
    "Dr. Smith said, e.g., that it was 5 p.m. on Jan. 3rd. “Is it so?” she asked. It was! "
    "He paid $3.50 for tea... and left — at once; nobody (not even Mr. Jones) noticed. "
) * 12


@given(st.text())
@settings(max_examples=500, deadline=None)
def test_normalize_equals_upstream_on_every_string(text):
    assert normalize(text) == punc_norm(text)


@given(st.text(alphabet=' .,:;…—–-“”‘’"abcÄ字\n\t!?'))
@settings(max_examples=500, deadline=None)
def test_normalize_equals_upstream_on_punctuation(text):
    assert normalize(text) == punc_norm(text)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def letters(text: str) -> list[str]:
    """Letters and digits, ignoring case (a chunk's first letter is capitalized)."""
    return [c for c in text.upper().casefold() if c.isalnum()]


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), max_size=900))
@settings(max_examples=300, deadline=None)
def test_no_letter_is_lost_and_no_chunk_is_too_long(text):
    try:
        chunks = split(text, limit=60)
    except TextError:
        assert not any(c.isalnum() for c in text)
        return
    joined = "".join(chunk.text for chunk in chunks)
    assert letters(joined) == letters(text)
    assert all(len(chunk.text) <= 60 for chunk in chunks)


def test_no_word_is_split_where_there_are_spaces():
    chunks = split(LONG)
    assert sum((words(chunk.text) for chunk in chunks), []) == words(LONG)
    assert len(chunks) > 3


def test_chunks_end_at_sentences_and_abbreviations_do_not():
    chunks = split(LONG)
    assert all(re.search(r"[.!?,\"]$", chunk.text) for chunk in chunks)
    assert not any(chunk.text.endswith(("Dr.", "Mr.", "e.g.,", "Jan.")) for chunk in chunks)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_fits_is_one_chunk_normalized_as_upstream_does(text):
    assert [chunk.text for chunk in split(text)] == [punc_norm(text)]
    assert split(text)[0].pause == 0


def test_one_sentence_of_2000_characters():
    sentence = "and so on, " * 181 + "the end"
    chunks = split(sentence)
    assert sum((words(chunk.text) for chunk in chunks), []) == words(sentence)
    assert max(len(chunk.text) for chunk in chunks) <= LIMIT


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"word{i}" for i in range(2000)),
        "and then I told my friend everything, because she asked " * 200,
        "и потом я рассказал другу обо всём что там случилось " * 200,
        "First. " + "so it went on and on " * 400 + "until then. Last.",
    ],
    ids=ascii,
)
def test_no_word_of_a_text_without_full_stops_is_split(text):
    chunks = split(text)
    assert sum((words(chunk.text) for chunk in chunks), []) == words(text)
    assert sum(len(chunk.text) < LIMIT // 3 for chunk in chunks) <= 2


def test_marks_stay_with_their_letter_in_a_text_without_blanks():
    chunks = split("e\u0301" * 7001)
    assert not any(unicodedata.category(chunk.text[0]).startswith("M") for chunk in chunks)


@pytest.mark.parametrize("text", ["字" * 1000, "ก" + "ำ" * 3 + "ข" * 999, "e\u0301" * 700])
def test_scripts_without_spaces(text):
    chunks = split(text)
    assert max(len(chunk.text) for chunk in chunks) <= LIMIT
    assert not any(unicodedata.category(chunk.text[0]).startswith("M") for chunk in chunks)


def test_chinese_is_split_at_its_own_full_stops():
    chunks = split("今天天气很好，我们去公园。" * 40)
    assert all(chunk.text.rstrip(".").endswith("。") for chunk in chunks)


def test_long_paragraphs_get_a_longer_pause_than_sentences():
    chunks = split("First. " * 50 + "\n\n" + "Second. " * 3)
    assert [chunk.pause for chunk in chunks] == [SENTENCE_PAUSE, PARAGRAPH_PAUSE, 0]


@pytest.mark.parametrize(
    "text",
    [
        "Steven Erikson\n\nFive riders drew rein.",
        "\n\n Steven Erikson \n \t\n\n\n Five riders\ndrew rein.\n\n",
        "Steven Erikson\r\n\r\nFive riders\r\ndrew rein.\r\n",
        "Steven Erikson\r\rFive riders\rdrew rein.",
        "Steven Erikson\u2029Five riders\u2028drew rein.",
        "* * *\n\nSteven Erikson\n\nFive riders drew rein.\n\n---",
    ],
)
def test_short_paragraphs_and_headings_are_chunks_of_their_own(text):
    first, second = split(text)
    assert (first.text, first.pause) == ("Steven Erikson.", PARAGRAPH_PAUSE)
    assert (second.text, second.pause) == ("Five riders drew rein.", 0)


@pytest.mark.parametrize("mark", ["* * *", "---", "⁂", "🎉", "#", "..."])
def test_a_paragraph_without_words_is_a_longer_pause(mark):
    chunks = split(f"One.\n\nTwo.\n\n{mark}\n\nThree.")
    assert [chunk.pause for chunk in chunks] == [PARAGRAPH_PAUSE, SCENE_PAUSE, 0]
    assert [chunk.text for chunk in chunks] == ["One.", "Two.", "Three."]


@pytest.mark.parametrize(
    "text", ["a hard-\nwrapped\r\ntext\rof\nfour lines", "\n\n one paragraph\n\n", "one\n \n"]
)
def test_one_paragraph_is_one_chunk_normalized_as_upstream_does(text):
    assert [chunk.text for chunk in split(text)] == [punc_norm(text)]


@given(st.lists(st.sampled_from(["a", "bc.", " ", "\n", "\r\n", "\r", "*", "\n\n"]), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_line_ends_lose_no_word_and_pause_between_paragraphs(parts):
    text = "".join(parts)
    if not re.search("[abc]", text):
        return
    chunks = split(text)
    assert letters("".join(chunk.text for chunk in chunks)) == letters(text)
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text)]
    groups = re.split("\n\n+", "\n".join(lines).strip("\n"))
    assert len(chunks) == sum(bool(re.search("[abc]", group)) for group in groups)


@pytest.mark.parametrize(
    "text", ["", "  \n\t ", "...!?", "🎉🎉", "\x07\x1b", "\ufeff", "—", "\r\n"]
)
def test_a_text_without_words_is_an_error(text):
    with pytest.raises(TextError, match="at least one word"):
        split(text)


def test_nul_is_an_error_with_its_position():
    with pytest.raises(TextError, match="position 2"):
        split("ab\0c")


def test_text_that_was_not_utf8_is_an_error():
    with pytest.raises(TextError, match="not UTF-8"):
        split("caf\udce9")


def test_a_run_of_marks_in_a_long_word_is_not_quadratic():
    start = time.perf_counter()
    split("a" + ":" * 200_000 + "b")
    assert time.perf_counter() - start < 30


def test_control_characters_are_removed():
    assert clean("\x1bHel\x07lo\x00"[:-1]) == "Hello"


def test_a_megabyte_is_split_in_a_moment():
    start = time.perf_counter()
    chunks = split(LONG * 500)
    assert len(chunks) > 2000
    assert time.perf_counter() - start < 30  # quadratic time would be hours
