from __future__ import annotations

import re

import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.errors import TextError
from chatterbox_opt.text import sentence_ends
from chatterbox_opt.text.chunking import (
    LIMIT,
    PARAGRAPH_PAUSE,
    SCENE_PAUSE,
    SENTENCE_PAUSE,
    Chunk,
    split,
)
from chatterbox_opt.text.incremental import IncrementalSplitter, chunks_of, join_chunks
from chatterbox_opt.text.normalizers import normalize

TRICKY = (
    "Dr. Smith paid 3.50 for e.g. tea. The U.S. Army came at 5 p.m. on Monday. J. R. R. Tolkien "
    'wrote. Wait... what? He said "Go." Then he left. "Hello! I am." He did. (Yes. No.) It is 5" '
    "tall! 1. One thing. Great! 😀 Next — so; 你好。我是。「再见。走。」他说。\r\nA line.\rMore\n\n* * *\n\n"
    "Über é. Ok…  well, v1.2. End\u2029New 👩‍👩‍👧 one. नमस्ते। कैसे हो"
)
SENTENCES = st.text(
    st.sampled_from([*"ab Z. . .!?…\"“”'()\n\n\r。我—,-5", "\u0301", "\x85", "\ufeff", "\x07"]),
    max_size=200,
)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("\ufeff", "").replace("\x07", ""))


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def fed(pieces: list[str], limit: int = LIMIT) -> list[Chunk]:
    splitter = IncrementalSplitter(limit)
    chunks = [chunk for piece in pieces for chunk in splitter.feed(piece)]
    try:
        return chunks + splitter.end()
    except TextError:
        assert not any(c.isalnum() for piece in pieces for c in piece)
        return []


def cut(text: str, at: list[int]) -> list[str]:
    places = [0, *sorted(i % (len(text) + 1) for i in at), len(text)]
    return [text[a:b] for a, b in zip(places, places[1:], strict=False)]


def sources(chunks: list[Chunk]) -> list[str]:
    return [chunk.source for chunk in chunks if chunk.text]


@given(SENTENCES | st.just(TRICKY), st.lists(st.integers(0, 10_000), max_size=8))
@settings(max_examples=80, deadline=None)
def test_the_chunks_do_not_depend_on_the_pieces_and_no_word_is_lost(text, places):
    chunks = fed([text], limit=60)
    assert fed(cut(text, places), 60) == fed(list(text), 60) == chunks
    assert all(len(c.text) <= 60 and c.text == normalize(c.source) for c in chunks if c.text)
    assert letters("".join(sources(chunks))) == letters(text)
    if max(map(len, text.split()), default=0) < 50:
        assert words(" ".join(sources(chunks))) == words(text)


@given(st.text(max_size=300), st.lists(st.integers(0, 10_000), max_size=5))
@settings(max_examples=80, deadline=None)
def test_any_text_in_any_pieces(text, places):
    text = "".join(c for c in text if c != "\0" and not "\ud800" <= c <= "\udfff")
    chunks = fed(cut(text, places), 60)
    assert letters("".join(sources(chunks))) == letters(text)
    assert all(len(chunk.text) <= 60 for chunk in chunks)


@given(SENTENCES | st.just(TRICKY), st.lists(st.integers(0, 10_000), max_size=8))
@settings(max_examples=80, deadline=None)
def test_flushing_anywhere_neither_loses_nor_cuts_a_word(text, places):
    splitter = IncrementalSplitter(60)
    chunks: list[Chunk] = []
    for piece in cut(text, places):
        chunks += splitter.feed(piece) + splitter.flush()
    try:
        chunks += splitter.end()
    except TextError:
        assert not letters(text)
    assert letters("".join(sources(chunks))) == letters(text)
    if text == TRICKY:
        plain = words(re.sub("[\u2e80-\u9fff]", " ", " ".join(sources(chunks))))
        assert plain == words(re.sub("[\u2e80-\u9fff]", " ", text).replace("v1.2", "v1 2"))


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Smith came. He sat.",
        "It is 3.5 m. It is long.",
        "Some, e.g. this. And i.e. that one.",
        "The U.S. Army came. I live in the U.S. He left.",
        "J. R. R. Tolkien wrote it. We read.",
        "Wait... what? No, this... is it. Yes.",
        'He said "Go." Then he left. "Hello! I am." He did.',
        "He said “Go.” Then he left. “Hello! I am.” He did.",
        "(He came. He saw.) She left. They stayed.",
        "See p. 5 of it. No. 5 is good. Fine.",
        "He came at 5 p.m. on Jan. 3rd. It was 5 p.m. He left.",
        "Is it?! Yes. No! A word . Next . So it is.",
        "Hello!  Two blanks.   Three. It's 5 tall.",
        "So it is. [12] Then it was.[3] And so. It went.",
        "你好。我是谁。「你好。再见。」他说。然后。",
        "नमस्ते। कैसे हो। ठीक।",
    ],
)
def test_ends_are_those_of_the_whole_paragraph(text):
    whole = [s.strip() for s in sentencex.segment("en", text)]
    assert sources(fed(list(text))) == whole


