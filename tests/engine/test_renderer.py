"""Rendering on a thread overlapped with T3: the same audio, no lost result, no leaked thread.

Threads wait for each other by events, never by time: ``LIMIT`` only ends a deadlock.
"""

from __future__ import annotations

import gc
import logging
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import fake_graph_capture
from helpers.fake_graph_capture import capture_graphs
from helpers.faults import FaultInjector, stage
from helpers.t3 import sequence_of

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config.hardware import Hardware
from chatterbox_opt.config.plan import resolve
from chatterbox_opt.engine import build
from chatterbox_opt.engine.decoding.decode_graphs import CudaGraphBackend
from chatterbox_opt.engine.decoding.decoder import Decoder
from chatterbox_opt.engine.quality import Guard
from chatterbox_opt.engine.rendering.renderer import Renderer, no_stream
from chatterbox_opt.engine.rendering.work import whole_groups
from chatterbox_opt.engine.sequence import Capacity, Sequence, Status
from chatterbox_opt.errors import DeviceError
from chatterbox_opt.runtime.cuda import GraphCapturer, SideStream
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.runtime.recovery import RecoveryPolicy
from chatterbox_opt.voices.store import VoiceStore

TEXTS = ["Hello.", "Something else.", "A third one, a little longer.", "No!", "And one more."]
GROUP, SLOTS, LINES = 3, 4, 10
LIMIT = 60
FULL = torch.OutOfMemoryError("CUDA out of memory")
PLAIN = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
OVERLAPPED, INLINE = no_stream, None  # the stream of a renderer


def requests(lines=LINES):
    """No two alike: sampling parameters, seeds, lengths, and steps of the flow."""
    return [
        Request(
            str(i),
            TEXTS[i % len(TEXTS)],
            None,
            Sampling(
                seed=i,
                max_tokens=5 + i,
                cfm_steps=(1, 2, 1)[i % 3],
                cfg_weight=(0.5, 0.0)[i % 2],
                temperature=(0.8, 0.0, 1.5)[i % 3],
            ),
        )
        for i in range(lines)
    ]


def begin(engine, stream, guard=None, lines=LINES):
    """A running batch."""
    engine.pipeline.renderer = Renderer(engine.pipeline.recovery, stream)
    engine.pipeline.group = GROUP
    engine.plan = replace(engine.plan, slots=SLOTS)
    return engine.batch(requests(lines), guard)


def batch(engine, stream, guard=None):
    """Audio by id, or the error."""
    return collect(begin(engine, stream, guard))


def again(engine):
    """As ``batch``, with the renderer of the last one."""
    return collect(engine.batch(requests()))


def collect(results):
    results = {r.id: r.error or r.audio().samples for r in results}
    assert set(results) == {str(i) for i in range(LINES)}
    assert worker_threads() == []
    return results


