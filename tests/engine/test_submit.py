"""Requests of many callers: handles, the bounded queue, abandoned requests, asyncio, closing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.faults import stage
from helpers.memory import resident

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.engine.decoding.decode import DecodeBatch
from chatterbox_opt.engine.decoding.decoder import Decoder
from chatterbox_opt.engine.rendering.renderer import Renderer, no_stream
from chatterbox_opt.errors import InputError, QueueFullError, RequestCancelledError, TextError

TEXTS = ["Hello.", "Something else.", "A third one.", "And a fourth.", "Yes!", "No?"]
LONG = "A sentence of about forty characters, it is. " * 20
LIMIT = 60


@pytest.fixture
def engine(load):
    with load() as engine:
        yield engine


def request(i: int, text: str | None = None, **knobs) -> Request:
    sampling = Sampling(**({"seed": i, "max_tokens": 4 + i % 7, "cfm_steps": 1} | knobs))
    return Request(str(i), text or TEXTS[i % len(TEXTS)], None, sampling)


def wave(result) -> np.ndarray:
    return result.audio().samples


OTHERS: set[threading.Thread] = set()  # of engines that other files of this process have loaded


@pytest.fixture(scope="module", autouse=True)
def others():
    OTHERS.update(threading.enumerate())


def engine_threads() -> list[threading.Thread]:
    own = set(threading.enumerate()) - OTHERS
    return [t for t in own if t.name in ("engine", "render", "finish")]


def wait_until(condition) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def idle(engine) -> bool:
    """Whether no request is left and no slot is held."""
    loop = engine._loop
    return loop._scheduler.idle and not loop._added and engine.pipeline.decoder._batch is None


# --- handles ------------------------------------------------------------------------------------


def test_a_submitted_request_equals_a_plain_one(engine):
    sampling = Sampling(seed=3, max_tokens=6)
    expected = list(engine.pieces(LONG, None, sampling))
    assert len(expected) > 2
    handle = engine.submit(Request("a", LONG, None, sampling))
    assert (handle.id, handle.seed) == ("a", 3)
    pieces = list(handle)
    assert [piece.text for piece in pieces] == [piece.text for piece in expected]
    for piece, plain in zip(pieces, expected, strict=True):
        assert np.array_equal(piece.samples, plain.samples)
    result = handle.result()
    assert result.error is None and handle.done and list(handle) == []
    assert all(a is b for a, b in zip(result.pieces, pieces, strict=True))


def test_a_piece_comes_before_the_request_has_ended(engine):
    handle = engine.submit(Request("a", LONG, None, Sampling(seed=3, max_tokens=40)))
    first = next(handle)
    assert first.tokens and not handle.done
    assert len(handle.result().pieces) > 2


def test_errors_of_the_request_are_raised_by_submit_and_those_of_the_model_by_the_handle(
    engine, monkeypatch
):
    with pytest.raises(TextError):
        engine.submit(Request("a", "...", None))

    monkeypatch.setattr(Decoder, "_prompt", raising)
    handle = engine.submit(request(1))
    with pytest.raises(ValueError, match="odd"):
        next(handle)
    assert isinstance(handle.result().error, ValueError) and handle.result().pieces == ()
    monkeypatch.undo()
    assert wave(engine.submit(request(1)).result()).size, "and the engine goes on"


def raising(*_):
    raise ValueError("an odd text")


def test_an_observer_is_called_by_the_waiting_thread_and_may_raise(engine):
    seen = []

    def observe(progress):
        seen.append((threading.get_ident(), progress.tokens))
        if progress.tokens == 3:
            raise KeyError("a bug of the caller")

    other = engine.submit(request(2, LONG))
    for _ in range(2):
        handle = engine.submit(request(1, max_tokens=9), observe=observe)
        with pytest.raises(KeyError):
            handle.result()
    assert seen == [(threading.get_ident(), n) for n in (1, 2, 3)] * 2
    with pytest.raises(KeyError):
        engine.synthesize("Hello.", None, request(1, max_tokens=9).sampling, observe)
    assert wave(other.result()).size, "other requests are not concerned"


def test_metrics_are_in_order(engine):
    handle = engine.submit(request(1, LONG))
    assert handle.metrics.done is None
    result = handle.result()
    times = result.metrics
    assert 0 <= times.queued <= times.first_token <= times.first_audio <= times.done
    assert times.prefill == pytest.approx(times.first_token - times.queued)
    assert times.tokens_per_second > 0
    tokens = sum(piece.tokens for piece in result.pieces)
    assert tokens / times.tokens_per_second < times.done


def test_a_result_that_is_late_is_a_timeout_and_comes_later(engine):
    handle = engine.submit(request(1, LONG, max_tokens=60))
    with pytest.raises(TimeoutError):
        handle.result(timeout=0)
    assert handle.result(LIMIT).error is None


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("tiny", "float32"),
        pytest.param("pico", "int8", marks=pytest.mark.slow),
        pytest.param("tiny", "int8", marks=pytest.mark.slow),
        pytest.param("pico", "float32", marks=pytest.mark.slow),
    ],
)
def test_eight_threads_in_any_order_give_the_same_audio(tiny, model, dtype):
    """Each model and dtype once; the other two pairs are slow tests."""
    path = "pico" if model == "pico" else str(tiny)
    with Engine.load(path, "dev", device="cpu", overrides={"dtype": dtype}, watermark=False) as e:
        count = 8
        expected = [wave_of(e, request(i)) for i in range(count)]
        order, found = list(range(count)) * 2, {}
        random.Random(1).shuffle(order)

        def call(part):
            for i in part:
                found.setdefault(i, []).append(wave(e.submit(request(i)).result()))

        run_threads([lambda part=order[n::8]: call(part) for n in range(8)])
        for i in range(count):
            assert len(found[i]) == 2
            assert all(np.array_equal(one, expected[i]) for one in found[i]), i


def wave_of(engine, one: Request) -> np.ndarray:
    return engine.synthesize(one.text, one.voice, one.sampling).samples


def run_threads(calls) -> None:
    failed = []

    def run(call):
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20 * LIMIT)
        assert not thread.is_alive()
    assert not failed, failed


def test_plain_calls_and_batches_work_while_requests_are_submitted(engine):
    expected = [wave_of(engine, request(i)) for i in range(12)]
    handles = [engine.submit(request(i)) for i in range(6)]
    results = engine.batch([request(i) for i in range(6, 12)])
    plain = engine.synthesize(TEXTS[0], None, request(0).sampling).samples
    found = {int(r.id): wave(r) for r in results} | {int(h.id): wave(h.result()) for h in handles}
    assert np.array_equal(plain, expected[0])
    assert all(np.array_equal(found[i], expected[i]) for i in range(12))


# --- cancelling, abandoning ---------------------------------------------------------------------


def test_a_cancelled_request_ends_at_the_next_readback(engine):
    handle = engine.submit(request(1, max_tokens=1000))
    wait_until(lambda: handle.metrics.first_token)
    handle.cancel()
    with pytest.raises(RequestCancelledError):
        next(handle)
    assert isinstance(handle.result().error, RequestCancelledError)
    handle.cancel()
    wait_until(lambda: idle(engine))
    assert handle.metrics.first_audio is None


def test_abandoned_requests_leave_no_slot_thread_or_memory(engine):
    """Dropped before they began, while they are decoded, and after some pieces."""
    engine.submit(request(1)).result()
    threads = len(engine_threads())
    gc.collect()
    before = live_objects()
    for i in range(60):
        handle = engine.submit(request(i, LONG if i % 2 else None, max_tokens=15))
        if i % 20 == 1:
            next(handle)
        elif i % 3 == 0:
            time.sleep(0.002)
        del handle
    wait_until(lambda: idle(engine))
    gc.collect()
    assert len(engine_threads()) == threads
    assert live_objects() <= before + 5
    assert wave(engine.submit(request(3)).result()).size


def live_objects() -> int:
    names = ("Sequence", "RequestState", "RequestHandle", "EventQueue", "Piece")
    return sum(type(one).__name__ in names for one in gc.get_objects())


def test_an_abandoned_handle_may_be_collected_inside_a_step(engine, monkeypatch):
    """The garbage collector runs where it wants, such as on the engine's thread, in a step."""
    cycle: list = []

    def collect(*_):
        if cycle:
            cycle.clear()
            gc.collect()

    handle = engine.submit(request(2, LONG, max_tokens=200))
    while not handle.metrics.first_token:
        time.sleep(0.002)
    cycle.append({"handle": handle, "cycle": cycle})
    plain = stage(engine, "t3").step
    monkeypatch.setattr(stage(engine, "t3"), "step", lambda *a: collect() or plain(*a))
    del handle
    assert wave(engine.submit(request(3, max_tokens=9)).result(LIMIT)).size
    assert not cycle
    wait_until(lambda: idle(engine))


