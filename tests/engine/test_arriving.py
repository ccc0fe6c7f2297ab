"""Text that is still being written: sentences are spoken as they are complete, in order."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

from chatterbox_opt import Sampling
from chatterbox_opt.errors import InputError, TextError

SAMPLING = Sampling(seed=4, max_tokens=30, cfm_steps=1)
TEXT = [
    "The fir",
    "st sentence is short. ",
    "The second one",
    " has Dr. Smith in it. And",
    " a third.",
]


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory):
    """Of its own: it starts a thread, which the session's engine must not have."""
    from chatterbox_opt import Engine
    from chatterbox_opt.voices.store import VoiceStore

    store = VoiceStore(tmp_path_factory.mktemp("voices"))
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        yield engine


def texts_of(pieces) -> list[str]:
    return [piece.text for piece in pieces if piece.ends_chunk and piece.text]


@pytest.mark.parametrize("latency", ["chunk", "low"])
def test_sentences_are_synthesized_in_order(engine, latency):
    pieces = list(engine.pieces(iter(TEXT), None, SAMPLING, latency=latency))
    assert texts_of(pieces) == [
        "The first sentence is short.",
        "The second one has Dr. Smith in it.",
        "And a third.",
    ]
    again = np.concatenate(list(engine.stream(TEXT, None, SAMPLING, latency)))
    assert np.array_equal(again, np.concatenate([piece.samples for piece in pieces]))


def test_an_iterator_that_is_never_started_takes_no_text(engine):
    taken = []
    before = threading.active_count()
    for make in (engine.pieces, engine.stream):
        iterator = make((taken.append(word) or word for word in TEXT), None, SAMPLING)
        iterator.close()
    assert not taken and threading.active_count() == before and engine._loop._scheduler.idle


def test_the_first_sentence_is_heard_before_the_second_is_written(engine):
    heard = threading.Event()

    def writing():
        yield "The first sentence is short. The sec"
        assert heard.wait(20), "its sound is not there"
        yield "ond one."

    pieces = []
    for piece in engine.pieces(writing(), None, SAMPLING, latency="low"):
        pieces.append(piece)
        heard.set()
    assert texts_of(pieces) == ["The first sentence is short.", "The second one."]


def test_a_pause_of_the_writer_is_a_flush(engine):
    heard = threading.Event()

    def writing():
        yield "No full stop yet "
        yield None
        assert heard.wait(20)
        yield "and then the end."

    pieces = []
    for piece in engine.pieces(writing(), None, SAMPLING):
        pieces.append(piece)
        heard.set()
    assert texts_of(pieces) == ["No full stop yet.", "And then the end."]


def test_the_first_sentence_is_that_of_a_whole_text(engine):
    """The same seed and text: the same sound as from a text that is not in pieces."""
    [piece] = engine.pieces(["One sentence, ", "alone."], None, SAMPLING)
    assert piece == next(engine.pieces("One sentence, alone.", None, SAMPLING))


def test_errors_of_the_text_end_the_stream(engine):
    def failing():
        yield "A sentence. And "
        raise OSError("the writer broke")

    pieces = engine.pieces(failing(), None, SAMPLING)
    with pytest.raises(OSError, match="the writer broke"):
        list(pieces)
    with pytest.raises(TextError, match="the text is 5"):
        list(engine.pieces(["A sentence. ", 5], None, SAMPLING))
    with pytest.raises(TextError, match="no letter or digit|is empty"):
        list(engine.pieces(["?!", None], None, SAMPLING))
    with pytest.raises(InputError, match="latency"):
        engine.pieces(["A."], latency="x")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_iterator_is_raised_here(engine):
    def buggy():
        yield "A sentence. And more. "
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        list(engine.pieces(buggy(), None, SAMPLING))


def test_closing_ends_the_requests_and_the_thread(engine):
    def endless():
        while True:
            time.sleep(0.001)
            yield "One more sentence. "

    pieces = engine.pieces(endless(), None, SAMPLING, latency="low")
    next(pieces)
    pieces.close()
    end = time.monotonic() + 20
    while any(thread.name == "arriving text" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert engine.synthesize("Hello.", None, SAMPLING).tokens


def test_what_the_model_cannot_read_is_left_out_with_a_warning(caplog):
    from chatterbox_opt import Engine

    with (
        Engine.load("pico", "dev", device="cpu", watermark=False) as engine,
        caplog.at_level(logging.WARNING, "chatterbox_opt"),
    ):
        pieces = list(engine.pieces(["Hi. ", "谢谢。\n\n", "So long."], None, SAMPLING))
    assert texts_of(pieces) == ["Hi.", "So long."]
    assert any("is left out" in message for message in caplog.messages)
