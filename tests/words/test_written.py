"""Which written words are heard in which read ones."""

from __future__ import annotations

import pytest
from helpers.fuzz import soon
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.engine import texts
from chatterbox_opt.words.written import english_words, written_words

PICO = ModelConfig(needs_text_normalization=True)


def heard(text: str, config: ModelConfig = PICO) -> list[tuple[str, str]]:
    """Each written word with the words that are read for it."""
    chunks = texts.chunks(text, config)
    found = texts.written_words(text, chunks, config)
    return [
        (word.text, " ".join(chunk.text.split()[word.first : word.last]))
        for chunk, words in zip(chunks, found, strict=True)
        for word in words
    ]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("At 7:45 we left.", [("At", "At"), ("7:45", "seven forty five"), ("we", "we"), ("left.", "left.")]),
        ("Dr. Lee paid $5 for 12 km.", [("Dr.", "Doctor"), ("Lee", "Lee"), ("paid", "paid"), ("$5", "five dollars"), ("for", "for"), ("12", "twelve"), ("km.", "kilometers.")]),
        ("1,234 5", [("1,234", "One thousand two hundred and thirty-four"), ("5", "five.")]),
        ("It is — well, привет — over.", [("It", "It"), ("is", "is,"), ("well,", "well,,"), ("over.", "over.")]),
        ("The BBC said so.", [("The", "The"), ("BBC", "B B C"), ("said", "said"), ("so.", "so.")]),
        ("Yes & no", [("Yes", "Yes"), ("&", "and"), ("no", "no.")]),
    ],
)  # fmt: skip
def test_numbers_abbreviations_and_dropped_words(text, pairs):
    assert heard(text) == pairs


def test_models_that_read_what_is_written():
    text = "“Well…so it is”, he said -- don't; 7:45!"
    words = heard(text, ModelConfig())
    assert [word for word, _ in words] == [w for w in text.split() if any(c.isalnum() for c in w)]
    assert dict(words)["“Well…so"] == '"Well, so'


words_of_texts = st.lists(
    st.one_of(
        st.sampled_from(["the", "Dr.", "cat", "—", "$5.20", "7:45", "and", "привет", "NASA", "&", "3/4", "2026-11-28", "well-known", "don't", "***", "(so", "he)", "1,234,567", "www.example.com/a", "half.", "Stop!", "日本"]),
        st.text(alphabet="abc,.!?'’“$0123456789-é", min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=60,
)  # fmt: skip


@given(words_of_texts, st.booleans())
def test_every_read_word_has_one_owner_and_all_are_in_order(words, built_in):
    text = " ".join(words)
    if not any(c.isascii() and c.isalnum() for c in text):
        text += " a"
    config = PICO if built_in else ModelConfig()
    chunks = texts.chunks(text, config)
    found = texts.written_words(text, chunks, config)
    _check(text, [chunk.text for chunk in chunks], found)


@given(words_of_texts, words_of_texts)
def test_of_any_two_texts_too(one, other):
    """What a lexicon or markup replaces may have nothing in common with what was written."""
    chunks = [" ".join(other[:20]), " ".join(other[20:])]
    _check(" ".join(one), chunks, written_words(" ".join(one), chunks))


def _check(text: str, chunks: list[str], found) -> None:
    """Words are a subsequence of the text; their spans are disjoint, rise, and cover what is read
    but for the rest of a word that began in the chunk before."""
    rest = iter(text.split())
    begun = False
    for chunk, words in zip(chunks, found, strict=True):
        end, read = 0, chunk.split()
        for word in words:
            assert word.text in rest, "each once, in order"
            assert end <= word.first < word.last <= len(read)
            between = [w for w in read[end : word.first] if any(c.isalnum() for c in w)]
            assert not between or (begun and end == 0)
            end, begun = word.last, True
        last = [w for w in read[end:] if any(c.isalnum() for c in w)]
        assert not last or (begun and not words)


def test_a_book_takes_seconds_and_not_minutes():
    line = "In 1984, Dr. Lee paid $5 for the 2nd of 3 old radios & left at 7:45. Привет, he said. "
    text = line * 2000  # 34,000 words
    chunks = texts.chunks(text, ModelConfig())
    read = [
        " ".join("x1984x" if "1984" in w else w for w in chunk.text.split()) for chunk in chunks
    ]
    with soon():
        found = written_words(text, read)
    assert sum(map(len, found)) == sum(any(c.isalnum() for c in w) for w in text.split())


def test_what_is_dropped_in_one_piece_moves_nothing():
    words = [f"a{i}b" for i in range(100)]
    for count in (10, 200, 1500):
        text = " ".join([*words[:50], *["gone"] * count, *words[50:]])
        [found] = written_words(text, [" ".join(words)])
        assert [word.text for word in found] == words
        assert all(word.last == word.first + 1 for word in found)


def test_single_words_are_read_as_the_built_in_model_does():
    assert english_words("$5") == "five dollars"
    assert english_words("привет") == ""
