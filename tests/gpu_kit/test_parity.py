"""The checks of benchmarks/gpu, with a tape in place of a GPU: what they would find, they can find."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import fake_graph_capture
from helpers.fake_graph_capture import capture_graphs

from benchmarks import batch
from benchmarks.gpu.context import BROKEN_EXIT, Context, parse
from benchmarks.gpu.kinds import FAILED
from benchmarks.gpu.measuring import engines, kernel_times, lengths, parity
from benchmarks.gpu.measuring.engines import on_device, sound_made_by, sounds
from benchmarks.gpu.results import FILE, Results, read
from chatterbox_opt import Engine
from chatterbox_opt.engine.decode import EagerBackend
from chatterbox_opt.engine.decode_graphs import CudaGraphBackend
from chatterbox_opt.engine.overlap import OverlappedRenderer


@pytest.fixture
def engine(tiny):
    with Engine.load(str(tiny), "dev", device="cpu", watermark=False) as engine:
        capture_graphs(engine, fake_graph_capture.record)
        yield engine


def test_it_finds_an_exact_engine_good(engine):
    found = {
        "tokens": parity.token_parity(engine, engine.pipeline.backend, EagerBackend(), 2, 4, 10),
        "sound": parity.sound_parity(engine, 0.76),
        "drift": parity.drift(engine, 20, 4) | {"good": True},  # times mean nothing here
    }
    assert all(one["good"] for one in found.values()), found
    assert found["tokens"]["tokens"] > 20


def test_it_finds_a_vocoder_that_hears_its_padding(engine, monkeypatch):
    monkeypatch.setattr("chatterbox_opt.runtime.bucketing.DeviceLengths.zero_", lambda tails, x: x)
    assert not parity.sound_parity(engine, 0.76)["good"]


def test_it_finds_stale_recordings(engine, monkeypatch):
    """A way that forgets to look where the weights are."""
    monkeypatch.setattr("chatterbox_opt.engine.decode_graphs.weight_addresses", lambda module: ())
    stale = CudaGraphBackend(fake_graph_capture.record)
    assert parity.token_parity(engine, stale, EagerBackend(), 1, 2, 6)["good"]
    for parameter in engine.pipeline.placement.module("t3").parameters():
        parameter.data = parameter.data.roll(1, -1)
    assert not parity.token_parity(engine, stale, EagerBackend(), 1, 2, 6)["good"]


def test_its_figures_are_figures(engine):
    [row] = lengths.sound_by_length(engine, (0.5,))
    assert row["flow"] > 0 and row["vocoder"] > 0
    assert lengths.warm_up_seconds(engine)["third"] > 0
    with on_device(engine, "t3") as t3:
        row = lengths.prefill_seconds(engine, t3, {"some way": engine.pipeline.backend}, 50)
        assert row["some way"] > 0
        shape, here = t3.config, t3.like.device
    asked = kernel_times.Queries(shape.heads, shape.head_dim, 2, 128, here, torch.float32)
    row = kernel_times.decode_attention(
        asked, fake_graph_capture.record, fused=False, cold=3 * asked.nbytes - 1
    )
    assert row["sdpa, masked"] > 0 and row["products"] > 0
    assert (row["layers"], row["bytes"]) == (3, 2 * 2 * 4 * 128 * 16 * 4)
    shape = engine.checkpoint.config.flow
    row = kernel_times.flow_attention(shape, fake_graph_capture.record, here, 20, fused=False)
    assert row["sdpa, all"] > 0 and row["sdpa, masked"] > 0


def test_what_cannot_run_has_its_reason_in_the_row():
    def impossible():
        raise RuntimeError("too large\nfor this GPU")

    assert (
        kernel_times.timed(fake_graph_capture.record, impossible, torch.device("cpu"), 1)
        == "too large"
    )
    assert kernel_times.rated("too large", 1) == {"error": "too large"}
    assert kernel_times.rated(2.0, 4000) == {"us": 2.0, "gb_per_second": 2.0}


def test_it_compares_sound_made_beside_t3(engine):
    engine.plan = replace(engine.plan, sound="beside", slots=3)
    engine.pipeline.renderer, engine.pipeline.group = OverlappedRenderer(), 2
    assert parity.beside_parity(engine, 6) == {"equal": 3, "of": 3, "kept": True, "good": True}
    assert set(sounds(engine)) == {"here", "beside"}
    for sound in sounds(engine).values():
        with sound_made_by(engine, sound):
            assert batch.ours(engine, batch.requests(3), 3)["realtime_x"] > 0
    assert isinstance(engine.pipeline.renderer, OverlappedRenderer)
    engine.pipeline.renderer.disable()
    assert not parity.beside_parity(engine, 2)["good"], "it did not stay beside"


def test_memory_that_libraries_keep_is_no_leak(monkeypatch):
    held = [100 << 20]
    monkeypatch.setattr(parity, "allocated", lambda: held[0])
    found = parity.closed(0, clear=lambda: held.__setitem__(0, 1 << 20))
    assert found == {"left_mib": 1.0, "libraries_mib": 99.0, "good": True}
    held[0] = 100 << 20
    assert not parity.closed(0, clear=lambda: None)["good"]


@pytest.fixture
def context(tmp_path):
    return Context("some", "a model", tmp_path, Results(tmp_path / FILE, "some"))


def test_a_part_that_fails_costs_itself_only(context, tmp_path):
    with context.part("first"):
        raise ValueError("no such thing")
    with context.part("second"):
        context.put("figure", 1)
    failed, figure = read(tmp_path / FILE)
    assert (failed.what, failed.value["part"]) == (FAILED, "first")
    assert failed.value["error"] == "ValueError: no such thing"
    assert figure.value == 1


def test_a_gpu_that_is_broken_ends_the_process(context, tmp_path):
    """Every later call would fail, or hang."""
    with pytest.raises(SystemExit) as ended, context.part("first"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert ended.value.code == BROKEN_EXIT
    assert [line.what for line in read(tmp_path / FILE)] == [FAILED], "it is noted first"


def test_a_stage_reads_its_command_line(tmp_path):
    words = ["--model", "m", "--out", str(tmp_path), "--tiny", "--device", "cuda:1"]
    found = parse("benchmarks.gpu.stages.core", words)
    assert (found.stage, found.model, found.device) == ("core", "m", "cuda:1")
    assert found.sizes.seconds < 1 and found.scratch == tmp_path


def test_a_capture_that_failed_is_seen(engine):
    """All is launched from then on, under the name of what is replayed."""

    def refuse(work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    assert engines.recorded(engine, EagerBackend()) == {"flow": True, "vocoder": True, "t3": False}
    steps = CudaGraphBackend(refuse)
    assert engines.recorded(engine, steps)["t3"]
    assert parity.token_parity(engine, steps, EagerBackend(), 1, 2, 6)["good"]
    assert not engines.recorded(engine, steps)["t3"]