@pytest.mark.parametrize(
    ("begin", "rest", "count"),
    [
        ("Hello there.", " W", 1),  # the first letter is enough
        ("Hello there.", "\n", 1),
        ("Hello there", "\n\n", 1),
        ("Hello there.", " ", 0),
        ("Hello there.", ' "', 0),
        ("He came at 5 p.m.", "\n", 0),
        ("He came at 5 p.m.", " H", 0),
        ("He came at 5 p.m.", " He ", 1),
        ("He came at 5 p.m.", " on Monday and ", 0),
        ("Dr.", "\nSmith came ", 0),
        ('"Go on. ', "Go ", 0),
        ('"Go on.', '" H', 0),
        ('"Go on.', '" He ', 1),
        ("1.", " First thing ", 0),
        ("Wait...", " what ", 0),
        ("It costs 3.", "5", 0),
        ("你好。", "我", 1),
        ("你好。", "」", 0),
    ],
)
def test_a_sentence_is_given_out_as_soon_as_its_end_is_certain(begin, rest, count):
    splitter = IncrementalSplitter()
    assert splitter.feed(begin) == []
    assert len(splitter.feed(rest)) == count


def test_silence_is_that_of_whole_texts():
    text = "One here.\nTwo here. Three.\n\nFour.\n \n* * *\n\nFive here.\n\n"
    chunks = fed([text])
    assert chunks == [
        Chunk("One here.", 0.0, "One here."),
        Chunk("", SENTENCE_PAUSE),
        Chunk("Two here.", SENTENCE_PAUSE, "Two here."),
        Chunk("Three.", 0.0, "Three."),
        Chunk("", PARAGRAPH_PAUSE),
        Chunk("Four.", 0.0, "Four."),
        Chunk("", SCENE_PAUSE),
        Chunk("Five here.", 0.0, "Five here."),
    ]
    joined = [(chunk.text, chunk.pause) for chunk in join_chunks(chunks)]
    assert joined == [(chunk.text, chunk.pause) for chunk in split(text)]


def test_a_scene_break_before_the_first_word_is_no_silence():
    assert fed(["* * *\n\nHello."]) == [Chunk("Hello.", 0.0, "Hello.")]


def test_a_long_sentence_is_split_before_it_ends():
    splitter = IncrementalSplitter(60)
    text = "and then, of course, nobody ever came back to us, " * 4
    (first, *_) = splitter.feed(text)
    assert first.source == "and then, of course, nobody ever came back to us, and then,"


def test_an_open_quote_waits_no_longer_than_a_chunk():
    chunks = IncrementalSplitter(60).feed('"Hello there. ' + "This is one more of them. " * 4)
    assert sources(chunks)[0] == '"Hello there. This is one more of them.'


@pytest.mark.parametrize(
    ("text", "given", "kept"),
    [
        ("We went to the mar", "We went to the", "mar"),
        ("We went to the ", "We went to the", ""),
        ("We left.", "We left.", ""),
        ("Hello. We left in 1995.", "Hello. We left in 1995.", ""),
        ('He said "Go."', 'He said "Go."', ""),
        ("It costs 1,", "It costs", "1,"),
        ("你好我", "你好我", ""),
        ("Hel", "", "Hel"),
    ],
)
def test_a_flush_gives_what_is_there_but_a_word_that_may_go_on(text, given, kept):
    splitter = IncrementalSplitter()
    chunks = splitter.feed(text) + splitter.flush()
    assert " ".join(sources(chunks)) == given
    if kept:
        assert sources(splitter.feed("ket") + splitter.end()) == [kept + "ket"]


def test_halves_of_characters_are_joined():
    assert sources(fed(["Hi \ud83d", "\ude00 you.\r", "\nA", "\u0301 b."])) == [
        "Hi \U0001f600 you.",
        "A\u0301 b.",
    ]


@pytest.mark.parametrize("piece", ["a\0b", "\udc00", "\ud83d."])
def test_what_is_no_text_is_refused(piece):
    with pytest.raises(TextError):
        IncrementalSplitter().feed(piece)


@pytest.mark.parametrize(("text", "problem"), [("", "empty"), (" \n", "empty"), ("* *", "letter")])
def test_a_text_without_words_is_refused(text, problem):
    splitter = IncrementalSplitter()
    splitter.feed(text)
    with pytest.raises(TextError, match=problem):
        splitter.end()


def test_the_first_sentence_is_alone_and_others_that_arrive_together_are_joined():
    text = "One here. Two here. Three here. Four"
    assert sources(list(chunks_of([text]))) == ["One here.", "Two here. Three here.", "Four"]
    assert sources(list(chunks_of(list(text)))) == ["One here.", "Two here.", "Three here.", "Four"]
    pieces = ["Hello the", None, "re. And", None, None]
    assert sources(list(chunks_of(pieces))) == ["Hello", "there.", "And"]


def test_only_the_undecided_end_is_looked_at(monkeypatch):
    looked = []
    segment = sentencex.segment

    def count(language: str, text: str) -> list[str]:
        looked.append(len(text))
        return segment(language, text)

    monkeypatch.setattr(sentence_ends.sentencex, "segment", count)
    text = "He went to Dr. Smith and came back. " * 200
    fed(list(text))
    assert max(looked) < 2 * LIMIT
    assert sum(looked) < 20 * len(text)
