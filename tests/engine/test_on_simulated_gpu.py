"""The engine on a simulated GPU (simulated_gpu.py), which refuses what a GPU would refuse."""

from __future__ import annotations

import functools
import gc
import importlib
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.common import SAMPLE
from helpers.simulated_gpu import STREAMS, RaceError, SimulatedGPU
from helpers.t3 import as_on_a_gpu, decode_all, eager_backend, utterance
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.gpu import kinds, report, results
from benchmarks.gpu.context import TINY, Context, measure
from benchmarks.gpu.measuring import clocks, engines, lengths, steps
from benchmarks.gpu.measuring.modes import MODES
from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.audio import watermark
from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.bench import roofline
from chatterbox_opt.bench import runner as bench_runner
from chatterbox_opt.bench.backends import OptimizedTarget
from chatterbox_opt.bench.runner import CUDA_ROWS
from chatterbox_opt.bench.timing import BenchJob, forced_tokens
from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.config.model_config import TOKEN_RATE, ModelConfig
from chatterbox_opt.engine.decoding.decode_graphs import STEPS_PER_SYNC, CudaGraphBackend
from chatterbox_opt.engine.texts import TOKENS_PER_LETTER
from chatterbox_opt.kernels.cuda import decode_attention, decode_io, decode_linear, support
from chatterbox_opt.kernels.cuda import flow as flow_kernels
from chatterbox_opt.kernels.cuda.kv_quantization import dequantize, quantize
from chatterbox_opt.models.t3 import sampler
from chatterbox_opt.models.t3.decode_state import UNFORCED, DecodeState
from chatterbox_opt.models.t3.fused_step import FusedStep
from chatterbox_opt.models.t3.gpt2 import Gpt2T3
from chatterbox_opt.models.t3.kv_cache import attend_matmul
from chatterbox_opt.models.t3.llama import LlamaT3, apply_rope
from chatterbox_opt.runtime import cuda
from chatterbox_opt.runtime.cuda_graphs import CudaGraphCache
from chatterbox_opt.runtime.flat_weights import module_tensors
from chatterbox_opt.voices.store import VoiceStore

CONFIGS = {
    "dev": {},
    "dev, captured": {"compile": "cudagraphs"},
    "rtx4090": {},
    "rtx3080": {},
    "memory-limited": {},
    "gtx1080": {},
    "rtx4090, int8": {"dtype": "int8"},
    "rtx3080, int8": {"dtype": "int8"},
    "rtx4090, int8 kv cache": {"kv_cache": "int8"},
    "dev, offload": {"compile": "cudagraphs", "offload": "stages"},
    "dev, alone": {"compile": "cudagraphs", "offload": "all-but-active"},
}
FAST = ("dev, offload",)  # the others are slow tests
EXACT = [name for name in CONFIGS if name.startswith("dev")]


def linear(
    x,
    weight,
    scales=None,
    *,
    bias=None,
    norm=None,
    gated=False,
    gelu=False,
    residual=None,
    out=None,
    arrivals=None,
):
    """``decode_linear.linear`` in operations that the fake capture can trace."""
    made = x.float()
    if norm is not None and len(norm) == 3:
        made = F.layer_norm(made, x.shape[1:], norm[0].float(), norm[2].float(), norm[1])
    elif norm is not None:
        made = F.rms_norm(made, x.shape[1:], norm[0].float(), norm[1])
    made = made @ weight.float().t()
    made = made if scales is None else made * scales
    made = made if bias is None else made + bias.float()
    made = F.gelu(made, approximate="tanh") if gelu else made
    if gated:
        first, second = made.chunk(2, dim=-1)
        made = F.silu(first) * second
    made = (made if residual is None else made + residual).to(x.dtype)
    return made if out is None else out.copy_(made)


def attend(qkv, rope, keys, values, places, scales=None, arrivals=None, tile=0):
    """``decode_attention.decode_attention``, likewise."""
    rows, rows_per_seq = len(qkv), len(qkv) // len(places)
    every = places.repeat_interleave(rows_per_seq)
    q, k, v = qkv.view(rows, 3, keys.shape[1], 1, -1).unbind(1)
    if rope is not None:
        rope = [part.repeat_interleave(rows_per_seq, dim=0)[:, None, None] for part in rope]
        q, k = apply_rope(q, rope), apply_rope(k, rope)
    where, seen = (torch.arange(rows, device=q.device), slice(None), every), []
    given = zip((keys, values), (k, v), scales or (None, None), strict=True)
    for kept, new, by in given:
        new = new[:, :, 0]
        if by is None:
            kept[where] = new
            seen.append(kept[:rows])
        else:
            kept[where], by[where] = quantize(new)
            seen.append(dequantize(kept[:rows], by[:rows], q.dtype))
    visible = torch.arange(keys.shape[2], device=q.device) <= every[:, None]
    made = attend_matmul(q, *seen, visible[:, None, None])
    return made.transpose(1, 2).flatten(1)


def enter(counters, tables, frequencies, rows_per_seq, beyond, heads):
    """``decode_io.embed_tokens``."""
    token, generated, position = counters
    places = position.clamp(max=beyond - 1)
    arrivals = places.new_zeros(len(places) * rows_per_seq * heads, dtype=torch.int32)
    if frequencies is None:
        x = tables[0][token] + tables[1][places.clamp(max=len(tables[1]) - 1)]
        return x.repeat_interleave(rows_per_seq, dim=0), None, places, arrivals
    angles = places.float()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    x = (tables[0][token] + tables[1][generated]).repeat_interleave(rows_per_seq, dim=0)
    rope = torch.cat((cos, cos), -1).to(x.dtype), torch.cat((-sin, sin), -1).to(x.dtype)
    return x, rope, places, arrivals


