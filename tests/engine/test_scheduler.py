"""The scheduler: one loop for all requests, fair admission, cancellation at every status."""

from __future__ import annotations

import re
import sys
import threading

import numpy as np
import pytest
from helpers.common import ROOT
from helpers.faults import stage

from chatterbox_opt import Request, Sampling
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.rendering.renderer import Renderer, no_stream
from chatterbox_opt.engine.scheduler import Scheduler
from chatterbox_opt.engine.sequence import Capacity, RequestState, Sequence, Status
from chatterbox_opt.errors import RequestCancelledError
from chatterbox_opt.request import Piece, Result
from chatterbox_opt.text.chunking import Chunk

SENTENCE = "A sentence of about forty characters, it is. "
LIMIT = 60


@pytest.fixture
def engine(load):
    with load() as engine:
        yield engine


@pytest.fixture
def scheduler(engine):
    return Scheduler(engine.pipeline, None, overlap=False)


def request(engine, id: str, text: str = "Hello.", slots: int = 2, group: int = 1, **knobs):
    sampling = Sampling(**({"seed": 3, "max_tokens": 6, "cfm_steps": 1} | knobs))
    return engine._requests.of(Request(id, text, None, sampling), Capacity(slots, group=group))


def finish(scheduler: Scheduler) -> None:
    """Step until no request is left."""
    while not scheduler.idle:
        scheduler.step()


def events(state: RequestState) -> list[Piece | Result]:
    found = []
    while (event := state.events.poll()) is not None:
        found.append(event[1])
    return found


def samples(state: RequestState) -> np.ndarray:
    *pieces, result = events(state)
    assert isinstance(result, Result) and result.error is None
    return np.concatenate([piece.samples for piece in pieces])


# --- the life of a request ----------------------------------------------------------------------


