"""Offload to a fake device: CPU memory, filled by copies that are recorded.

Memory "on the device" holds only ones until the copy is waited for, so weights that are used too
early are detected; and it is a numpy array, because a weak reference to one shows when its last
view is freed.
"""

from __future__ import annotations

import functools
import itertools
import logging
import weakref
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.faults import SAMPLING, FaultInjector, batch_waves, stage
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from chatterbox_opt import Engine
from chatterbox_opt.checkpoints import loader
from chatterbox_opt.engine import build
from chatterbox_opt.errors import DeviceError, InputError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.runtime import weight_transfer
from chatterbox_opt.runtime.flat_weights import ALIGN, FlatBuffer, extent, layout, module_tensors
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.runtime.recovery import in_float32
from chatterbox_opt.runtime.weight_transfer import PlainTransfer, StreamTransfer

CPU = torch.device("cpu")
NAMES = ("t3", "flow", "vocoder")
TEXTS = ["Hello.", "Something else.", "A third one."]


def pairs(first, second, fast):
    """All pairs; those that are not named are slow tests."""
    slow = pytest.mark.slow
    return [
        pytest.param(*pair, marks=() if pair in fast else slow)
        for pair in itertools.product(first, second)
    ]


@dataclass
class FakeCopy:
    transfer: FakeTransfer
    name: str
    source: torch.Tensor
    memory: torch.Tensor

    def wait(self):
        self.transfer.events.append(f"wait {self.name}")
        return self.memory.copy_(self.source)


class FakeTransfer:
    """A ``WeightTransfer`` to the fake device that records its calls."""

    def __init__(self, names=None):
        self.names = names or {}  # bytes -> stage
        self.events, self.arrays, self.peak, self.full = [], [], 0, set()

    def allocate(self, size):
        return torch.empty(size, dtype=torch.uint8)

    def start(self, source, *, overlap):
        name = self.names.get(len(source), "?")
        if (name, overlap) in self.full:
            self.events.append(f"no memory for {name}")
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.events.append(f"{'prefetch' if overlap else 'load'} {name}")
        array = np.full(len(source), 255, np.uint8)
        self.arrays.append(weakref.ref(array))
        memory = torch.from_numpy(array)
        del array
        self.peak = max(self.peak, self.live())
        return FakeCopy(self, name, source, memory)

    def live(self):
        """Buffers that are still referenced."""
        return sum(array() is not None for array in self.arrays)

    def release(self):
        self.events.append("release")

    def take_events(self):
        events, self.events = [e for e in self.events if e != "release"], []
        return events


class Stage(nn.Module):
    """Tied and transposed weights, buffers, and a table that is in no state dict."""

    def __init__(self, width):
        super().__init__()
        self.one, self.two = (nn.Linear(width, width).requires_grad_(False) for _ in range(2))
        self.two.weight = self.one.weight
        self.turned = nn.Parameter(torch.randn(width, width).T, requires_grad=False)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("hidden", torch.randn(3), persistent=False)
        self.register_buffer("nothing", torch.empty(0, 2))
        self.table = torch.randn(5)

    def forward(self, x):
        x = self.two(self.one(x)) @ self.turned
        return torch.cat((x.flatten(), self.hidden, self.table, self.steps[None].float()))

    @property
    def dtype(self):
        return self.one.weight.dtype

    def set_precision(self, dtype):
        self.to(dtype)


@pytest.fixture
def transfer():
    return FakeTransfer()


@pytest.fixture
def make(transfer):
    """A placement of three small stages, and a check of each stage's output."""

    def make(offload):
        torch.manual_seed(0)
        stages = {name: Stage(16 * (i + 1)) for i, name in enumerate(NAMES)}
        inputs = {name: torch.randn(2, 16 * (i + 1)) for i, name in enumerate(NAMES)}
        expected = {name: stages[name](inputs[name]) for name in NAMES}
        placement = StagePlacement(stages, CPU, offload=offload, transfer=transfer)
        transfer.names |= {len(f.home): name for name, f in placement._flats.items()}

        def check(name):
            with placement(name) as module:
                assert module is stages[name]
                assert torch.equal(module(inputs[name]), expected[name])
                transfer.events.append(f"{name} ran")

        return placement, check

    return make