def draw(logits, seen, knobs, noise, outputs, counters, *, unforced, not_finite, turbo, start):
    """``decode_io.sample_tokens``."""
    assert (unforced, not_finite) == (UNFORCED, sampler.NOT_FINITE)
    token, generated, position = counters
    held = SimpleNamespace(
        rows_per_seq=len(logits) // len(seen),
        turbo=turbo,
        start=start,
        logits=logits,
        seen=seen,
        sampling_tensors=sampler.SamplingTensors(knobs),
        noise=noise,
        token_buffer=outputs,
        last_token=token,
        num_generated=generated,
        position=position,
    )
    DecodeState.sample_with_torch(held, 0, len(seen), needs_sort=False)


def attend_frames(q, k, v, lengths):
    """``flow.attention``."""
    mask = None
    if lengths is not None:
        mask = (torch.arange(q.shape[2], device=q.device) < lengths[:, None])[:, None, None]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


def norm(x, weight, bias, eps, more=None, *, mish=False):
    """``flow.layer_norm``."""
    total = x if more is None else x + more
    made = F.layer_norm(total, weight.shape, weight, bias, eps)
    return total, F.mish(made) if mish else made


@pytest.fixture
def gpu(monkeypatch):
    """A simulated GPU; Triton kernels are replaced by what they compute, in operations that the fake capture can trace."""
    monkeypatch.setattr(support, "unsupported_reason", lambda *_: "")

    monkeypatch.setattr(decode_linear, "linear", linear)
    monkeypatch.setattr(decode_attention, "decode_attention", attend)
    monkeypatch.setattr(decode_io, "embed_tokens", enter)
    monkeypatch.setattr(decode_io, "sample_tokens", draw)
    monkeypatch.setattr(flow_kernels, "attention", attend_frames)
    monkeypatch.setattr(flow_kernels, "layer_norm", norm)
    with SimulatedGPU().plugged(monkeypatch) as plugged:
        yield plugged


@pytest.fixture
def load_on_gpu(gpu, tiny, tmp_path):
    def load(backend: str = "dev", **overrides: str) -> Engine:
        gpu.capability = (6, 1) if backend.startswith("gtx") else (9, 0)
        profile, _, _ = backend.partition(",")
        return Engine.load(
            str(tiny),
            profile,
            device="cuda",
            overrides=CONFIGS[backend] | overrides,
            store=VoiceStore(tmp_path),
            watermark=False,
        )

    return load


CALLS = [
    ("A longer text, to be sure.", SAMPLE, Sampling(seed=2, max_tokens=11, top_p=0.8, cfm_steps=1)),
    ("Hello.", None, Sampling(seed=1, max_tokens=7, cfg_weight=0, cfm_steps=2)),
]


@pytest.fixture(scope="module")
def expected(engine):
    return [engine.synthesize(t, engine.voice(v), s).samples for t, v, s in CALLS]


@pytest.mark.parametrize(
    "backend",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS],
)
def test_every_configuration_synthesizes_on_a_gpu(load_on_gpu, gpu, expected, backend):
    """Three times each, single and in a batch: warmed up, captured, replayed."""

    def check(i: int, found: np.ndarray) -> None:
        assert np.isfinite(found).all()
        if backend in EXACT:
            assert found.shape == expected[i].shape
            assert np.abs(found - expected[i]).max() < 1e-3

    with load_on_gpu(backend) as engine:
        captured = isinstance(engine.pipeline.decoder.backend, CudaGraphBackend)
        assert captured == (engine.plan.compile == "cudagraphs")
        voices = [engine.voice(voice) for _, voice, _ in CALLS]
        for _ in range(3):
            for i, (text, _, sampling) in enumerate(CALLS):
                check(i, engine.synthesize(text, voices[i], sampling).samples)
        asked = [
            Request(f"{i} {run}", text, voices[i], sampling)
            for run in range(3)
            for i, (text, _, sampling) in enumerate(CALLS)
        ]
        for result in engine.batch(asked):
            check(int(result.id.split()[0]), result.audio().samples)
        assert bool(gpu.replays) == captured
        if captured:
            assert all(engines.graphs_intact(engine, engine.pipeline.decoder.backend).values())
    gc.collect()
    assert gpu.allocated() == torch.cuda.memory_allocated() == 0, "memory that close() did not free"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dev, offload", "rtx4090"])
def test_words_are_timed_on_a_gpu(load_on_gpu, gpu, engine, backend, monkeypatch):
    """As on a CPU: on the device, with T3's weights there, while steps are captured."""
    monkeypatch.setattr(ModelConfig, "alignment_heads", ((1, 0), (0, 2)))
    sampling = Sampling(seed=1, max_tokens=20, cfm_steps=1)
    requests = [
        Request(str(i), "Hello there, you. " * (i + 1), sampling=sampling, timestamps=True)
        for i in range(3)
    ]
    expected = {result.id: result.words for result in engine.batch(requests)}
    with load_on_gpu(backend) as on_gpu:
        for result in on_gpu.batch(requests):
            assert [word.text for word in result.words] == result.pieces[0].text.split()
            if backend in EXACT:
                assert result.words == expected[result.id]
    gc.collect()
    assert gpu.allocated() == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dev, offload", "rtx4090"])
