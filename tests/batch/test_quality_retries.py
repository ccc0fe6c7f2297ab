"""The quality checks' faults, and engine.batch with a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers.common import SAMPLE
from helpers.texts import everyday

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.quality import Guard, find_faults
from chatterbox_opt.engine.retries import retry
from chatterbox_opt.engine.sequence import RequestState, Status
from chatterbox_opt.errors import NumericsError, SilenceError, TextError, VoiceError
from chatterbox_opt.text.chunking import Chunk

SENTENCE = "The quick brown fox jumps over the lazy dog."
NOISE = np.random.default_rng(0)
SHORT = Sampling(seed=1, max_tokens=12, cfm_steps=2)


@dataclass(frozen=True)
class Output:
    """What an attempt gave."""

    wave: np.ndarray
    codes: tuple[int, ...]
    truncated: bool = False

    def faults(self, text: str) -> tuple[str, ...]:
        return find_faults(text, self.wave, self.codes, truncated=self.truncated)


def audio(seconds: float, *, codes=None, truncated=False, silence=(0.0, 0.0)) -> Output:
    wave = NOISE.uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE)).astype(np.float32)
    start, end = (round(edge * SAMPLE_RATE) for edge in silence)
    wave[start:end] *= 0.001
    if codes is None:
        codes = NOISE.integers(0, 6561, round(seconds * 25)).tolist()
    return Output(wave, tuple(codes), truncated)


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        (SENTENCE, audio(2.6)),
        (SENTENCE, audio(4.5)),
        (SENTENCE, audio(1.9)),
        (SENTENCE, audio(4.0, silence=(1.0, 2.5))),  # a pause within a sentence
        (
            SENTENCE,
            audio(3.0, codes=[*range(30), *[4218] * 40, *range(30)]),
        ),  # the token of silence
        ("Hi.", audio(0.3)),
        ("Hi.", audio(1.5)),
        ("1984 and 2001.", audio(3.5)),
        ("今日はいい天気ですね。", audio(2.5)),
        ("안녕하세요 여러분", audio(1.6)),
        (SENTENCE, audio(2.6, codes=())),  # chatterbox-tts does not return tokens
    ],
)
def test_good_audio_has_no_fault(text, sound):
    assert sound.faults(text) == ()


@pytest.mark.parametrize(
    ("sound", "fault"),
    [
        (audio(2.6, truncated=True), "no end before the limit"),
        (audio(20), "too slow: 20.0 s for 35 letters"),
        (audio(0.5), "too fast: 0.5 s"),
        (audio(1.3), "too fast: 1.3 s for 35 letters"),  # half of it
        (audio(6.0), "too slow: 6.0 s"),
        (audio(4.0, codes=[*range(20), *[5, 6, 7, 8] * 20]), "repeats itself for 3.2 s"),
        (audio(4.0, codes=[1] * 99), "repeats itself for 4.0 s"),
        (audio(4.5, silence=(1.0, 3.4)), "silent for 2.4 s"),
        (audio(4.5, silence=(2.0, 4.5)), "silent for 2.5 s"),
    ],
)
def test_bad_audio_has_a_fault(sound, fault):
    [found] = sound.faults(SENTENCE)
    assert found.startswith(fault)


def judged(retries: int, takes: list[Output | Exception]):
    """The attempt that is kept for a chunk with these outputs, or the error."""
    request = RequestState("a", 1, guard=Guard(retries))
    request.add_chunks([Chunk(SENTENCE)], None, SHORT)
    [sequence], seeds = request.sequences, set()
    for number, output in enumerate(takes, 1):
        seeds.add(sequence.seed)
        sequence.add_seconds("t3", 1.0)
        if isinstance(output, Exception):
            sequence.fail(output)
        else:
            sequence.audio, sequence.tokens = output.wave, list(output.codes)
            sequence.truncated = output.truncated
        if not retry(sequence):
            assert (len(seeds), number) == (len(takes), len(takes)), "each has its own seed"
            assert sequence.seconds == {"t3": number}
            return sequence.best or sequence.error
        assert sequence.status is Status.WAITING and sequence.audio is None
    raise AssertionError("more attempts were requested than expected")


@pytest.mark.slow
def test_the_bounds_with_a_trained_model():
    """The claim of the guard's docstring, on a few sentences: no false alarm, all faults detected."""
    with Engine.load("pico", "dev", device="cpu", watermark=False) as speaker:
        names = [None, *speaker.checkpoint.voices()]
        texts = [
            "Hello!",
            "Well done!",
            *everyday(18),
        ]
        for i, text in enumerate(texts):
            voice, sampling = speaker.voice(names[i % len(names)]), Sampling(seed=i)
            [piece] = speaker.pieces(text, voice, sampling)
            codes = speaker.speech_tokens(text, voice, sampling).tolist()
            good = Output(piece.samples[: len(codes) * SAMPLE_RATE // 25], tuple(codes))
            assert good.faults(piece.text) == (), text
            for fault, faulty in insert_faults(good):
                assert faulty.faults(piece.text), f"{fault}: {text}"


def insert_faults(good: Output) -> Iterator[tuple[str, Output]]:
    """A good output with one fault inserted."""
    wave, codes = good.wave, good.codes
    middle = len(codes) // 2
    edge = middle * SAMPLE_RATE // 25
    yield "cut in half", replace(good, wave=wave[:edge], codes=codes[:middle])
    yield "without a beginning", replace(good, wave=wave[edge:], codes=codes[middle:])
    for period in (1, 4, 12):
        again = (*codes[:period] * (1 + 53 // period), *codes)
        yield f"loop of {period}", replace(good, codes=again)
    yield "runaway", replace(good, wave=np.resize(wave, 40 * SAMPLE_RATE))


def test_the_best_of_the_attempts_is_kept():
    bad, worse, good = audio(20), audio(30, truncated=True), audio(2.6)
    best = judged(5, [worse, bad, good])
    assert best.samples is good.wave
    assert (best.faults, best.attempts) == ((), 3)
    best = judged(1, [worse, bad])
    assert best.samples is bad.wave
    assert best.attempts == 2
    assert len(best.faults) == 1
    assert judged(0, [worse]).attempts == 1
    nearer = judged(2, [audio(90), audio(20), audio(60)])
    assert len(nearer.samples) == 20 * SAMPLE_RATE


def test_a_failed_attempt_does_not_discard_the_earlier_ones():
    bad = audio(20)
    silent = SilenceError("nothing")
    assert judged(2, [bad, NumericsError("not finite")]).samples is bad.wave
    assert isinstance(judged(2, [NumericsError("not finite")]), NumericsError)
    assert judged(2, [bad, silent, silent, silent, silent]).samples is bad.wave
    assert judged(2, [silent] * 4) is silent


def test_results_have_ids_and_errors_are_values(engine, tmp_path):
    requests = [
        Request("a", "Hello there.", None, SHORT),
        Request("b", "", None, SHORT),
        Request("c", "Bytes \0.", None, SHORT),
        Request("d", "Hello.", str(tmp_path / "missing.wav"), SHORT),
        Request("e", "Hello.", str(SAMPLE), SHORT),
        Request("f", "Hello there.", engine.voice(SAMPLE), Sampling(max_tokens=12)),
    ]
    results = {result.id: result for result in engine.batch(iter(requests))}
    assert sorted(results) == list("abcdef")
    kinds = [type(results[id].error) for id in "abcdef"]
    assert kinds == [type(None), TextError, TextError, VoiceError, type(None), type(None)]
    with pytest.raises(VoiceError):
        results["d"].audio()
    alone = engine.synthesize("Hello there.", None, SHORT)
    together = results["a"].audio()
    assert np.array_equal(alone.samples, together.samples), "batching does not change the result"
    assert (together.seed, together.tokens) == (1, alone.tokens)
    drawn = results["f"]
    again = engine.synthesize(
        "Hello there.", engine.voice(SAMPLE), Sampling(seed=drawn.seed, max_tokens=12)
    )
    assert np.array_equal(again.samples, drawn.audio().samples), "a random seed is returned"


def test_an_exception_for_one_text_fails_only_that_one(engine, monkeypatch):
    plain = engine.pipeline.decoder.tokenizer

    class Fragile:
        def encode(self, text, language):
            if "odd" in text:
                raise RuntimeError("index out of range")
            return plain.encode(text, language)

    monkeypatch.setattr(engine.pipeline.decoder, "tokenizer", Fragile())
    texts = ["Odd.", "An odd one.", "Even.", "Another odd one.", "More."]
    expected = {t: engine.synthesize(t, None, SHORT).samples for t in texts if " odd" not in t}
    results = {r.id: r for r in engine.batch(Request(t, t, None, SHORT) for t in texts)}
    assert set(results) == set(texts)
    for text, result in results.items():
        if text in expected:
            assert np.array_equal(result.audio().samples, expected[text])
        else:
            assert type(result.error) is RuntimeError


def test_requests_are_drawn_when_a_slot_is_free(engine, monkeypatch):
    drawn = []

    def feed():
        for id in "abc":
            drawn.append(id)
            yield Request(id, "Hello.", None, SHORT)

    monkeypatch.setattr(engine, "plan", replace(engine.plan, slots=2))
    results = engine.batch(feed())
    next(results)
    assert drawn == ["a", "b"]
    assert len(list(results)) == 2


def test_a_guarded_engine_retries_chunks_with_other_seeds(engine):
    text = "Hello there, this is a sentence that twelve tokens cannot say."
    [plain] = engine.pieces(text, None, SHORT)
    assert (plain.faults, plain.attempts) == ((), 1), "without a guard nothing is checked"
    [guarded] = engine.pieces(text, None, SHORT, guard=Guard(retries=2))
    assert guarded.attempts == 3
    assert guarded.faults
    [again] = engine.pieces(text, None, SHORT, guard=Guard(retries=2))
    assert np.array_equal(guarded.samples, again.samples), "retries are reproducible too"
    [single] = engine.pieces(text, None, SHORT, guard=Guard(retries=0))
    assert np.array_equal(single.samples, plain.samples), "the first attempt is the plain one"
    [truncated] = engine.pieces(text, None, Sampling(seed=1, max_tokens=5), guard=Guard(0))
    assert "no end before the limit of tokens" in truncated.faults


def test_finishing_audio_on_another_thread_does_not_change_it(engine, monkeypatch):
    texts = ["Hello there. " * 30, "Hello.", "Something else."]

    def samples_with(*, overlap: bool) -> dict[str, np.ndarray]:
        monkeypatch.setattr(engine, "plan", replace(engine.plan, slots=3))
        monkeypatch.setattr(engine._loop._scheduler, "_overlap", overlap)
        requests = (Request(text, text, None, SHORT) for text in texts)
        return {result.id: result.audio().samples for result in engine.batch(requests)}

    inline, overlapped = samples_with(overlap=False), samples_with(overlap=True)
    assert set(inline) == set(overlapped) == set(texts)
    for text in texts:
        assert np.array_equal(inline[text], overlapped[text])


def test_an_error_of_the_request_iterator_is_raised_after_the_requests_in_flight(engine):
    def feed():
        yield Request("a", "Hello.", None, SHORT)
        raise OSError("the pipe is gone")

    results = engine.batch(feed())
    assert next(results).id == "a"
    with pytest.raises(OSError, match="the pipe is gone"):
        next(results)
