"""Sound made in a thread beside T3: the same sound, nothing lost, nobody left behind.

Threads wait for each other by events, never by time: ``LIMIT`` only ends what would wait for ever.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import fake_graph_capture
from helpers.fake_graph_capture import capture
from helpers.faults import Failing, stage

from chatterbox_opt import Request, Sampling
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config.hardware import Hardware
from chatterbox_opt.config.plan import resolve
from chatterbox_opt.engine import build
from chatterbox_opt.engine.decode_graphs import CudaGraphBackend
from chatterbox_opt.engine.overlap import InlineRenderer, OverlappedRenderer, RenderJob, no_stream
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.t3_runner import T3Runner
from chatterbox_opt.errors import DeviceError
from chatterbox_opt.runtime.cuda import GraphCapturer, SideStream

TEXTS = ["Hello.", "Something else.", "A third one, a little longer.", "No!", "And one more."]
GROUP, SLOTS, LINES = 3, 4, 13
LIMIT = 60
FULL = torch.OutOfMemoryError("CUDA out of memory")


def requests(lines=LINES):
    """No two alike: knobs, seeds, lengths, and steps of the flow."""
    return [
        Request(
            str(i),
            TEXTS[i % len(TEXTS)],
            None,
            Sampling(
                seed=i,
                max_tokens=5 + i,
                cfm_steps=(2, 3, 2)[i % 3],
                cfg_weight=(0.5, 0.0)[i % 2],
                temperature=(0.8, 0.0, 1.5)[i % 3],
            ),
        )
        for i in range(lines)
    ]


def begin(engine, sound, guard=None, lines=LINES):
    """A batch under way."""
    engine.pipeline.sound, engine.pipeline.group = sound, GROUP
    engine.plan = replace(engine.plan, slots=SLOTS)
    return engine.batch(requests(lines), guard)


def batch(engine, sound, guard=None):
    """Waves by id, or the error."""
    results = {r.id: r.error or r.audio().samples for r in begin(engine, sound, guard)}
    assert set(results) == {str(i) for i in range(LINES)}
    assert left() == []
    return results


def left():
    """Threads that should be gone."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("sound")]


def same(ours, expected):
    return all(np.array_equal(ours[id], wave) for id, wave in expected.items())


def aside():
    """Whether this is the thread beside T3."""
    return threading.current_thread().name.startswith("sound")


@contextmanager
def around(monkeypatch, module, method, before):
    """Have ``before`` called whenever the method is."""
    plain = getattr(module, method)

    def call(*args, **kwargs):
        before(*args)
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, method, call)
        yield


class Meeting:
    """T3 in its second turn, and the first sound: each waits in its work for the other."""

    def __init__(self, limit=LIMIT):
        self.t3, self.sound, self.turns, self.limit = *(threading.Event() for _ in "ab"), 0, limit
        self.met = []

    def turn(self, *_):
        self.turns += 1

    def step(self, *_):
        if self.turns == 2:
            self.t3.set()
            self.met.append(self.sound.wait(self.limit))

    def work(self, *_):
        self.sound.set()
        self.met.append(self.t3.wait(self.limit))

    @contextmanager
    def __call__(self, monkeypatch, engine):
        with (
            around(monkeypatch, T3Runner, "turn", self.turn),
            around(monkeypatch, stage(engine, "t3"), "step", self.step),
            around(monkeypatch, stage(engine, "flow"), "forward", self.work),
        ):
            yield


@pytest.fixture
def engine(load):  # noqa: F811
    with load() as engine:
        yield engine


@pytest.fixture
def expected(engine):
    return batch(engine, InlineRenderer())


# -- the same


@pytest.mark.parametrize("retries", [None, 2])
def test_every_line_sounds_the_same_bit_by_bit(engine, monkeypatch, retries):
    guard, threads = None if retries is None else Guard(retries), []
    expected = batch(engine, InlineRenderer(), guard)
    flow = stage(engine, "flow")
    with around(monkeypatch, flow, "forward", lambda *_: threads.append(aside())):
        assert same(batch(engine, OverlappedRenderer(), guard), expected)
    assert threads and all(threads), "all of it was made beside T3"