def hammer(engine, count: int) -> Counter:
    """Submit from 8 threads with random cancels; what became of each request."""
    outcomes: Counter = Counter()
    lock = threading.Lock()

    def call(thread):
        rng = random.Random(thread)
        for i in range(thread, count, 8):
            handle = engine.submit(request(i, max_tokens=2, cfm_steps=1))
            action = rng.random()
            if action < 0.2:
                handle.cancel()
            elif action < 0.3:
                next(handle, None)
                handle.cancel()
            result = handle.result(LIMIT)
            with lock:
                outcomes[result.id, type(result.error)] += 1
                assert len(result.pieces) == (result.error is None)

    run_threads([lambda n=n: call(n) for n in range(8)])
    return outcomes


def test_no_request_is_lost_or_done_twice(engine):
    outcomes = hammer(engine, 80)
    assert sorted(int(id) for id, _ in outcomes) == list(range(80))
    assert set(outcomes.values()) == {1}
    kinds = Counter(kind for _, kind in outcomes)
    assert set(kinds) == {type(None), RequestCancelledError} and kinds[RequestCancelledError] > 10


@pytest.mark.slow
def test_ten_thousand_requests_of_eight_threads_use_constant_memory(engine):
    hammer(engine, 1000)
    gc.collect()
    before = resident()
    outcomes = hammer(engine, 10_000)
    assert len(outcomes) == 10_000 and set(outcomes.values()) == {1}
    gc.collect()
    after = resident()
    print(f"MiB: {before:.0f} before, {after:.0f} after")
    assert after - before < 50


