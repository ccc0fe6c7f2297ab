"""How exact word times are, against the durations of the teacher of the built-in model.

training/pico/results/words.json has the teacher's codes of 100 sentences and when its words are
heard (training/pico/word_times.py). Here the codes are forced and rendered by the built-in model:
the whole path of a request, without the teacher. Whisper is a second opinion, whose own word times
are less exact. Figures are printed.
"""

from __future__ import annotations

import json
from difflib import SequenceMatcher

import numpy as np
import pytest
from helpers.common import ROOT
from helpers.texts import everyday

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.engine.sequence import Capacity

TRUTH = ROOT / "training" / "pico" / "results" / "words.json"
STEPS = 2  # of the flow, for speed: they do not change when something is heard
MEDIAN, HIGH = 0.040, 0.120  # seconds: of all starts and ends, and of 95 % of them

WHISPER_MEDIAN, WHISPER_HIGH = 0.1, 0.35


@pytest.fixture(scope="module")
def pico():
    with Engine.load("pico", "dev", device="cpu", watermark=False) as engine:
        yield engine


def forced(engine, number: int, text: str, codes: list[int]):
    """The piece of a text whose tokens are given."""
    request = Request("", text, sampling=Sampling(seed=number, cfm_steps=STEPS), timestamps=True)
    state = engine._requests.of(request, Capacity(1))
    [sequence] = state.sequences
    assert sequence.chunk.text == text
    sequence.forced_tokens = tuple(codes)
    [piece] = engine._loop.pieces(state)
    assert piece.tokens == len(codes)
    return piece


def errors(engine, count: int | None = None) -> np.ndarray:
    """Of starts and ends in seconds: [words, 2]."""
    found = []
    for number, truth in enumerate(json.loads(TRUTH.read_text(encoding="utf-8"))[:count]):
        words = forced(engine, number, truth["text"], truth["codes"]).words
        assert [word.text for word in words] == truth["text"].split()
        found.append(np.abs([(w.start, w.end) for w in words] - np.array(truth["words"])))
    return np.concatenate(found)


def within_bounds(values: np.ndarray) -> None:
    for name, part in (("starts", values[:, 0]), ("ends", values[:, 1]), ("both", values)):
        median, high, worst = np.percentile(part, [50, 95, 100])
        print(
            f"{name}: median {1000 * median:.0f} ms, 95 % {1000 * high:.0f} ms, worst {1000 * worst:.0f} ms"
        )
        assert median <= MEDIAN and high <= HIGH


@pytest.mark.slow
def test_four_sentences(pico):
    within_bounds(errors(pico, 4))


@pytest.mark.quality
def test_a_hundred_sentences(pico):
    within_bounds(errors(pico))


def recognized(recogniser, audio) -> list[tuple[float, float]]:
    """Differences of starts and ends to Whisper's, of the words that it heard as they are."""
    heard = recogniser.words(audio.samples, audio.sample_rate)
    ours, theirs = ([_plain(word) for word in words] for words in (
        [word.text for word in audio.words], [word for word, _, _ in heard]
    ))  # fmt: skip
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    pairs = [(audio.words[a + i], heard[b + i]) for a, b, size in blocks for i in range(size)]
    return [(word.start - start, word.end - end) for word, (_, start, end) in pairs]


def _plain(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())


@pytest.mark.quality
def test_whisper_hears_the_words_at_about_the_same_time(pico, recogniser):
    """With the pauses of several sentences and paragraphs in a text."""
    lines = everyday()
    texts = ["\n\n".join(lines[i : i + 3]) for i in range(0, 60, 3)]
    found, words = [], 0
    for number, text in enumerate(texts):
        audio = pico.synthesize(Request("", text, sampling=Sampling(seed=number), timestamps=True))
        found += recognized(recogniser, audio)
        words += len(audio.words)
    differences = np.abs(np.array(found))
    print(f"{len(found)} of {words} words were recognized")
    assert len(found) > 0.85 * words
    for name, part in zip(("starts", "ends"), differences.T, strict=True):
        median, high = np.percentile(part, [50, 95])
        print(
            f"{name}, difference to Whisper: median {1000 * median:.0f} ms, 95 % {1000 * high:.0f} ms"
        )
        assert median <= WHISPER_MEDIAN and high <= WHISPER_HIGH