def test_a_request_lives_as_the_architecture_says(engine):
    """Every function of its steps is called, and the steps begin in their order."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    life = page.split("## The life of a request")[1].split("\n## ")[0]
    steps = [re.findall(r"`([a-z_0-9/]+\.py):(\w+)`", s) for s in re.split(r"\n\d+\. ", life)[1:]]
    assert len(steps) <= 10 and all(steps)
    on_gpus = {("models/t3/sampler.py", "sample"), ("kernels/cuda/decode_io.py", "sample_tokens")}
    called: list[tuple[str, str]] = []

    def profile(frame, event, _):
        if event == "call":
            called.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(profile)
    try:
        [piece] = engine.pieces(
            "Hello.", None, Sampling(seed=1, max_tokens=6, cfm_steps=1), guard=Guard(0)
        )
    finally:
        sys.setprofile(None)
    assert piece.tokens
    first = []
    for named in steps:
        at = [
            next((i for i, (file, name) in enumerate(called)
                  if name == function and file.endswith(f"chatterbox_opt/{path}")), None)
            for path, function in named
            if (path, function) not in on_gpus
        ]  # fmt: skip
        assert None not in at, named
        first.append(min(at))
    assert first == sorted(first)


# --- admission ----------------------------------------------------------------------------------


def test_a_long_text_does_not_hold_up_a_short_one(engine, scheduler):
    long, short = request(engine, "long", 60 * SENTENCE), request(engine, "short")
    assert len(long.sequences) > 7
    scheduler.add(long)
    scheduler.step()
    scheduler.add(short)
    while short.result is None:
        scheduler.step()
    assert long.result is None
    done = sum(sequence.status is Status.DONE for sequence in long.sequences)
    assert done <= 3, "the two that had the slots, and at most one more"
    finish(scheduler)
    assert np.array_equal(samples(long), samples_alone(engine, "long", 60 * SENTENCE))
    assert np.array_equal(samples(short), samples_alone(engine, "short"))


def samples_alone(engine, id: str, text: str = "Hello.", **knobs) -> np.ndarray:
    alone = Scheduler(engine.pipeline, None, overlap=False)
    state = request(engine, id, text, slots=1, **knobs)
    alone.add(state)
    finish(alone)
    return samples(state)


def test_requests_alternate_and_each_gives_its_oldest_sequence(engine, scheduler, monkeypatch):
    admitted, plain = [], engine.pipeline.admit

    def admit(sequence):
        taken = plain(sequence)
        if taken:
            admitted.append((sequence.request.id, sequence.index))
        return taken

    monkeypatch.setattr(engine.pipeline, "admit", admit)
    for id, count in (("a", 3), ("b", 1), ("c", 2)):
        state = RequestState(id, 1, Capacity(2))
        chunk = Chunk("Hello.")
        state.add_chunks(
            [chunk] * count, engine.voice(), Sampling(seed=1, max_tokens=3, cfm_steps=1)
        )
        scheduler.add(state)
    finish(scheduler)
    assert admitted == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1), ("a", 2)]


def test_requests_of_other_capacity_wait_for_empty_slots(engine, scheduler):
    """One row per sequence has no room for guidance: no request starves, none is wrong."""
    alone = [samples_alone(engine, "x", seed=seed, cfg_weight=cfg)
             for seed, cfg in ((1, 0.0), (2, 0.5), (3, 0.0))]  # fmt: skip
    states = []
    for seed, cfg in ((1, 0.0), (2, 0.5), (3, 0.0)):
        sampling = Sampling(seed=seed, cfg_weight=cfg, max_tokens=6, cfm_steps=1)
        capacity = Capacity(1, use_cfg=cfg > 0)
        states.append(engine._requests.of(Request("x", "Hello.", None, sampling), capacity))
        scheduler.add(states[-1])
        scheduler.step()
    finish(scheduler)
    for state, expected in zip(states, alone, strict=True):
        assert np.array_equal(samples(state), expected)


# --- cancellation -------------------------------------------------------------------------------


def step_until(scheduler: Scheduler, sequence: Sequence, status: Status) -> None:
    for _ in range(100):
        if sequence.status is status:
            return
        scheduler.step()
    raise AssertionError(f"never {status}")


# what the request's last sequence is doing -> its status, slots, sequences rendered together
MOMENTS = {
    "waits for a slot": (Status.WAITING, 1, 1),
    "is decoded": (Status.DECODING, 3, 1),
    "waits for a group": (Status.RENDERING, 3, 3),
    "is rendered by the worker": (Status.RENDERING, 3, 1),
    "is decoded, another is done": (Status.DECODING, 2, 1),
    "is done": (Status.DONE, 3, 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_request_can_be_cancelled_at_every_status(engine, scheduler, monkeypatch, moment):
    """Its slots are free, it gets no more audio, and the other request is not changed."""
    status, slots, group = MOMENTS[moment]
    go, flow = threading.Event(), stage(engine, "flow").forward
    if "worker" in moment:
        engine.pipeline.renderer = Renderer(engine.pipeline.recovery, no_stream)
        monkeypatch.setattr(
            stage(engine, "flow"), "forward", lambda *a: go.wait(LIMIT) and flow(*a)
        )
    engine.pipeline.group = group
    knobs = {"slots": slots, "group": group}
    go.set()
    expected = samples_alone(engine, "other", seed=9, max_tokens=30)
    go.clear()
    other = request(engine, "other", seed=9, max_tokens=30, **knobs)
    text = 12 * SENTENCE if "another" in moment else "Hello."
    gone = request(engine, "gone", text, **knobs)
    scheduler.add(other)
    scheduler.step()
    scheduler.add(gone)
    step_until(scheduler, gone.sequences[-1], status)
    ended = gone.result is not None
    assert ended == (moment == "is done")
    for _ in range(2):  # the second does nothing
        scheduler.cancel(gone)
    go.set()
    before = len(events(gone))
    assert gone.result is not None and not any(
        sequence.request is gone for sequence in engine.pipeline.decoder.running
    )
    finish(scheduler)
    assert events(gone) == [], "nothing comes after the end"
    assert before == len(gone.sequences) + 1 if ended else before >= 1
    assert ended or isinstance(gone.result.error, RequestCancelledError)
    assert {one.status for one in gone.sequences} <= {Status.CANCELLED, Status.DONE}
    assert np.array_equal(samples(other), expected)
    scheduler.release()
    assert engine.pipeline.idle and not engine.pipeline.renderer.busy


def test_a_failed_request_frees_its_other_slots_at_once(engine, scheduler):
    """What is left of a text with a chunk that failed is not worth a slot."""

    def raising(_, progress):
        if progress.chunk == 1 and progress.tokens == 2:
            raise ValueError("an odd observer")

    state = request(engine, "odd", 12 * SENTENCE, slots=4, max_tokens=40)
    assert len(state.sequences) > 1
    state.on_progress = raising
    scheduler.add(state)
    finish(scheduler)
    assert str(events(state)[-1].error) == "an odd observer"
    assert engine.pipeline.decoder.running == []


@pytest.mark.parametrize("error", [TypeError("a bug"), KeyboardInterrupt()])
def test_a_bug_or_ctrl_c_ends_all_requests_and_the_engine_still_works(engine, monkeypatch, error):
    def hello():
        return engine.synthesize(
            "Hello.", None, Sampling(seed=1, max_tokens=6, cfm_steps=1)
        ).samples

    expected, left, plain = hello(), [error], stage(engine, "t3").step

    def step(*args):
        if left:
            raise left.pop()
        return plain(*args)

    suspended = engine.pieces(16 * SENTENCE, None, Sampling(seed=2, max_tokens=6, cfm_steps=1))
    next(suspended)
    monkeypatch.setattr(stage(engine, "t3"), "step", step)
    with pytest.raises(type(error)):
        hello()
    with pytest.raises((TypeError, RequestCancelledError)):
        list(suspended)
    assert np.array_equal(hello(), expected)
    assert engine.pipeline.idle


# --- memory -------------------------------------------------------------------------------------


def test_an_ended_request_holds_no_audio_and_no_tensors(engine, scheduler):
    state = request(engine, "a", 10 * SENTENCE)
    scheduler.add(state)
    finish(scheduler)
    assert len(events(state)) == len(state.sequences) + 1 > 2
    for one in state.sequences:
        assert one.status is Status.DONE and one.tokens
        assert one.audio is one.prompt is one.generator is one.best is None
        assert not one.generator_states
    assert not state.waiting and not state.finishing


def test_an_abandoned_iterator_frees_its_slots(engine):
    pieces = engine.pieces(20 * SENTENCE, None, Sampling(seed=1, max_tokens=6, cfm_steps=1))
    next(pieces)
    pieces.close()
    assert engine.pipeline.idle and engine.pipeline.decoder._batch is None
    results = engine.batch(Request(str(i), SENTENCE, None, Sampling(seed=i, max_tokens=6, cfm_steps=1))
                           for i in range(9))  # fmt: skip
    next(results)
    results.close()
    assert engine.pipeline.idle and engine.pipeline.decoder._batch is None


# --- several callers ----------------------------------------------------------------------------


def test_plain_calls_of_several_threads_give_their_own_audio(engine):
    texts = ["Hello.", "Something else.", "A third one.", "And a fourth."]
    expected = {
        t: engine.synthesize(t, None, Sampling(seed=7, max_tokens=9, cfm_steps=1)).samples
        for t in texts
    }
    found, start = {}, threading.Barrier(len(texts))

    def call(text):
        start.wait(LIMIT)
        found[text] = [engine.synthesize(text, None, Sampling(seed=7, max_tokens=9, cfm_steps=1)).samples
                       for _ in range(3)]  # fmt: skip

    threads = [threading.Thread(target=call, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for text in texts:
        assert all(np.array_equal(one, expected[text]) for one in found[text])


def test_two_iterators_of_one_thread_are_interleaved(engine):
    def pieces(seed):
        return engine.pieces(16 * SENTENCE, None, Sampling(seed=seed, max_tokens=6, cfm_steps=1))

    expected = [[p.samples for p in pieces(seed)] for seed in (1, 2)]
    found = list(zip(pieces(1), pieces(2), strict=True))
    for i in (0, 1):
        assert all(np.array_equal(both[i].samples, wave)
                   for both, wave in zip(found, expected[i], strict=True))  # fmt: skip


# --- streams ----------------------------------------------------------------------------------


def stream(engine, id: str, text: str = "Hello.", slots: int = 4, **knobs) -> RequestState:
    state = request(engine, id, text, slots, **knobs)
    state.hops = HopSchedule((2,), held_back=1)
    return state


def test_a_stream_has_few_chunks_in_work_and_the_next_when_one_was_emitted(engine, scheduler):
    state = stream(engine, "long", SENTENCE * 20, seed=1)
    assert len(state.sequences) > 3
    scheduler.add(state)
    while not scheduler.idle:
        scheduler.step()
        in_work = [s.index for s in state.sequences if s.status is Status.DECODING]
        assert len(in_work) <= 2 and all(i <= state.emitted[0] + 1 for i in in_work)
    pieces = events(state)[:-1]
    assert sum(piece.ends_chunk for piece in pieces) == len(state.sequences)


def test_a_whole_request_takes_all_slots_as_before(engine, scheduler):
    state = request(engine, "whole", SENTENCE * 20, 4)
    scheduler.add(state)
    scheduler.step()
    assert sum(s.status is not Status.WAITING for s in state.sequences) == 4


def test_the_part_that_playback_needs_first_is_rendered_first(engine, scheduler, monkeypatch):
    """On a CPU one part at a time: a new stream before one whose listener has enough."""
    rendered: list[str] = []
    submit = Renderer.submit

    def noted(self, groups, *, overlap):
        groups = list(groups)
        rendered.extend(one.request.id for group in groups for one in group.sequences)
        return submit(self, groups, overlap=overlap)

    monkeypatch.setattr(Renderer, "submit", noted)
    assert engine.pipeline.group == 1
    first, second = stream(engine, "first"), stream(engine, "second", seed=4)
    second.added = first.added + 1  # a clear order
    for state in (first, second):
        scheduler.add(state)
    while first.first_audio is None or second.first_audio is None:
        scheduler.step()
    assert rendered[:2] == ["first", "second"], "not two parts of the first"
    second.first_audio -= 1000  # its listener has waited long; the other's has enough
    del rendered[:]
    while not rendered:
        scheduler.step()
    assert rendered[0] == "second"
    finish(scheduler)
    assert all(len(samples(state)) for state in (first, second))
