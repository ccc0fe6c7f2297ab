"""The checks of benchmarks/gpu, with fake graph capture: they pass and fail as they should."""

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
from benchmarks.gpu.measuring.engines import on_device, rendered_by, renderers
from benchmarks.gpu.results import FILE, Results, read
from chatterbox_opt import Engine
from chatterbox_opt.engine.decoding.decode import EagerBackend
from chatterbox_opt.engine.decoding.decode_graphs import CudaGraphBackend
from chatterbox_opt.engine.rendering.renderer import Renderer, no_stream


@pytest.fixture
def engine(tiny):
    with Engine.load(str(tiny), "dev", device="cpu", watermark=False) as engine:
        capture_graphs(engine, fake_graph_capture.record)
        yield engine


@pytest.mark.slow
def test_an_exact_engine_passes(engine):
    checks = {
        "tokens": parity.token_parity(
            engine, engine.pipeline.decoder.backend, EagerBackend(), 2, 4, 10
        ),
        "rendering": parity.rendering_parity(engine, 0.76),
        "drift": parity.drift(engine, 20, 4) | {"good": True},  # times mean nothing here
    }
    assert all(check["good"] for check in checks.values()), checks
    assert checks["tokens"]["tokens"] > 20


def test_a_vocoder_that_depends_on_padding_fails(engine, monkeypatch):
    monkeypatch.setattr(
        "chatterbox_opt.runtime.bucketing.DeviceLengths.zero_", lambda lengths, x: x
    )
    assert not parity.rendering_parity(engine, 0.76)["good"]


def test_stale_cuda_graphs_fail(engine, monkeypatch):
    """A backend that does not notice moved weights."""
    monkeypatch.setattr(
        "chatterbox_opt.engine.decoding.decode_graphs.weight_addresses", lambda module: ()
    )
    stale = CudaGraphBackend(fake_graph_capture.record)
    assert parity.token_parity(engine, stale, EagerBackend(), 1, 2, 6)["good"]
    for parameter in engine.pipeline.placement.module("t3").parameters():
        parameter.data = parameter.data.roll(1, -1)
    assert not parity.token_parity(engine, stale, EagerBackend(), 1, 2, 6)["good"]


@pytest.mark.slow
def test_timings_are_positive(engine):
    [row] = lengths.rendering_by_length(engine, (0.5,))
    assert row["flow"] > 0 and row["vocoder"] > 0
    assert lengths.warm_up_seconds(engine)["third"] > 0
    with on_device(engine, "t3") as t3:
        row = lengths.prefill_seconds(
            engine, t3, {"some mode": engine.pipeline.decoder.backend}, 50
        )
        assert row["some mode"] > 0
        shape, here = t3.config, t3.like.device
    attention = kernel_times.AttentionShape(
        shape.heads, shape.head_dim, 2, 128, here, torch.float32
    )
    row = kernel_times.decode_attention(
        attention, fake_graph_capture.record, fused=False, cache_bytes=3 * attention.nbytes - 1
    )
    assert row["sdpa, masked"] > 0 and row["products"] > 0
    assert (row["layers"], row["bytes"]) == (3, 2 * 2 * 4 * 128 * 16 * 4)
    shape = engine.checkpoint.config.flow
    row = kernel_times.flow_attention(shape, fake_graph_capture.record, here, 20, fused=False)
    assert row["sdpa, no mask"] > 0 and row["sdpa, masked"] > 0


def test_the_error_of_a_kernel_is_in_its_row():
    def impossible():
        raise RuntimeError("too large\nfor this GPU")

    assert (
        kernel_times.timed(fake_graph_capture.record, impossible, torch.device("cpu"), 1)
        == "too large"
    )
    assert kernel_times.with_bandwidth("too large", 1) == {"error": "too large"}
    assert kernel_times.with_bandwidth(2.0, 4000) == {"us": 2.0, "gb_per_second": 2.0}


@pytest.mark.slow
def test_overlapped_rendering_is_compared(engine):
    engine.plan = replace(engine.plan, rendering="overlapped", slots=3)
    renderer = engine.pipeline.renderer = Renderer(engine.pipeline.recovery, no_stream)
    engine.pipeline.group = 2
    assert parity.overlap_parity(engine, 4) == {"equal": 3, "of": 3, "intact": True, "good": True}
    assert set(renderers(engine)) == {"inline", "overlapped"}
    short = [
        replace(one, sampling=replace(one.sampling, max_tokens=20, cfm_steps=2))
        for one in batch.requests(3)
    ]
    for used in renderers(engine).values():
        with rendered_by(engine, used):
            assert batch.all_stages(engine, short, 3)["realtime_x"] > 0
    assert engine.pipeline.renderer is renderer
    renderer.disable_overlap()
    assert not parity.overlap_parity(engine, 2)["good"], "it did not stay overlapped"


def test_memory_cached_by_libraries_is_no_leak(monkeypatch):
    bytes_in_use = [100 << 20]
    monkeypatch.setattr(parity, "allocated", lambda: bytes_in_use[0])
    result = parity.memory_after_close(0, clear=lambda: bytes_in_use.__setitem__(0, 1 << 20))
    assert result == {"left_mib": 1.0, "libraries_mib": 99.0, "good": True}
    bytes_in_use[0] = 100 << 20
    assert not parity.memory_after_close(0, clear=lambda: None)["good"]


@pytest.fixture
def context(tmp_path):
    return Context("some", "a model", tmp_path, Results(tmp_path / FILE, "some"))


def test_a_failing_part_does_not_stop_others(context, tmp_path):
    with context.part("first"):
        raise ValueError("no such thing")
    with context.part("second"):
        context.put("figure", 1)
    failed, figure = read(tmp_path / FILE)
    assert (failed.what, failed.value["part"]) == (FAILED, "first")
    assert failed.value["error"] == "ValueError: no such thing"
    assert figure.value == 1


def test_a_broken_cuda_context_ends_the_process(context, tmp_path):
    """Every later CUDA call would fail or hang."""
    with pytest.raises(SystemExit) as ended, context.part("first"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert ended.value.code == BROKEN_EXIT
    assert [line.what for line in read(tmp_path / FILE)] == [FAILED], "it is recorded first"


def test_the_command_line_of_a_stage(tmp_path):
    words = ["--model", "m", "--out", str(tmp_path), "--tiny", "--device", "cuda:1"]
    parsed = parse("benchmarks.gpu.stages.core", words)
    assert (parsed.stage, parsed.model, parsed.device) == ("core", "m", "cuda:1")
    assert parsed.sizes.seconds < 1 and parsed.scratch == tmp_path


def test_a_failed_capture_is_detected(engine):
    """After it everything runs eagerly, in a backend named after CUDA graphs."""

    def fail(work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    assert engines.graphs_intact(engine, EagerBackend()) == {
        "flow": True,
        "vocoder": True,
        "t3": False,
    }
    steps = CudaGraphBackend(fail)
    assert engines.graphs_intact(engine, steps)["t3"]
    assert parity.token_parity(engine, steps, EagerBackend(), 1, 2, 6)["good"]
    assert not engines.graphs_intact(engine, steps)["t3"]
