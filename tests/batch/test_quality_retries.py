"""What the guard calls a fault, and engine.batch over a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from helpers.common import ROOT, SAMPLE

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.quality import Guard, find_faults
from chatterbox_opt.engine.retries import ChunkAttempts
from chatterbox_opt.engine.sequence import AudioOutput, ChunkRequest
from chatterbox_opt.errors import NumericsError, SilenceError, TextError, VoiceError
from chatterbox_opt.text.chunking import Chunk

SENTENCE = "The quick brown fox jumps over the lazy dog."
NOISE = np.random.default_rng(0)
SHORT = Sampling(seed=1, max_tokens=12)


def spoken(seconds: float, *, codes=None, truncated=False, silence=(0.0, 0.0)) -> AudioOutput:
    wave = NOISE.uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE)).astype(np.float32)
    start, end = (round(edge * SAMPLE_RATE) for edge in silence)
    wave[start:end] *= 0.001
    if codes is None:
        codes = NOISE.integers(0, 6561, round(seconds * 25)).tolist()
    return AudioOutput(wave, len(codes), {"t3": 1.0}, tuple(codes), truncated)


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        (SENTENCE, spoken(2.6)),
        (SENTENCE, spoken(4.5)),
        (SENTENCE, spoken(1.9)),
        (SENTENCE, spoken(4.0, silence=(1.0, 2.5))),  # a pause for effect
        (SENTENCE, spoken(3.0, codes=[*range(30), *[4218] * 40, *range(30)])),  # silence's token
        ("Hi.", spoken(0.3)),
        ("Hi.", spoken(1.5)),
        ("1984 and 2001.", spoken(3.5)),
        ("今日はいい天気ですね。", spoken(2.5)),
        ("안녕하세요 여러분", spoken(1.6)),
        (SENTENCE, spoken(2.6, codes=())),  # plain Chatterbox gives no tokens out
    ],
)
def test_good_speech_has_no_fault(text, sound):
    assert find_faults(text, sound) == ()


@pytest.mark.parametrize(
    ("sound", "fault"),
    [
        (spoken(2.6, truncated=True), "no end before the limit"),
        (spoken(20), "too slow: 20.0 s for 35 letters"),
        (spoken(0.5), "too fast: 0.5 s"),
        (spoken(1.3), "too fast: 1.3 s for 35 letters"),  # half of it
        (spoken(6.0), "too slow: 6.0 s"),
        (spoken(4.0, codes=[*range(20), *[5, 6, 7, 8] * 20]), "repeats itself for 3.2 s"),
        (spoken(4.0, codes=[1] * 99), "repeats itself for 4.0 s"),
        (spoken(4.5, silence=(1.0, 3.4)), "silent for 2.4 s"),
        (spoken(4.5, silence=(2.0, 4.5)), "silent for 2.5 s"),
    ],
)
def test_bad_speech_is_found(sound, fault):
    [found] = find_faults(SENTENCE, sound)
    assert found.startswith(fault)


def judged(retries: int, takes: list[AudioOutput]):
    """What is kept of a chunk whose attempts sound like this."""
    attempts = ChunkAttempts(
        Chunk(SENTENCE), 0, None, SHORT, seed=1, on_token=print, guard=Guard(retries)
    )
    seeds = set()
    for number, sound in enumerate(takes, 1):
        seeds.add(attempts.next_request().seed)
        if (kept := attempts.on_result(sound)) is not None:
            assert (len(seeds), number) == (len(takes), len(takes)), "each has its own seed"
            return kept
    raise AssertionError("there were not enough attempts")


@pytest.mark.slow
def test_the_bounds_on_trained_speech():
    """What the guard's docstring says, on a few of those sentences: no alarm, all faults found."""
    with Engine.load("pico", "dev", device="cpu", watermark=False) as speaker:
        names = [None, *speaker.checkpoint.voices()]
        texts = [
            "Hello!",
            "Well done!",
            *(ROOT / "training/pico/sentences/everyday.txt").read_text().splitlines()[:18],
        ]
        for i, text in enumerate(texts):
            [chunk] = speaker._chunks(text)
            voice = speaker.voice(names[i % len(names)])
            said = ChunkRequest(chunk, voice, Sampling(), i, lambda n: None)
            [(_, good)] = speaker.pipeline.speak(iter([said, None]).__next__)
            assert find_faults(chunk.text, good) == (), text
            for fault, planted in plant(good):
                assert find_faults(chunk.text, planted), f"{fault}: {text}"