def test_recorded_work_sounds_the_same(engine):
    """Both stages replay, and record, in two threads at once."""
    capture(engine, fake_graph_capture.record)
    expected = [batch(engine, InlineRenderer()) for _ in range(3)][-1]
    for _ in range(2):
        assert same(batch(engine, OverlappedRenderer()), expected)
    capture(engine, fake_graph_capture.record)
    for _ in range(3):
        assert same(batch(engine, OverlappedRenderer()), expected)
    assert isinstance(engine.pipeline.backend, CudaGraphBackend)


def test_lines_said_again_are_taken_in_the_same_run_and_at_the_same_place(engine, monkeypatch):
    runs, takes = [], []
    plain = T3Runner._utterance

    def utterance(reader, line, t3):
        takes[-1].append(line.seed)
        return plain(reader, line, t3)

    monkeypatch.setattr(T3Runner, "_utterance", utterance)
    with around(monkeypatch, engine.pipeline, "speak", lambda *_: runs.append(1)):
        for _ in range(3):
            takes.append([])
            batch(engine, OverlappedRenderer(), Guard(1))
    assert len(runs) == 3, "there was nothing left over to begin another run for"
    assert len(takes[0]) > LINES
    assert takes[0] == takes[1] == takes[2], "threads' speed decides nothing"


def test_results_come_group_by_group_while_t3_goes_on(engine, monkeypatch):
    turns = []
    with around(monkeypatch, T3Runner, "turn", lambda *_: turns.append(1)):
        seen = [(result.id, len(turns)) for result in begin(engine, OverlappedRenderer())]
    assert [turn for _, turn in seen[:GROUP]] == [2] * GROUP, "the first when the second is read"
    assert sorted({turn for _, turn in seen}) == [2, 3, 4, 5, 6]


def test_another_text_may_be_spoken_between_two_results(engine, expected):
    alone = engine.synthesize("Alone.", None, Sampling(seed=4, max_tokens=9)).samples
    found = {}
    for result in begin(engine, OverlappedRenderer()):
        found[result.id] = result.audio().samples
        again = engine.synthesize("Alone.", None, Sampling(seed=4, max_tokens=9)).samples
        assert np.array_equal(again, alone)
    assert same(found, expected)


# -- beside


def test_t3_and_sound_work_at_the_same_time(engine, monkeypatch, expected):
    meeting = Meeting()
    with meeting(monkeypatch, engine):
        assert same(batch(engine, OverlappedRenderer()), expected)
    assert len(meeting.met) > 2 and all(meeting.met)


def test_in_turn_they_do_not_meet(engine, monkeypatch):
    """Guards the test before: it can fail."""
    meeting = Meeting(limit=0.01)
    with meeting(monkeypatch, engine):
        next(begin(engine, InlineRenderer()))
    assert meeting.met[0] is False


def test_at_most_one_group_is_in_other_hands(engine, monkeypatch):
    ahead, most, working = [0], [0], []
    plain = T3Runner.turn

    def turn(reader, take, count):
        assert sum(working) <= 1
        ended = plain(reader, take, count)
        ahead[0] += len(ended)
        most[0] = max(most[0], ahead[0])
        return ended

    monkeypatch.setattr(T3Runner, "turn", turn)
    with around(monkeypatch, stage(engine, "vocoder"), "forward", lambda *_: working.append(0)):
        for _ in begin(engine, OverlappedRenderer()):
            ahead[0] -= 1
    assert most[0] <= 2 * GROUP, "one group that is read, one whose sound is made"


