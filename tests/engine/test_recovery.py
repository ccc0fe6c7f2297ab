"""Every fallback, by injecting its fault into the real stages."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.faults import SAMPLING, Failing, batch, stage

from chatterbox_opt import Engine
from chatterbox_opt.checkpoints import loader
from chatterbox_opt.engine import build, decode_graphs
from chatterbox_opt.engine.decode import EagerBackend
from chatterbox_opt.errors import DeviceError, NumericsError
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.runtime.recovery import RecoveryPolicy


def inject(monkeypatch, engine, name, error, times):
    module = stage(engine, name)
    method = "step" if name == "t3" else "forward"
    monkeypatch.setattr(module, method, Failing(getattr(module, method), error, times))


@pytest.mark.parametrize("name", ["t3", "flow", "vocoder"])
def test_out_of_memory_starts_offloading_and_says_what_is_right(
    load, engine, monkeypatch, caplog, name
):
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    with load() as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        inject(monkeypatch, fragile, name, torch.OutOfMemoryError("CUDA out of memory"), 1)
        assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
        assert fragile.pipeline.placement.offload == "stages"
    assert len(caplog.records) == 2  # noise of a made model, and the one warning
    assert f"{name} ran out of memory: stages now take turns" in caplog.records[1].message


@pytest.mark.parametrize("error", [RuntimeError("Triton: out of shared memory"), OSError("no cc")])
def test_a_kernel_of_our_own_that_fails_makes_way_for_torchs(load, engine, caplog, error):
    """On a card steps run by Triton: if that cannot be, the line is said again without."""
    expected = engine.synthesize("Hello.", None, SAMPLING).samples

    class Broken(EagerBackend):
        def slots(self, *given):
            return EagerBackend().slots(*given)

        def step(self, t3):
            raise error

    with load() as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        fragile.pipeline.backend = Broken(fused=True)
        for _ in range(2):
            assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
    told = [r.message for r in caplog.records if "runs eager" in r.message]
    assert len(told) == 1 and str(error) in told[0]


def test_out_of_memory_with_nothing_left_to_move_is_a_clear_error(load, monkeypatch, caplog):
    with load() as fragile:
        inject(monkeypatch, fragile, "flow", torch.OutOfMemoryError("CUDA out of memory"), 3)
        with pytest.raises(DeviceError, match="--profile memory-limited"):
            fragile.synthesize("Hello.", None, SAMPLING)
        assert fragile.pipeline.placement.offload == "all-but-active"
        assert fragile.synthesize("Hello.", None, SAMPLING).duration, "and the next one is tried"
    told = [r.message for r in caplog.records if "ran out of memory" in r.message]
    assert [t.partition(": ")[2] for t in told] == [
        "stages now take turns on the card",
        "only the stage that works is on the card now",
    ]


@pytest.mark.parametrize("name", ["t3", "flow"])
def test_half_precision_that_is_not_finite_is_done_again_in_float32(
    load, monkeypatch, caplog, name
):
    """The weights overflow in half: the retry must be float32, and only that chunk's."""
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
    assert caplog.records[-1].message.endswith("not finite: again in float32")


def test_a_vocoder_that_chokes_on_a_half_precision_mel_gets_a_float32_one(
    load, monkeypatch, caplog
):
    with load(dtype="bfloat16") as half, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        vocoder, flow, used = stage(half, "vocoder"), stage(half, "flow"), []
        decode, solve = vocoder.decode, flow.solve

        def choking(*inputs):
            waves = decode(*inputs)
            return [w * torch.nan for w in waves] if used[-1] == torch.bfloat16 else waves

        monkeypatch.setattr(flow, "solve", lambda *a: used.append(flow.dtype) or solve(*a))
        monkeypatch.setattr(vocoder, "decode", choking)
        assert np.isfinite(half.synthesize("Hello.", None, SAMPLING).samples).all()
        assert used == [torch.bfloat16, torch.float32]
        assert flow.dtype == torch.bfloat16
        half.synthesize("Hello.", None, SAMPLING)
    told = [r.message for r in caplog.records if "flow again in float32" in r.message]
    assert len(told) == 1, "once per engine"


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


def test_out_of_memory_at_load_offloads(tiny, monkeypatch, caplog):
    placed = []

    class Full(StagePlacement):
        def __init__(self, stages, device, *, offload):
            placed.append(offload)
            if offload == "none":
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(stages, device, offload=offload)

    monkeypatch.setattr(build, "StagePlacement", Full)
    with Engine.load(str(tiny), "dev", device="cpu", watermark=False) as engine:
        assert engine.synthesize("Hello.", None, SAMPLING).duration
    assert placed == ["none", "stages"]
    assert "take turns" in caplog.text


def test_a_compiled_step_that_fails_later_is_dropped(tiny, engine, monkeypatch, caplog):
    """Warm-up sees two calls; a recompilation for another length may fail in mid-sentence."""
    calls = []

    def fragile(step, **_):
        def call(*args):
            calls.append(args)
            if len(calls) == 5:
                raise RuntimeError("recompilation failed")
            return step(*args)

        return call

    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    monkeypatch.setattr(torch, "compile", fragile)
    with Engine.load(
        str(tiny), "dev", device="cpu", overrides={"compile": "inductor"}, watermark=False
    ) as healed:
        assert np.array_equal(healed.synthesize("Hello.", None, SAMPLING).samples, expected)
        assert np.array_equal(healed.synthesize("Hello.", None, SAMPLING).samples, expected)
    assert len(calls) == 5
    assert "recompilation failed; the t3 step runs eager" in caplog.text