# --- the queue, the end -------------------------------------------------------------------------


def test_a_full_queue_refuses_and_later_accepts(engine, monkeypatch):
    go, plain = threading.Event(), stage(engine, "t3").prefill
    monkeypatch.setattr(stage(engine, "t3"), "prefill", lambda *a: go.wait(LIMIT) and plain(*a))
    monkeypatch.setattr(engine._loop, "_max_queued", 3)
    handles = [engine.submit(request(0))]
    wait_until(lambda: not engine._loop._added)  # it is being prefilled: no longer queued, or soon
    with pytest.raises(QueueFullError, match="try again later"):
        for i in range(1, 9):
            handles.append(engine.submit(request(i), timeout=0))
    assert 3 <= len(handles) <= 4
    threading.Timer(0.05, go.set).start()
    handles.append(engine.submit(request(9), timeout=LIMIT))
    assert all(wave(handle.result(LIMIT)).size for handle in handles)


def test_closing_ends_requests_and_the_thread(load):
    engine = load()
    handles = [engine.submit(request(i, LONG, max_tokens=200)) for i in range(20)]
    next(handles[0])
    engine.close()
    assert engine_threads() == []
    for handle in handles:
        assert isinstance(handle.result(LIMIT).error, InputError)
    with pytest.raises(InputError, match="closed"):
        engine.submit(request(1))
    with pytest.raises(InputError, match="closed"):
        engine.synthesize("Hello.")
    engine.close()