@pytest.mark.parametrize("kind", ["turbo", "nano", "multilingual"])
def test_the_family_synthesizes_on_a_gpu(gpu, family, kind, backend, tmp_path, monkeypatch):
    """The fused step of each backbone, captured, with knobs that need a sort and without; both
    flows; and with stages that leave the GPU."""
    model, language = str(family(kind)), "de" if kind == "multilingual" else None
    calls = [
        ("Hello there. [laugh]", Sampling(seed=1, max_tokens=13)),
        ("No sort.", Sampling(seed=2, max_tokens=11, top_k=0, top_p=1.0, temperature=1.2)),
    ]
    steps, fused = [], FusedStep.__call__

    def noted(self, *args, **kwargs):
        steps.append(type(self._t3))
        return fused(self, *args, **kwargs)

    monkeypatch.setattr(FusedStep, "__call__", noted)
    load = functools.partial(Engine.load, model, store=VoiceStore(tmp_path), watermark=False)
    with load("dev", device="cpu") as engine:
        expected = [
            engine.synthesize(text, None, one, language=language).samples for text, one in calls
        ]
    assert not steps
    profile, overrides = backend.partition(",")[0], CONFIGS[backend]
    with load(profile, device="cuda", overrides=overrides) as engine:
        assert "t3" in engine.plan.triton_stages
        for _ in range(3):
            for (text, one), wanted in zip(calls, expected, strict=True):
                found = engine.synthesize(text, None, one, language=language).samples
                assert np.isfinite(found).all()
                if backend in EXACT:
                    assert np.abs(found - wanted).max() < 1e-3
    assert gpu.replays and set(steps) == {LlamaT3 if kind == "multilingual" else Gpt2T3}


def test_parts_of_a_stream_are_those_of_a_cpu(load_on_gpu, gpu, engine):
    """Captured windows; tokens that are read back several at a time; a whole request beside."""
    text, sampling = "Parts of it are heard early.", Sampling(seed=5, max_tokens=34, cfm_steps=1)
    expected = list(engine.pieces(text, None, sampling, latency="low"))
    requests = [
        Request(id, text, None, sampling, latency)
        for id, latency in (("a", "low"), ("whole", "chunk"), ("b", "low"))
    ]
    with load_on_gpu("rtx4090", dtype="float32") as gpu_engine:
        for _ in range(2):
            results = {result.id: result for result in gpu_engine.batch(requests)}
            for id in ("a", "b"):
                pieces = results[id].pieces
                assert [p.tokens for p in pieces] == [p.tokens for p in expected]
                for found, piece in zip(pieces, expected, strict=True):
                    assert np.abs(found.samples - piece.samples).max() < 1e-2
            assert results["whole"].audio().tokens == sum(p.tokens for p in expected)
        assert gpu.captures
    assert len(expected) > 1


@pytest.mark.slow
def test_after_warm_up_nothing_is_captured(load_on_gpu, gpu):
    text = "No."
    sampling = Sampling(seed=0, max_tokens=TOKEN_RATE + TOKENS_PER_LETTER * len(text))
    with load_on_gpu("rtx4090") as engine:
        first = engine.synthesize(text, sampling=sampling).samples
        engine.warm_up(text)
        captures, replays = gpu.captures, gpu.replays
        assert captures
        again = engine.synthesize(text, sampling=sampling).samples
        assert gpu.captures == captures and gpu.replays > replays
    assert np.abs(again - first).max() < 1e-2


def test_overlapped_rendering_has_no_race(load_on_gpu, gpu, expected):
    """Two threads, two streams, graphs of both; the order of every operation is checked."""
    with load_on_gpu("rtx4090") as engine:
        assert engine.plan.rendering == "overlapped" and engine.plan.slots > 8
        lines = [
            Request(str(i), "Hello.", None, Sampling(seed=i, max_tokens=5 + i % 5, cfm_steps=1))
            for i in range(10)
        ]
        first, again = (
            {result.id: result.audio().samples for result in engine.batch(lines)} for _ in range(2)
        )
        assert engine.pipeline.renderer.overlaps
    assert all(np.abs(first[id] - again[id]).max() < 1e-2 for id in first)
    assert gpu.captures and gpu.replays > gpu.captures


def test_the_host_rarely_waits_while_t3_decodes(load_on_gpu, gpu):
    """Once per ``STEPS_PER_SYNC`` tokens, for an event that is long past; never in a step."""
    with load_on_gpu("rtx4090") as engine:
        for _ in range(3):
            gpu.syncs.clear()
            words = engine.speech_tokens("Hello.", None, Sampling(seed=1, max_tokens=40))
    assert len(words) > 2 * STEPS_PER_SYNC
    events = gpu.syncs.count("event")
    assert events <= len(words) // STEPS_PER_SYNC + 3
    # inputs are copied from the host: not once per token
    assert len(gpu.syncs) - events < 10, gpu.syncs


