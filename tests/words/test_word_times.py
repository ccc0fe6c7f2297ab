"""Word times from the request to the piece, on the built-in model and on tiny ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chatterbox_opt import Engine, Guard, Lexicon, Request, Sampling, Word
from chatterbox_opt.config.model_config import MULTILINGUAL, NANO, TURBO, ModelConfig
from chatterbox_opt.engine import retries
from chatterbox_opt.engine.decoding import alignment, decoder
from chatterbox_opt.engine.decoding.prompts import text_tokens
from chatterbox_opt.engine.sequence import Capacity
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError, NumericsError
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.models.t3.text_attention import TEXT_START, text_attention
from chatterbox_opt.words import timing
from chatterbox_opt.words.support import check_timestamps
from chatterbox_opt.words.word import joined

TEXT = "The train leaves at 7:45 — hurry up!\n\nThe BBC paid $5."
WRITTEN = ["The", "train", "leaves", "at", "7:45", "hurry", "up!", "The", "BBC", "paid", "$5."]
SAMPLING = Sampling(seed=3, cfm_steps=2)
REQUEST = Request("a", TEXT, sampling=SAMPLING, timestamps=True)


@pytest.fixture(scope="module")
def pico():
    with Engine.load("pico", "dev", device="cpu", watermark=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def timed_once(pico):
    """The text with word times."""
    return pico.synthesize(REQUEST)


@pytest.fixture(scope="module")
def timed_pieces(pico):
    """The same, chunk by chunk."""
    return list(pico.pieces(REQUEST))


def check(words, duration: float) -> None:
    """In order, without overlap, within the audio; on the grid or where sound begins and ends."""
    assert [word.text for word in words] == WRITTEN
    assert [word.chunk for word in words] == [0] * 7 + [1] * 4
    edges = [edge for word in words for edge in (word.start, word.end)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= duration
    assert all(word.end - word.start >= 0.02 for word in words)


def test_words_as_they_were_written(timed_once):
    check(timed_once.words, timed_once.duration)
    by_text = {word.text: word.end - word.start for word in timed_once.words}
    assert by_text["7:45"] > 2 * by_text["at"], "three words are heard for it"
    first, second = timed_once.words[6], timed_once.words[7]
    assert second.start - first.end > 0.5, "the pause of a paragraph"


def test_the_sound_is_the_same_and_nothing_is_computed_if_nobody_asks(
    pico, timed_once, monkeypatch
):
    monkeypatch.setattr(decoder, "align", None)
    monkeypatch.setattr(alignment, "heard_spans", None)
    audio = pico.synthesize(replace(REQUEST, timestamps=False))
    assert audio.words == () and np.array_equal(audio.samples, timed_once.samples)
    assert "alignment" in timed_once.seconds and "alignment" not in audio.seconds


def test_every_call_gives_the_same_words(pico, timed_once, timed_pieces):
    [result] = pico.batch([REQUEST])
    assert result.words == timed_once.words == result.audio().words
    assert pico.submit(REQUEST).result().words == timed_once.words
    assert [len(piece.words) for piece in timed_pieces] == [7, 4]
    assert timed_pieces[1].words[0].start < 0.3, "of a piece: from the beginning of its chunk"


def test_a_stream_has_words_with_the_last_part_of_a_chunk(pico, timed_pieces):
    pieces = list(pico.pieces(replace(REQUEST, latency="low")))
    assert len(pieces) > 3
    assert [bool(piece.words) for piece in pieces] == [piece.ends_chunk for piece in pieces]
    words = [word for piece in pieces for word in piece.words]
    of_chunks = [w for p in timed_pieces for w in p.words]
    check(joined(pieces), sum(piece.duration for piece in pieces))
    for word, other in zip(words, of_chunks, strict=True):  # the sound differs a little
        assert abs(word.start - other.start) <= 0.03 and abs(word.end - other.end) <= 0.03


def test_times_follow_the_rate(pico, timed_once):
    faster = pico.synthesize(replace(REQUEST, rate=1.25))
    check(faster.words, faster.duration)
    for word, other in zip(faster.words[:7], timed_once.words[:7], strict=True):
        assert abs(word.start - other.start / 1.25) <= 0.03, "of the first chunk"


@pytest.mark.parametrize("latency", ["chunk", "low"])
def test_times_follow_pauses_and_markup(pico, latency):
    """Silence next to a pause that was asked for is left out of the sound."""
    text = "[pause:300ms]Good [say:mourning]morning,[/say][pause:1s]everyone. \\[Yes]"
    request = replace(REQUEST, text=text, markup=True, latency=latency)
    pieces = list(pico.pieces(request))
    words = joined(pieces)
    assert [word.text for word in words] == ["Good", "morning,", "everyone.", "[Yes]"]
    assert words[0].start == pytest.approx(0.3, abs=0.03)
    assert words[2].start - words[1].end == pytest.approx(1.0, abs=0.06)
    wave = np.concatenate([piece.samples for piece in pieces])
    for word in words:
        assert np.abs(wave[round(word.start * 24_000) : round(word.end * 24_000)]).max() > 0.01


def test_words_of_a_lexicon_are_shown_as_they_were_written(pico):
    request = replace(REQUEST, text="Ask Nguyen now.", lexicon=Lexicon.of({"Nguyen": "win yen"}))
    assert [word.text for word in pico.synthesize(request).words] == ["Ask", "Nguyen", "now."]


def test_the_words_are_of_the_attempt_that_is_used(pico, monkeypatch):
    """All attempts have faults; the best one is not the last."""
    faults = [("a", "b"), ("a",), ("a", "b")]
    aligned = []

    def align(*args):  # three attempts at an easy text are alike
        first, *others, (start, end) = alignment.align(*args)
        aligned.append([first, *others, (start, end - len(aligned))])
        return aligned[-1]

    monkeypatch.setattr(retries, "find_faults", lambda *_, **__: faults.pop(0))
    monkeypatch.setattr(decoder, "align", align)
    monkeypatch.setattr(timing, "LEVEL", 0.0)  # no silence is taken off
    request = Request("a", "Good morning, everyone.", sampling=SAMPLING, timestamps=True)
    [result] = pico.batch([request], Guard(2))
    [piece] = result.pieces
    assert piece.attempts == len(aligned) == 3
    assert [word.text for word in piece.words] == ["Good", "morning,", "everyone."]
    expected = timing.heard_spans(aligned[1], piece.tokens, piece.samples)
    assert [(word.start, word.end) for word in piece.words] == expected


def test_an_error_of_the_pass_fails_its_request_only(pico, monkeypatch):
    def broken(*_):
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "align", broken)
        one = Request("one", "Good morning.", sampling=SAMPLING, timestamps=True)
        results = {r.id: r for r in pico.batch([one, replace(one, id="two", timestamps=False)])}
    assert str(results["one"].error) == "no" and results["two"].error is None
    assert pico.synthesize(replace(REQUEST, text="Good morning.")).words


def test_out_of_memory_decodes_again(pico, monkeypatch, caplog):
    calls = []

    def once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return alignment.align(*args)

    expected = pico.synthesize(replace(REQUEST, text="Good morning."))
    monkeypatch.setattr(decoder, "align", once)
    requests = [
        Request(str(i), "Good morning.", sampling=SAMPLING, timestamps=True) for i in range(2)
    ]
    results = list(pico.batch(requests))
    assert len(calls) == 3
    assert all(result.words == expected.words for result in results)


def test_nan_is_an_error(pico, monkeypatch):
    def nan(*args):
        return text_attention(*args) * float("nan")

    monkeypatch.setattr(alignment, "text_attention", nan)
    with pytest.raises(NumericsError, match="NaN or Inf"):
        pico.synthesize(replace(REQUEST, text="Good morning."))


def test_nan_of_a_narrow_t3_is_tried_again_in_float32(pico, monkeypatch):
    dtypes = []

    def nan(t3, *args):
        dtypes.append(t3.dtype)
        found = text_attention(t3, *args)
        return found if t3.dtype == torch.float32 else found * float("nan")

    monkeypatch.setattr(alignment, "text_attention", nan)
    with Engine.load("pico", "dev", device="cpu", overrides={"dtype": "bfloat16"}) as narrow:
        request = Request("a", "Hello.", sampling=SAMPLING, timestamps=True)
        [result] = narrow.batch([request])
    assert [word.text for word in result.words] == ["Hello."]
    assert dtypes == [torch.bfloat16, torch.float32]


def test_plain_chatterbox_has_no_word_times(pico):
    plain = replace(pico._requests, hops=None)
    with pytest.raises(InputError, match="unset DISABLE_OPTIMIZATION"):
        plain.of(Request("a", "Hello.", timestamps=True), Capacity())


# --- which models and languages ----------------------------------------------------------------


def test_models_without_known_heads_are_refused_before_they_are_loaded(turbo, tiny):
    for path in (turbo, tiny):
        with pytest.raises(InputError, match="no word times.*chatterbox, multilingual or pico"):
            EngineSpec(model=str(path)).check(None, timestamps=True)
    EngineSpec(model="pico").check(None, timestamps=True)
    EngineSpec(model=str(tiny)).check(None)


@pytest.mark.parametrize("config", [TURBO, NANO])
def test_gpt2_has_no_known_heads(config):
    with pytest.raises(InputError, match="no word times"):
        check_timestamps(config)


def test_languages_without_blanks_are_refused():
    for config in (ModelConfig(), MULTILINGUAL):
        check_timestamps(config)
        check_timestamps(config, "de")
    for language in ("ja", "zh"):
        with pytest.raises(InputError, match="no blanks between words"):
            check_timestamps(MULTILINGUAL, language)


def test_an_engine_refuses_too(engine):
    with pytest.raises(InputError, match="no word times"):
        engine.synthesize(Request("a", "Hello.", timestamps=True))
    with pytest.raises(InputError, match="timestamps is 1"):
        Request("a", "Hello.", timestamps=1)


# --- T3's pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [((1, 0),), ((0, 3), (1, 2), (1, 0))])
def test_the_pass_equals_upstreams_attention(engine, heads):
    """Against every layer's whole attention, from the definition."""
    voice = engine.voice()
    with engine.pipeline.placement("t3") as t3, torch.inference_mode():
        ids = text_tokens(engine.pipeline.decoder.tokenizer, "Hello there.")
        prompt = Prompt(ids, voice.speaker, voice.prompt)
        tokens = torch.randint(0, 6561, (17,), generator=torch.Generator().manual_seed(0)).tolist()
        found = text_attention(t3, prompt, tokens, 0.5, heads)
        assert found.shape == (17, len(ids)) and found.dtype == torch.float32
        expected = torch.zeros_like(found)
        voice_part, text_part = t3.embed_conditioning(prompt, 0.5), t3.embed(prompt, 1)
        start = voice_part.shape[1] + 1
        speech = t3.speech_emb(torch.tensor(tokens)) + t3.speech_pos.weight[1:18]
        x = torch.cat((voice_part, text_part, speech[None]), dim=1)
        length, rope = x.shape[1], t3.rope(torch.arange(x.shape[1]))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for i, block in enumerate(t3.blocks):
            q, k, v = block.project_qkv(x, rope)
            scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)
            attention = scores.softmax(-1)
            for layer, head in heads:
                if layer == i:
                    rows = attention[0, head, length - 18 : length - 1]
                    expected += rows[:, start : start + len(ids)] / len(heads)
            x = block.out_and_ffn(x, attention @ v)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert text_attention(t3, prompt, tokens[:1], 0.5, heads).shape == (
        1,
        len(ids),
    )


def test_it_looks_where_the_prompt_has_the_text(engine):
    """The first column is of the first letter."""
    voice = engine.voice()
    with engine.pipeline.placement("t3") as t3, torch.inference_mode():
        ids = torch.tensor([5, 6, 7])
        text = t3.embed(Prompt(ids, voice.speaker, voice.prompt), 1)[0]
        for i, id in enumerate(ids):
            expected = t3.text_emb.weight[id] + t3.text_pos.weight[i + 1]
            torch.testing.assert_close(text[TEXT_START + i], expected)


def test_the_value():
    word = Word("a", 0.1, 0.25, 2)
    assert word.later(1.0) == Word("a", 1.1, 1.25, 2)
    with pytest.raises(AttributeError):
        word.text = "b"