def plant(good: AudioOutput) -> Iterator[tuple[str, AudioOutput]]:
    """A good utterance in which something goes wrong."""
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
    bad, worse, good = spoken(20), spoken(30, truncated=True), spoken(2.6)
    best = judged(5, [worse, bad, good])
    assert best.output.wave is good.wave
    assert (best.faults, best.attempts, best.output.seconds) == ((), 3, {"t3": 3.0})
    best = judged(1, [worse, bad])
    assert best.output.wave is bad.wave
    assert len(best.faults) == 1
    assert judged(0, [worse]).attempts == 1
    nearer = judged(2, [spoken(90), spoken(20), spoken(60)])
    assert len(nearer.output.wave) == 20 * SAMPLE_RATE


def test_an_attempt_that_fails_does_not_cost_the_ones_before():
    bad = spoken(20)
    silent = SilenceError("nothing")
    assert judged(2, [bad, NumericsError("not finite")]).output.wave is bad.wave
    assert isinstance(judged(2, [NumericsError("not finite")]), NumericsError)
    assert judged(2, [bad, silent, silent, silent, silent]).output.wave is bad.wave
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
    assert np.array_equal(alone.samples, together.samples), "the same alone and in company"
    assert (together.seed, together.tokens) == (1, alone.tokens)
    drawn = results["f"]
    again = engine.synthesize(
        "Hello there.", engine.voice(SAMPLE), Sampling(seed=drawn.seed, max_tokens=12)
    )
    assert np.array_equal(again.samples, drawn.audio().samples), "a drawn seed comes back"


def test_what_torch_raises_for_one_text_ends_only_that(engine, monkeypatch):
    plain = engine.pipeline.tokenizer

    class Fragile:
        def encode(self, text):
            if "odd" in text:
                raise RuntimeError("index out of range")
            return plain.encode(text)

    monkeypatch.setattr(engine.pipeline, "tokenizer", Fragile())
    texts = ["Odd.", "An odd one.", "Even.", "Another odd one.", "More."]
    expected = {t: engine.synthesize(t, None, SHORT).samples for t in texts if " odd" not in t}
    results = {r.id: r for r in engine.batch(Request(t, t, None, SHORT) for t in texts)}
    assert set(results) == set(texts)
    for text, result in results.items():
        if text in expected:
            assert np.array_equal(result.audio().samples, expected[text])
        else:
            assert type(result.error) is RuntimeError


def test_requests_are_drawn_as_there_is_room(engine, monkeypatch):
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


def test_a_guarded_engine_speaks_chunks_again_with_seeds_of_their_own(engine):
    text = "Hello there, this is a sentence that twelve tokens cannot say."
    [plain] = engine.pieces(text, None, SHORT)
    assert (plain.faults, plain.attempts) == ((), 1), "without a guard nothing is judged"
    [guarded] = engine.pieces(text, None, SHORT, guard=Guard(retries=2))
    assert guarded.attempts == 3
    assert guarded.faults
    [again] = engine.pieces(text, None, SHORT, guard=Guard(retries=2))
    assert np.array_equal(guarded.samples, again.samples), "retries repeat too"
    [single] = engine.pieces(text, None, SHORT, guard=Guard(retries=0))
    assert np.array_equal(single.samples, plain.samples), "the first attempt is the plain one"
    [(_, truncated)] = engine.pipeline.speak(iter([line(engine, max_tokens=5), None]).__next__)
    assert truncated.truncated
    assert len(truncated.codes) == truncated.tokens


def line(engine, **knobs) -> ChunkRequest:
    chunk = next(iter(engine._chunks("Hello there, this is a sentence.")))
    return ChunkRequest(chunk, engine.voice(), Sampling(**knobs), 1, lambda count: None)


def test_the_sound_is_finished_beside_the_work_on_a_card_and_is_the_same(engine, monkeypatch):
    texts = ["Hello there. " * 30, "Hello.", "Something else."]

    def spoken_with(device: str) -> dict[str, np.ndarray]:
        monkeypatch.setattr(engine, "plan", replace(engine.plan, device=device, slots=3))
        requests = (Request(text, text, None, SHORT) for text in texts)
        return {result.id: result.audio().samples for result in engine.batch(requests)}

    here, aside = spoken_with("cpu"), spoken_with("cuda")
    assert set(here) == set(aside) == set(texts)
    for text in texts:
        assert np.array_equal(here[text], aside[text])


def test_a_list_of_requests_that_breaks_is_raised_when_what_was_begun_is_done(engine):
    def feed():
        yield Request("a", "Hello.", None, SHORT)
        raise OSError("the pipe is gone")

    results = engine.batch(feed())
    assert next(results).id == "a"
    with pytest.raises(OSError, match="the pipe is gone"):
        next(results)