def test_the_next_stage_is_prefetched_while_one_runs(make, transfer):
    placement, check = make("stages")
    for name in (*NAMES, *NAMES):
        check(name)
    order = [
        *("prefetch flow", "t3 ran"),
        *("wait flow", "prefetch vocoder", "flow ran"),
        *("wait vocoder", "prefetch t3", "vocoder ran"),
    ]
    assert transfer.take_events() == ["load t3", "wait t3", *order, "wait t3", *order]
    assert transfer.peak == 2
    assert transfer.live() == 1, "t3 is prefetched"


def test_only_the_active_stage_is_on_the_device(make, transfer):
    placement, check = make("all-but-active")
    for name in (*NAMES, "t3", "t3"):
        check(name)
        assert transfer.live() == 0
        assert transfer.events[-1] == "release"
    loads = [e for e in transfer.take_events() if not e.startswith("wait")]
    assert loads[:4] == ["load t3", "t3 ran", "load flow", "flow ran"]
    assert transfer.peak == 1


@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_a_stage_leaves_the_device_when_its_work_fails(make, transfer, offload):
    placement, check = make(offload)
    with pytest.raises(ValueError, match="boom"), placement("vocoder"):
        raise ValueError("boom")
    assert transfer.live() == (offload == "stages")
    for name in NAMES:
        check(name)


def test_another_order_of_stages_never_has_three_on_the_device(make, transfer):
    """NaN in the vocoder: the flow runs again, when t3 is prefetched already."""
    placement, check = make("stages")
    for name in ("t3", "flow", "vocoder", "flow", "vocoder", "t3", "t3"):
        check(name)
    assert transfer.peak == 2
    assert transfer.take_events()[10:] == [
        *("load flow", "wait flow", "prefetch vocoder", "flow ran"),
        *("wait vocoder", "prefetch t3", "vocoder ran"),
        *("wait t3", "prefetch flow", "t3 ran"),
        *("load t3", "wait t3", "t3 ran"),  # with the flow still on the device
    ]


def test_out_of_memory_in_a_prefetch_is_no_error(make, transfer, caplog):
    placement, check = make("stages")
    transfer.full.add(("flow", True))
    check("t3")
    transfer.full.clear()
    check("flow")
    assert transfer.take_events() == [
        *("load t3", "wait t3", "no memory for flow", "t3 ran"),
        *("load flow", "wait flow", "prefetch vocoder", "flow ran"),
    ]
    assert not caplog.records
    assert placement.offload == "stages"


@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_out_of_memory_for_the_stage_itself_is_raised_and_changes_nothing(make, transfer, offload):
    placement, check = make(offload)
    transfer.full.add(("t3", False))
    with pytest.raises(torch.OutOfMemoryError), placement("t3"):
        pytest.fail("not reached")
    transfer.full.clear()
    for name in NAMES:
        check(name)


@pytest.mark.parametrize("method", ["offload_more", "close"])
def test_graphs_are_dropped_before_memory_is_given_back(make, transfer, method):
    """The allocator frees no pool that a graph has."""
    placement, _ = make("none")
    placement.release_graphs = lambda: transfer.events.append("graphs dropped")
    getattr(placement, method)()
    assert transfer.events[-2:] == ["graphs dropped", "release"]


def test_offload_more_goes_from_none_to_stages_to_all_but_active(make, transfer):
    placement, check = make("none")
    check("t3")
    assert transfer.take_events() == ["t3 ran"]
    for expected in ("stages", "all-but-active", "all-but-active"):
        placement.offload_more()
        transfer.names |= {len(f.home): name for name, f in placement._flats.items()}
        assert placement.offload == expected
        assert transfer.live() == 0, "the prefetched stage is freed too"
        for name in NAMES:
            check(name)
    assert transfer.take_events()[-3:] == ["load vocoder", "wait vocoder", "vocoder ran"]


