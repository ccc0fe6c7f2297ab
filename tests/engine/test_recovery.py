"""Every fallback, tested by injecting its fault into the real stages."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.faults import SAMPLING, FaultInjector, batch_waves, stage
from torch._dynamo.exc import TorchDynamoException

from chatterbox_opt import Engine, Request
from chatterbox_opt.checkpoints import loader
from chatterbox_opt.engine import build
from chatterbox_opt.engine.decoding import decode_graphs
from chatterbox_opt.engine.decoding.decode import EagerBackend, eager_step
from chatterbox_opt.engine.sequence import Capacity
from chatterbox_opt.errors import DeviceError, NumericsError
from chatterbox_opt.runtime import backoff, cuda
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.runtime.recovery import RecoveryPolicy


def inject(monkeypatch, engine, name, error, times):
    module = stage(engine, name)
    method = "step" if name == "t3" else "forward"
    monkeypatch.setattr(module, method, FaultInjector(getattr(module, method), error, times))


# what CUDA's libraries raise for want of memory is a plain RuntimeError
NO_WORKSPACE = "cuDNN Frontend error: GET was unable to find an engine to execute this computation"
FULL = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(NO_WORKSPACE)]


@pytest.mark.parametrize(
    "message",
    [
        NO_WORKSPACE,
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_want_of_memory_is_known_by_any_librarys_message(message):
    assert cuda.is_out_of_memory(RuntimeError(message))
    assert not cuda.is_out_of_memory(ValueError(message))


def test_other_errors_are_not_out_of_memory():
    assert cuda.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    others = ("CUDA error: misaligned address", "out of resource: shared memory", "")
    assert not any(cuda.is_out_of_memory(RuntimeError(other)) for other in others)


@pytest.mark.parametrize("error", FULL, ids=["torch", "cudnn"])
@pytest.mark.parametrize("name", ["t3", "flow", "vocoder"])
def test_out_of_memory_starts_offloading_and_gives_the_same_audio(
    load, engine, monkeypatch, caplog, name, error
):
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    with load() as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        inject(monkeypatch, fragile, name, error, 1)
        dropped = []
        fragile.pipeline.placement.release_graphs = lambda: dropped.append(True)
        assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
        assert fragile.pipeline.placement.offload == "stages"
        assert dropped, "graphs hold memory that cannot be used otherwise"
    warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2  # that weights are random, and this one
    assert f"{name} ran out of memory: stages now alternate" in warnings[1]


class FragileBackend(EagerBackend):
    """Stands for our fused kernels: its step fails at those calls of which ``fails(call)``."""

    def __init__(self, fails, error=None):
        super().__init__(fused=True)
        self.fails, self.calls = fails, 0
        self.error = error or RuntimeError("misaligned address")

    def step(self, t3):
        eager = eager_step(t3.step)

        def step(slots, count, kv_len, *, needs_sort):
            self.calls += 1
            if self.fails(self.calls):
                raise self.error
            eager(slots, count, kv_len, needs_sort=needs_sort)

        return step


@pytest.mark.parametrize(
    "error", [cuda.SetupError("Triton: out of shared memory"), OSError("no cc")]
)
def test_a_fused_step_that_cannot_be_compiled_is_replaced_for_good(load, engine, caplog, error):
    """On a GPU steps are Triton kernels: without a compiler, the request is retried eagerly."""
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    with load() as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        backend = fragile.pipeline.decoder.backend = FragileBackend(lambda call: True, error)
        for _ in range(2):
            assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
        assert backend.calls == 1
    warned = [r.message for r in caplog.records if "from now on" in r.message]
    assert warned == [
        f"compilation of the t3 step failed ({error}); running it eagerly from now on"
    ]


def test_a_step_that_fails_with_some_requests_is_retried_eagerly_once(load, engine, caplog):
    """Those in the batch are decoded again without it; then it is used again."""
    expected = batch_waves(engine, TEXTS)
    with load() as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        backend = fragile.pipeline.decoder.backend = FragileBackend(lambda call: call in (3, 15))
        for _ in range(3):
            assert same(batch_waves(fragile, TEXTS), expected)
        assert fragile.pipeline.decoder.backend is backend and backend.calls > 16
        assert fragile.pipeline.decoder.step_failures == 0
    assert caplog.text.count("the t3 step failed (misaligned address); retrying eagerly") == 1
    assert "from now on" not in caplog.text


def test_a_step_that_fails_three_times_in_a_row_is_left_alone_for_a_while(
    load, engine, caplog, monkeypatch
):
    monkeypatch.setattr(backoff, "FIRST", 2)
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    with load() as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        works_again = False
        decoder = fragile.pipeline.decoder
        backend = decoder.backend = FragileBackend(lambda call: not works_again)
        # the third failure: it and the next one are eager; then it is tried, and fails: eight
        for failures in (1, 2, 3, 3, 4, *[4] * 7, 5):
            assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
            assert backend.calls == failures
            assert decoder.backend is backend
        works_again = True
        decoder._eager_sequences = 0
        for _ in range(2):
            assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
        assert backend.calls > 5
        assert decoder.step_failures == 0
    warned = [r.message for r in caplog.records if "in a row" in r.message]
    assert warned == [
        "the t3 step failed 3 times in a row (misaligned address); running it eagerly, with "
        "another try now and then"
    ]


def test_a_success_between_two_failures_starts_the_count_again(load, engine, caplog):
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    failing = [False]
    with load() as fragile:
        backend = fragile.pipeline.decoder.backend = FragileBackend(lambda call: failing[0])
        for failing[0] in (True, True, False) * 3:
            assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
        assert fragile.pipeline.decoder.backend is backend
    assert "from now on" not in caplog.text


def test_a_request_that_fails_eagerly_too_does_not_count_against_the_backend(load, engine):
    def raising(*_):
        raise ValueError("an odd request")

    with load() as fragile:
        backend = fragile.pipeline.decoder.backend = FragileBackend(lambda call: False)
        for _ in range(5):
            with pytest.raises(ValueError, match="an odd request"):
                odd = fragile._requests.of(Request("odd", "Hello.", None, SAMPLING), Capacity())
                odd.on_progress = raising
                list(fragile._loop.pieces(odd))
        assert fragile.pipeline.decoder.backend is backend
        expected = engine.synthesize("Hello.", None, SAMPLING).samples
        assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)


def test_out_of_memory_with_nothing_left_to_offload_is_a_clear_error(load, monkeypatch, caplog):
    with load() as fragile:
        inject(monkeypatch, fragile, "flow", torch.OutOfMemoryError("CUDA out of memory"), 3)
        with pytest.raises(DeviceError, match="--profile memory-limited"):
            fragile.synthesize("Hello.", None, SAMPLING)
        assert fragile.pipeline.placement.offload == "all-but-active"
        assert fragile.synthesize("Hello.", None, SAMPLING).duration, "the next request is tried"
    warned = [r.message for r in caplog.records if "ran out of memory" in r.message]
    assert [message.partition(": ")[2] for message in warned] == [
        "stages now alternate on the GPU",
        "only the running stage is on the GPU now",
    ]


@pytest.mark.parametrize("name", ["t3", "flow"])
def test_nan_or_inf_in_half_precision_is_retried_in_float32(load, monkeypatch, caplog, name):
    """Overflow in bfloat16: the retry must run in float32, and only for that chunk."""
    with load(dtype="bfloat16") as half, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        expected = half.synthesize("Hello.", None, SAMPLING).samples
        module, used = stage(half, name), []
        original = module.prefill if name == "t3" else module.solve

        def overflowing(*args):
            used.append(module.dtype)
            result = original(*args)
            return result * torch.inf if module.dtype == torch.bfloat16 else result

        monkeypatch.setattr(module, "prefill" if name == "t3" else "solve", overflowing)
        samples = half.synthesize("Hello.", None, SAMPLING).samples
        assert used == [torch.bfloat16, torch.float32]
        assert module.dtype == torch.bfloat16
        monkeypatch.undo()
        assert np.isfinite(samples).all()
        assert np.array_equal(half.synthesize("Hello.", None, SAMPLING).samples, expected)
    assert caplog.records[-1].message.endswith("produced NaN or Inf: running it again in float32")


def test_nan_in_the_vocoder_reruns_a_half_precision_flow_in_float32(load, monkeypatch, caplog):
    with load(dtype="bfloat16") as half, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        vocoder, flow, used = stage(half, "vocoder"), stage(half, "flow"), []
        decode, solve = vocoder.decode, flow.solve

        def failing(*inputs):
            waves = decode(*inputs)
            return [w * torch.nan for w in waves] if used[-1] == torch.bfloat16 else waves

        monkeypatch.setattr(flow, "solve", lambda *a: used.append(flow.dtype) or solve(*a))
        monkeypatch.setattr(vocoder, "decode", failing)
        assert np.isfinite(half.synthesize("Hello.", None, SAMPLING).samples).all()
        assert used == [torch.bfloat16, torch.float32]
        assert flow.dtype == torch.bfloat16
        half.synthesize("Hello.", None, SAMPLING)
    warned = [r.message for r in caplog.records if "flow again in float32" in r.message]
    assert len(warned) == 1, "once per engine"


def test_out_of_memory_in_the_float32_retry_offloads_too(load, monkeypatch):
    with load(dtype="bfloat16") as half:
        module, tries = stage(half, "flow"), []
        solve = module.solve

        def failing(*args):
            tries.append(module.dtype)
            if len(tries) == 1:
                return solve(*args) * torch.nan
            if len(tries) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return solve(*args)

        monkeypatch.setattr(module, "solve", failing)
        half.synthesize("Hello.", None, SAMPLING)
        assert tries == [torch.bfloat16, torch.float32, torch.float32]
        assert half.pipeline.placement.offload == "stages"
        assert module.dtype == torch.bfloat16


@pytest.mark.parametrize("error", FULL, ids=["torch", "cudnn"])
def test_out_of_memory_at_load_offloads(tiny, monkeypatch, caplog, error):
    placed = []

    class Full(StagePlacement):
        def __init__(self, stages, device, *, offload):
            placed.append(offload)
            if offload == "none":
                raise error
            super().__init__(stages, device, offload=offload)

    monkeypatch.setattr(build, "StagePlacement", Full)
    with Engine.load(str(tiny), "dev", device="cpu", watermark=False) as engine:
        assert engine.synthesize("Hello.", None, SAMPLING).duration
    assert placed == ["none", "stages"]
    assert any(record.name == build.log.name for record in caplog.records)


@pytest.mark.parametrize("permanent", [True, False])
def test_a_compiled_step_that_fails_later(tiny, engine, monkeypatch, caplog, permanent):
    """Warm-up makes two calls; a recompilation for another length may fail in mid-sentence."""
    calls, kind = [], TorchDynamoException if permanent else RuntimeError

    def fragile(step, **_):
        def call(*args):
            calls.append(args)
            if len(calls) == 5:
                raise kind("recompilation failed")
            return step(*args)

        return call

    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    monkeypatch.setattr(torch, "compile", fragile)
    with Engine.load(
        str(tiny), "dev", device="cpu", overrides={"compile": "inductor"}, watermark=False
    ) as recovered:
        for _ in range(2):
            assert np.array_equal(recovered.synthesize("Hello.", None, SAMPLING).samples, expected)
    assert (len(calls) == 5) == permanent
    message = "compilation of the t3 step failed (recompilation failed); running it eagerly"
    assert (message in caplog.text) == permanent


@pytest.mark.parametrize("name", ["t3", "flow", "vocoder"])
def test_nan_in_float32_is_a_clear_error(load, name):
    with load() as broken:
        for parameter in stage(broken, name).parameters():
            parameter.data.fill_(float("nan"))
        with pytest.raises(NumericsError, match=f"{name} .* get them again"):
            broken.synthesize("Hello.", None, SAMPLING)


@pytest.mark.parametrize(
    "error", [RuntimeError("no compiler"), ImportError("triton"), OSError("gcc")]
)
def test_compilation_that_fails_runs_eager_with_one_warning(
    load, engine, monkeypatch, caplog, error
):
    monkeypatch.setattr(torch, "compile", FaultInjector(torch.compile, error, 9))
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    with caplog.at_level(logging.WARNING, "chatterbox_opt"), load(compile="inductor") as eager:
        assert eager.plan.compile == "inductor"
        assert np.array_equal(eager.synthesize("Hello.", None, SAMPLING).samples, expected)
    warned = [r.message for r in caplog.records if "compilation" in r.message]
    assert warned == [
        f"compilation of the t3 step failed ({error}); running it eagerly from now on"
    ]


def test_a_compiled_step_is_used_and_warmed_up(tiny, monkeypatch):
    """A fake torch.compile records what is compiled and with which options."""
    calls = []

    def fake(step, **options):
        calls.append(options)
        return lambda *args: calls.append(args[1:]) or step(*args)

    monkeypatch.setattr(torch, "compile", fake)
    with Engine.load(
        str(tiny), "dev", device="cpu", overrides={"compile": "inductor"}, watermark=False
    ) as e:
        assert calls[0] == {"backend": "inductor", "fullgraph": True}
        assert len(calls) == 1 + decode_graphs.WARM_UP_STEPS
        e.synthesize("Hello.", None, SAMPLING)
    assert len(calls) > 1 + decode_graphs.WARM_UP_STEPS


def test_a_retry_draws_the_same_random_numbers():
    generator, drawn = torch.Generator().manual_seed(0), []

    def work(_):
        drawn.append(torch.rand(1, generator=generator).item())
        if len(drawn) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    RecoveryPolicy(
        StagePlacement({"t3": torch.nn.Identity()}, torch.device("cpu"), offload="none")
    ).run("t3", work, [generator])
    assert drawn[0] == drawn[1]


def test_loading_leaves_the_global_generator_unchanged(tiny):
    from chatterbox_opt.checkpoints import registry

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    loader.load_flow(registry.locate(str(tiny)), torch.float32)
    assert torch.equal(torch.rand(1), expected)


TEXTS = ["Hello.", "Something else.", "A third one.", "And one more.", "The last."]


def same(results, expected) -> bool:
    return all(np.array_equal(results[t], expected[t]) for t in TEXTS)


def test_a_batch_that_runs_out_of_memory_continues_with_fewer_slots(
    load, engine, monkeypatch, caplog
):
    expected = batch_waves(engine, TEXTS)
    with load() as fragile:
        module, seen = stage(fragile, "t3"), []
        plain = module.step

        def step(token, *rest):
            seen.append(len(token))
            if len(token) > 2 and len(seen) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return plain(token, *rest)

        monkeypatch.setattr(module, "step", step)
        fragile.plan, dropped = replace(fragile.plan, slots=8), []
        fragile.pipeline.placement.release_graphs = lambda: dropped.append(True)
        assert same(batch_waves(fragile, TEXTS), expected)
        assert fragile.pipeline.placement.offload == "none", "fewer slots were enough"
        assert len(dropped) == 2, "before each try with fewer slots"
        assert max(seen) == 5 and seen[-1] <= 2
    assert "continues with 4 slots" in caplog.text and "continues with 2 slots" in caplog.text


def test_a_batch_without_any_memory_fails_each_request_with_the_reason(load, monkeypatch):
    with load() as full:
        error = torch.OutOfMemoryError("CUDA out of memory")
        monkeypatch.setattr(stage(full, "t3"), "step", FaultInjector(None, error, 10_000))
        for failed in batch_waves(full, TEXTS).values():
            assert isinstance(failed, DeviceError)


def test_nan_in_one_row_of_a_batch_is_retried_alone(load, monkeypatch, caplog):
    with load(dtype="bfloat16") as half:
        expected = batch_waves(half, TEXTS)
        module, prefills = stage(half, "t3"), []
        prefill = module.prefill

        def overflowing(x, *rest):
            logits = prefill(x, *rest)
            if module.dtype == torch.bfloat16 and len(prefills) == 2:
                prefills.append("NaN")
                return logits * torch.nan
            prefills.append("finite")
            return logits

        monkeypatch.setattr(module, "prefill", overflowing)
        results = batch_waves(half, TEXTS)
        assert module.dtype == torch.bfloat16
        # float32 may give the same tokens, or not: that depends on torch's rounding
        different = {t for t in TEXTS if not np.array_equal(results[t], expected[t])}
        assert different <= {TEXTS[2]}, "the others are the same"
        assert np.isfinite(results[TEXTS[2]]).all()
    assert caplog.text.count("again in float32") == 1


def test_sequences_that_cannot_be_rendered_together_are_rendered_alone(load, engine, monkeypatch):
    expected = batch_waves(engine, TEXTS)
    with load() as odd:
        odd.pipeline.group = 4
        module = stage(odd, "vocoder")
        forward = module.forward

        def picky(mels, generators):
            if len(mels) > 1:
                raise RuntimeError("too many")
            return forward(mels, generators)

        monkeypatch.setattr(module, "forward", picky)
        assert same(batch_waves(odd, TEXTS), expected)


def test_bad_requests_do_not_cost_the_fused_step(load, engine, monkeypatch, caplog):
    """Their prefill fails, which says nothing about steps."""
    expected = batch_waves(engine, TEXTS)
    with load() as fragile:
        backend = fragile.pipeline.decoder.backend = FragileBackend(lambda call: False)
        fragile.plan = replace(fragile.plan, slots=8)
        plain = fragile.pipeline.decoder._prompt

        def prompt(sequence):
            made, generator = plain(sequence)
            if sequence.chunk.text.startswith("Odd"):
                made = replace(made, speaker=made.speaker[:, :3])
            return made, generator

        monkeypatch.setattr(fragile.pipeline.decoder, "_prompt", prompt)
        odd = [f"Odd number {i}." for i in range(4)]
        results = batch_waves(fragile, [*odd[:2], *TEXTS, *odd[2:]])
        assert all(isinstance(results[text], RuntimeError) for text in odd)
        assert same(results, expected)
        assert fragile.pipeline.decoder.backend is backend
        assert fragile.pipeline.decoder.step_failures == 0
    assert "t3 step failed" not in caplog.text


def test_out_of_memory_in_the_float32_retry_of_t3_offloads_and_takes_no_slots(
    load, monkeypatch, caplog
):
    with load(dtype="bfloat16") as half:
        half.plan = replace(half.plan, slots=8)
        module, casts = stage(half, "t3"), []
        prefill, set_precision = module.prefill, module.set_precision

        def overflowing(*args):
            logits = prefill(*args)
            return logits * torch.nan if module.dtype == torch.bfloat16 and not casts else logits

        def full(dtype):
            casts.append(dtype)
            if len(casts) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            set_precision(dtype)

        monkeypatch.setattr(module, "prefill", overflowing)
        monkeypatch.setattr(module, "set_precision", full)
        assert all(isinstance(w, np.ndarray) for w in batch_waves(half, TEXTS[:1]).values())
        assert half.pipeline.placement.offload == "stages" and module.dtype == torch.bfloat16
    assert "slots" not in caplog.text


def test_later_batches_have_all_slots_again_after_out_of_memory(load, monkeypatch):
    with load() as fragile:
        module, widths = stage(fragile, "t3"), []
        plain, failing = module.step, [torch.OutOfMemoryError("CUDA out of memory")]

        def step(token, *rest):
            widths.append(len(token))
            if len(token) == 4 and failing:
                raise failing.pop()
            return plain(token, *rest)

        monkeypatch.setattr(module, "step", step)
        fragile.plan = replace(fragile.plan, slots=4)
        batch_waves(fragile, TEXTS)
        widths.clear()
        batch_waves(fragile, TEXTS)
        assert max(widths) == 4


def test_sequences_are_decoded_again_in_their_order(load, monkeypatch):
    with load() as fragile:
        module, order = stage(fragile, "t3"), []
        plain = fragile.pipeline.decoder._prompt
        monkeypatch.setattr(
            fragile.pipeline.decoder, "_prompt", lambda s: order.append(s.index) or plain(s)
        )
        error = torch.OutOfMemoryError("CUDA out of memory")
        monkeypatch.setattr(module, "step", FaultInjector(module.step, error, 1))
        fragile.plan = replace(fragile.plan, slots=4)
        text = "A sentence of about forty characters, it is. " * 24
        [result] = fragile.batch([Request("a", text, None, SAMPLING)])
        count = len(result.pieces)
        assert count >= 4
        assert order == [0, 1, 2, 3, *range(count)]
