"""CUDA graphs: replays give what eager work gives, and are dropped when they are stale.

Capture is done by fake_graph_capture.py, which freezes what a CUDA graph freezes.
"""

from __future__ import annotations

import gc
import logging
import weakref

import numpy as np
import pytest
import torch
from helpers import fake_graph_capture
from helpers.common import SAMPLE
from helpers.fake_graph_capture import capture_graphs
from helpers.t3 import TEXTS, decode_all, utterance, varied_requests

from chatterbox_opt import Request, Sampling
from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.engine.decoding import decode_graphs
from chatterbox_opt.engine.decoding.decode import DecodeBatch, EagerBackend, decode
from chatterbox_opt.engine.decoding.decode_graphs import CudaGraphBackend
from chatterbox_opt.models.t3 import kv_cache
from chatterbox_opt.runtime import backoff, cuda_graphs
from chatterbox_opt.runtime.bucketing import EagerExecutor
from chatterbox_opt.runtime.cuda_graphs import CudaGraphCache, GraphedExecutor
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.runtime.weight_transfer import PlainTransfer


class Counting:
    """A capture function that counts its calls."""

    def __init__(self, error: Exception | None = None):
        self.captured, self.error = 0, error

    def __call__(self, work):
        self.captured += 1
        if self.error:
            raise self.error
        return fake_graph_capture.record(work)


@pytest.fixture(scope="module")
def t3(tiny):
    return loader.load_t3(registry.locate(str(tiny)), torch.float32)


@pytest.fixture(scope="module")
def alone(engine, t3):
    return [decode_all(t3, [one])[0].tokens for one in varied_requests(engine)]


@pytest.mark.parametrize(
    "slots", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)]
)
def test_replayed_tokens_are_the_eager_ones(engine, t3, alone, slots):
    """Sampling parameters, voice, text length and seed differ; the graphs serve them all."""
    record = Counting()
    backend = CudaGraphBackend(record)
    together = decode_all(t3, varied_requests(engine), slots=slots, backend=backend)
    assert [outputs.tokens for outputs in together] == alone
    assert 0 < record.captured <= 4 * slots
    before = record.captured
    assert [
        outputs.tokens
        for outputs in decode_all(t3, varied_requests(engine), slots=slots, backend=backend)
    ] == alone
    assert record.captured <= before + 4, "the second time there is almost nothing left to capture"


def test_attention_reads_next_to_nothing_of_slots_without_a_sequence(engine, t3, alone):
    """A step for three sequences is one for four slots; a slot's position decides what it reads."""
    backend = CudaGraphBackend(fake_graph_capture.record)
    batch = DecodeBatch(t3, backend.slots(t3, 4, 2), backend)
    requests = varied_requests(engine)
    chosen = [requests[i] for i in (1, 2, 4, 7)]  # 3, 41, 33 and 41 tokens at most
    for one in chosen:
        batch.add(one)
    prefixes, unused = batch.state.position.tolist(), []
    while batch.running:
        if not batch.step():
            unused += batch.state.position[len(batch.running) :].tolist()
    assert unused and min(prefixes) > decode_graphs.STEPS_PER_SYNC >= max(unused)
    assert [one.tokens for one in chosen] == [alone[i] for i in (1, 2, 4, 7)]


def test_one_sequence_at_a_time_over_the_same_slots(engine, t3, alone):
    record = Counting()
    backend = CudaGraphBackend(record)
    assert [
        decode_all(t3, [one], backend=backend)[0].tokens for one in varied_requests(engine)
    ] == alone
    assert record.captured <= 4, "two KV lengths, with and without sorting"


def test_the_generator_is_left_as_the_last_token_left_it(engine, t3):
    plain, replayed = varied_requests(engine), varied_requests(engine)
    decode_all(t3, plain)
    decode_all(t3, replayed, slots=3, backend=CudaGraphBackend(fake_graph_capture.record))
    for one, other in zip(plain, replayed, strict=True):
        assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_graphs_are_stale_when_the_cache_grows(engine, t3, monkeypatch):
    """It moves: a replay would read and write memory that is no longer the cache."""
    monkeypatch.setattr(decode_graphs, "KV_GROWTH", kv_cache.KV_BLOCK)
    texts, knobs = ["hello.", "word " * 60], Sampling(seed=5, max_tokens=150, temperature=1.5)
    record = Counting()
    backend, grown = CudaGraphBackend(record), set()
    for text in texts:
        [outputs] = decode_all(t3, [utterance(engine, text, knobs)], backend=backend)
        [plain] = decode_all(t3, [utterance(engine, text, knobs)])
        assert outputs.tokens == plain.tokens
        grown.add(backend.slots(t3, 1, 2).cache.capacity)
    assert len(grown) == 2 and record.captured >= 3