@pytest.mark.parametrize("offsets", [True, False])
def test_extra_draws_after_an_end_are_undone(gpu, engine, tiny, offsets, monkeypatch):
    """By the generator's offset where it has one: no state is read per token."""
    if not offsets:
        missing = property(lambda generator: [].get_offset)  # which raises AttributeError
        monkeypatch.setattr(torch.Generator, "get_offset", missing)
    t3 = loader.load_t3(registry.locate(str(tiny)), torch.float32).to("cuda")

    def outputs(backend) -> tuple:
        lines = [
            replace(
                utterance(engine, "Hello.", Sampling(max_tokens=9 + 5 * i, temperature=heat)),
                generator=torch.Generator("cuda").manual_seed(i),
            )
            for i, heat in enumerate((0.8, 1.2, 0.0))
        ]
        gpu.states = 0
        found = [one.tokens for one in decode_all(t3, lines, slots=2, backend=backend)]
        asked = gpu.states
        return found, [line.generator.get_state() for line in lines], asked

    tokens, states, asked = outputs(eager_backend())
    replayed, same, asked_replaying = outputs(
        CudaGraphBackend(cuda.GraphCapturer(torch.device("cuda")))
    )
    assert replayed == tokens and [len(one) for one in tokens] == [9, 14, 19]
    assert all(map(torch.equal, states, same))
    assert asked == 0, "with a readback per token there are no extra draws"
    assert (asked_replaying == 0) == offsets


@pytest.mark.slow  # the test of its way back to the CPU applies it on the GPU too
def test_the_watermark_runs_on_the_gpu(gpu, tiny, tmp_path):
    """Single, and in a batch on a thread and stream of its own, overlapped with T3 and rendering."""
    sampling = Sampling(seed=1, max_tokens=11, cfm_steps=2)
    asked = [Request(str(i), "Hello.", None, sampling) for i in range(6)]
    load = functools.partial(
        Engine.load, str(tiny), "rtx4090", device="cuda", store=VoiceStore(tmp_path)
    )
    with load(watermark=False) as engine:
        plain = engine.synthesize("Hello.", None, sampling).samples
        unmarked = {r.id: r.audio().samples for r in engine.batch(asked)}
    gc.collect()
    here = Watermark()
    with load() as engine:
        expected = here.apply(plain)
        before = len(gpu.syncs)
        found = engine.synthesize("Hello.", None, sampling).samples
        assert "stream" in gpu.syncs[before:], "the host waited for its side stream"
        assert np.abs(found - expected).max() < 1e-4 < np.abs(found - plain).max()
        marked = {r.id: r.audio().samples for r in engine.batch(asked)}
        for id, wave in unmarked.items():
            assert np.abs(marked[id] - here.apply(wave)).max() < 1e-2
    gc.collect()
    assert torch.cuda.memory_allocated() == 0
    assert np.array_equal(engine._watermark.apply(plain), expected), "and then on the CPU"


def test_the_watermark_on_a_gpu_needs_no_kernel_that_is_compiled_on_first_use():
    """CUDA's kernels for functions of complex numbers are."""
    used = set()

    class Complex(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if any(isinstance(x, torch.Tensor) and x.is_complex() for x in args):
                used.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    sizes = {"n_fft": 64, "hop_length": 16, "win_length": 64, "window": torch.hann_window(64)}
    on_cpu = watermark._Network(lambda x: (x, None), sizes)
    wave = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    expected, compiled = on_cpu.mark(wave), {"aten::angle", "aten::abs", "aten::exp", "aten::mul"}
    with Complex():
        found = replace(on_cpu, real=True).mark(wave)
    assert used and not used & compiled
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("nvrtc: error: no such file")],
)
def test_the_watermark_falls_back_to_the_cpu(gpu, monkeypatch, caplog, error):
    mark, wave = Watermark(), np.sin(np.arange(24_000, dtype=np.float32))
    expected, message = mark.apply(wave), f"the GPU cannot ({str(error)})"

    def fail(*_):
        raise type(error)(str(error))  # a new one: a traceback references its frames' memory

    mark.move(torch.device("cuda"))
    assert np.abs(mark.apply(wave) - expected).max() < 1e-4 and gpu.allocated()
    monkeypatch.setattr(watermark._Gpu, "mark", fail)
    for _ in range(2):
        assert np.array_equal(mark.apply(wave), expected)
    assert caplog.text.count(message) == 1
    gc.collect()
    assert gpu.allocated() == 0
    mark.move(torch.device("cuda"))  # it is tried immediately
    assert caplog.text.count(message) == 2
    monkeypatch.setattr(watermark._Network, "copy_to", fail)
    mark.move(torch.device("cuda"))
    assert np.array_equal(mark.apply(wave), expected)
    assert caplog.text.count(message) == 3


@pytest.mark.parametrize("offload", ["none", "stages"])
def test_the_watermark_stays_on_the_cpu_with_offload(gpu, tiny, tmp_path, offload):
    with Engine.load(
        str(tiny), "dev", device="cuda", overrides={"offload": offload}, store=VoiceStore(tmp_path)
    ) as engine:
        assert (engine._watermark._gpu is None) == (offload == "stages")