def test_a_group_is_given_when_the_one_before_has_been_fetched():
    happened, go = [], threading.Event()

    def first():
        assert go.wait(LIMIT)
        happened.append("first made")
        return [("a", 1)]

    def second():
        happened.append("second begun")
        return [("b", 2)]

    with OverlappedRenderer().run(lambda: True) as turns:
        assert not turns.busy
        assert list(turns.next([RenderJob(first, list)])) == []
        assert turns.busy
        go.set()
        assert list(turns.next([RenderJob(second, list)])) == [("a", 1)]
        assert list(turns.next(())) == [("b", 2)]
        assert not turns.busy
    assert happened == ["first made", "second begun"]
    assert left() == []


@pytest.mark.parametrize("reason", ["one slot", "stages move"])
def test_it_is_not_for_one_slot_nor_for_stages_that_move(engine, monkeypatch, reason):
    threads, pipeline = [], engine.pipeline
    begin(engine, OverlappedRenderer())
    with around(monkeypatch, stage(engine, "flow"), "forward", lambda *_: threads.append(aside())):
        if reason == "one slot":
            engine.synthesize("Hello. And again.", None, Sampling(seed=1, max_tokens=9))
        else:
            pipeline.placement.offload = "stages"
            batch(engine, pipeline.sound)
    assert threads and not any(threads)


@pytest.mark.parametrize("mode", [False, True])
def test_inference_mode_comes_along(mode):
    seen = []

    def attempt():
        seen.append(torch.is_inference_mode_enabled())
        return []

    with OverlappedRenderer().run(lambda: True) as turns, torch.inference_mode(mode):
        assert list(turns.next([RenderJob(attempt, list)])) == []
        assert list(turns.next(())) == []
    assert seen == [mode]


# -- failures


