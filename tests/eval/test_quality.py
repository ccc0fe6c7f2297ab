"""Ears: what each trick costs in words understood, on the built-in model (make test-quality).

Every variant speaks the same held-out sentences with the same seeds and is bounded against
float32; the figures are printed. Without the recognizer (extra ``ears``) all of it is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from helpers.common import ROOT

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.eval.wer import WordErrorRate, word_error_rate
from chatterbox_opt.eval.whisper import Recognizer
from chatterbox_opt.request import Wave
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices import library as voice_library

pytestmark = pytest.mark.quality
SENTENCES = ROOT / "training" / "pico" / "sentences"
MUST = 0.25  # word error rate on everyday sentences
FEWER = 60  # sentences for each variant, the same ones


def everyday(count: int = 100) -> list[str]:
    return (SENTENCES / "everyday.txt").read_text(encoding="utf-8").splitlines()[:count]


@dataclass(frozen=True)
class Variant:
    """A way to speak, and how many points of word error rate it may cost."""

    name: str
    allowed: float
    overrides: dict[str, str] = field(default_factory=dict)
    knobs: dict[str, float] = field(default_factory=dict)
    streamed: bool = False
    together: bool = False


VARIANTS = [
    Variant("bfloat16", 0.05, {"dtype": "bfloat16"}),
    Variant("int8", 0.05, {"dtype": "int8"}),
    Variant("streaming", 0.0, streamed=True),
    Variant("eight at once", 0.0, together=True),
    Variant("7 CFM steps", 0.05, knobs={"cfm_steps": 7}),
    Variant("5 CFM steps", 0.08, knobs={"cfm_steps": 5}),
    Variant("no guidance", 0.15, knobs={"cfg_weight": 0.0}),
]


@pytest.fixture(scope="module")
def rate(recogniser) -> Callable[[Variant, int], WordErrorRate]:
    """Word error rates over the first so many sentences, each spoken once."""
    known: dict[str, list[tuple[str, str]]] = {}

    def measure(variant: Variant, count: int) -> WordErrorRate:
        pairs = known.setdefault(variant.name, [])
        if len(pairs) < count:
            pairs[:] = spoken(variant, recogniser, everyday(count))
        found = word_error_rate(pairs[:count])
        print(f"{variant.name}: {found.rate:.1%} of {found.words} words "
              f"({found.low:.1%} to {found.high:.1%})")  # fmt: skip
        return found

    return measure


def spoken(variant: Variant, recogniser: Recognizer, texts: list[str]) -> list[tuple[str, str]]:
    """Each text with what was heard of it."""
    with Engine.load("pico", "dev", device="cpu", overrides=variant.overrides) as engine:
        names = list(registry.shipped_voices("pico"))
        asked = [
            Request(text, text, names[i % len(names)], replace(Sampling(seed=i), **variant.knobs))
            for i, text in enumerate(texts)
        ]
        sounds = dict(said(variant, engine, asked))
        return [(text, recogniser.transcribe(sounds[text], 24_000)) for text in texts]


def said(variant: Variant, engine: Engine, asked: list[Request]) -> Iterator[tuple[str, Wave]]:
    """The texts' sound, in the variant's way."""
    if variant.together:
        for result in engine.batch(asked):
            yield result.id, result.audio().samples
        return
    for one in asked:
        voice = engine.voice(one.voice)
        if variant.streamed:
            yield one.text, np.concatenate(list(engine.stream(one.text, voice, one.sampling)))
        else:
            yield one.text, engine.synthesize(one.text, voice, one.sampling).samples


STANDARD = Variant("float32", 0)


def test_everyday_sentences_are_understood(rate):
    assert rate(STANDARD, 100).rate <= MUST


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_trick_costs_no_more_than_it_may(rate, variant):
    assert rate(variant, FEWER).rate <= rate(STANDARD, FEWER).rate + variant.allowed


def test_it_stops_by_itself():
    """500 texts of 1 to 40 words: at least 99 % end with the stop token, in good time."""
    lines = (SENTENCES / "lengths.txt").read_text(encoding="utf-8").splitlines()
    late = []
    with Engine.load("pico", "dev", device="cpu", watermark=False) as engine:
        for i, text in enumerate(lines):
            tokens = engine.speech_tokens(text, None, Sampling(seed=i))
            if len(tokens) > 60 + 25 * len(text.split()):  # a second a word is twice the usual
                late.append((len(tokens), text))
    print(f"{len(late)} of {len(lines)} did not stop", json.dumps(late))
    assert len(late) <= len(lines) // 100


def test_voices_are_told_apart():
    """CAMPPlus's x-vector of new sentences is nearest to its own voice's; so, less often, is the
    voice encoder's embedding, which is printed."""
    with Engine.load("pico", "dev", device="cpu", watermark=False) as engine:
        voices = {name: engine.voice(name) for name in registry.shipped_voices("pico")}
        encoders = voice_library.load_encoders(engine.checkpoint)
        right, total = {"xvector": 0, "speaker": 0}, 0
        for i, text in enumerate(everyday(10)):
            for name, voice in voices.items():
                samples = engine.synthesize(text, voice, Sampling(seed=i)).samples
                found = encoders.encode(samples, 75)
                total += 1
                for kind in right:
                    right[kind] += nearest(found, voices, kind) == name
    print(f"of {total} recognised: {right}")
    assert right["xvector"] >= 0.9 * total


def nearest(found: Voice, voices: dict[str, Voice], kind: str) -> str:
    """The voice whose vector of this kind points most nearly the same way."""
    near = {
        name: torch.cosine_similarity(getattr(found, kind)[0], getattr(voice, kind)[0], 0)
        for name, voice in voices.items()
    }
    return max(near, key=near.__getitem__)