@pytest.mark.parametrize("name", ["t3", "flow", "vocoder"])
def test_float32_that_is_not_finite_is_a_clear_error(load, name):
    with load() as broken:
        for parameter in stage(broken, name).parameters():
            parameter.data.fill_(float("nan"))
        with pytest.raises(NumericsError, match=f"{name} gave .* get them again"):
            broken.synthesize("Hello.", None, SAMPLING)


@pytest.mark.parametrize(
    "error", [RuntimeError("no compiler"), ImportError("triton"), OSError("gcc")]
)
def test_compilation_that_fails_runs_eager_with_one_warning(
    load, engine, monkeypatch, caplog, error
):
    monkeypatch.setattr(torch, "compile", Failing(torch.compile, error, 9))
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    with caplog.at_level(logging.WARNING, "chatterbox_opt"), load(compile="inductor") as eager:
        assert eager.plan.compile == "inductor"
        assert np.array_equal(eager.synthesize("Hello.", None, SAMPLING).samples, expected)
    warned = [r.message for r in caplog.records if "Compilation setup failed" in r.message]
    assert warned == [f"Compilation setup failed: {error}; the t3 step runs eager"]


def test_a_compiled_step_is_used_and_warmed_up(tiny, monkeypatch):
    """Without a compiler: a stand-in for torch.compile shows what is compiled and how."""
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


def test_a_retry_draws_the_same_numbers():
    generator, drawn = torch.Generator().manual_seed(0), []

    def work(_):
        drawn.append(torch.rand(1, generator=generator).item())
        if len(drawn) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    RecoveryPolicy(
        StagePlacement({"t3": torch.nn.Identity()}, torch.device("cpu"), offload="none")
    ).run("t3", work, [generator])
    assert drawn[0] == drawn[1]


def test_loading_draws_nothing_from_the_global_generator(tiny):
    from chatterbox_opt.checkpoints import registry

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    loader.load_flow(registry.locate(str(tiny)), torch.float32)
    assert torch.equal(torch.rand(1), expected)


TEXTS = ["Hello.", "Something else.", "A third one.", "And one more.", "The last."]


def same(ours, expected) -> bool:
    return all(np.array_equal(ours[t], expected[t]) for t in TEXTS)


def test_a_batch_that_runs_out_of_memory_goes_on_with_fewer_slots(
    load, engine, monkeypatch, caplog
):
    expected = batch(engine, TEXTS)
    with load() as fragile:
        module, seen = stage(fragile, "t3"), []
        plain = module.step

        def step(token, *rest):
            seen.append(len(token))
            if len(token) > 2 and len(seen) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return plain(token, *rest)

        monkeypatch.setattr(module, "step", step)
        fragile.plan = replace(fragile.plan, slots=8)
        assert same(batch(fragile, TEXTS), expected)
        assert fragile.pipeline.placement.offload == "none", "fewer slots were enough"
        assert max(seen) == 5 and seen[-1] <= 2
    assert "goes on with 4 slots" in caplog.text and "goes on with 2 slots" in caplog.text


def test_a_batch_without_any_room_fails_line_by_line_and_says_why(load, monkeypatch):
    with load() as full:
        error = torch.OutOfMemoryError("CUDA out of memory")
        monkeypatch.setattr(stage(full, "t3"), "step", Failing(None, error, 10_000))
        for failed in batch(full, TEXTS).values():
            assert isinstance(failed, DeviceError)


def test_a_row_that_is_not_finite_in_half_precision_is_done_again_alone(load, monkeypatch, caplog):
    with load(dtype="bfloat16") as half:
        expected = batch(half, TEXTS)
        module, spoiled = stage(half, "t3"), []
        prefill = module.prefill

        def overflowing(x, *rest):
            logits = prefill(x, *rest)
            if module.dtype == torch.bfloat16 and len(spoiled) == 2:
                spoiled.append("this one")
                return logits * torch.nan
            spoiled.append("not")
            return logits

        monkeypatch.setattr(module, "prefill", overflowing)
        ours = batch(half, TEXTS)
        assert module.dtype == torch.bfloat16
        # in float32 it may say the same, or not: that depends on torch's rounding
        different = {t for t in TEXTS if not np.array_equal(ours[t], expected[t])}
        assert different <= {TEXTS[2]}, "the others are the same"
        assert np.isfinite(ours[TEXTS[2]]).all()
    assert caplog.text.count("again in float32") == 1


def test_lines_that_flow_and_vocoder_cannot_do_together_are_done_alone(load, engine, monkeypatch):
    expected = batch(engine, TEXTS)
    with load() as odd:
        odd.pipeline.group = 4
        module = stage(odd, "vocoder")
        forward = module.forward

        def picky(mels, generators):
            if len(mels) > 1:
                raise RuntimeError("too many")
            return forward(mels, generators)

        monkeypatch.setattr(module, "forward", picky)
        ours = batch(odd, TEXTS)
        assert same(ours, expected)