@pytest.mark.parametrize("name", ["flow", "vocoder"])
def test_a_failure_of_one_line_stays_that_lines(engine, monkeypatch, expected, name):
    frames = {id: len(wave) // 480 for id, wave in expected.items()}
    odd = next(id for id in frames if [*frames.values()].count(frames[id]) == 1)

    def picky(given, *_):
        lengths = [2 * len(one) if name == "flow" else one.shape[-1] for one in given]
        if frames[odd] in lengths:
            raise ValueError("an odd line")

    with around(monkeypatch, stage(engine, name), "forward", picky):
        for sound in (OverlappedRenderer(), InlineRenderer()):
            found = batch(engine, sound)
            error = found.pop(odd)
            assert isinstance(error, ValueError) and "odd" in str(error)
            assert same(found, {id: wave for id, wave in expected.items() if id != odd})
            assert not getattr(sound, "over", False), "it is no reason to go on in turn"


@pytest.mark.parametrize("name", ["flow", "vocoder"])
@pytest.mark.parametrize(("times", "offload"), [(1, "none"), (2, "stages"), (3, "all-but-active")])
def test_out_of_memory_beside_t3_goes_on_in_turn_and_then_down_the_ladder(
    engine, monkeypatch, expected, caplog, name, times, offload
):
    module, sound, threads = stage(engine, name), OverlappedRenderer(), []
    failing = Failing(module.forward, FULL, times)
    monkeypatch.setattr(module, "forward", lambda *a: threads.append(aside()) or failing(*a))
    with caplog.at_level(logging.WARNING, "chatterbox_opt"):
        assert same(batch(engine, sound), expected)
        assert engine.pipeline.placement.offload == offload
        assert same(batch(engine, sound), expected)
    assert sound.over and threads[0] and not any(threads[2:])
    assert caplog.text.count("no memory for sound beside t3") == 1


def test_out_of_memory_of_t3_first_gets_the_room_of_the_sound(
    engine, monkeypatch, expected, caplog
):
    meeting, sound, failures = Meeting(), OverlappedRenderer(), []

    def full(*_):
        if meeting.turns == 2 and not failures:
            failures.append(meeting.sound.is_set())
            raise FULL

    with (
        caplog.at_level(logging.WARNING, "chatterbox_opt"),
        around(monkeypatch, stage(engine, "t3"), "step", full),
        meeting(monkeypatch, engine),  # so that the sound is in work when T3 fails
    ):
        assert same(batch(engine, sound), expected)
    assert failures == [True] and sound.over
    assert engine.pipeline.placement.offload == "none"
    assert "slots" not in caplog.text, "as many lines at once as before"


def test_stages_move_only_when_nobody_works_beside(engine, monkeypatch, expected):
    """T3 has no room at all, again and again, from its second turn on."""
    meeting, working, moved, failures = Meeting(), [], [], []

    def full(*_):
        if meeting.turns == 2 and len(moved) < 2:
            failures.append(1)
            assert len(failures) < 50, "it goes in circles"
            raise FULL

    placement = engine.pipeline.placement
    plain = stage(engine, "vocoder").forward

    def vocode(*args):
        working.append(1)
        made = plain(*args)
        working.pop()
        return made

    monkeypatch.setattr(stage(engine, "vocoder"), "forward", vocode)
    with (
        around(monkeypatch, placement, "offload_more", lambda: moved.append(list(working))),
        around(monkeypatch, stage(engine, "t3"), "step", full),
        meeting(monkeypatch, engine),
    ):
        assert same(batch(engine, OverlappedRenderer()), expected)
    assert moved == [[], []]
    assert placement.offload == "all-but-active"


def test_moving_waits_for_work_that_another_run_left_beside(engine, monkeypatch):
    begun, go, order = threading.Event(), threading.Event(), []

    def flow(*_):
        if aside() and not begun.is_set():
            begun.set()
            assert go.wait(LIMIT)
            order.append("worked")

    def more():
        go.set()
        engine.pipeline.recovery.out_of_memory("t3", torch.OutOfMemoryError("full"))
        order.append("moved")

    with around(monkeypatch, stage(engine, "flow"), "forward", flow):
        run = engine.pipeline.sound = OverlappedRenderer()
        with run.run(lambda: True) as turns:
            job = engine.pipeline._jobs(reads(engine), 0.0)[0]
            list(turns.next([job]))
            assert begun.wait(LIMIT)
            more()
            [(_, spoken)] = turns.next(())
    assert order == ["worked", "moved"]
    assert len(spoken.wave) == 480 * 2 * spoken.tokens, "what could not go on beside is done here"


def reads(engine):
    """One line that T3 has read."""
    attempts = engine._begin(None, requests(1)[0], 1)
    left = iter([attempts[0].next_request(), None])
    return next(engine.pipeline.read(left.__next__, 1, 1, guided=True))


@pytest.mark.parametrize("name", ["flow", "vocoder"])
def test_what_is_not_finite_in_half_is_made_in_float32_while_t3_waits(
    load,  # noqa: F811
    monkeypatch,
    caplog,
    name,
):
    with load(dtype="bfloat16") as half:
        flow, threads, used = stage(half, "flow"), [], []
        solve, decode = flow.solve, stage(half, "vocoder").decode

        def overflowing(noise, *rest):
            used.append(flow.dtype)
            made = solve(noise, *rest)
            bad = name == "flow" and noise.shape[1] % 4 == 0 and flow.dtype == torch.bfloat16
            return made * torch.nan if bad else made

        def choking(mels, *rest):
            waves = decode(mels, *rest)
            bad = name == "vocoder" and used[-1] == torch.bfloat16 and mels[0].shape[1] % 4 == 0
            return [w * torch.nan for w in waves] if bad else waves

        monkeypatch.setattr(flow, "solve", overflowing)
        monkeypatch.setattr(stage(half, "vocoder"), "decode", choking)
        with around(monkeypatch, flow, "set_precision", lambda *_: threads.append(aside())):
            expected = batch(half, InlineRenderer())
            healed = len(threads)
            sound = OverlappedRenderer()
            assert same(batch(half, sound), expected)
        assert all(np.isfinite(wave).all() for wave in expected.values())
        assert healed and len(threads) == 2 * healed and not any(threads)
        assert flow.dtype == torch.bfloat16 and not sound.over
    assert caplog.text.count("in float32") == 1


# -- the end


def test_a_consumer_that_stops_early_leaves_no_thread(engine, monkeypatch, expected):
    meeting = Meeting()
    with meeting(monkeypatch, engine):
        results = begin(engine, OverlappedRenderer())
        next(results)
        assert len(left()) == 1, "the next group is in work"
        results.close()
        assert left() == []
    assert same(batch(engine, OverlappedRenderer()), expected), "and nothing is spoilt"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, AssertionError])