@pytest.mark.parametrize("offload", ["none", "stages", "all-but-active"])
def test_closing_frees_the_device_even_if_stages_are_referenced(make, transfer, offload):
    placement, check = make(offload)
    held = [placement.module(name) for name in NAMES]
    memory = [weakref.ref(t.untyped_storage()) for m in held for _, _, t in module_tensors(m)]
    check("t3")
    placement.close()
    assert transfer.live() == 0
    assert transfer.events[-1] == "release"
    assert not any(t.numel() for module in held for _, _, t in module_tensors(module))
    assert not any(ref() for ref in memory)
    with pytest.raises(InputError, match="closed"), placement("t3"):
        pass


def test_closing_while_a_stage_runs(make, transfer):
    placement, _ = make("stages")
    with placement("t3"):
        assert transfer.live() == 2
        placement.close()
        assert transfer.live() == 0


def test_a_nested_use_of_a_stage_moves_nothing(make, transfer):
    placement, check = make("stages")
    with placement("t3"):
        check("t3")
        check("t3")
        assert transfer.live() == 2
    assert transfer.live() == 1


@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_float32_inside_the_block_and_the_stage_intact_after_it(tiny, transfer, offload):
    from chatterbox_opt.checkpoints import registry

    checkpoint = registry.locate(str(tiny))
    dtype = torch.float16
    stages = {
        "t3": loader.load_t3(checkpoint, dtype),
        "flow": loader.load_flow(checkpoint, dtype),
    }
    before = {n: [t.clone() for _, _, t in module_tensors(m)] for n, m in stages.items()}
    placement = StagePlacement(stages, CPU, offload=offload, transfer=transfer)
    for name in (*stages, *stages):
        with placement(name) as module:
            on_gpu = [t.clone() for _, _, t in module_tensors(module)]
            with in_float32(module):
                assert module.dtype == torch.float32
                assert {t.dtype for t in module.parameters()} == {torch.float32}
            assert module.dtype == dtype
        after = [t for _, _, t in module_tensors(stages[name])]
        assert placement._flats[name].is_home()
        for now, live, then in zip(after, on_gpu, before[name], strict=True):
            assert now.dtype == live.dtype == then.dtype
            assert now.stride() == live.stride() == then.stride()
            assert torch.equal(now, then)
            assert torch.equal(live, then)
    assert transfer.live() == (offload == "stages")


def test_a_precision_that_failed_to_be_restored_is_restored_at_the_next_use(make, transfer):
    """Out of memory while the weights are cast: half of them stay float32."""
    placement, check = make("all-but-active")
    with pytest.raises(torch.OutOfMemoryError), placement("t3") as module:
        module.one.bfloat16()
        raise torch.OutOfMemoryError("CUDA out of memory")
    check("t3")


def test_weights_that_are_replaced_in_host_memory_are_the_ones_copied(make, transfer):
    placement, check = make("stages")
    check("vocoder")  # t3 is prefetched, and the prefetched copy is stale now
    module = placement.module("t3")
    module.double()
    with placement("t3"):
        assert module.dtype == torch.float64
        assert module.one.weight is module.two.weight
        assert transfer.take_events()[-3:] == ["load ?", "wait ?", "prefetch flow"]


def test_offload_changes_nothing_on_a_cpu(tiny):
    """Packed matrices of a CPU are no strided tensors, which could be views of a buffer."""
    from chatterbox_opt.checkpoints import registry

    t3 = loader.load_t3(registry.locate(str(tiny)), torch.float32, "int8")
    before = [t.data_ptr() for _, _, t in module_tensors(t3)]
    placement = StagePlacement({"t3": t3}, CPU, offload="none")
    for _ in range(3):
        with placement("t3") as module:
            assert [t.data_ptr() for _, _, t in module_tensors(module)] == before
        placement.offload_more()


def test_inference_mode_around_a_stage_has_no_lasting_effect(make):
    placement, check = make("stages")
    with torch.inference_mode():
        check("t3")
        with placement("flow") as flow:
            flow.table = flow.table * 1  # an inference tensor, as upstream's layers make them
    for name in NAMES:
        check(name)
    assert not any(
        t.is_inference() for n in NAMES for _, _, t in module_tensors(placement.module(n))
    )


# -- memory


SHAPES = some.lists(some.lists(some.integers(0, 5), max_size=3), min_size=1, max_size=6)
DTYPES = some.sampled_from([torch.float32, torch.float16, torch.bool, torch.int64, torch.uint8])