def worker_threads():
    """Worker threads that are still alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("render")]


def same(ours, expected):
    return all(np.array_equal(ours[id], wave) for id, wave in expected.items())


def on_worker():
    """Whether this is the worker thread."""
    return threading.current_thread().name.startswith("render")


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


class Rendezvous:
    """T3 with its second group, and the first rendering: each waits for the other while working."""

    def __init__(self, limit=LIMIT):
        self.t3, self.sound, self.runs, self.limit = *(threading.Event() for _ in "ab"), 1, limit
        self.met = []

    def run(self, *_):
        self.runs += 1

    def step(self, *_):
        if self.runs == 2:
            self.t3.set()
            self.met.append(self.sound.wait(self.limit))

    def work(self, *_):
        self.sound.set()
        self.met.append(self.t3.wait(self.limit))

    @contextmanager
    def __call__(self, monkeypatch, engine):
        with (
            around(monkeypatch, Renderer, "submit", self.run),
            around(monkeypatch, stage(engine, "t3"), "step", self.step),
            around(monkeypatch, stage(engine, "flow"), "forward", self.work),
        ):
            yield


@pytest.fixture
def engine(load):
    with load() as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    store = VoiceStore(tmp_path_factory.mktemp("voices"))
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        return batch(engine, INLINE)


# -- equal results


@pytest.mark.parametrize("retries", [None, 2])
def test_overlapped_audio_is_bit_identical(engine, monkeypatch, retries):
    guard, threads = None if retries is None else Guard(retries), []
    expected = batch(engine, INLINE, guard)
    flow = stage(engine, "flow")
    with around(monkeypatch, flow, "forward", lambda *_: threads.append(on_worker())):
        assert same(batch(engine, OVERLAPPED, guard), expected)
    assert threads and all(threads), "all of it was rendered on the worker"


@pytest.mark.slow  # test_on_simulated_gpu.py has overlapped graphs too
def test_overlapped_graphs_give_bit_identical_audio(engine):
    """Two threads replay, and capture, at the same time."""
    capture_graphs(engine, fake_graph_capture.record)
    expected = [batch(engine, INLINE) for _ in range(3)][-1]
    assert same(batch(engine, OVERLAPPED), expected)
    capture_graphs(engine, fake_graph_capture.record)
    for _ in range(3):
        assert same(batch(engine, OVERLAPPED), expected)
    assert isinstance(engine.pipeline.decoder.backend, CudaGraphBackend)


def test_retries_enter_at_the_same_step_and_position(engine, monkeypatch):
    seeds = []

    def admit(decoder, sequence):
        seeds[-1].append((steps.count(0), sequence.seed))

    steps = []
    with (
        around(monkeypatch, Decoder, "_prompt", admit),
        around(monkeypatch, Decoder, "step", lambda *_: steps.append(0)),
    ):
        for _ in range(3):
            steps.clear()
            seeds.append([])
            batch(engine, OVERLAPPED, Guard(1))
    assert len(seeds[0]) > LINES
    assert seeds[0] == seeds[1] == seeds[2], "independent of the threads' speed"


def test_results_come_group_by_group_while_t3_continues(engine, monkeypatch):
    runs = []
    with around(monkeypatch, Renderer, "submit", lambda *_, **__: runs.append(1)):
        seen = [(result.id, len(runs)) for result in begin(engine, OVERLAPPED)]
    assert [run for _, run in seen[:GROUP]] == [2] * GROUP, (
        "the first group when the second is decoded"
    )
    assert sorted({run for _, run in seen}) == [2, 3, 4]


def test_another_text_may_be_synthesized_between_two_results(engine, expected):
    alone = engine.synthesize("Alone.", None, Sampling(seed=4, max_tokens=9)).samples
    found = {}
    for result in begin(engine, OVERLAPPED):
        found[result.id] = result.audio().samples
        again = engine.synthesize("Alone.", None, Sampling(seed=4, max_tokens=9)).samples
        assert np.array_equal(again, alone)
    assert same(found, expected)


# -- overlap


def test_t3_and_rendering_run_at_the_same_time(engine, monkeypatch, expected):
    rendezvous = Rendezvous()
    with rendezvous(monkeypatch, engine):
        assert same(batch(engine, OVERLAPPED), expected)
    assert len(rendezvous.met) > 2 and all(rendezvous.met)


def test_inline_they_do_not_run_at_the_same_time(engine, monkeypatch):
    """Guards the test before: it can fail."""
    rendezvous = Rendezvous(limit=0.01)
    with rendezvous(monkeypatch, engine):
        next(begin(engine, INLINE))
    assert rendezvous.met[0] is False


def test_at_most_one_group_is_on_the_worker(engine, monkeypatch):
    submitted, started, peak = [], [], []

    def submit(renderer, groups, **_):
        peak.append(len(submitted) - len(started))
        submitted.extend(group.sequences[0].sampling.cfm_steps for group in groups)

    with (
        around(monkeypatch, Renderer, "submit", submit),
        around(monkeypatch, Renderer, "_run_stages", lambda *_: started.append(1)),
    ):
        batch(engine, OVERLAPPED)
    assert len(submitted) == len(started) and max(peak) <= 2, "two numbers of flow steps"


class Stub(torch.nn.Module):
    """A stage that is a function."""

    dtype = torch.float32

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def stub_renderer(flow, stream=OVERLAPPED):
    """A renderer whose flow is a function of the tokens, and whose vocoder returns its output."""
    stages = {
        "flow": Stub(lambda tokens, *_: [flow(int(one[0])) or one for one in tokens]),
        "vocoder": Stub(lambda mels, generators: mels),
    }
    placement = StagePlacement(stages, torch.device("cpu"), offload="none")
    return Renderer(RecoveryPolicy(placement), stream)


def decoded(*tokens: int) -> list[Sequence]:
    """One sequence per token, each with its own number of flow steps: no two in a group."""
    sequences = []
    for token in tokens:
        sampling = Sampling(cfm_steps=1 + len(sequences))
        sequences.append(sequence_of(None, sampling, tokens=[token], status=Status.RENDERING))
        sequences[-1].voice = SimpleNamespace(to=lambda device: None)
    return sequences


def rendered(sequences: list[Sequence]) -> list[int]:
    return [int(sequence.audio[0]) for sequence in sequences]


def test_a_group_starts_when_the_previous_one_was_collected():
    happened, go = [], threading.Event()

    def flow(token):
        assert token != 1 or go.wait(LIMIT)
        happened.append(token)

    renderer = stub_renderer(flow)
    assert not renderer.busy
    assert renderer.submit(whole_groups(decoded(1)), overlap=True) == []
    assert renderer.busy and not renderer.ready
    go.set()
    assert rendered(renderer.submit(whole_groups(decoded(2)), overlap=True)) == [1]
    assert rendered(renderer.collect()) == [2]
    assert not renderer.busy
    renderer.release()
    assert happened == [1, 2]
    assert worker_threads() == []


@pytest.mark.parametrize("reason", ["one slot", "stages move"])
def test_no_overlap_with_one_slot_or_offloaded_stages(engine, monkeypatch, reason):
    threads, pipeline = [], engine.pipeline
    begin(engine, OVERLAPPED)
    with around(
        monkeypatch, stage(engine, "flow"), "forward", lambda *_: threads.append(on_worker())
    ):
        if reason == "one slot":
            engine.synthesize("Hello. And again.", None, Sampling(seed=1, max_tokens=9))
        else:
            pipeline.placement.offload = "stages"
            again(engine)
    assert threads and not any(threads)


def test_the_worker_runs_in_inference_mode():
    seen = []
    renderer = stub_renderer(lambda token: seen.append(torch.is_inference_mode_enabled()))
    renderer.submit(whole_groups(decoded(1)), overlap=True)
    renderer.collect()
    renderer.release()
    assert seen == [True]


# -- failures


@pytest.mark.parametrize("name", ["flow", "vocoder"])
def test_one_requests_failure_does_not_affect_others(engine, monkeypatch, expected, name):
    frames = {id: len(wave) // 480 for id, wave in expected.items()}
    odd = next(id for id in frames if [*frames.values()].count(frames[id]) == 1)

    def picky(inputs, *_):
        lengths = [2 * len(one) if name == "flow" else one.shape[-1] for one in inputs]
        if frames[odd] in lengths:
            raise ValueError("an odd request")

    with around(monkeypatch, stage(engine, name), "forward", picky):
        for sound in (OVERLAPPED, INLINE):
            found = batch(engine, sound)
            error = found.pop(odd)
            assert isinstance(error, ValueError) and "odd" in str(error)
            assert same(found, {id: wave for id, wave in expected.items() if id != odd})
            overlaps = engine.pipeline.renderer.overlaps
            assert overlaps == (sound is OVERLAPPED), "no reason to disable it"


FAST = (
    ("flow", 1, "none", FULL),
    ("vocoder", 2, "stages", PLAIN),
    ("flow", 3, "all-but-active", FULL),
)
OOM_CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for name in ("flow", "vocoder")
    for times, offload in ((1, "none"), (2, "stages"), (3, "all-but-active"))
    for case in ((name, times, offload, error) for error in (FULL, PLAIN))
]


@pytest.mark.parametrize(("name", "times", "offload", "error"), OOM_CASES)
def test_out_of_memory_disables_overlap_and_then_offloads(
    engine, monkeypatch, expected, caplog, name, times, offload, error
):
    module, threads = stage(engine, name), []
    failing = FaultInjector(module.forward, error, times)
    monkeypatch.setattr(module, "forward", lambda *a: threads.append(on_worker()) or failing(*a))
    with caplog.at_level(logging.WARNING, "chatterbox_opt"):
        assert same(batch(engine, OVERLAPPED), expected)
        assert engine.pipeline.placement.offload == offload
        assert same(again(engine), expected)
    assert not engine.pipeline.renderer.overlaps and threads[0] and not any(threads[2:])
    assert caplog.text.count("out of GPU memory while overlapping") == 1


def test_out_of_memory_in_t3_first_frees_the_memory_of_rendering(
    engine, monkeypatch, expected, caplog
):
    rendezvous, failures = Rendezvous(), []

    def full(*_):
        if rendezvous.runs == 2 and not failures:
            failures.append(rendezvous.sound.is_set())
            raise FULL

    with (
        caplog.at_level(logging.WARNING, "chatterbox_opt"),
        around(monkeypatch, stage(engine, "t3"), "step", full),
        rendezvous(monkeypatch, engine),  # so that rendering is running when T3 fails
    ):
        assert same(batch(engine, OVERLAPPED), expected)
    assert failures == [True] and not engine.pipeline.renderer.overlaps
    assert engine.pipeline.placement.offload == "none"
    assert "slots" not in caplog.text, "as many slots as before"


def test_stages_move_only_while_the_worker_is_idle(engine, monkeypatch, expected):
    """T3 runs out of memory repeatedly from its second run on."""
    rendezvous, working, moved, failures = Rendezvous(), [], [], []

    def full(*_):
        if rendezvous.runs == 2 and len(moved) < 2:
            failures.append(1)
            assert len(failures) < 50, "endless retries"
            raise FULL

    placement = engine.pipeline.placement
    plain = stage(engine, "vocoder").forward

    def vocode(*args):
        working.append(1)
        out = plain(*args)
        working.pop()
        return out

    monkeypatch.setattr(stage(engine, "vocoder"), "forward", vocode)
    with (
        around(monkeypatch, placement, "offload_more", lambda: moved.append(list(working))),
        around(monkeypatch, stage(engine, "t3"), "step", full),
        rendezvous(monkeypatch, engine),
    ):
        assert same(batch(engine, OVERLAPPED), expected)
    assert moved == [[], []]
    assert placement.offload == "all-but-active"


def test_offloading_waits_for_work_that_another_run_left_on_the_worker(engine, monkeypatch):
    begun, go, order = threading.Event(), threading.Event(), []

    def flow(*_):
        if on_worker() and not begun.is_set():
            begun.set()
            assert go.wait(LIMIT)
            order.append("ran")

    def more():
        go.set()
        engine.pipeline.recovery.out_of_memory("t3", torch.OutOfMemoryError("full"))
        order.append("moved")

    with around(monkeypatch, stage(engine, "flow"), "forward", flow):
        renderer = Renderer(engine.pipeline.recovery, OVERLAPPED)
        renderer.submit(whole_groups([after_t3(engine)]), overlap=True)
        assert begun.wait(LIMIT)
        more()
        [sequence] = renderer.collect()
        renderer.release()
    assert order == ["ran", "moved"]
    assert len(sequence.audio) == 480 * 2 * len(sequence.tokens), (
        "what failed on the worker is run again here"
    )


def after_t3(engine) -> Sequence:
    """A sequence that T3 has finished."""
    state = engine._requests.of(requests(1)[0], Capacity())
    [sequence] = state.sequences
    decoder = engine.pipeline.decoder
    assert decoder.admit(sequence)
    while not (out := decoder.step()):
        pass
    assert out == [sequence] and sequence.status is Status.RENDERING
    decoder.release()
    return sequence


@pytest.mark.parametrize("name", ["flow", pytest.param("vocoder", marks=pytest.mark.slow)])
def test_nan_in_half_precision_is_rerun_in_float32_while_t3_waits(
    load,
    monkeypatch,
    caplog,
    name,
):
    with load(dtype="bfloat16") as half:
        flow, threads, used = stage(half, "flow"), [], []
        solve, decode = flow.solve, stage(half, "vocoder").decode

        def overflowing(noise, *rest):
            used.append(flow.dtype)
            out = solve(noise, *rest)
            bad = name == "flow" and noise.shape[1] % 4 == 0 and flow.dtype == torch.bfloat16
            return out * torch.nan if bad else out

        def failing(mels, *rest):
            waves = decode(mels, *rest)
            bad = name == "vocoder" and used[-1] == torch.bfloat16 and mels[0].shape[1] % 4 == 0
            return [w * torch.nan for w in waves] if bad else waves

        monkeypatch.setattr(flow, "solve", overflowing)
        monkeypatch.setattr(stage(half, "vocoder"), "decode", failing)
        with around(monkeypatch, flow, "set_precision", lambda *_: threads.append(on_worker())):
            expected = batch(half, INLINE)
            recoveries = len(threads)
            assert same(batch(half, OVERLAPPED), expected)
        assert all(np.isfinite(wave).all() for wave in expected.values())
        assert recoveries and len(threads) == 2 * recoveries and not any(threads)
        assert flow.dtype == torch.bfloat16 and half.pipeline.renderer.overlaps
    assert caplog.text.count("in float32") == 1


# -- ending a run


def test_a_consumer_that_stops_early_leaves_no_thread(engine, monkeypatch, expected):
    rendezvous = Rendezvous()
    with rendezvous(monkeypatch, engine):
        results = begin(engine, OVERLAPPED)
        next(results)
        assert len(worker_threads()) == 1, "the next group is being rendered"
        results.close()
        assert worker_threads() == []
    assert same(batch(engine, OVERLAPPED), expected), "and the engine still works"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, AssertionError])
def test_an_interruption_leaves_no_thread(engine, monkeypatch, expected, error):
    rendezvous = Rendezvous()

    def interrupt(*_):
        if rendezvous.runs == 2:
            raise error

    with (
        around(monkeypatch, stage(engine, "t3"), "step", interrupt),
        rendezvous(monkeypatch, engine),
    ):
        with pytest.raises(error):
            list(begin(engine, OVERLAPPED))
    assert rendezvous.sound.is_set()
    assert worker_threads() == []
    assert same(batch(engine, OVERLAPPED), expected), "and the engine still works"


@pytest.mark.parametrize("sound", [INLINE, OVERLAPPED])
def test_what_t3_has_finished_is_rendered_if_t3_fails_for_good(
    engine, monkeypatch, expected, sound
):
    groups = []

    def step(*_):
        if len(groups) == 2:
            raise DeviceError("the GPU is gone")

    with (
        around(monkeypatch, Renderer, "submit", lambda *_, **__: groups.append(1)),
        around(monkeypatch, stage(engine, "t3"), "step", step),
    ):
        found = batch(engine, sound)
    failed = {id for id, value in found.items() if isinstance(value, DeviceError)}
    assert len(failed) == LINES - 2 * GROUP, "each with the reason"
    assert same(
        {id: found[id] for id in set(found) - failed},
        {id: wave for id, wave in expected.items() if id not in failed},
    )


def test_failed_work_is_run_again_while_the_worker_is_idle():
    recovering, happened = threading.Event(), []

    def flow(token):
        if token == 1 and on_worker():
            raise ValueError("not on the worker")
        if token == 1:
            recovering.set()
        else:
            assert not recovering.wait(0.05), "the other is run again meanwhile"
        happened.append(token)

    renderer = stub_renderer(flow)
    renderer.submit(whole_groups(decoded(1, 2)), overlap=True)
    assert rendered(renderer.collect()) == [1, 2], "in the order they were submitted"
    renderer.release()
    assert happened == [2, 1]


def test_a_renderer_without_overlap_renders_at_once(caplog):
    threads = []
    renderer = stub_renderer(lambda token: threads.append(on_worker()))
    for _ in range(2):
        renderer.disable_overlap()
        assert rendered(renderer.submit(whole_groups(decoded(5)), overlap=True)) == [5]
        assert not renderer.busy
    assert threads == [False, False] and worker_threads() == []
    assert caplog.text.count("out of GPU memory while overlapping") == 1


def test_a_bug_on_the_worker_is_raised_here(engine, monkeypatch):
    def bug(*_):
        assert not on_worker(), "a bug"

    with around(monkeypatch, stage(engine, "flow"), "forward", bug):
        with pytest.raises(AssertionError, match="a bug"):
            list(begin(engine, OVERLAPPED))
    assert worker_threads() == []


def test_closing_the_engine_waits_for_the_worker(engine, monkeypatch):
    begun, closing, order = threading.Event(), threading.Event(), []
    recovery, sequence = engine.pipeline.recovery, after_t3(engine)

    def flow(*_):
        begun.set()
        assert closing.wait(LIMIT)
        order.append("ran")

    def close():
        order.append("closed")

    with (
        around(monkeypatch, stage(engine, "flow"), "forward", flow),
        around(monkeypatch, engine.pipeline.placement, "close", close),
    ):
        renderer = engine.pipeline.renderer = Renderer(recovery, OVERLAPPED)
        assert renderer.submit(whole_groups([sequence]), overlap=True) == []
        assert begun.wait(LIMIT)
        threading.Timer(0.05, closing.set).start()
        engine.close()
    assert order == ["ran", "closed"]
    assert worker_threads() == []


# -- the plan


@pytest.mark.parametrize(
    ("sound", "offload", "overlaps"),
    [("overlapped", "none", True), ("inline", "none", False), ("overlapped", "stages", False)],
)
def test_the_plan_chooses_the_renderer(tiny, monkeypatch, sound, offload, overlaps):
    """Also where not all stages fitted on the GPU when they were loaded."""
    monkeypatch.setattr(build, "SideStream", lambda device: no_stream)
    planned = replace(
        resolve("dev", Hardware("cpu", "CPU"), {}, {}), rendering=sound, offload=offload
    )
    pipeline = build.load_pipeline(registry.locate(str(tiny)), planned)
    assert pipeline.renderer.overlaps is overlaps
    pipeline.close()


@pytest.mark.parametrize("overlapped", [True, False])
def test_the_flow_has_its_own_graph_pool_only_where_it_overlaps_with_t3(monkeypatch, overlapped):
    class Capturer:
        def __init__(self, device):
            self.device = device

        def for_other_stream(self):
            return "another"

    monkeypatch.setattr(build, "GraphCapturer", Capturer)
    flow = torch.nn.Identity()
    placement = SimpleNamespace(device=torch.device("cuda"), module=lambda name: flow)
    planned = replace(resolve("dev", Hardware("cpu", "CPU"), {}, {}), compile="cudagraphs")
    backend = build._decode_backend(planned, placement, overlapped=overlapped)
    assert (flow.executor._cache._capture is backend._cache._capture) is not overlapped


def test_all_graphs_of_an_engine_are_dropped_before_their_pools_are_given_up(monkeypatch):
    class Capturer:
        def __init__(self, device):
            self.device = device

        def for_other_stream(self):
            return Capturer(self.device)

        def release(self):
            released.append(sum(len(cache._graphs) for cache in caches))

    monkeypatch.setattr(build, "GraphCapturer", Capturer)
    stages, released = {"flow": torch.nn.Identity(), "vocoder": torch.nn.Identity()}, []
    placement = SimpleNamespace(device=torch.device("cuda"), module=stages.get)
    planned = replace(resolve("dev", Hardware("cpu", "CPU"), {}, {}), compile="cudagraphs")
    backend = build._decode_backend(planned, placement, overlapped=True)
    caches = [backend._cache, *(stage.executor._cache for stage in stages.values())]
    for cache in caches:
        cache.find("a key", "here")
    placement.release_graphs()
    assert released == [0, 0]


# -- CUDA calls


class FakeStream:
    """A fake stream or event that records its method calls."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __getattr__(self, method):
        def call(*args):
            self.calls.append(" ".join([self.name, method, *(a.name for a in args)]))
            return FakeStream("event", self.calls)

        return call