def test_an_interruption_leaves_no_thread(engine, monkeypatch, expected, error):
    meeting = Meeting()

    def interrupt(*_):
        if meeting.turns == 2:
            raise error

    with around(monkeypatch, stage(engine, "t3"), "step", interrupt), meeting(monkeypatch, engine):
        with pytest.raises(error):
            list(begin(engine, OverlappedRenderer()))
    assert meeting.sound.is_set()
    assert left() == []
    assert same(batch(engine, OverlappedRenderer()), expected), "and nothing is spoilt"


@pytest.mark.parametrize("sound", [InlineRenderer(), OverlappedRenderer()])
def test_what_is_read_is_made_before_a_failure_of_no_line_is_raised(engine, monkeypatch, sound):
    turns, heard = [], []

    def turn(*_):
        turns.append(1)
        if len(turns) == 3:
            raise DeviceError("the card is gone")

    with around(monkeypatch, T3Runner, "turn", turn), pytest.raises(DeviceError, match="gone"):
        heard.extend(result.id for result in begin(engine, sound))
    # extend() keeps what came before the error
    assert len(heard) == 2 * GROUP
    assert left() == []


def test_what_failed_beside_is_done_again_when_nobody_works_there():
    healing, happened = threading.Event(), []

    def bad():
        raise ValueError("not beside")

    def slow():
        assert not healing.wait(0.05), "the other is done again meanwhile"
        happened.append("the second made")
        return [("b", 2)]

    def whole():
        healing.set()
        happened.append("the first again")
        return [("a", 1)]

    with OverlappedRenderer().run(lambda: True) as turns:
        list(turns.next([RenderJob(bad, whole), RenderJob(slow, list)]))
        assert list(turns.next(())) == [("a", 1), ("b", 2)], "in the order they were given"
    assert happened == ["the second made", "the first again"]


def test_after_the_end_all_is_made_at_once_and_here(caplog):
    sound = OverlappedRenderer()
    for _ in range(2):
        sound.end()
        with sound.run(lambda: True) as turns:
            job = RenderJob(lambda: [("beside", 0)], lambda: [("here", 0)])
            assert list(turns.next([job])) == [("here", 0)]
            assert not turns.busy
    assert caplog.text.count("no memory for sound") == 1


def test_a_bug_beside_is_raised_here(engine, monkeypatch):
    def bug(*_):
        assert not aside(), "a bug"

    with around(monkeypatch, stage(engine, "flow"), "forward", bug):
        with pytest.raises(AssertionError, match="a bug"):
            list(begin(engine, OverlappedRenderer()))
    assert left() == []


def test_closing_the_engine_waits_for_the_work_beside(engine, monkeypatch):
    begun, closing, order = threading.Event(), threading.Event(), []
    ladder, job = engine.pipeline.recovery, engine.pipeline._jobs(reads(engine), 0.0)[0]

    class Door:
        """The lock, and whether somebody stands before it."""

        lock = ladder.alone

        def __enter__(self):
            closing.set()
            self.lock.acquire()

        def __exit__(self, *error):
            self.lock.release()

    def flow(*_):
        begun.set()
        assert closing.wait(LIMIT)
        order.append("worked")

    def close():
        order.append("closed")
        closing.set()

    with (
        around(monkeypatch, stage(engine, "flow"), "forward", flow),
        around(monkeypatch, engine.pipeline.placement, "close", close),
        OverlappedRenderer().run(lambda: True) as turns,
    ):
        assert list(turns.next([job])) == []
        assert begun.wait(LIMIT)
        monkeypatch.setattr(ladder, "alone", Door())
        engine.close()
    assert order == ["worked", "closed"]
    assert left() == []


