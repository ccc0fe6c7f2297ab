from __future__ import annotations

import pytest
from chatterbox import mtl_tts, tts, tts_turbo
from helpers.texts import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.config.model_config import ENGLISH, MULTILINGUAL_TEXT, TURBO_ENGLISH
from chatterbox_opt.text.chunking import split
from chatterbox_opt.text.normalizers import MAX_ADDED, normalize
from chatterbox_opt.text.rules import TextRules

UPSTREAM = {
    ENGLISH: tts.punc_norm,
    TURBO_ENGLISH: tts_turbo.punc_norm,
    MULTILINGUAL_TEXT: mtl_tts.punc_norm,
}
KINDS = pytest.mark.parametrize("kind", UPSTREAM)
MARKS = st.text(alphabet=' .,:;…—–-“”‘’"abcÄßŉΐ字、，。？！\n\t!?')


@KINDS
@given(text=st.text())
@settings(max_examples=500, deadline=None)
def test_every_string_is_normalized_as_upstream_does(kind, text):
    assert normalize(text, kind) == UPSTREAM[kind](text)


@KINDS
@given(text=MARKS)
@settings(max_examples=500, deadline=None)
def test_punctuation_is_normalized_as_upstream_does(kind, text):
    normalized = normalize(text, kind)
    assert normalized == UPSTREAM[kind](text)
    if text:
        assert len(normalized) <= len(text) + text.count("…") + text.count(";") + MAX_ADDED


@KINDS
@pytest.mark.parametrize("text", TEXTS)
def test_a_chunk_is_normalized_by_its_kind(kind, text):
    (chunk,) = split(text, rules=TextRules(kind))
    assert chunk.text == UPSTREAM[kind](text)
    assert chunk.source == text


def test_the_kinds_differ():
    text = "wait... so; it - is"
    assert normalize(text, TURBO_ENGLISH) == "Wait... so; it - is."
    assert normalize(text, MULTILINGUAL_TEXT) == "Wait,  so,  it, is."
    assert normalize("你好。", MULTILINGUAL_TEXT) == "你好。"
    assert normalize("你好。", ENGLISH) == "你好。."