@given(SHAPES, some.data())
def test_offsets_are_disjoint_and_aligned(shapes, data):
    found = [torch.ones(shape, dtype=data.draw(DTYPES)) for shape in shapes]
    offsets, size = layout(found)
    assert size % ALIGN == 0
    assert not any(offset % ALIGN for offset in offsets)
    taken = sorted(zip(offsets, map(extent, found), strict=True))
    for (start, length), (following, _) in zip(taken, [*taken[1:], (size, 0)], strict=True):
        assert start + length <= following


def test_tensors_that_share_memory_still_do():
    module, whole = nn.Module(), torch.arange(12.0).view(3, 4)
    module.register_buffer("whole", whole)
    module.register_buffer("row", whole[1])
    module.register_buffer("column", whole[:, 2])
    module.late = whole[2, 1:]
    expected = [t.clone() for _, _, t in module_tensors(module)]
    flat = FlatBuffer(module, PlainTransfer(CPU).allocate)
    assert len(flat.home) == ALIGN
    whole.zero_()
    for (_, _, now), then in zip(module_tensors(module), expected, strict=True):
        assert torch.equal(now, then)
    module.whole.fill_(7)
    assert all((t == 7).all() for _, _, t in module_tensors(module))
    assert module.column.stride() == (4,)


def test_weights_stored_in_half_precision_for_float32_arithmetic_move_too(transfer):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(2, 8)
    weight_layout.store_narrow(layer, torch.float16)
    expected = layer(x)
    placement = StagePlacement({"t3": layer}, CPU, offload="all-but-active", transfer=transfer)
    with placement("t3") as module:
        assert torch.equal(module(x), expected)
        assert {t.dtype for _, _, t in module_tensors(module)} == {torch.float16, torch.float32}
        assert len(placement._flats["t3"].home) == 2 * ALIGN
    assert transfer.live() == 0


def test_every_bit_pattern_survives_a_copy():
    module = nn.Module()
    bits = torch.randint(-(2**15), 2**15, (4096,), dtype=torch.int16)
    module.register_buffer("odd", bits.clone().view(torch.float16))
    flat = FlatBuffer(module, PlainTransfer(CPU).allocate)
    flat.rebind(PlainTransfer(CPU).start(flat.home, overlap=True).wait())
    assert torch.equal(module.odd.view(torch.int16), bits)
    assert not flat.is_home()


# -- the engine on the fake device


@pytest.fixture
def load(tiny, store, monkeypatch, transfer):
    def load(offload, model=tiny, **overrides):
        def placement(stages, device, **_):
            return StagePlacement(stages, device, offload=offload, transfer=transfer)

        monkeypatch.setattr(build, "StagePlacement", placement)
        return Engine.load(
            str(model), "dev", device="cpu", overrides=overrides, store=store, watermark=False
        )

    return load


@pytest.mark.parametrize(
    ("offload", "dtype"),
    pairs(
        ("stages", "all-but-active"), ("float32", "bfloat16", "int8"),
        fast=(("stages", "float32"), ("all-but-active", "int8")),
    ),
)  # fmt: skip
def test_an_engine_with_offload_gives_bit_identical_audio(
    load, transfer, tiny, store, offload, dtype
):
    with Engine.load(
        str(tiny), "dev", device="cpu", overrides={"dtype": dtype}, store=store, watermark=False
    ) as plain:
        alone = plain.synthesize("Hello. And goodbye.", None, SAMPLING).samples
        together = batch_waves(plain, TEXTS)
    with load(offload, dtype=dtype) as engine:
        assert np.array_equal(
            engine.synthesize("Hello. And goodbye.", None, SAMPLING).samples, alone
        )
        ours = batch_waves(engine, TEXTS)
        assert all(np.array_equal(ours[t], together[t]) for t in TEXTS)
        assert any(e.startswith("prefetch") for e in transfer.take_events()) == (
            offload == "stages"
        )
    assert transfer.peak == {"stages": 2, "all-but-active": 1}[offload]
    assert transfer.live() == 0, "after closing"


