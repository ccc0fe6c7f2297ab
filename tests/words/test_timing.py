"""The path through attention, and the ends of words in the sound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.engine.decoding.alignment import token_words
from chatterbox_opt.words.timing import heard_spans, word_spans

SPACE = 2


def attention_of(starts: list[int], frames: int, tokens: list[int], noise: float = 0.0):
    """Attention to the tokens of the word whose frames are between its start and the next."""
    rng = np.random.default_rng(0)
    word = np.searchsorted(starts, np.arange(frames), side="right") - 1
    found = (np.array(tokens)[None] == word[:, None]).astype(np.float32)
    found /= found.sum(1, keepdims=True)
    return found * (1 - noise) + noise * rng.random(found.shape).astype(np.float32) / len(tokens)


@pytest.mark.parametrize("noise", [0.0, 0.5, 0.8])
def test_the_path_finds_the_words(noise):
    tokens = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    spans = word_spans(attention_of([0, 5, 6, 20], 30, tokens, noise), tokens)
    assert spans == [(0, 5), (5, 6), (6, 20), (20, 30)]


def test_a_word_that_the_model_left_out_gets_one_frame():
    tokens = [0, 1, 2]
    attention = attention_of([0, 10, 10], 20, tokens)  # nothing looks at word 1
    spans = word_spans(attention, tokens)
    assert spans[0][0] == 0 and spans[2][1] == 20
    assert spans[1][1] - spans[1][0] == 1


def test_a_glance_back_or_ahead_changes_nothing():
    tokens = [0, 1, 2]
    attention = attention_of([0, 10, 20], 30, tokens)
    attention[4], attention[25] = [0, 0, 1], [1, 0, 0]
    assert word_spans(attention, tokens) == [(0, 10), (10, 20), (20, 30)]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
def test_spans_are_in_order_and_never_empty(words, frames, seed):
    rng = np.random.default_rng(seed)
    tokens = sorted([*range(words), *rng.integers(0, words, 10)])
    spans = word_spans(rng.random((frames, len(tokens)), dtype=np.float32), tokens)
    assert len(spans) == words
    assert all(0 <= start < end <= frames for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    if frames >= words:
        assert spans[0][0] == 0 and spans[-1][1] == frames
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_blanks_belong_to_the_word_behind_them():
    assert token_words([7, 8, SPACE, 9, SPACE, SPACE, 4], SPACE) == [0, 0, 1, 1, 2, 2, 2]
    assert token_words([SPACE, 7, SPACE, 8, SPACE], SPACE) == [0, 0, 1, 1, 1]
    assert token_words([7], SPACE) == [0] and token_words([7, 8], None) == [0, 0]


def test_silence_is_taken_off_both_ends():
    wave = np.zeros(24_000, np.float32)
    wave[2400:7200] = 0.1  # 0.1 s to 0.3 s
    wave[12_000:21_600] = -0.1  # 0.5 s to 0.9 s
    assert heard_spans([(0, 10), (10, 25)], 25, wave) == [(0.1, 0.3), (0.5, 0.9)]
    assert heard_spans([(1, 8), (9, 12)], 25, wave) == [(0.1, 0.3), (0.36, 0.48)], "as it is"


def test_times_follow_the_length_of_the_wave():
    """At another rate of speech every frame is shorter or longer."""
    wave = np.ones(48_000, np.float32)
    assert heard_spans([(0, 10), (10, 25)], 25, wave) == [(0.0, 0.8), (0.8, 2.0)]
    assert heard_spans([(0, 10), (10, 25)], 25, wave[:12_000]) == [(0.0, 0.2), (0.2, 0.5)]