def test_graphs_are_stale_when_weights_move(load):
    """As offload and a retry in float32 move them."""
    sampling = Sampling(seed=3, max_tokens=20, cfm_steps=2)
    with load() as engine:
        record = Counting()
        capture_graphs(engine, record)
        first = engine.synthesize("Hello there.", None, sampling).samples
        count = record.captured
        for parameter in engine.pipeline.placement.module("t3").parameters():
            parameter.data = parameter.data.clone().mul_(0.5)
        for parameter in engine.pipeline.placement.module("flow").parameters():
            parameter.data = parameter.data.clone().mul_(0.5)
        moved = engine.synthesize("Hello there.", None, sampling).samples
        moved_again = engine.synthesize("Hello there.", None, sampling).samples
        assert record.captured > count
        engine.pipeline.decoder.backend = EagerBackend()
        engine.pipeline.placement.module("flow").executor = EagerExecutor()
        plain = engine.synthesize("Hello there.", None, sampling).samples
    assert np.array_equal(moved, moved_again)
    assert np.allclose(moved, plain, atol=1e-4)
    assert len(first) != len(moved) or not np.allclose(first, moved, atol=1e-3)


@pytest.mark.parametrize("when", ["a sequence has ended", "a request is taken"])
def test_weights_may_move_whenever_the_loop_is_left(engine, tiny, when):
    """Their old memory is reused: a replay over it would give other tokens."""
    t3, record, moved = loader.load_t3(registry.locate(str(tiny)), torch.float32), Counting(), []

    def requests():
        bounds = (18, 60, 60, 60, 10)
        return [utterance(engine, TEXTS[i], Sampling(seed=i, max_tokens=bounds[i])) for i in order]

    def move():
        for parameter in t3.parameters():
            moved.append(parameter.data)
            parameter.data = parameter.data.clone()
            moved[-1].fill_(torch.nan)

    def next_request():
        if len(left) == 1 and when == "a request is taken":
            move()
        return left.pop(0) if left else None

    order = range(5) if when == "a request is taken" else range(4)
    alone = [outputs.tokens for outputs in decode_all(t3, requests())]
    left, backend, outputs = requests(), CudaGraphBackend(record), {}
    utterances = list(left)
    for one in decode(t3, backend.slots(t3, 4, 2), iter(next_request, None), backend):
        outputs[one] = one.tokens
        if when == "a sequence has ended":
            move()
    assert [outputs[one] for one in utterances] == alone
    assert moved and record.captured > 1


def test_the_loop_checks_for_moved_weights_only_then(engine, t3, monkeypatch):
    checks, backend = [], CudaGraphBackend(fake_graph_capture.record)
    monkeypatch.setattr(cuda_graphs, "weight_addresses", lambda module: checks.append(module) or ())
    [outputs] = decode_all(
        t3, [utterance(engine, "Hello.", Sampling(seed=1, max_tokens=90))], backend=backend
    )
    assert len(outputs.tokens) > 5 * decode_graphs.STEPS_PER_SYNC
    assert len(checks) <= 3, "for the prefill and for the steps"


def test_addresses_are_all_of_them():
    class Odd(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2, bias=False)
            self.register_buffer("table", torch.ones(2), persistent=False)
            self.register_buffer("missing", None)
            self.register_module("none", None)

    module = torch.nn.Sequential(Odd(), torch.nn.Sequential(Odd()))
    held = {t.data_ptr() for t in (*module.parameters(), *module.buffers())}
    before = cuda_graphs.weight_addresses(module)
    assert set(before) == held and len(held) == 4
    module[1][0].table = torch.ones(2)
    assert cuda_graphs.weight_addresses(module) != before
    module[1][0].weight.data = module[1][0].weight.data.clone()
    assert len(set(cuda_graphs.weight_addresses(module)) - set(before)) == 2


@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_offloaded_stages_give_the_same_audio(load, engine, offload):
    """Their weights return to the same memory or to other memory: graphs are recaptured."""
    sampling = Sampling(seed=3, max_tokens=20, cfm_steps=2)
    expected = engine.synthesize("Hello there.", None, sampling).samples
    with load() as offloaded:
        capture_graphs(offloaded, fake_graph_capture.record)
        stages, cpu = offloaded.pipeline.placement._stages, torch.device("cpu")
        offloaded.pipeline.recovery.placement = StagePlacement(
            stages, cpu, offload=offload, transfer=PlainTransfer(cpu)
        )
        for _ in range(4):
            found = offloaded.synthesize("Hello there.", None, sampling).samples
            assert np.abs(found - expected).max() < 1e-3


