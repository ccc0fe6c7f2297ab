"""Recorded work: replays say what plain work says, and are dropped when they are stale.

The recorder here is helpers/fake_graph_capture.py, which freezes what a CUDA graph freezes.
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
from helpers.fake_graph_capture import capture
from helpers.t3 import TEXTS, say_all, some, utterance

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.engine import decode_graphs
from chatterbox_opt.engine.decode import EagerBackend, decode
from chatterbox_opt.engine.decode_graphs import CudaGraphBackend
from chatterbox_opt.models.t3 import kv_cache
from chatterbox_opt.runtime import cuda_graphs
from chatterbox_opt.runtime.bucketing import EagerExecutor
from chatterbox_opt.runtime.cuda_graphs import CudaGraphCache, GraphedExecutor
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.runtime.recovery import RecoveryPolicy
from chatterbox_opt.runtime.weight_transfer import PlainTransfer
from chatterbox_opt.voices.store import VoiceStore


class Counting:
    """A recorder that counts what it is asked for."""

    def __init__(self, error: Exception | None = None):
        self.recorded, self.error = 0, error

    def __call__(self, work):
        self.recorded += 1
        if self.error:
            raise self.error
        return fake_graph_capture.record(work)


@pytest.fixture
def fresh(tiny, tmp_path):
    def load():
        return Engine.load(
            str(tiny), "dev", device="cpu", store=VoiceStore(tmp_path), watermark=False
        )

    return load


@pytest.fixture(scope="module")
def t3(tiny):
    return loader.load_t3(registry.locate(str(tiny)), torch.float32)


@pytest.fixture
def alone(engine, t3):
    return [say_all(t3, [one])[0].tokens for one in some(engine)]


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_replayed_tokens_are_the_plain_ones(engine, t3, alone, slots):
    """Every knob, voice, text length and seed differs; the recordings serve them all."""
    record = Counting()
    way = CudaGraphBackend(record)
    together = say_all(t3, some(engine), slots=slots, way=way)
    assert [said.tokens for said in together] == alone
    assert 0 < record.recorded <= 4 * slots
    before = record.recorded
    assert [said.tokens for said in say_all(t3, some(engine), slots=slots, way=way)] == alone
    assert record.recorded <= before + 4, "the second time there is next to nothing to record"


def test_one_by_one_over_the_same_slots(engine, t3, alone):
    record = Counting()
    way = CudaGraphBackend(record)
    assert [say_all(t3, [one], way=way)[0].tokens for one in some(engine)] == alone
    assert record.recorded <= 4, "two lengths of the cache, with a ranking of tokens and without"


def test_the_generator_is_left_as_the_last_token_left_it(engine, t3):
    plain, replayed = some(engine), some(engine)
    say_all(t3, plain)
    say_all(t3, replayed, slots=3, way=CudaGraphBackend(fake_graph_capture.record))
    for one, other in zip(plain, replayed, strict=True):
        assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_a_cache_that_grows_makes_recordings_void(engine, t3, monkeypatch):
    """It moves: a replay over where it was would read and write what is no longer the cache."""
    monkeypatch.setattr(decode_graphs, "KV_GROWTH", kv_cache.SPAN)
    texts, knobs = ["hello.", "word " * 60], Sampling(seed=5, max_tokens=150, temperature=1.5)
    record = Counting()
    way, grown = CudaGraphBackend(record), set()
    for text in texts:
        [said] = say_all(t3, [utterance(engine, text, knobs)], way=way)
        [plain] = say_all(t3, [utterance(engine, text, knobs)])
        assert said.tokens == plain.tokens
        grown.add(way.slots(t3, 1, 2).cache.capacity)
    assert len(grown) == 2 and record.recorded >= 3


def test_weights_that_move_make_recordings_void(fresh):
    """As offload, and a visit to float32, move them."""
    sampling = Sampling(seed=3, max_tokens=40)
    with fresh() as engine:
        record = Counting()
        capture(engine, record)
        first = engine.synthesize("Hello there.", None, sampling).samples
        count = record.recorded
        for parameter in engine.pipeline.placement.module("t3").parameters():
            parameter.data = parameter.data.clone().mul_(0.5)
        for parameter in engine.pipeline.placement.module("flow").parameters():
            parameter.data = parameter.data.clone().mul_(0.5)
        moved = engine.synthesize("Hello there.", None, sampling).samples
        moved_again = engine.synthesize("Hello there.", None, sampling).samples
        assert record.recorded > count
        engine.pipeline.backend = EagerBackend()
        engine.pipeline.placement.module("flow").executor = EagerExecutor()
        plain = engine.synthesize("Hello there.", None, sampling).samples
    assert np.array_equal(moved, moved_again)
    assert np.allclose(moved, plain, atol=1e-4)
    assert len(first) != len(moved) or not np.allclose(first, moved, atol=1e-3)


@pytest.mark.parametrize("when", ["a line has ended", "a line is taken"])
def test_weights_may_move_whenever_the_loop_is_left(engine, tiny, when):
    """Their old memory is given to others: a replay over it would say something else."""
    t3, record, moved = loader.load_t3(registry.locate(str(tiny)), torch.float32), Counting(), []

    def lines():
        bounds = (18, 60, 60, 60, 10)
        return [utterance(engine, TEXTS[i], Sampling(seed=i, max_tokens=bounds[i])) for i in order]

    def move():
        for parameter in t3.parameters():
            moved.append(parameter.data)
            parameter.data = parameter.data.clone()
            moved[-1].fill_(torch.nan)

    def take():
        if len(left) == 1 and when == "a line is taken":
            move()
        return left.pop(0) if left else None

    order = range(5) if when == "a line is taken" else range(4)
    alone = [said.tokens for said in say_all(t3, lines())]
    left, way, said = lines(), CudaGraphBackend(record), {}
    utterances = list(left)
    for one in decode(t3, way.slots(t3, 4, 2), take, way):
        said[one.utterance] = one.tokens
        if when == "a line has ended":
            move()
    assert [said[one] for one in utterances] == alone
    assert moved and record.recorded > 1


def test_the_loop_looks_for_moved_weights_only_then(engine, t3, monkeypatch):
    looked, way = [], CudaGraphBackend(fake_graph_capture.record)
    monkeypatch.setattr(cuda_graphs, "weight_addresses", lambda module: looked.append(module) or ())
    [said] = say_all(t3, [utterance(engine, "Hello.", Sampling(seed=1, max_tokens=90))], way=way)
    assert len(said.tokens) > 5 * decode_graphs.STEPS_PER_SYNC
    assert len(looked) <= 3, "for its prefill, and for its steps"


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
def test_stages_that_take_turns_sound_the_same(fresh, engine, offload):
    """Their weights come back to the same memory or to another: recordings follow."""
    sampling = Sampling(seed=3, max_tokens=40)
    expected = engine.synthesize("Hello there.", None, sampling).samples
    with fresh() as turning:
        capture(turning, fake_graph_capture.record)
        stages, cpu = turning.pipeline.placement._stages, torch.device("cpu")
        turning.pipeline.placement = StagePlacement(
            stages, cpu, offload=offload, copier=PlainTransfer(cpu)
        )
        turning.pipeline.recovery = RecoveryPolicy(turning.pipeline.placement)
        for _ in range(4):
            found = turning.synthesize("Hello there.", None, sampling).samples
            assert np.abs(found - expected).max() < 1e-3


def test_an_engine_with_recordings_sounds_the_same(fresh, engine):
    """Interleaved calls with other voices, lengths, steps and knobs; alone and in a batch."""
    calls = [
        ("Hello.", None, Sampling(seed=1, max_tokens=30)),
        ("A longer text, to be sure.", SAMPLE, Sampling(seed=2, max_tokens=30, top_p=0.8)),
        ("Hello.", None, Sampling(seed=1, max_tokens=30, cfm_steps=4)),
        ("Again and again.", None, Sampling(seed=4, max_tokens=30, temperature=0)),
    ] * 3
    expected = [engine.synthesize(t, engine.voice(v), s).samples for t, v, s in calls[:4]] * 3
    with fresh() as replaying:
        record = Counting()
        capture(replaying, record)
        for (text, voice, sampling), wave in zip(calls, expected, strict=True):
            samples = replaying.synthesize(text, replaying.voice(voice), sampling).samples
            assert samples.shape == wave.shape
            # padding to a bucket costs float32's last bits, which the phase of F0 magnifies
            assert np.abs(samples - wave).max() < 1e-3
        assert record.recorded >= 4
        batch = [Request(str(i), text, voice, s) for i, (text, voice, s) in enumerate(calls[:8])]
        found = {r.id: r.audio().samples for r in replaying.batch(batch)}
        for i, wave in enumerate(expected[:8]):
            assert found[str(i)].shape == wave.shape
            assert np.abs(found[str(i)] - wave).max() < 1e-3


def test_work_that_cannot_be_recorded_runs_plainly_with_one_warning_each(fresh, engine, caplog):
    sampling = Sampling(seed=3, max_tokens=40)
    expected = engine.synthesize("Hello there.", None, sampling).samples
    with fresh() as healed, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        capture(healed, Counting(RuntimeError("operation not permitted when stream is capturing")))
        for _ in range(3):
            found = healed.synthesize("Hello there.", None, sampling).samples
            assert np.abs(found - expected).max() < 1e-3
    warned = [r.message for r in caplog.records if r.name == "chatterbox_opt.runtime.cuda_graphs"]
    assert [line.split("; ")[1] for line in warned] == [
        "the t3 step runs eager",
        "the flow runs eager",
        "the vocoder runs eager",
    ]


def test_a_closed_engine_leaves_nothing(fresh):
    """No cycle keeps weights, slots or recordings until a collection that may be long in coming."""
    gc.collect()
    gc.disable()
    try:
        engine = fresh()
        capture(engine, fake_graph_capture.record)
        engine.synthesize("Hello there.", None, Sampling(seed=3, max_tokens=20))
        pipeline = engine.pipeline
        held = [weakref.ref(pipeline.placement.module(name)) for name in ("t3", "flow", "vocoder")]
        held += [weakref.ref(pipeline.backend), weakref.ref(pipeline.backend._slots)]
        del pipeline
        engine.close()
        assert [ref() for ref in held] == [None] * 5
    finally:
        gc.enable()


def test_reading_a_value_back_cannot_be_recorded():
    """Guards all tests here: the recorder would have noticed."""
    x = torch.ones(1)
    with pytest.raises(RuntimeError, match="not permitted"):
        fake_graph_capture.record(lambda: x.mul_(2 if x > 0 else 3))


def test_recording_does_nothing_and_freezes_numbers():
    x, factor = torch.ones(3), 2.0
    replay = fake_graph_capture.record(lambda: x.mul_(factor))
    assert x.tolist() == [1, 1, 1]
    factor = 5.0
    replay()
    assert x.tolist() == [2, 2, 2]


def test_recordings_are_bounded_and_the_last_used_stay(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    record, x = Counting(), torch.zeros(1)
    recordings = CudaGraphCache(record, "the sum")

    def add(key):
        recordings.run(recordings.find(key, "here"), lambda: x.add_(1))

    for key in "aabba":
        add(key)
    assert record.recorded == 2
    for key in "ccb":  # c takes b's place: a was used after it
        add(key)
    assert record.recorded == 3
    add("b")
    assert (record.recorded, x.item()) == (4, 9), "each was done once, however it was done"
    recordings.run(recordings.find("b", "elsewhere"), lambda: x.add_(1))
    assert record.recorded == 4, "in another place all is met for the first time"


def test_what_the_recordings_hold_is_bounded(monkeypatch):
    record, module = Counting(), torch.nn.Linear(2, 2)
    call = GraphedExecutor(record, module, "the product")
    monkeypatch.setattr(
        cuda_graphs, "MAX_BUFFER_BYTES", 2 * 2 * 40 * 4
    )  # arguments and result of 40 rows
    with torch.inference_mode():
        for rows in (10, 11, 12, 40, 10, 11):
            for _ in range(2):
                x = torch.randn(rows, 2)
                assert torch.equal(call("once", module, x), module(x))
    assert record.recorded == 5, "11 was dropped for 40, and recorded again"
    assert sum(recording.size > 0 for recording in call._recordings._known.values()) < 4


def test_a_replay_that_fails_is_done_plainly_and_recording_ends(caplog):
    x, failing = torch.zeros(1), []

    def record(work):
        def replay():
            if failing:
                raise RuntimeError("Offset increment outside graph capture")
            work()

        return replay

    recordings = CudaGraphCache(record, "the sum")
    for turn in range(5):
        failing += [turn] if turn == 3 else []
        recordings.run(recordings.find("one", "here"), lambda: x.add_(1))
    assert x.item() == 5 and caplog.text.count("the sum runs eager") == 1


def test_a_function_of_tensors_is_recorded_for_each_shape_and_key():
    record, module = Counting(), torch.nn.Linear(2, 2)
    call = GraphedExecutor(record, module, "the product")
    with torch.inference_mode():
        for _ in range(3):
            for rows in (1, 4):
                x = torch.randn(rows, 2)
                assert torch.equal(call("once", module, x), module(x))
                assert torch.equal(call("twice", lambda y: module(module(y)), x), module(module(x)))
    assert record.recorded == 4
