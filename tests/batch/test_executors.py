"""What a worker runs: the plan that was resolved once, fitted to the worker's own device."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

from chatterbox_opt.batch import executors
from chatterbox_opt.batch.executors import WorkerSpec
from chatterbox_opt.config.hardware import Hardware
from chatterbox_opt.engine.spec import EngineSpec

BIG = Hardware("cuda", "big", 24_000, 23_500, (8, 9))


def worker_spec(hardware=BIG, **engine) -> WorkerSpec:
    spec = EngineSpec(model="pico", **engine)
    return WorkerSpec(engine=spec, plan=spec.resolve(hardware), retries=1)


def local_plan(monkeypatch, spec, hardware):
    asked = []
    monkeypatch.setattr(executors.probe, "probe", lambda device: asked.append(device) or hardware)
    plan = spec._local_plan()
    assert asked == [spec.plan.device]
    return plan


def test_a_worker_spec_is_picklable():
    spec = worker_spec(overrides={"dtype": "float16"})
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_worker_counts_slots_from_its_own_memory(monkeypatch, caplog):
    """Workers may share a GPU, or have smaller ones."""
    spec = worker_spec()
    plan = local_plan(monkeypatch, spec, replace(BIG, free_mib=6_000))
    assert 1 <= plan.slots < spec.plan.slots
    assert plan.profile == spec.plan.profile, "pinned, though auto would pick another one here"
    assert plan.precision == spec.plan.precision and not caplog.records


def test_a_worker_on_an_older_gpu_is_downgraded_with_a_warning(monkeypatch, caplog):
    spec = worker_spec(overrides={"dtype": "bfloat16"})
    with caplog.at_level(logging.WARNING, "chatterbox_opt"):
        plan = local_plan(monkeypatch, spec, Hardware("cuda", "old", 8_000, 7_900, (6, 1)))
    assert (plan.t3.storage, plan.t3.compute) == ("float16", "float32")
    assert "its files differ" in caplog.text and "float16 float16 float32" in caplog.text