def test_an_engine_with_graphs_gives_the_same_audio(load, engine):
    """Interleaved voices, lengths, steps and sampling parameters; single and in a batch."""
    calls = [
        ("Hello.", None, Sampling(seed=1, max_tokens=12, cfm_steps=1)),
        (
            "A longer text, to be sure.",
            SAMPLE,
            Sampling(seed=2, max_tokens=12, top_p=0.8, cfm_steps=1),
        ),
        ("Hello.", None, Sampling(seed=1, max_tokens=12, cfm_steps=2)),
        ("Again and again.", None, Sampling(seed=4, max_tokens=12, cfm_steps=1, temperature=0)),
    ] * 3
    expected = [engine.synthesize(t, engine.voice(v), s).samples for t, v, s in calls[:4]] * 3
    with load() as replaying:
        record = Counting()
        capture_graphs(replaying, record)
        for (text, voice, sampling), wave in zip(calls, expected, strict=True):
            samples = replaying.synthesize(text, replaying.voice(voice), sampling).samples
            assert samples.shape == wave.shape
            # padding to a bucket changes float32's last bits, which the phase of F0 amplifies
            assert np.abs(samples - wave).max() < 1e-3
        assert record.captured >= 4
        batch = [Request(str(i), text, voice, s) for i, (text, voice, s) in enumerate(calls[:8])]
        found = {r.id: r.audio().samples for r in replaying.batch(batch)}
        for i, wave in enumerate(expected[:8]):
            assert found[str(i)].shape == wave.shape
            assert np.abs(found[str(i)] - wave).max() < 1e-3


def test_work_that_cannot_be_captured_runs_eagerly_with_one_warning_each(load, engine, caplog):
    sampling = Sampling(seed=3, max_tokens=20, cfm_steps=2)
    expected = engine.synthesize("Hello there.", None, sampling).samples
    with load() as recovered, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        capture_graphs(
            recovered, Counting(RuntimeError("operation not permitted when stream is capturing"))
        )
        for _ in range(3):
            found = recovered.synthesize("Hello there.", None, sampling).samples
            assert np.abs(found - expected).max() < 1e-3
    warned = [r.message for r in caplog.records if r.name == "chatterbox_opt.runtime.cuda_graphs"]
    reason = "(operation not permitted when stream is capturing); running"
    for what in ("t3 step", "flow", "vocoder"):
        failed = f"CUDA graph capture of the {what} failed"
        assert warned.count(f"{failed} {reason} this shape eagerly") == 1
        warned = [m for m in warned if not m.startswith(f"{failed} (")]
        again = f"{failed} 3 times in a row {reason} it eagerly, with another try now and then"
        warned = [m for m in warned if m != again]
    assert warned == []


def test_a_closed_engine_frees_all_memory(load):
    """No reference cycle holds weights, slots or graphs until the next garbage collection."""
    gc.collect()
    gc.disable()
    try:
        engine = load()
        capture_graphs(engine, fake_graph_capture.record)
        engine.synthesize("Hello there.", None, Sampling(seed=3, max_tokens=20, cfm_steps=2))
        pipeline = engine.pipeline
        held = [weakref.ref(pipeline.placement.module(name)) for name in ("t3", "flow", "vocoder")]
        held += [
            weakref.ref(pipeline.decoder.backend),
            weakref.ref(pipeline.decoder.backend._slots),
        ]
        del pipeline
        engine.close()
        assert [ref() for ref in held] == [None] * 5
    finally:
        gc.enable()


def test_a_readback_cannot_be_captured():
    """Guards all tests here: the fake capture would have refused."""
    x = torch.ones(1)
    with pytest.raises(RuntimeError, match="not permitted"):
        fake_graph_capture.record(lambda: x.mul_(2 if x > 0 else 3))


def test_capture_runs_nothing_and_freezes_scalars():
    x, factor = torch.ones(3), 2.0
    replay = fake_graph_capture.record(lambda: x.mul_(factor))
    assert x.tolist() == [1, 1, 1]
    factor = 5.0
    replay()
    assert x.tolist() == [2, 2, 2]