@pytest.mark.parametrize(
    ("offload", "kind"),
    pairs(
        ("stages", "all-but-active"), ("turbo", "nano", "multilingual"),
        fast=(("stages", "multilingual"), ("all-but-active", "turbo")),
    ),
)  # fmt: skip
def test_the_family_with_offload_gives_bit_identical_audio(
    load, transfer, family, store, offload, kind
):
    """What is kept of a voice leaves the device with T3."""
    given = {"language": "de" if kind == "multilingual" else None}
    with Engine.load(str(family(kind)), "dev", device="cpu", store=store, watermark=False) as plain:
        expected = plain.synthesize("Hello.", None, SAMPLING, **given).samples
        assert plain.pipeline.placement.module("t3").kept.nbytes
    with load(offload, model=family(kind)) as engine:
        for _ in range(2):
            found = engine.synthesize("Hello.", None, SAMPLING, **given).samples
            assert np.array_equal(found, expected)
        assert not engine.pipeline.placement.module("t3").kept.nbytes
    assert transfer.peak == {"stages": 2, "all-but-active": 1}[offload]
    assert transfer.live() == 0, "after closing"


def test_an_engine_out_of_memory_goes_from_none_to_stages_to_all_but_active(
    load, engine, transfer, monkeypatch, caplog
):
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    full = torch.OutOfMemoryError("CUDA out of memory")
    with load("none") as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        placement, peak = fragile.pipeline.placement, []
        for name, mode in (("flow", "stages"), ("t3", "all-but-active")):
            module = stage(fragile, name)
            method = "step" if name == "t3" else "forward"
            failing = FaultInjector(getattr(module, method), full, 1)
            monkeypatch.setattr(module, method, failing)
            assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
            assert placement.offload == mode
            peak.append(transfer.peak)
        assert peak == [2, 2]
        transfer.peak = 0
        fragile.synthesize("Hello.", None, SAMPLING)
        assert transfer.peak == 1
        monkeypatch.setattr(module, "step", FaultInjector(None, full, 1))
        with pytest.raises(DeviceError, match="too little free memory for t3 alone"):
            fragile.synthesize("Hello.", None, SAMPLING)
    assert transfer.live() == 0
    assert "only the running stage is on the GPU now" in caplog.text


@pytest.mark.parametrize("name", ["t3", "flow"])
@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_an_engine_with_offload_recovers_in_float32(load, monkeypatch, offload, name):
    with load(offload, dtype="bfloat16") as half:
        expected = half.synthesize("Hello.", None, SAMPLING).samples
        module, used = stage(half, name), []
        method = "prefill" if name == "t3" else "solve"
        original = getattr(module, method)

        def overflowing(*args):
            used.append(module.dtype)
            result = original(*args)
            return result * torch.inf if module.dtype == torch.bfloat16 else result

        monkeypatch.setattr(module, method, overflowing)
        assert np.isfinite(half.synthesize("Hello.", None, SAMPLING).samples).all()
        assert used == [torch.bfloat16, torch.float32]
        monkeypatch.undo()
        assert module.dtype == torch.bfloat16
        assert np.array_equal(half.synthesize("Hello.", None, SAMPLING).samples, expected)


# -- CUDA calls