class Launches(TorchDispatchMode):
    """Counts kernel launches: views and allocations are free."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and "empty" not in func._schema.name
        return func(*args, **(kwargs or {}))

    def as_one(self, kernel):
        """A replaced kernel is one launch, whatever its replacement does."""

        def launched(*args, **kwargs):
            self.count += 1
            with _disable_current_modes():
                return kernel(*args, **kwargs)

        return launched


def test_a_step_has_few_launches(engine, monkeypatch):
    """Each costs a GPU a microsecond or two, however little it does."""
    launches = Launches()
    monkeypatch.setattr(decode_linear, "linear", launches.as_one(linear))
    monkeypatch.setattr(decode_attention, "decode_attention", launches.as_one(attend))
    monkeypatch.setattr(decode_io, "embed_tokens", launches.as_one(enter))
    monkeypatch.setattr(decode_io, "sample_tokens", launches.as_one(draw))
    found = {}
    with engine.pipeline.placement("t3") as t3, torch.inference_mode(), as_on_a_gpu(t3):
        for fused in (False, True):
            backend = eager_backend(static=True, fused=fused)
            held = backend.slots(t3, 2, 2)
            held.cache.reserve(0, 128)
            launches.count = 0
            with launches:
                backend.step(t3)(held, 2, 128, needs_sort=False)
            found[fused] = launches.count
        layers = t3.config.layers
    assert found[True] == 5 * layers + 3
    assert found[False] > 20 * layers + 50


@pytest.mark.slow  # test_offload.py counts the stages that are on a device
def test_memory_of_offloaded_stages(load_on_gpu, gpu):
    """Memory held between two calls, and the peak, without the fake capture's copies."""
    held, peak, stages = {}, {}, {}
    for offload in ("none", "stages", "all-but-active"):
        with load_on_gpu(offload=offload) as engine:
            for _ in range(2):
                gpu._forget_peak()
                engine.synthesize(CALLS[0][0], None, CALLS[0][2])
            held[offload], peak[offload] = gpu.allocated(), gpu.peak
            stages = {
                name: sum(tensor.nbytes for _, _, tensor in module_tensors(module))
                for name, module in engine.pipeline.placement._stages.items()
            }
        gc.collect()
    whole, largest = sum(stages.values()), max(stages.values())
    assert whole <= held["none"] < 1.02 * whole and held["all-but-active"] == 0
    working = peak["none"] - held["none"]
    assert peak["all-but-active"] <= largest + working
    assert peak["stages"] <= whole - min(stages.values()) + working


def test_rooflines_use_random_numbers_and_events(gpu, monkeypatch):
    here, seen = torch.device("cuda"), []
    monkeypatch.setattr(roofline, "READ_SIZES", {"cuda": 1 << 10})
    monkeypatch.setattr(roofline, "GEMM_SIZES", {"cuda": 16})
    events = roofline.event_seconds
    monkeypatch.setattr(roofline, "event_seconds", lambda work: seen.append(work()) or events(work))
    assert roofline.read_gb_s(here) > 0
    assert len(seen) == roofline.REPEATS and seen[0].item() != 0
    assert roofline.gemm_gflops(here, "bfloat16") > 0
    assert seen[-1].shape == (16, 16) and seen[-1].dtype == torch.bfloat16


@pytest.fixture
def stage(gpu, tiny, tmp_path, monkeypatch):
    """Runs a stage of benchmarks/gpu on tiny weights; its lines, and what failed."""
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: None)
    for of, name in ((clocks, "REPLAYS"), (clocks, "RUNS"), (lengths, "RUNS"), (steps, "STEPS")):
        monkeypatch.setattr(of, name, 1)  # else it takes too long

    def run(name: str, model=tiny) -> list[results.Line]:
        module = importlib.import_module(f"benchmarks.gpu.stages.{name}")
        there_to = results.Results(tmp_path / results.FILE, name)
        here = Context(name, str(model), tmp_path, there_to, "cuda", TINY, simulated=True)
        with torch.no_grad():
            measure(here, module.run)
        lines = results.read(tmp_path / results.FILE)
        assert [one.value for one in lines if one.what == kinds.FAILED] == []
        assert report.markdown(lines).startswith("# ")
        assert (lines[0].what, lines[-1].what) == (kinds.BEGUN, kinds.ENDED)
        bad = [one.value for one in lines if one.what == kinds.CHECK and not one.value["good"]]
        # the fake capture holds all tensors, and its times mean nothing
        assert [one for one in bad if one["name"] not in ("drift", "closed")] == []
        return lines

    return run


def valued(lines, what):
    found = [one.value for one in lines if one.what == what]
    assert found, f"no line of {what}; there are {sorted({one.what for one in lines})}"
    return found


