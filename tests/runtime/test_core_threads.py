"""Computations at the same time, each with its share of the cores."""

from __future__ import annotations

import threading

import pytest
import torch

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.runtime.core_threads import CoreThreads

TEXTS = [f"Number {number}, and so on." for number in range(8)]
KNOBS = {"cfm_steps": 1, "max_tokens": 12}


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_has_its_share(two_cores):
    threads, together = CoreThreads(), threading.Barrier(2, timeout=20)

    def work() -> tuple[int, bool]:
        together.wait()
        return torch.get_num_threads(), torch.is_inference_mode_enabled()

    assert threads.run([work, work]) == [(1, True)] * 2
    assert torch.get_num_threads() == 2
    assert threads.run([torch.get_num_threads]) == [2], "a single one has all cores"
    assert threads.run([lambda n=n: n for n in range(5)]) == list(range(5))
    later = threading.Thread(target=lambda: later.cores.append(torch.get_num_threads()))
    later.cores = []
    later.start()
    later.join()
    assert later.cores == [2], "other threads keep all cores"


def test_an_error_is_raised_when_all_have_ended(two_cores):
    ended = []

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        CoreThreads().run([fails, lambda: ended.append(1)])
    assert ended == [1]


@pytest.mark.slow
def test_the_sound_is_that_of_a_sequence_alone(two_cores, store, monkeypatch):
    counts = []
    run = CoreThreads.run
    monkeypatch.setattr(
        CoreThreads, "run", lambda self, work: (counts.append(len(work)), run(self, work))[1]
    )
    with Engine.load("pico", store=store, device="cpu", watermark=False) as engine:
        if engine.plan.flow.layout != "int8":
            pytest.skip(f"the flow is {engine.plan.flow.storage} on this CPU")
        alone = [
            engine.synthesize(text, None, Sampling(seed=seed, **KNOBS))
            for seed, text in enumerate(TEXTS)
        ]
        assert max(counts) == 1
        requests = [
            Request(str(seed), text, None, Sampling(seed=seed, **KNOBS))
            for seed, text in enumerate(TEXTS)
        ]
        batch = {result.id: result.audio() for result in engine.batch(requests)}
        assert [batch[request.id] for request in requests] == alone
        assert max(counts) == 2
        counts.clear()
        handles = [engine.submit(request) for request in requests]
        assert [handle.result().audio() for handle in handles] == alone
        assert max(counts) == 2, "while most slots are busy, two are rendered together"
