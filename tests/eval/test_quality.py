"""Word error rate of each optimization on the built-in model (make test-quality).

Every variant synthesizes the same held-out sentences with the same seeds and is compared with
float32; the figures are printed. Skipped without the recognizer (extra ``ears``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from helpers.common import ROOT
from helpers.texts import everyday

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.eval.wer import WordErrorRate, word_error_rate
from chatterbox_opt.eval.whisper import Recognizer
from chatterbox_opt.utils.wave import Wave
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices import library as voice_library

pytestmark = pytest.mark.quality
MAX_WER = 0.06  # on everyday sentences, in float32
VARIANT_SENTENCES = 60  # the first of them, for each variant


@dataclass(frozen=True)
class Variant:
    """An optimization, and the increase of word error rate that is allowed."""

    name: str
    allowed: float
    overrides: dict[str, str] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)
    streamed: bool = False
    batched: bool = False


VARIANTS = [
    Variant("bfloat16", 0.025, {"dtype": "bfloat16"}),
    Variant("int8", 0.025, {"dtype": "int8"}),
    Variant("streaming", 0.0, streamed=True),
    Variant("batched", 0.0, batched=True),
    Variant("7 CFM steps", 0.02, sampling={"cfm_steps": 7}),
    Variant("5 CFM steps", 0.025, sampling={"cfm_steps": 5}),
    Variant("no guidance", 0.03, sampling={"cfg_weight": 0.0}),
]


@pytest.fixture(scope="module")
def rate(recogniser) -> Callable[[Variant, int], WordErrorRate]:
    """Word error rate over the first ``count`` sentences; each is synthesized once."""
    known: dict[str, list[tuple[str, str]]] = {}

    def measure(variant: Variant, count: int) -> WordErrorRate:
        pairs = known.setdefault(variant.name, [])
        if len(pairs) < count:
            pairs[:] = transcribed(variant, recogniser, everyday(count))
        result = word_error_rate(pairs[:count])
        print(f"{variant.name}: {result.rate:.1%} of {result.words} words "
              f"({result.low:.1%} to {result.high:.1%})")  # fmt: skip
        return result

    return measure


def transcribed(
    variant: Variant, recogniser: Recognizer, texts: list[str]
) -> list[tuple[str, str]]:
    """Each text with its transcript."""
    with Engine.load("pico", "dev", device="cpu", overrides=variant.overrides) as engine:
        names = list(registry.shipped_voices("pico"))
        requests = [
            Request(
                text, text, names[i % len(names)], replace(Sampling(seed=i), **variant.sampling)
            )
            for i, text in enumerate(texts)
        ]
        waves = dict(synthesized(variant, engine, requests))
        return [(text, recogniser.transcribe(waves[text], 24_000)) for text in texts]


def synthesized(
    variant: Variant, engine: Engine, requests: list[Request]
) -> Iterator[tuple[str, Wave]]:
    """The audio of each text, by the variant's call."""
    if variant.batched:
        for result in engine.batch(requests):
            yield result.id, result.audio().samples
        return
    for request in requests:
        text, voice, sampling = request.text, engine.voice(request.voice), request.sampling
        if variant.streamed:
            yield text, np.concatenate(list(engine.stream(text, voice, sampling)))
        else:
            yield text, engine.synthesize(text, voice, sampling).samples


BASELINE = Variant("float32", 0)


def test_everyday_sentences_are_intelligible(rate):
    assert rate(BASELINE, 100).rate <= MAX_WER


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_variant_stays_near_the_baseline(rate, variant):
    baseline = rate(BASELINE, VARIANT_SENTENCES).rate
    assert rate(variant, VARIANT_SENTENCES).rate <= baseline + variant.allowed


def test_sequences_end_with_a_stop_token():
    """500 texts of 1 to 40 words end with the stop token in reasonable time."""
    lines = (ROOT / "training/pico/sentences/lengths.txt").read_text(encoding="utf-8").splitlines()
    late = []
    with Engine.load("pico", "dev", device="cpu", watermark=False) as engine:
        for i, text in enumerate(lines):
            tokens = engine.speech_tokens(text, None, Sampling(seed=i))
            if len(tokens) > 60 + 25 * len(text.split()):  # one second per word is twice the usual
                late.append((len(tokens), text))
    print(f"{len(late)} of {len(lines)} did not stop", json.dumps(late))
    assert len(lines) == 500 and not late


def test_voices_are_distinguishable():
    """CAMPPlus's x-vector of new sentences is nearest to that of the same voice; so is the voice
    encoder's embedding, though less often."""
    with Engine.load("pico", "dev", device="cpu", watermark=False) as engine:
        voices = {name: engine.voice(name) for name in registry.shipped_voices("pico")}
        encoders = voice_library.load_encoders(engine.checkpoint)
        right, total = {"xvector": 0, "speaker": 0}, 0
        for i, text in enumerate(everyday(10)):
            for name, voice in voices.items():
                samples = engine.synthesize(text, voice, Sampling(seed=i)).samples
                encoded = encoders.encode(samples, 75)
                total += 1
                for kind in right:
                    right[kind] += nearest(encoded, voices, kind) == name
    print(f"of {total} recognized: {right}")
    assert right["xvector"] >= 0.98 * total
    assert right["speaker"] >= 0.9 * total


def nearest(encoded: Voice, voices: dict[str, Voice], kind: str) -> str:
    """The voice whose vector of this kind has the highest cosine similarity."""
    similarity = {
        name: torch.cosine_similarity(getattr(encoded, kind)[0], getattr(voice, kind)[0], 0)
        for name, voice in voices.items()
    }
    return max(similarity, key=similarity.__getitem__)