@pytest.mark.slow
class TestStages:
    """What `make gpu-check` runs, rehearsed; its times mean nothing."""

    def test_ceilings(self, stage):
        lines = stage("ceilings")
        assert valued(lines, "gpu")[0]["sm_count"] == 132
        assert all(one["gb_per_second"] > 0 for one in valued(lines, "read"))
        assert {one["dtype"] for one in valued(lines, "gemm")} >= {"float16", "bfloat16", "tf32"}
        assert [one["kernels"] for one in valued(lines, "graph of small kernels")] == [1, 32, 153]

    def test_core(self, stage):
        lines = stage("core")
        assert {one["row"] for one in valued(lines, "run")} == set(MODES)
        assert {one["dtype"] for one in valued(lines, "run")} == {"float16"}
        for row in valued(lines, "run"):
            assert set(row["seconds"]) == {*bench_runner.STAGES, bench_runner.VOICE}
            assert row["tokens"] == 10
        assert len(valued(lines, "check")) >= 2
        assert sum(not one["warm"] for one in valued(lines, "first audio")) == 3
        assert {one["mode"] for one in valued(lines, "rendering by length")} == {"graph", "eager"}
        assert valued(lines, "host")[0]["us"] > 0

    def test_upstream(self, stage, monkeypatch):
        """Upstream's dimensions are hard-coded: it cannot load tiny weights."""
        from benchmarks.gpu.stages import upstream

        class Theirs:
            dtype, plan = "float32", "plain"

            def __init__(self, job, _):
                self.tokens = job.tokens

            def run(self, tokens=()):
                return dict.fromkeys(bench_runner.STAGES, 0.1 * len(tokens or self.tokens))

        monkeypatch.setattr(upstream, "UpstreamTarget", Theirs)
        lines = stage("upstream")
        runs = valued(lines, "run")
        assert [one["row"] for one in runs] == ["upstream"] * 2
        assert runs[0]["seconds"]["decode"] == pytest.approx(1.0)

    def test_profile(self, stage, tmp_path):
        lines = stage("profile")
        assert {one["step"] for one in valued(lines, "decode step")} == {f"step {m}" for m in MODES}
        assert {one["of"] for one in valued(lines, "kernels")} >= {"flow evaluation", "vocoder"}
        traces = list((tmp_path / "traces").glob("*.json.gz"))
        assert traces and sum(path.stat().st_size for path in traces) < 1 << 20

    def test_dtypes(self, stage):
        lines = stage("dtypes")
        rows = {(one["dtype"], one["row"]) for one in valued(lines, "run")}
        assert rows == {(d, m) for d in ("int8", "bfloat16", "float32") for m in MODES}

    def test_lab(self, stage):
        lines = stage("lab")
        products = valued(lines, "linear")
        assert any(one["by"] == "cublas" for one in products)
        tiles = [one["tile"] for one in products if isinstance(one.get("tile"), dict)]
        assert {"columns": 4} in tiles and {"columns": 8} in tiles
        assert any(one["by"] == "cuda" for one in products), "it says what cannot be had here"
        attention, quantized = valued(lines, "decode attention")
        assert quantized["int8"] and quantized["triton"] > 0 and "products" not in quantized
        assert attention["triton"] > 0 and attention["products"] > 0 and attention["layers"] > 1
        assert valued(lines, "flow attention")[0]["triton"] > 0

    def test_lab_of_turbo(self, stage, turbo):
        """Its matrices have biases, LayerNorm before them and gelu after one."""
        lines = stage("lab", turbo)
        products = [one for one in valued(lines, "linear") if one.get("by") == "triton"]
        assert {one["matrix"] for one in products} == {"qkv", "out", "gate_up", "down", "head"}
        assert all(one["us"] > 0 for one in products)

    def test_batches(self, stage):
        lines = stage("batches")
        alone = valued(lines, "batch, T3 alone")
        assert [one["overrides"].get("kv_cache") for one in alone] == [None, None, "int8", "int8"]
        assert {one["rendering"] for one in valued(lines, "batch, all stages")} == {
            "inline",
            "overlapped",
        }

    def test_checks(self, stage):
        names = {one["name"] for one in valued(stage("checks"), "check")}
        assert {
            "tokens, float32, 4 at once",
            "rendering, int8",
            "overlapped rendering",
            "closed",
        } <= names

    def test_samples(self, stage, tmp_path, monkeypatch, tiny):
        from benchmarks.gpu.stages import samples

        monkeypatch.setattr(samples, "MODEL", str(tiny))  # the built-in one takes minutes here
        monkeypatch.setattr(samples, "RUNS", 2)
        monkeypatch.setattr(samples, "TEXTS", samples.TEXTS[:1])
        lines = stage("samples")
        assert len(valued(lines, kinds.SPEECH)) == 4 * len(samples.TEXTS)
        assert len(list((tmp_path / "samples").glob("*.flac"))) == 4 * len(samples.TEXTS)

    def test_profiles(self, stage):
        found = {one["name"]: one for one in valued(stage("profiles"), "profile")}
        assert set(found) == {"rtx4090", "rtx3080", "memory-limited", "dev"}
        assert sum(found["rtx4090"]["captures"]) > 0 == found["rtx4090"]["captures"][-1]


@pytest.mark.parametrize("name", CUDA_ROWS[1:])
@pytest.mark.slow
def test_the_rows_of_its_table_run_on_the_gpu(gpu, tiny, name):
    row = OptimizedTarget(BenchJob(str(tiny), "cuda", tokens=forced_tokens(0.5)), name)
    for _ in range(3):
        assert row.run()["decode"] > 0
    quality = row.quality()
    assert quality["logits"].device.type == quality["mel"].device.type == "cpu"
    assert torch.isfinite(quality["logits"]).all()


def test_another_thread_may_be_the_first_to_capture(gpu):
    """Library handles are per thread, and must not be created inside a capture."""
    x, made = torch.ones(2, 2, device="cuda"), torch.zeros(2, 2, device="cuda")
    record, errors = cuda.GraphCapturer(torch.device("cuda")), []

    def multiply():
        made.copy_(x @ x)

    def second():
        try:
            with torch.cuda.stream(torch.cuda.Stream()) as _:
                replays.append(record(multiply))
        except RuntimeError as error:
            errors.append(error)

    replays = []
    multiply()  # warmed up by this thread
    torch.cuda.synchronize()
    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert not errors and len(replays) == 1


