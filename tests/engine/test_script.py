"""Markup, lexicons and casts in requests: chunks, voices, seeds, and pauses as they are heard."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.common import SAMPLE
from helpers.texts import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter1d

from chatterbox_opt import Cast, Engine, Lexicon, Request, Sampling
from chatterbox_opt.audio.silence import LEVEL, Trimmer, sound_levels
from chatterbox_opt.config.model_config import SAMPLE_RATE, ModelConfig
from chatterbox_opt.engine import texts
from chatterbox_opt.engine.sequence import Capacity
from chatterbox_opt.errors import InputError, TextError, VoiceError
from chatterbox_opt.request import LOW
from chatterbox_opt.script.reader import read
from chatterbox_opt.text.chunking import (
    INNER_PAUSE,
    PARAGRAPH_PAUSE,
    SCENE_PAUSE,
    SENTENCE_PAUSE,
    pause_between,
)

PICO = dataclasses.replace(ModelConfig(), needs_text_normalization=True)
UNUSED = Lexicon.of({"xylophone": "zylofone"})
SHORT = Sampling(seed=3, max_tokens=8, cfm_steps=1)
FRAME = SAMPLE_RATE // 1000  # samples
NEAR = 250  # frames around a moment, whose peak says what is silence


def chunks(text: str, config: ModelConfig = PICO, **how):
    return texts.script_chunks(read(text, **how), config)


# --- chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ModelConfig(), PICO], ids=["chatterbox", "pico"])
@pytest.mark.parametrize("text", [*TEXTS, " a\n\n* * *\n\n b", "One. Two! " * 80], ids=ascii)
def test_a_text_without_markup_or_hit_has_the_chunks_that_it_had(text, config):
    if config is PICO and not any(c.isascii() and c.isalnum() for c in text):
        return
    expected = texts.chunks(text, config)
    assert chunks(text, config) == expected
    assert chunks(text, config, markup=True, lexicon=UNUSED) == expected


def test_pauses_voices_and_rates_are_those_of_their_spans():
    found = chunks(
        "[pause:1s]One. [voice:ada]Two. [pause:2s] [rate:0.8]Three.[/rate]\n\n[voice:b]Four[pause:3s]",
        markup=True,
    )
    assert [(c.text, c.voice, c.rate, c.lead, c.pause, c.is_exact) for c in found] == [
        ("One.", None, 1, 1, SENTENCE_PAUSE, False), ("Two.", "ada", 1, None, 2, True),
        ("Three.", "ada", 0.8, 0, PARAGRAPH_PAUSE, False), ("Four.", "b", 1, None, 3, True),
    ]  # fmt: skip


def test_a_change_within_a_sentence_is_heard_without_a_gap():
    first, second = chunks("He was [voice:ada]late.", markup=True)
    assert (first.pause, first.is_exact, second.lead) == (INNER_PAUSE, True, 0)


@pytest.mark.parametrize(
    ("before", "after", "pause"),
    [("One.", " Two", SENTENCE_PAUSE), ("One", " two", INNER_PAUSE), ("One. \n\n", "Two", PARAGRAPH_PAUSE),
     ("One.\n\n***\n\n", "Two", SCENE_PAUSE), ("One,", "two", INNER_PAUSE), ("One.", "\n\n“Two", PARAGRAPH_PAUSE)],
)  # fmt: skip
def test_the_silence_between_two_texts(before, after, pause):
    assert pause_between(before, after) == pause


def test_a_span_that_the_model_cannot_read_is_left_out():
    found = chunks("One. [voice:ada]東京 [voice:b]Two.", markup=True)
    assert [(chunk.text, chunk.voice) for chunk in found] == [("One.", None), ("Two.", "b")]
    for text in ("[pause:1s]", "[voice:a]...[voice:b]!", "[voice:a]東京[voice:b]東"):
        with pytest.raises(TextError):
            chunks(text, markup=True)


WORDS = st.lists(st.integers(1, 4), min_size=1, max_size=8)


@given(counts=WORDS, pauses=st.lists(st.integers(0, 1500), min_size=8, max_size=8))
def test_every_word_is_in_one_chunk_in_order(counts, pauses):
    words = [
        [f"word{'abcdefgh'[i]}{'abcd'[n]}" for n in range(count)] for i, count in enumerate(counts)
    ]
    text = "".join(
        f"[pause:{pause}ms]{' '.join(some)} " for some, pause in zip(words, pauses, strict=False)
    )
    found = chunks(text, ModelConfig(), markup=True)
    read_words = " ".join(chunk.text for chunk in found).lower().replace(".", "").split()
    assert read_words == [word for some in words for word in some]
    total = sum(chunk.pause + (chunk.lead or 0) for chunk in found)
    assert total == pytest.approx(sum(pauses[: len(counts)]) / 1000)


# --- the engine -------------------------------------------------------------------------------


def test_spans_have_the_voices_and_knobs_of_the_cast(engine):
    cast = Cast.of(
        {"Anna": {"voice": str(SAMPLE), "temperature": 0.5, "rate": 1.2}, "Bob": {"cfg_weight": 0}}
    )
    request = Request("", "ANNA: One.\nBob: Two.\n\nThree.", sampling=SHORT, rate=0.8, cast=cast)
    state = engine._requests.of(request, Capacity())
    own, anna = engine.voice(), engine.voice(SAMPLE)
    assert [s.voice for s in state.sequences] == [anna, own, own]
    assert [s.sampling.temperature for s in state.sequences] == [0.5, 0.8, 0.8]
    assert [s.sampling.cfg_weight for s in state.sequences] == [0.5, 0, 0.5]
    assert [s.chunk.rate for s in state.sequences] == pytest.approx([0.96, 0.8, 0.8])
    assert state.seed == 3


def test_a_cast_needs_guidance_of_its_own(engine):
    cast = Cast.of({"A": {"cfg_weight": 0.5}})
    plain = Sampling(seed=3, max_tokens=8, cfm_steps=1, cfg_weight=0)
    alone = engine.synthesize(Request("", "Hello.", sampling=SHORT))
    mixed = engine.synthesize(Request("", "A: Hello.", sampling=plain, cast=cast))
    assert np.array_equal(alone.samples, mixed.samples)


def test_a_request_in_place_of_a_text(engine):
    request = Request("", "One. [pause:300ms] Two.", sampling=SHORT, markup=True)
    audio = engine.synthesize(request)
    assert engine.submit(request).result().audio() == audio
    assert np.array_equal(np.concatenate(list(engine.stream(request))), audio.samples)
    [result] = engine.batch([request])
    assert result.audio() == audio
    assert audio != engine.synthesize("One. [pause:300ms] Two.", sampling=SHORT)


def test_unknown_voices_and_wrong_types(engine):
    with pytest.raises(VoiceError, match="no voice 'nobody'"):
        engine.pieces(Request("", "[voice:nobody] Hi.", markup=True))
    with pytest.raises(TextError, match="line 1, column 1"):
        engine.pieces(Request("", "[oops:1] Hi.", markup=True))
    for wrong in ({"lexicon": {"a": "b"}}, {"cast": "cast.yaml"}, {"cast": UNUSED}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Request("", "Hi.", **wrong)


def test_a_lexicon_is_for_text_that_arrives_too(engine):
    lexicon = Lexicon.of({"two": "three"})
    pieces = engine.pieces(iter(["One. ", "And two. "]), sampling=SHORT, lexicon=lexicon)
    assert [piece.text for piece in pieces if piece.text] == ["One.", "And three."]


def test_one_warning_names_what_no_span_reads(caplog):
    cast = Cast.of({"Anna": "ada", "Bob": "bruno"})
    found = chunks("Anna: Привет, Боб!\nBob: Hello [rate:0.8]東京[/rate].", cast=cast, markup=True)
    assert [chunk.text for chunk in found] == ["Hello."]
    [message] = caplog.messages
    assert message.startswith("3 words dropped, ") and message.endswith("'Привет', 'Боб', '東京'")
    with pytest.raises(TextError, match="no word that this model can read .'你好', '谢谢'."):
        chunks("你好 [pause:1s] 谢谢", markup=True)


# --- what is heard ----------------------------------------------------------------------------


def silences(wave: np.ndarray) -> list[float]:
    """Seconds of each silence longer than 90 ms, by frames of 1 ms.

    It is silence by the peak of the sound next to it: that of the engine is each sound's own.
    """
    wave = wave[: len(wave) // FRAME * FRAME]
    frames = np.abs(wave).reshape(-1, FRAME).max(axis=1)
    peaks = maximum_filter1d(frames, 2 * NEAR + 1, mode="constant")
    quiet = sound_levels(wave, FRAME) <= LEVEL * peaks
    edges = np.flatnonzero(np.diff(np.concatenate(([0], quiet, [0])).astype(int)))
    return [(b - a) / 1000 for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 90]


@pytest.fixture(scope="module")
def pico():
    with Engine.load("pico", "dev", device="cpu") as engine:
        yield engine


@pytest.mark.parametrize("latency", [pytest.param("chunk", marks=pytest.mark.slow), LOW])
def test_a_pause_is_heard_as_long_as_it_was_asked_for(pico, latency):
    text = "[pause:1s]The weather is lovely. [pause:700ms] We walked. [voice:bruno][pause:0.3s] Yes. [pause:100ms] Go.[pause:2s]"
    request = Request(
        "", text, sampling=Sampling(seed=3, cfm_steps=2), markup=True, latency=latency
    )
    assert silences(pico.synthesize(request).samples) == pytest.approx(
        [1, 0.7, 0.3, 0.1, 2], abs=0.01
    )


def test_a_trimmer_gives_out_what_is_between_the_ends_however_it_comes():
    rng = np.random.default_rng(0)
    quiet, loud = (level * rng.standard_normal(SAMPLE_RATE // 2) for level in (1e-5, 0.1))
    wave = np.concatenate((quiet, loud, quiet, loud, quiet)).astype(np.float32)
    [whole] = [Trimmer(start=True, end=True).push(wave, is_last=True)]
    assert np.array_equal(whole, wave[len(quiet) : -len(quiet)])
    for size in (240, 1000, 7000, SAMPLE_RATE):
        trimmer = Trimmer(start=True, end=True)
        ends = range(0, len(wave), size)
        parts = [trimmer.push(wave[at : at + size], is_last=at == ends[-1]) for at in ends]
        joined = np.concatenate(parts)
        assert abs(trimmer.skipped - len(quiet)) <= 120 and abs(len(joined) - len(whole)) <= 240
        assert np.array_equal(joined, wave[trimmer.skipped : trimmer.skipped + len(joined)])
    for start, end in ((True, False), (False, True), (False, False)):
        trimmer = Trimmer(start=start, end=end)
        both = np.concatenate(
            [
                trimmer.push(w, is_last=last)
                for w, last in ((wave[:30000], False), (wave[30000:], True))
            ]
        )
        assert abs(len(both) - len(wave) + len(quiet) * (start + end)) <= 240
    assert len(Trimmer(start=True, end=True).push(quiet.astype("f4"), is_last=True)) == len(quiet)
    for start, end in ((True, False), (False, True)):
        trimmer = Trimmer(start=start, end=end)
        given = [trimmer.push(quiet.astype("f4"), is_last=last) for last in (False, True)]
        assert sum(map(len, given)) == 2 * len(quiet), "silence alone is given out whole"
