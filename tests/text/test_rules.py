"""Where texts of other languages and kinds of models are split, whole and as they arrive."""

from __future__ import annotations

import hashlib

import pytest
import sentencex
from helpers.languages import SENTENCES
from helpers.texts import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.config.model_config import ENGLISH, MULTILINGUAL_TEXT, TURBO_ENGLISH
from chatterbox_opt.text.chunking import split
from chatterbox_opt.text.incremental import IncrementalSplitter, chunks_of
from chatterbox_opt.text.languages import LANGUAGES
from chatterbox_opt.text.rules import LIMIT, TextRules
from chatterbox_opt.text.tags import SOUNDS


def rules_of(language: str | None) -> TextRules:
    return TextRules(MULTILINGUAL_TEXT, language)


def letters(text: str) -> list[str]:
    return [c for c in text.upper().casefold() if c.isalnum()]


def incrementally(text: str, rules: TextRules, limit: int) -> list[str]:
    """What the incremental splitter gives for the characters of a text, one by one."""
    splitter = IncrementalSplitter(limit, rules)
    chunks = [chunk for c in text + " " for chunk in splitter.feed(c)]
    chunks += splitter.end()
    return [chunk.source for chunk in chunks if chunk.text]


def test_chunks_of_english_texts_are_those_of_the_first_models():
    """The digest is of the version that knew English only."""
    digest = hashlib.blake2b(digest_size=12)
    for text in [*TEXTS, " ".join(TEXTS) * 3, "\n\n".join(TEXTS) + "\n\n* * *\n\n" + TEXTS[3]]:
        for limit in (LIMIT, 60):
            chunks = split(text, limit) + list(chunks_of([text[:40], None, text[40:]], limit))
            for chunk in chunks:
                digest.update(f"{chunk.text}|{chunk.pause}|{chunk.source}\n".encode())
    assert digest.hexdigest() == "998b000f1c41afcd79446cc9"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("repeats", [1, 12])
def test_no_letter_is_lost_and_chunks_fit(language, repeats):
    rules = rules_of(language)
    text = " ".join(SENTENCES[language] * repeats)
    chunks = split(text, rules.limit, rules)
    assert letters("".join(chunk.source for chunk in chunks)) == letters(text)
    assert max(len(chunk.text) for chunk in chunks) <= rules.limit
    assert {chunk.language for chunk in chunks} == {language}
    assert all(chunk.text == rules.normalize(chunk.source) for chunk in chunks)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ar", "كيف حالك اليوم؟ أنا بخير! وأنت؟ بخير."),
        ("ar", "یہ ہے۔ وہ ہے۔ ہاں۔"),
        ("hi", "नमस्ते। आप कैसे हैं? ठीक॥ मैं हूँ।"),
        ("hi", "नमस्ते।आप कैसे हैं।ठीक।"),
        ("ja", "こんにちは。元気ですか？はい！そうです｡では。"),
        ("zh", "你好。真的吗？是的！好。「走吧。」他说。"),
        ("ko", "안녕하세요. 잘 지내세요? 네! 그래요."),
        ("de", "Das ist, z. B. hier, so. Am 3. Mai kam Dr. Meier. Er ging! Warum?"),
        ("no", "Det er f.eks. her. Hva? Ja!"),
        ("ru", "Доброе утро. Как дела? Хорошо! Ну вот."),
    ],
)
def test_sentences_end_as_the_language_ends_them(language, text):
    """Whole and as it arrives: the same ends."""
    rules = rules_of(language)
    sentences = [s.strip() for s in sentencex.segment(rules.sentence_language, text)]
    assert len(sentences) > 2
    assert incrementally(text, rules, rules.limit) == sentences
    longest = max(map(len, sentences)) + 3  # room for what is added
    packed = [chunk.source for chunk in split(text, longest, rules)]
    assert all(any(part.endswith(s) for s in sentences) for part in packed)


def test_german_ordinals_end_no_sentence_but_english_rules_think_so():
    text = "Am 3. Mai war es so. Dann nicht. Dann doch."
    assert incrementally(text, rules_of("de"), LIMIT)[0] == "Am 3. Mai war es so."
    assert incrementally(text, TextRules(), LIMIT)[0] == "Am 3."


@pytest.mark.parametrize(
    ("language", "text", "kept"),
    [("ar", "كيف حالك؟", ""), ("hi", "ठीक है।", ""), ("zh", "你好", ""), ("ar", "كيف حال", "حال")],
)
def test_a_pause_of_the_writer_gives_out_complete_words(language, text, kept):
    splitter = IncrementalSplitter(LIMIT, rules_of(language))
    chunks = splitter.feed(text) + splitter.flush()
    assert "".join(chunk.source for chunk in chunks) == text.removesuffix(kept).strip()


def test_sentences_without_spaces_between_them_are_joined_without_one():
    text = "你好。真的吗？是的！好。走"
    first, rest, *_ = chunks_of([text], LIMIT, rules_of("zh"))
    assert (first.source, rest.source) == ("你好。", "真的吗？是的！好。")
    latin = list(chunks_of(["One. Two. Three. F"], LIMIT, rules_of("en")))
    assert latin[1].source == "Two. Three."


def test_chunks_of_dense_scripts_are_shorter():
    text = "今天天气很好，我们去公园玩。" * 40
    chunks = split(text, rules_of("zh").limit, rules_of("zh"))
    assert max(len(chunk.text) for chunk in chunks) <= 90
    assert all(chunk.text.endswith("。") for chunk in chunks)
    assert [rules_of(code).limit for code in ("ja", "ko", "de", None)] == [120, 120, LIMIT, LIMIT]
    assert TextRules(ENGLISH, "en").limit == LIMIT


def test_arabic_clauses_split_a_long_sentence():
    clause = "قرأت كتابا جميلا عن البحر، "
    chunks = split(clause * 20, LIMIT, rules_of("ar"))
    assert all(chunk.source.endswith("،") for chunk in chunks[:-1])


WITH_TAGS = st.lists(st.sampled_from([*SOUNDS, "word", "[no", "tag]", " ", ". ", "a,"]), min_size=1)


@given(WITH_TAGS.map(" ".join))
@settings(max_examples=200, deadline=None)
def test_tags_are_never_cut(text):
    if not letters(text):
        return
    rules = TextRules(TURBO_ENGLISH)
    chunks = split(text, 40, rules)
    for tag in SOUNDS:
        assert sum(chunk.source.count(tag) for chunk in chunks) == text.count(tag)
        assert sum(chunk.text.lower().count(tag) for chunk in chunks) == text.count(tag)


@given(WITH_TAGS.map(" ".join), st.lists(st.integers(0, 500), max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_pause_of_the_writer_cuts_no_tag(text, places):
    if not letters(text):
        return
    splitter = IncrementalSplitter(LIMIT, TextRules(TURBO_ENGLISH))
    cuts = [0, *sorted(i % (len(text) + 1) for i in places), len(text)]
    chunks = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        chunks += splitter.feed(text[a:b]) + splitter.flush()
    sources = [chunk.source for chunk in chunks + splitter.end()]
    assert letters("".join(sources)) == letters(text)
    for tag in SOUNDS:
        assert sum(source.count(tag) for source in sources) == text.count(tag)