def test_another_thread_warms_up_before_it_captures(gpu, caplog):
    """Plans are per thread, and must not be made inside a capture."""
    x, kernel, sums = torch.ones(1, 1, 4, device="cuda"), torch.ones(1, 1, 2, device="cuda"), []
    made = torch.zeros(1, 1, 3, device="cuda")
    cache = CudaGraphCache(cuda.GraphCapturer(torch.device("cuda")), "the sum")

    def work():
        made.add_(F.conv1d(x, kernel))

    def runs(count: int) -> None:
        for _ in range(count):
            with torch.cuda.stream(torch.cuda.current_stream()):
                cache.run(cache.find("the sum", "here"), work)
                sums.append(made.sum().item())

    for count in (1, 2):  # each on a new thread, which may get the ident of the last one
        thread = threading.Thread(target=runs, args=(count,))
        thread.start()
        thread.join()
        gc.collect()
    assert caplog.messages == []
    assert sums == [6, 12, 18], "each ran once"
    assert gpu.replays == 1, "captured at the second run of the second thread's two"


def test_a_loaded_engine_attends_without_cudnn(load_on_gpu, gpu):
    with load_on_gpu():
        assert not gpu.cudnn_attention


def test_after_a_failed_capture_others_work(gpu):
    x, record = torch.ones(3, device="cuda"), cuda.GraphCapturer(torch.device("cuda"))
    before = record(lambda: x.add_(1))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="capturing"):
            record(x.tolist)
        record(lambda: x.mul_(2))()
    before()
    assert x.tolist() == [5, 5, 5]


