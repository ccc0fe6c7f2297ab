"""Any text: read and split within the limits of a chunk, or refused."""

from __future__ import annotations

import time

import pytest
from helpers.fuzz import EXAMPLES, examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.errors import TextError
from chatterbox_opt.text.chunking import LIMIT, split
from chatterbox_opt.text.english.normalizer import read_english
from chatterbox_opt.text.normalizers import normalize

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
UNITS = [
    *(
        "a",
        "A",
        "1",
        ".",
        ",",
        "!",
        "-",
        "'",
        '"',
        "(",
        "[",
        "<",
        "<a ",
        "<!--",
        "*",
        "_",
        "`",
        "#",
    ),
    *("1,", "1.", "1:", "1/", "$1", "A. ", "a.b", "a@b.", "http://", "&amp;", "x^", "\n", "\n- "),
    *("\u0301", "\ufe0f", FAMILY, "²", "½", "東", "東。", "д", "\u2028", " ", "…", ";", "hello "),
]
PIECES = st.sampled_from(UNITS) | st.text(max_size=3)
TEXTS = st.lists(st.builds(lambda s, n: s * n, PIECES, st.integers(1, 400)), max_size=5)


def read_and_split(text: str) -> None:
    try:
        chunks = split(text)
    except TextError:
        return
    assert all(0 < len(chunk.text) <= LIMIT for chunk in chunks)
    assert all(normalize(chunk.source) == chunk.text for chunk in chunks)
    try:
        reading = read_english(text)
    except TextError:
        return
    assert reading.text.isascii()


@examples(30)
@given(text=TEXTS.map("".join))
def test_any_text(text):
    read_and_split(text)


@pytest.mark.parametrize("unit", ["\u0301", "\ufe0f", "a", "1", ".", FAMILY, "東。", "…", "; "])
def test_a_run_of_one_character_is_within_the_limit_of_a_chunk(unit):
    read_and_split("a" + unit * 2000)


@pytest.mark.skipif(not EXAMPLES, reason="minutes: make fuzz")
@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_long_texts_take_time_in_proportion_to_their_length(unit):
    def seconds(count: int) -> float:
        text = "a" + (unit * count)[:count]
        start = time.perf_counter()
        read_and_split(text)
        return time.perf_counter() - start

    assert seconds(150_000) < 12 * seconds(30_000) + 0.2