class FakeStream:
    """A fake stream or event that records its method calls."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __getattr__(self, method):
        def call(*args):
            names = [a.name if isinstance(a, FakeStream) else "memory" for a in args]
            self.calls.append(" ".join([self.name, method, *names]))
            return FakeStream("event", self.calls)

        return call


@pytest.fixture
def calls(monkeypatch):
    """The calls of ``torch.cuda`` and of tensors on "the GPU", recorded."""
    calls: list[str] = []

    @contextmanager
    def on(stream):
        calls.append(f"on {stream.name}")
        yield
        calls.append(f"off {stream.name}")

    def copy_(memory, source, non_blocking=False):
        calls.append(f"copy{' without waiting' if non_blocking else ''}")
        return plain_copy(memory, source)

    plain_copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side", calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("current", calls))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty cache"))
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda memory, s: calls.append(f"memory used by {s.name}")
    )
    return calls


def test_an_overlapped_copy_is_ordered_after_earlier_and_before_later_work(calls):
    side = StreamTransfer(CPU)
    source = torch.arange(256, dtype=torch.uint8)
    pending = side.start(source, overlap=True)
    assert calls == [
        *("side wait_stream current", "on side", "copy without waiting", "off side"),
        "side record_event",
    ]
    calls.clear()
    memory = pending.wait()
    assert calls == ["current wait_event event"]
    assert torch.equal(memory, source)
    assert memory.data_ptr() != source.data_ptr()
    calls.clear()
    del pending
    assert calls == [], "it was waited for: the current stream's order is enough"


def test_memory_freed_before_the_wait_is_not_reused_during_the_copy(calls):
    pending = StreamTransfer(CPU).start(torch.zeros(256, dtype=torch.uint8), overlap=True)
    calls.clear()
    del pending
    assert calls == ["memory used by side"]


def test_a_copy_without_overlap_is_on_the_current_stream(calls):
    memory = StreamTransfer(CPU).start(torch.ones(9, dtype=torch.uint8), overlap=False).wait()
    assert calls == ["copy without waiting"]
    assert memory.tolist() == [1] * 9


def test_cached_memory_is_released_in_all_but_active_only(calls):
    for offload, expected in (("all-but-active", 1), ("stages", 0)):
        placement = StagePlacement(
            {"t3": Stage(4)}, CPU, offload=offload, transfer=UnpinnedTransfer(StreamTransfer(CPU))
        )
        with placement("t3"):
            pass
        assert calls.count("empty cache") == expected
        calls.clear()
        placement.close()
        assert calls == ["empty cache"]
        calls.clear()


class UnpinnedTransfer:
    """A ``StreamTransfer`` from unpinned memory, which needs no GPU."""

    def __init__(self, side):
        self.start, self.release = side.start, side.release
        self.allocate = functools.partial(torch.empty, dtype=torch.uint8)


def test_host_memory_is_pinned_or_a_warning_is_logged(calls, monkeypatch, caplog):
    pinned = []

    def empty(size, *, dtype, pin_memory=False):
        pinned.append(pin_memory)
        if len(pinned) == 2:
            raise RuntimeError("CUDA error: out of memory")
        return torch.zeros(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    for _ in range(2):
        assert StreamTransfer(CPU).allocate(8).shape == (8,)
    assert pinned == [True, True, False]
    assert "no pinned memory" in caplog.text


def test_each_device_has_its_transfer(calls):
    assert isinstance(weight_transfer.transfer_for(torch.device("cuda", 1)), StreamTransfer)
    assert isinstance(weight_transfer.transfer_for(torch.device("mps")), PlainTransfer)


# -- on a real GPU


@pytest.fixture
def on_gpu(tiny, store):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    # cuBLAS workspaces are allocated by the first GEMM and stay
    torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
    return lambda offload: Engine.load(
        str(tiny), "dev", device="cuda", overrides={"offload": offload}, store=store,
        watermark=False,
    )  # fmt: skip


def test_a_gpu_holds_the_prefetched_stage_and_nothing_after_closing(on_gpu):
    empty, waves = torch.cuda.memory_allocated(), {}
    for offload in ("none", "stages", "all-but-active"):
        with on_gpu(offload) as engine:
            waves[offload] = engine.synthesize("Hello. And goodbye.", None, SAMPLING).samples
            placement = engine.pipeline.placement
            if offload == "none":
                continue
            sizes = {name: len(flat.home) for name, flat in placement._flats.items()}
            assert all(flat.home.is_pinned() for flat in placement._flats.values())
            assert placement._flats["t3"].is_home()
            waiting = sizes["t3"] if offload == "stages" else 0
            assert torch.cuda.memory_allocated() - empty == pytest.approx(waiting, abs=2**21)
        assert torch.cuda.memory_allocated() == empty, offload
    assert np.array_equal(waves["none"], waves["stages"])
    assert np.array_equal(waves["none"], waves["all-but-active"])


def test_weights_on_a_gpu_equal_the_prefetched_ones(on_gpu):
    with on_gpu("stages") as engine, torch.inference_mode():
        placement = engine.pipeline.placement
        for name in (*NAMES, *NAMES):
            with placement(name) as module:
                sums = [t.double().sum().cpu() for _, _, t in module_tensors(module) if t.numel()]
            home = [t.double().sum() for _, _, t in module_tensors(module) if t.numel()]
            assert torch.allclose(torch.stack(sums), torch.stack(home))