# -- the plan


@pytest.mark.parametrize(
    ("sound", "offload", "kind"),
    [
        ("beside", "none", OverlappedRenderer),
        ("here", "none", InlineRenderer),
        ("beside", "stages", InlineRenderer),
    ],
)
def test_the_plan_says_who_makes_the_sound(tiny, monkeypatch, sound, offload, kind):
    """Also where the card was found to have no room for all stages when they were loaded."""
    monkeypatch.setattr(build, "SideStream", lambda device: no_stream)
    planned = replace(
        resolve("dev", Hardware("cpu", "some processor"), {}, {}), sound=sound, offload=offload
    )
    pipeline = build.load_pipeline(registry.locate(str(tiny)), planned)
    assert type(pipeline.sound) is kind
    pipeline.close()


@pytest.mark.parametrize("beside", [True, False])
def test_the_flow_is_recorded_apart_only_where_it_works_beside_t3(monkeypatch, beside):
    class Recorder:
        def __init__(self, device):
            self.device = device

        def apart(self):
            return "another"

    monkeypatch.setattr(build, "GraphCapturer", Recorder)
    flow = torch.nn.Identity()
    card = SimpleNamespace(device=torch.device("cuda"), module=lambda name: flow)
    planned = replace(
        resolve("dev", Hardware("cpu", "some processor"), {}, {}), compile="cudagraphs"
    )
    way = build._decode_backend(planned, card, beside=beside)
    assert (flow.executor._recordings._record is way._recordings._record) is not beside


# -- what a card is told


class Told:
    """Stands for a stream or an event."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __getattr__(self, method):
        def call(*args):
            self.calls.append(" ".join([self.name, method, *(a.name for a in args)]))
            return Told("event", self.calls)

        return call


class Graph:
    """Stands for a CUDA graph."""

    def __init__(self):
        self.pool = None

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local", "the other thread goes on using the card"
        self.pool = pool

    def capture_end(self):
        pass

    def replay(self):
        assert self.turn.locked()


@pytest.fixture
def told(monkeypatch):
    calls, pools, streams = [], iter(range(9)), iter("ABCDEF")

    @contextmanager
    def on(stream):
        calls.append(f"on {stream.name}")
        yield
        calls.append(f"off {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Told(next(streams), calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Told("current", calls))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    return calls


@pytest.mark.parametrize("error", [None, FULL])
def test_work_beside_begins_after_what_was_launched_and_has_ended_when_it_returns(told, error):
    lane = SideStream(torch.device("cuda"))

    def work():
        told.append("work")
        if error:
            raise error
        return 7

    given = lane(work)
    assert told == ["current record_event"], "by the giver, for the giver's stream"
    if error:
        with pytest.raises(torch.OutOfMemoryError):
            given()
        assert told[1:] == ["on A", "A wait_event event", "work", "A synchronize"]
    else:
        assert given() == 7
        assert told[1:] == ["on A", "A wait_event event", "work", "A synchronize", "off A"]


def test_recorders_of_two_threads_share_no_memory_and_take_turns(told, monkeypatch):
    graphs = []
    for nothing in ("_little", "_library_handles"):
        monkeypatch.setattr(GraphCapturer, nothing, lambda recorder: None)
    t3 = GraphCapturer(torch.device("cuda"))
    flow = t3.apart()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(Graph()) or graphs[-1])
    for one, other in ((t3, flow), (flow, t3)):
        Graph.turn = other._one_at_a_time
        replay = one(lambda: told.append("recorded" if Graph.turn.locked() else "not alone"))
        assert not Graph.turn.locked()
        replay()
    assert "not alone" not in told and told.count("recorded") == 2
    t3s, flows = (first.pool for first in (graphs[0], graphs[2]))
    assert t3s != flows and [graph.pool for graph in graphs] == [t3s, t3s, flows, flows]
    assert told.count("on A") == told.count("on B") == 4, "each has one that stays"