@pytest.mark.parametrize("error", [RuntimeError("in the work"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize("invalid", [True, False])
def test_a_failed_capture_leaves_the_allocator_as_it_was(gpu, error, invalid):
    """CUDA may have invalidated it, then ``capture_end`` fails too and does not tell the allocator."""
    x, record = torch.ones(3, device="cuda"), cuda.GraphCapturer(torch.device("cuda"))

    def work():
        if invalid:
            with suppress(RuntimeError):
                x.tolist()
        raise error

    with pytest.raises(type(error), match=str(error)):
        record(work)
    assert gpu.underway == []
    torch.cuda.empty_cache()
    assert len(gpu.released) == invalid, "released once: by its graph, or for it"
    record(lambda: x.add_(1))()
    assert x.tolist() == [2, 2, 2]


def test_a_capture_that_is_invalid_at_its_end_leaves_the_allocator_as_it_was(gpu):
    x, record = torch.ones(3, device="cuda"), cuda.GraphCapturer(torch.device("cuda"))

    def work():
        with suppress(RuntimeError):
            x.tolist()

    with pytest.raises(RuntimeError, match="previous error during capture"):
        record(work)
    cuda.release_memory()
    assert gpu.underway == [] and len(gpu.released) == 1


def test_a_capture_without_memory_is_tried_again_without_cached_memory(gpu, monkeypatch):
    """The allocator frees nothing that it has cached during a capture."""
    x, record = torch.ones(3, device="cuda"), cuda.GraphCapturer(torch.device("cuda"))
    attempts, emptied = [], []
    empty = torch.cuda.empty_cache
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(empty()))

    def work():
        attempts.append(len(emptied))
        if len(attempts) in failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        x.add_(1)

    failing = {1}
    record(work)()
    assert attempts == [0, 1] and x.tolist() == [2, 2, 2]
    failing = {3, 4}
    with pytest.raises(torch.OutOfMemoryError):
        record(work)
    assert attempts == [0, 1, 1, 2]


def test_a_released_pool_has_no_graph_left_and_is_replaced(gpu):
    x, record = torch.ones(3, device="cuda"), cuda.GraphCapturer(torch.device("cuda"))
    replay = record(lambda: x.add_(1))
    pool = record._pool
    assert len(pool.graphs) == 2, "with the anchor"
    del replay
    record.release()
    gc.collect()
    assert len(pool.graphs) == 0, "empty_cache can free it"
    record(lambda: x.add_(1))()
    assert x.tolist() == [2, 2, 2] and record._pool is not pool


class TestTheSimulatedGpu:
    """What it refuses; else no test above could fail."""

    def test_two_devices(self, gpu):
        on_gpu, here = torch.ones(2, device="cuda"), torch.ones(2)
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + here
        with pytest.raises(TypeError, match="numpy"):
            on_gpu.numpy()
        assert (on_gpu + torch.tensor(1.0)).tolist() == [2, 2], "a CPU scalar is allowed"
        assert on_gpu.device.type == "cuda" and on_gpu.cpu().device.type == "cpu"
        module = torch.nn.Linear(2, 2)
        with pytest.raises(RuntimeError, match="same device"):
            module(on_gpu)
        assert module.to("cuda")(on_gpu).is_cuda

    def test_a_host_generator(self, gpu):
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, device="cuda", generator=torch.Generator())
        assert torch.randn(2, device="cuda", generator=torch.Generator("cuda")).is_cuda

    def test_no_kernel(self, gpu):
        with pytest.raises(NotImplementedError, match="no kernel for CUDA"):
            torch._C._nn.mkldnn_reorder_conv2d_weight(torch.ones(1, 1, 1, 1, device="cuda"))

    @pytest.mark.parametrize(
        "work",
        [
            lambda x: x.sum().item(),
            lambda x: x.tolist(),
            lambda x: x[x > 0],
            lambda x: x.cpu(),
            lambda x: torch.tensor([1.0], device=x.device),
            lambda x: x.exponential_(),
            lambda x: x * torch.tensor(2.0),
        ],
    )
    def test_capture(self, gpu, work):
        x, record = torch.ones(3, device="cuda"), cuda.GraphCapturer(torch.device("cuda"))
        with pytest.raises(RuntimeError, match="capturing"):
            record(functools.partial(work, x))
        replay = record(lambda: x.mul_(2))
        assert x.tolist() == [1, 1, 1]
        replay()
        assert x.tolist() == [2, 2, 2]

    def test_unordered_streams(self, gpu):
        x, other = torch.ones(3, device="cuda"), torch.cuda.Stream()
        with torch.cuda.stream(other), pytest.raises(RaceError):
            x.sum()
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            x.sum()
        with pytest.raises(RaceError):
            x.mul_(2)
        torch.cuda.current_stream().wait_event(other.record_event())
        x.mul_(2)

    def test_a_copy_without_a_wait(self, gpu):
        x, host = torch.ones(3, device="cuda"), torch.empty(3, pin_memory=True)
        host.copy_(x, non_blocking=True)
        with pytest.raises(RaceError):
            host.tolist()
        arrived = torch.cuda.Event()
        arrived.record()
        arrived.synchronize()
        assert host.tolist() == [1, 1, 1]
        assert gpu.syncs == ["event"]

    def test_memory(self, gpu):
        assert gpu.allocated() == 0
        x = torch.ones(1 << 10, device="cuda")
        y = x[:5]
        assert gpu.allocated() == 4 << 10
        del x
        assert gpu.allocated() == 4 << 10, "a view references it"
        del y
        assert (gpu.allocated(), gpu.peak) == (0, 4 << 10)

    def test_workspaces_of_gemms(self, gpu):
        """One per stream until they are freed; never one for two graphs."""
        x, other, size = torch.ones(2, 2, device="cuda"), torch.cuda.Stream(), 32 << 20
        for _ in range(2):
            x @ x
        assert torch.cuda.memory_allocated() == x.nbytes + size
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            x @ x
            assert torch.cuda.memory_allocated() == x.nbytes + 2 * size
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=torch.cuda.graph_pool_handle())
            try:
                with pytest.raises(RaceError, match="workspace"):
                    x @ x
            finally:
                graph.capture_end()
        torch._C._cuda_clearCublasWorkspaces()
        assert torch.cuda.memory_allocated() == x.nbytes

    def test_a_capturers_workspaces_are_private(self, gpu):
        """However often torch has reused its streams."""
        x, recorders = torch.ones(2, 2, device="cuda"), []
        for _ in range(STREAMS + 2):
            recorders.append(cuda.GraphCapturer(torch.device("cuda")))
            recorders[-1](lambda: x.copy_(x @ x))
            x @ x
        recorders[0](lambda: x.copy_(x @ x))()
        x @ x
        assert gpu.workspaces() == 32 << 20, "the default stream's"
        cuda.release_memory()
        assert gpu.workspaces() == 0

    def test_an_older_torch_does_not_free_workspaces(self, gpu, monkeypatch):
        monkeypatch.setattr(cuda, "TORCH_WITH_WORKSPACE_LOCK", "9.9")
        x = torch.ones(2, 2, device="cuda")
        x @ x
        cuda.GraphCapturer(torch.device("cuda"))(lambda: x.copy_(x @ x))
        cuda.release_memory()
        assert gpu.workspaces() == 64 << 20

    @pytest.mark.parametrize("enabled", [True, False])
    def test_no_garbage_collection_inside_a_capture(self, gpu, enabled):
        """Freeing a cycle's GPU memory there would end the capture."""
        record, x, freed = (
            cuda.GraphCapturer(torch.device("cuda")),
            torch.ones(2, device="cuda"),
            [],
        )
        thresholds, was = gc.get_threshold(), gc.isenabled()

        class Cycle:
            def __init__(self):
                self.me = self

            def __del__(self):
                freed.append(torch.cuda.is_current_stream_capturing())

        def work():
            Cycle()
            made = [[] for _ in range(9)]  # enough to trigger a collection
            x.add_(len(made))

        try:
            gc.set_threshold(1)
            (gc.enable if enabled else gc.disable)()
            record(work)()
            assert gc.isenabled() == enabled
            gc.collect()
        finally:
            gc.set_threshold(*thresholds)
            (gc.enable if was else gc.disable)()
        assert freed == [False] and x.tolist() == [10, 10]

    def test_another_thread(self, gpu):
        found = []

        def work():
            with torch.cuda.stream(torch.cuda.Stream()):
                found.append(torch.ones(1, device="cuda").is_cuda)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [True]

    def test_a_pool_without_graphs_cannot_be_used(self, gpu):
        """So a capturer holds an anchor graph."""
        pool, stream, graphs = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), []
        for _ in range(2):
            with torch.cuda.stream(stream):
                graphs.append(torch.cuda.CUDAGraph())
                graphs[-1].capture_begin(pool=pool)
                graphs[-1].capture_end()
        graphs.clear()
        gc.collect()
        with torch.cuda.stream(stream), pytest.raises(RuntimeError, match="use_count"):
            torch.cuda.CUDAGraph().capture_begin(pool=pool)
        record, x = cuda.GraphCapturer(torch.device("cuda")), torch.ones(2, device="cuda")
        for _ in range(3):
            record(lambda: x.add_(1))()
        assert x.tolist() == [4, 4]
