"""What the guard calls a fault, and engine.batch over a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, SAMPLE

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.errors import TextError, VoiceError
from chatterbox_opt.guard import Guard, faults
from chatterbox_opt.pipeline import Spoken
from chatterbox_opt.shapes import SAMPLE_RATE

SENTENCE = "The quick brown fox jumps over the lazy dog."
NOISE = np.random.default_rng(0)
SHORT = Sampling(seed=1, max_tokens=12)


def spoken(seconds: float, *, codes=None, cut=False, silence=(0.0, 0.0)) -> Spoken:
    wave = NOISE.uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE)).astype(np.float32)
    start, end = (round(edge * SAMPLE_RATE) for edge in silence)
    wave[start:end] *= 0.001
    if codes is None:
        codes = NOISE.integers(0, 6561, round(seconds * 25)).tolist()
    return Spoken(wave, len(codes), {"t3": 1.0}, tuple(codes), cut)


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
    assert faults(text, sound) == ()


@pytest.mark.parametrize(
    ("sound", "fault"),
    [
        (spoken(2.6, cut=True), "no end before the limit"),
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
    [found] = faults(SENTENCE, sound)
    assert found.startswith(fault)


@pytest.mark.slow
def test_the_bounds_on_trained_speech():
    """What the guard's docstring says, on a few of those sentences: no alarm, all faults found."""
    with Engine.load("pico", "dev", device="cpu", watermark=False) as speaker:
        names = [None, *speaker.checkpoint.voices()]
        texts = [
            "Hello!",
            "Well done!",
            *(ROOT / "pico/sentences/everyday.txt").read_text().splitlines()[:18],
        ]
        for i, text in enumerate(texts):
            [chunk] = speaker._chunks(text)
            voice = speaker.voice(names[i % len(names)])
            good = speaker._speaker.say(chunk, voice, Sampling(seed=i), i, lambda n: None)
            assert faults(chunk.text, good) == (), text
            for fault, planted in plant(good):
                assert faults(chunk.text, planted), f"{fault}: {text}"


def plant(good: Spoken) -> Iterator[tuple[str, Spoken]]:
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
    bad, worse, good = spoken(20), spoken(30, cut=True), spoken(2.6)
    takes = [worse, bad, good]
    best = Guard(retries=5).best(SENTENCE, takes.__getitem__)
    assert best.spoken.wave is good.wave
    assert (best.faults, best.attempts, best.spoken.seconds) == ((), 3, {"t3": 3.0})
    best = Guard(retries=1).best(SENTENCE, takes.__getitem__)
    assert best.spoken.wave is bad.wave
    assert len(best.faults) == 1
    assert Guard(retries=0).best(SENTENCE, takes.__getitem__).attempts == 1
    nearer = Guard(retries=2).best(SENTENCE, [spoken(90), spoken(20), spoken(60)].__getitem__)
    assert len(nearer.spoken.wave) == 20 * SAMPLE_RATE


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
    assert list(results) == list("abcdef")
    kinds = [type(r.error) for r in results.values()]
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
    plain = engine._speaker.say

    def say(chunk, *rest):
        if "odd" in chunk.text:
            raise RuntimeError("index out of range")
        return plain(chunk, *rest)

    monkeypatch.setattr(engine._speaker, "say", say)
    results = list(
        engine.batch(Request(t, t, None, SHORT) for t in ("Odd.", "An odd one.", "Even."))
    )
    assert [type(r.error) for r in results] == [type(None), RuntimeError, type(None)]


def test_requests_are_drawn_as_there_is_room(engine):
    drawn = []

    def feed():
        for id in "abc":
            drawn.append(id)
            yield Request(id, "Hello.", None, SHORT)

    results = engine.batch(feed())
    next(results)
    assert drawn == ["a"]


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
    cut = engine._speaker.say(
        next(iter(engine._chunks(text))), engine.voice(), Sampling(max_tokens=5), 1, lambda n: None
    )
    assert cut.cut
    assert len(cut.codes) == cut.tokens