class FakeGraph:
    """A fake CUDA graph."""

    def __init__(self):
        self.pool = None

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local", "the other thread goes on using the GPU"
        self.pool = pool

    def capture_end(self):
        pass

    def replay(self):
        assert self.lock.locked()


@pytest.fixture
def calls(monkeypatch):
    calls, pools, streams = [], iter(range(9)), iter("ABCDEF")

    @contextmanager
    def on(stream):
        calls.append(f"on {stream.name}")
        yield
        calls.append(f"off {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(next(streams), calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: FakeStream("current", calls))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    return calls


@pytest.mark.parametrize("error", [None, FULL])
def test_side_stream_work_is_ordered_and_complete_when_it_returns(calls, error):
    side_stream = SideStream(torch.device("cuda"))

    def work():
        calls.append("work")
        if error:
            raise error
        return 7

    run = side_stream(work)
    assert calls == ["current record_event"], "by the calling thread, for its stream"
    if error:
        with pytest.raises(torch.OutOfMemoryError):
            run()
        assert calls[1:] == ["on A", "A wait_event event", "work", "A synchronize"]
    else:
        assert run() == 7
        assert calls[1:] == ["on A", "A wait_event event", "work", "A synchronize", "off A"]


@pytest.fixture
def graphs(calls, monkeypatch):
    graphs = []
    for method in ("_anchor_work", "_create_library_handles"):
        monkeypatch.setattr(GraphCapturer, method, lambda capturer: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(FakeGraph()) or graphs[-1])
    return graphs


def test_a_second_engines_capture_waits_and_no_garbage_is_collected_meanwhile(graphs):
    """Collection is the process's: the first to end its capture would enable it for the other."""
    first, second = (GraphCapturer(torch.device("cuda")) for _ in range(2))
    inside, end, collects = threading.Event(), threading.Event(), []

    def longer():
        inside.set()
        end.wait(LIMIT)
        collects.append(gc.isenabled())

    thread = threading.Thread(target=second, args=(longer,))

    def work():
        thread.start()
        assert not inside.wait(0.1), "two captures at once"

    assert gc.isenabled()
    try:
        first(work)
    finally:
        end.set()
        thread.join()
    assert collects == [False] and gc.isenabled()


@pytest.mark.parametrize("of_one_engine", [True, False])
def test_capturers_of_two_threads_share_no_pool_and_one_lock(
    calls, graphs, monkeypatch, of_one_engine
):
    t3 = GraphCapturer(torch.device("cuda"))
    flow = t3.for_other_stream() if of_one_engine else GraphCapturer(torch.device("cuda"))
    for one, other in ((t3, flow), (flow, t3)):
        FakeGraph.lock = other._lock
        replay = one(lambda: calls.append("captured" if FakeGraph.lock.locked() else "not alone"))
        assert not FakeGraph.lock.locked()
        replay()
    assert "not alone" not in calls and calls.count("captured") == 2
    t3s, flows = (first.pool for first in (graphs[0], graphs[2]))
    assert t3s != flows and [graph.pool for graph in graphs] == [t3s, t3s, flows, flows]
    assert calls.count("on A") == calls.count("on B") == 4, "each reuses one stream"


# -- requests that somebody waits for


def test_t3_goes_on_while_the_worker_is_busy_and_its_output_is_rendered_together(
    engine, monkeypatch
):
    """Submitted requests are rendered as soon as the worker is free, and not before."""
    engine.pipeline.renderer = Renderer(engine.pipeline.recovery, OVERLAPPED)
    engine.pipeline.group = GROUP
    engine.plan = replace(engine.plan, slots=SLOTS)
    sizes, go, plain = [], threading.Event(), Renderer._run_stages

    def run_stages(renderer, group, *args):
        sizes.append(len(group.sequences))
        assert len(sizes) > 1 or go.wait(LIMIT)
        return plain(renderer, group, *args)

    lines = [replace(one, sampling=replace(one.sampling, cfm_steps=2)) for one in requests(8)]
    expected = {r.id: r.audio().samples for r in engine.batch(lines)}
    monkeypatch.setattr(Renderer, "_run_stages", run_stages)
    handles = [engine.submit(one) for one in lines]
    while sum(bool(one.tokens) for h in handles for one in h._request.sequences) < SLOTS + 3:
        assert not any(handle.done for handle in handles)
        threading.Event().wait(0.01)
    go.set()
    found = {handle.id: handle.result(LIMIT).audio().samples for handle in handles}
    assert same(found, expected)
    assert max(sizes[1:]) == GROUP, "T3 had decoded several meanwhile"


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_request_that_ends_while_its_group_fails_does_not_affect_the_others(
    engine, monkeypatch, expected, how
):
    """The group fails on the worker and together, so each is rendered alone."""
    scheduler = engine._loop._scheduler
    engine.pipeline.renderer = Renderer(engine.pipeline.recovery, OVERLAPPED)
    engine.pipeline.group = 2
    go, plain = threading.Event(), stage(engine, "flow").forward

    def flow(tokens, *rest):
        assert go.wait(LIMIT)
        if len(tokens) > 1:
            raise RuntimeError("too many")
        return plain(tokens, *rest)

    monkeypatch.setattr(stage(engine, "flow"), "forward", flow)
    states = [engine._requests.of(requests()[i], Capacity(4, group=2)) for i in (0, 2)]
    for state in states:
        scheduler.add(state)
    while not engine.pipeline.renderer.busy:
        scheduler.step()
    if how == "cancelled":
        scheduler.cancel(states[0])
    else:
        scheduler._end(states[0], ValueError("another chunk failed"))
    go.set()
    while not scheduler.idle:
        scheduler.step()
    scheduler.release()
    assert states[0].result.error is not None and states[1].result.error is None
    (_, piece), _ = states[1].events.get(), states[1].events.get()
    assert np.array_equal(piece.samples, expected["2"])


def test_memory_is_released_for_t3_also_after_the_worker_ran_out_of_it():
    def flow(token):
        if on_worker():
            raise FULL

    renderer = stub_renderer(flow)
    renderer.submit(whole_groups(decoded(1)), overlap=True)
    renderer._wait()
    assert not renderer.overlaps, "noticed by the worker"
    assert renderer.release_memory(), "T3 tries again once: the memory is free now"
    assert not renderer.release_memory()
    assert rendered(renderer.collect()) == [1]
    renderer.release()