def test_the_least_recently_used_graphs_are_dropped(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    record, x = Counting(), torch.zeros(1)
    cache = CudaGraphCache(record, "the sum")

    def add(key):
        cache.run(cache.find(key, "here"), lambda: x.add_(1))

    for key in "aabba":
        add(key)
    assert record.captured == 2
    for key in "ccb":  # c takes b's place: a was used after it
        add(key)
    assert record.captured == 3
    add("b")
    assert (record.captured, x.item()) == (4, 9), "each call ran once, eagerly or by replay"
    cache.run(cache.find("b", "elsewhere"), lambda: x.add_(1))
    assert record.captured == 4, "with other addresses all graphs are dropped"


def test_the_buffers_of_graphs_are_bounded(monkeypatch):
    record, module = Counting(), torch.nn.Linear(2, 2)
    call = GraphedExecutor(record, module, "the product")
    monkeypatch.setattr(
        cuda_graphs, "MAX_BUFFER_BYTES", 2 * 2 * 40 * 4
    )  # argument and result buffers of 40 rows
    with torch.inference_mode():
        for rows in (10, 11, 12, 40, 10, 11):
            for _ in range(2):
                x = torch.randn(rows, 2)
                assert torch.equal(call("once", module, x), module(x))
    assert record.captured == 5, "11 was dropped for 40, and captured again"
    assert sum(graph.nbytes > 0 for graph in call._cache._graphs.values()) < 4


class FailingReplays:
    """Captures work; the replays of the captures in ``failing`` raise."""

    def __init__(self):
        self.captured, self.replayed, self.failing = 0, [], set()

    def __call__(self, work):
        number, self.captured = self.captured, self.captured + 1

        def replay():
            if number in self.failing:
                raise RuntimeError("Offset increment outside graph capture")
            self.replayed.append(number)
            work()

        return replay


def test_a_failed_replay_costs_its_own_graph_only(caplog):
    record, x = FailingReplays(), torch.zeros(1)
    cache = CudaGraphCache(record, "the sum")
    for i in range(6):
        record.failing |= {0} if i == 3 else set()
        for key in ("one", "other"):
            cache.run(cache.find(key, "here"), lambda: x.add_(1))
    assert x.item() == 12 and caplog.text.count("CUDA graph replay of the sum failed") == 1
    assert record.replayed.count(0) == 2 and record.replayed.count(1) == 5
    assert record.captured == 2, "the failed one is not captured again at once"
    assert not cache.captures_work


def test_a_graph_that_failed_is_captured_again_after_some_uses(caplog):
    record, x = FailingReplays(), torch.zeros(1)
    cache = CudaGraphCache(record, "the sum")
    record.failing = {0}
    for _ in range(2 + backoff.FIRST):
        cache.run(cache.find("one", "here"), lambda: x.add_(1))
    assert record.captured == 1
    assert not cache.captures_work
    for _ in range(3):
        cache.run(cache.find("one", "here"), lambda: x.add_(1))
    assert record.captured == 2
    assert record.replayed == [1, 1, 1]
    assert cache.captures_work
    assert x.item() == 5 + backoff.FIRST
    assert len(caplog.records) == 1


def test_failures_in_a_row_are_tried_again_less_and_less_often(caplog):
    record, x = FailingReplays(), torch.zeros(1)
    cache = CudaGraphCache(record, "the sum")
    record.failing = set(range(100))
    for key in "abcdef":
        for _ in range(3):
            cache.run(cache.find(key, "here"), lambda: x.add_(1))
    assert x.item() == 18 and record.captured == 6
    warned = [record.message for record in caplog.records]
    reason = "(Offset increment outside graph capture); running"
    assert warned == [
        f"CUDA graph replay of the sum failed {reason} this shape eagerly",
        f"CUDA graph replay of the sum failed 3 times in a row {reason} it eagerly, with another "
        "try now and then",
    ]
    waits = [cache.find(key, "here").eager_uses for key in "abcdef"]
    assert waits == [backoff.uses_after(n) - 1 for n in range(1, 7)]
    for _ in range(backoff.uses_after(1)):
        cache.run(cache.find("a", "here"), lambda: x.add_(1))
    assert record.captured == 7


def test_the_uses_after_failures_grow_up_to_a_bound():
    assert [backoff.uses_after(n) for n in (1, 2, 3, 7, 1000)] == [16, 64, 256, 65536, 65536]


def test_a_function_is_captured_for_each_shape_and_key():
    record, module = Counting(), torch.nn.Linear(2, 2)
    call = GraphedExecutor(record, module, "the product")
    with torch.inference_mode():
        for _ in range(3):
            for rows in (1, 4):
                x = torch.randn(rows, 2)
                assert torch.equal(call("once", module, x), module(x))
                assert torch.equal(call("twice", lambda y: module(module(y)), x), module(module(x)))
    assert record.captured == 4