@pytest.mark.slow
def test_a_process_that_forgets_to_close_ends(tiny):
    import subprocess
    import sys

    code = (
        "import sys; from chatterbox_opt import Engine, Request, Sampling\n"
        "engine = Engine.load(sys.argv[1], 'dev', device='cpu', watermark=False)\n"
        "handle = engine.submit(Request('a', 'Hello. ' * 200, None, Sampling(seed=1)))\n"
        "next(handle)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_a_step_ends_its_requests_and_another_thread_goes_on(engine, monkeypatch):
    plain, left = stage(engine, "t3").step, []

    def step(*args):
        if left:
            raise left.pop()
        return plain(*args)

    monkeypatch.setattr(stage(engine, "t3"), "step", step)
    for _ in range(8):
        left.append(TypeError("a bug"))
        assert isinstance(engine.submit(request(1)).result(LIMIT).error, TypeError)
        assert wave(engine.submit(request(1)).result(LIMIT)).size
    assert len(engine_threads()) == 1


@pytest.mark.slow
def test_plain_chatterbox_takes_submitted_requests_too(tiny, upstream, monkeypatch):
    from chatterbox_opt.engine.upstream_backend import UpstreamBackend

    monkeypatch.setattr(
        UpstreamBackend, "load", lambda checkpoint, device: UpstreamBackend(upstream, device)
    )
    monkeypatch.setenv("DISABLE_OPTIMIZATION", "true")
    with Engine.load(str(tiny), device="cpu") as plain:
        sampling = Sampling(seed=2)
        expected = plain.synthesize("Hello.", None, sampling).samples
        handles = [plain.submit(Request(str(i), "Hello.", None, sampling)) for i in range(2)]
        assert all(np.array_equal(wave(handle.result()), expected) for handle in handles)
        counts = []
        [piece] = plain.pieces("Hello.", None, sampling, lambda seen: counts.append(seen.tokens))
        assert counts == [piece.tokens] and piece.tokens == round(len(expected) / 24_000 * 25)
        assert handles[0].metrics.tokens_per_second > 0


# --- asyncio ------------------------------------------------------------------------------------


def test_coroutines_wait_without_blocking_their_loop(engine):
    expected = [wave_of(engine, request(i)) for i in range(6)]
    ticks = []

    async def ticking():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def iterate(i):
        handle = engine.submit(request(i))
        return np.concatenate([piece.samples async for piece in handle])

    async def main():
        ticker = asyncio.create_task(ticking())
        iterated = await asyncio.gather(*(iterate(i) for i in range(3)))
        awaited = [wave(await engine.submit(request(i))) for i in range(3, 6)]
        ticker.cancel()
        return [*iterated, *awaited]

    for found, wanted in zip(asyncio.run(main()), expected, strict=True):
        assert np.array_equal(found, wanted)
    assert len(ticks) > 5


def test_a_cancelled_task_cancels_its_request(engine):
    async def main():
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def consume():
        async for _ in engine.submit(request(1, LONG, max_tokens=300)):
            pass

    asyncio.run(main())
    gc.collect()
    wait_until(lambda: idle(engine))


def test_two_coroutines_may_wait_for_one_handle(engine):
    async def main():
        handle = engine.submit(request(1, LONG))
        both = await asyncio.wait_for(asyncio.gather(result_of(handle), result_of(handle)), LIMIT)
        other = engine.submit(request(2, LONG))
        pieces, result = await asyncio.wait_for(asyncio.gather(pieces_of(other), other), LIMIT)
        assert len(pieces) == len(result.pieces) > 2
        return both

    async def result_of(handle):
        return await handle

    async def pieces_of(handle):
        return [piece async for piece in handle]

    one, other = asyncio.run(main())
    assert one is other and one.error is None


def test_a_coroutine_that_gives_up_waiting_leaves_nothing(engine):
    async def main():
        handle = engine.submit(request(1, LONG, max_tokens=60))
        for _ in range(20):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(handle.__anext__(), 0.001)
        assert handle._request.events._waiting == []
        return await handle

    assert wave(asyncio.run(main())).size


def test_a_closed_asyncio_loop_is_no_error_of_the_engine(engine):
    async def main():
        handle = engine.submit(request(1, LONG, max_tokens=60))
        waiting = asyncio.ensure_future(handle.__anext__())
        await asyncio.sleep(0.01)
        waiting.cancel()
        return handle

    handle = asyncio.run(main())
    assert wave(handle.result(LIMIT)).size


# --- what others do -----------------------------------------------------------------------------


@pytest.mark.parametrize("company", ["a suspended text", "submitted requests"])
def test_a_batch_is_complete_whatever_else_waits(engine, company):
    """A batch finds no free slot at first: it waits, and drops nothing."""
    if company == "a suspended text":
        other = engine.pieces(6 * LONG, None, request(1).sampling)
        next(other)
    else:
        others = [engine.submit(request(i, LONG)) for i in range(16)]
    results = list(engine.batch([request(i) for i in range(4)]))
    assert sorted(result.id for result in results) == list("0123")
    assert all(wave(result).size for result in results)
    if company == "a suspended text":
        assert len(list(other)) > 5
    else:
        assert all(wave(handle.result(LIMIT)).size for handle in others)


def test_a_batch_on_a_closed_engine_is_an_error(load):
    engine = load()
    engine.close()
    with pytest.raises(InputError, match="closed"):
        list(engine.batch([request(1)]))


def test_closing_ends_a_running_batch(load):
    engine = load()
    results = engine.batch(request(i) for i in range(100))
    next(results)
    engine.close()
    with pytest.raises(InputError, match="closed"):
        for result in results:
            assert result.error is None or isinstance(result.error, InputError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_while_a_slot_is_freed_ends_all_requests(engine, monkeypatch):
    """No caller waits for ever, and the next request is served."""
    handles = [engine.submit(request(i, LONG, max_tokens=300)) for i in range(4)]
    while not handles[0].metrics.first_token:
        time.sleep(0.002)

    def failing(*_):
        monkeypatch.undo()
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(DecodeBatch, "remove", failing)
    handles[0].cancel()
    for handle in handles:
        assert handle.result(LIMIT).error is not None
    assert wave(engine.submit(request(1)).result(LIMIT)).size


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_waits_for_the_queue_is_woken_when_a_step_fails(engine, monkeypatch):
    go, plain = threading.Event(), stage(engine, "t3").prefill
    first = []

    def prefill(*args):
        if not first:
            first.append(go.wait(LIMIT))
            raise TypeError("a bug")
        return plain(*args)

    monkeypatch.setattr(stage(engine, "t3"), "prefill", prefill)
    monkeypatch.setattr(engine._loop, "_max_queued", 2)
    handles = []
    with pytest.raises(QueueFullError):
        for i in range(9):
            handles.append(engine.submit(request(i), timeout=0))
    threading.Timer(0.05, go.set).start()
    late = engine.submit(request(5), timeout=LIMIT)
    assert wave(late.result(LIMIT)).size
    assert isinstance(handles[0].result(LIMIT).error, TypeError)
    assert all(handle.result(LIMIT) for handle in handles)


def test_a_failed_request_keeps_no_tensors(engine, monkeypatch):
    """Its error's frames would keep the KV cache alive as long as the result."""

    def step(*_):
        raise RuntimeError("an odd step")

    monkeypatch.setattr(stage(engine, "t3"), "step", step)
    before = decode_states()  # of other tests
    results = [engine.submit(request(i)).result(LIMIT) for i in range(3)]
    results += engine.batch([request(1)])
    for result in results:
        assert isinstance(result.error, RuntimeError) and result.error.__traceback__ is None
    wait_until(lambda: idle(engine))
    gc.collect()
    assert [one for one in decode_states() if not any(one is old for old in before)] == []


def decode_states() -> list[object]:
    return [one for one in gc.get_objects() if type(one).__name__ == "DecodeState"]


def test_a_generator_collected_on_the_worker_thread_is_harmless(engine, monkeypatch):
    engine.pipeline.renderer = Renderer(engine.pipeline.recovery, no_stream)
    engine.plan = replace(engine.plan, slots=3)
    cycle, plain = [], Renderer._run_stages

    def run_stages(*args):
        if cycle:
            cycle.clear()
            gc.collect()
        return plain(*args)

    abandoned = engine.batch(request(i, LONG) for i in range(9))
    next(abandoned)
    cycle.append({"abandoned": abandoned, "cycle": cycle})
    del abandoned
    monkeypatch.setattr(Renderer, "_run_stages", run_stages)
    for _ in range(2):
        results = list(engine.batch([request(i) for i in range(6)]))
        assert all(wave(result).size for result in results) and not cycle
    assert engine.pipeline.idle and engine_threads() == []
