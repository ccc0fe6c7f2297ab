"""Offload on a pretend card: the processor, reached by copies that are noted down.

Memory "on the card" holds only ones until it was waited for, so that weights that are used too
early are noticed; and it is a numpy array, because a weak reference to one tells when the last
view of it is gone.
"""

from __future__ import annotations

import functools
import logging
import weakref
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.faults import SAMPLING, Failing, batch, stage
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


@dataclass
class Late:
    card: Card
    name: str
    source: torch.Tensor
    memory: torch.Tensor

    def wait(self):
        self.card.events.append(f"wait {self.name}")
        return self.memory.copy_(self.source)


class Card:
    """A copier to the pretend card."""

    def __init__(self, names=None):
        self.names = names or {}  # bytes -> stage
        self.events, self.arrays, self.most, self.full = [], [], 0, set()

    def allocate(self, size):
        return torch.empty(size, dtype=torch.uint8)

    def start(self, source, *, aside):
        name = self.names.get(len(source), "?")
        if (name, aside) in self.full:
            self.events.append(f"no room for {name}")
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.events.append(f"{'fetch' if aside else 'load'} {name}")
        array = np.full(len(source), 255, np.uint8)
        self.arrays.append(weakref.ref(array))
        memory = torch.from_numpy(array)
        del array
        self.most = max(self.most, self.there())
        return Late(self, name, source, memory)

    def there(self):
        """Buffers that somebody still refers to."""
        return sum(array() is not None for array in self.arrays)

    def release(self):
        self.events.append("release")

    def happened(self):
        events, self.events = [e for e in self.events if e != "release"], []
        return events


class Stage(nn.Module):
    """Tied and transposed weights, buffers, a table in no state dict; as large as its number."""

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
def card():
    return Card()


@pytest.fixture
def make(card):
    """A residency over three small stages, and what each gives."""

    def make(offload):
        torch.manual_seed(0)
        stages = {name: Stage(16 * (i + 1)) for i, name in enumerate(NAMES)}
        inputs = {name: torch.randn(2, 16 * (i + 1)) for i, name in enumerate(NAMES)}
        expected = {name: stages[name](inputs[name]) for name in NAMES}
        placement = StagePlacement(stages, CPU, offload=offload, copier=card)
        card.names |= {len(f.home): name for name, f in placement._flats.items()}

        def check(name):
            with placement(name) as module:
                assert module is stages[name]
                assert torch.equal(module(inputs[name]), expected[name])
                card.events.append(f"{name} worked")

        return placement, check

    return make


def test_the_next_stage_is_fetched_while_one_works(make, card):
    placement, check = make("stages")
    for name in (*NAMES, *NAMES):
        check(name)
    turn = [
        *("fetch flow", "t3 worked"),
        *("wait flow", "fetch vocoder", "flow worked"),
        *("wait vocoder", "fetch t3", "vocoder worked"),
    ]
    assert card.happened() == ["load t3", "wait t3", *turn, "wait t3", *turn]
    assert card.most == 2
    assert card.there() == 1, "t3 waits for its turn"


def test_only_the_active_stage_is_there(make, card):
    placement, check = make("all-but-active")
    for name in (*NAMES, "t3", "t3"):
        check(name)
        assert card.there() == 0
        assert card.events[-1] == "release"
    loads = [e for e in card.happened() if not e.startswith("wait")]
    assert loads[:4] == ["load t3", "t3 worked", "load flow", "flow worked"]
    assert card.most == 1


@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_a_stage_leaves_when_its_work_fails(make, card, offload):
    placement, check = make(offload)
    with pytest.raises(ValueError, match="boom"), placement("vocoder"):
        raise ValueError("boom")
    assert card.there() == (offload == "stages")
    for name in NAMES:
        check(name)


def test_work_that_goes_another_way_never_has_three_stages_there(make, card):
    """The vocoder chokes: the flow again, while t3 is fetched already."""
    placement, check = make("stages")
    for name in ("t3", "flow", "vocoder", "flow", "vocoder", "t3", "t3"):
        check(name)
    assert card.most == 2
    assert card.happened()[10:] == [
        *("load flow", "wait flow", "fetch vocoder", "flow worked"),
        *("wait vocoder", "fetch t3", "vocoder worked"),
        *("wait t3", "fetch flow", "t3 worked"),
        *("load t3", "wait t3", "t3 worked"),  # with the flow beside it still
    ]


def test_no_room_to_fetch_ahead_is_no_error(make, card, caplog):
    placement, check = make("stages")
    card.full.add(("flow", True))
    check("t3")
    card.full.clear()
    check("flow")
    assert card.happened() == [
        *("load t3", "wait t3", "no room for flow", "t3 worked"),
        *("load flow", "wait flow", "fetch vocoder", "flow worked"),
    ]
    assert not caplog.records
    assert placement.offload == "stages"


@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_no_room_for_the_stage_itself_is_told_and_spoils_nothing(make, card, offload):
    placement, check = make(offload)
    card.full.add(("t3", False))
    with pytest.raises(torch.OutOfMemoryError), placement("t3"):
        pytest.fail("not reached")
    card.full.clear()
    for name in NAMES:
        check(name)


def test_offloading_more_goes_down_the_ladder(make, card):
    placement, check = make("none")
    check("t3")
    assert card.happened() == ["t3 worked"]
    for expected in ("stages", "all-but-active", "all-but-active"):
        placement.offload_more()
        card.names |= {len(f.home): name for name, f in placement._flats.items()}
        assert placement.offload == expected
        assert card.there() == 0, "what was fetched ahead is gone too"
        for name in NAMES:
            check(name)
    assert card.happened()[-3:] == ["load vocoder", "wait vocoder", "vocoder worked"]


@pytest.mark.parametrize("offload", ["none", "stages", "all-but-active"])
def test_after_closing_nothing_is_there_whoever_holds_a_stage(make, card, offload):
    placement, check = make(offload)
    held = [placement.module(name) for name in NAMES]
    memory = [weakref.ref(t.untyped_storage()) for m in held for _, _, t in module_tensors(m)]
    check("t3")
    placement.close()
    assert card.there() == 0
    assert card.events[-1] == "release"
    assert not any(t.numel() for module in held for _, _, t in module_tensors(module))
    assert not any(ref() for ref in memory)
    with pytest.raises(InputError, match="closed"), placement("t3"):
        pass


def test_closing_in_the_middle_of_work(make, card):
    placement, _ = make("stages")
    with placement("t3"):
        assert card.there() == 2
        placement.close()
        assert card.there() == 0


def test_a_stage_inside_itself_stays(make, card):
    placement, check = make("stages")
    with placement("t3"):
        check("t3")
        check("t3")
        assert card.there() == 2
    assert card.there() == 1


@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_float32_inside_a_turn_and_the_stage_intact_after_it(tiny, card, offload):
    from chatterbox_opt.checkpoints import registry

    checkpoint = registry.locate(str(tiny))
    dtype = torch.float16
    stages = {
        "t3": loader.load_t3(checkpoint, dtype),
        "flow": loader.load_flow(checkpoint, dtype),
    }
    before = {n: [t.clone() for _, _, t in module_tensors(m)] for n, m in stages.items()}
    placement = StagePlacement(stages, CPU, offload=offload, copier=card)
    for name in (*stages, *stages):
        with placement(name) as module:
            on_card = [t.clone() for _, _, t in module_tensors(module)]
            with in_float32(module):
                assert module.dtype == torch.float32
                assert {t.dtype for t in module.parameters()} == {torch.float32}
            assert module.dtype == dtype
        after = [t for _, _, t in module_tensors(stages[name])]
        assert placement._flats[name].is_home()
        for now, there, then in zip(after, on_card, before[name], strict=True):
            assert now.dtype == there.dtype == then.dtype
            assert now.stride() == there.stride() == then.stride()
            assert torch.equal(now, then)
            assert torch.equal(there, then)
    assert card.there() == (offload == "stages")


def test_a_precision_that_fails_to_come_back_is_back_at_the_next_turn(make, card):
    """Out of memory while the weights are cast: half of them are float32."""
    placement, check = make("all-but-active")
    with pytest.raises(torch.OutOfMemoryError), placement("t3") as module:
        module.one.bfloat16()
        raise torch.OutOfMemoryError("CUDA out of memory")
    check("t3")


def test_weights_that_are_replaced_at_home_are_those_that_enter(make, card):
    placement, check = make("stages")
    check("vocoder")  # t3 is fetched, and what was fetched is old now
    module = placement.module("t3")
    module.double()
    with placement("t3"):
        assert module.dtype == torch.float64
        assert module.one.weight is module.two.weight
        assert card.happened()[-3:] == ["load ?", "wait ?", "fetch flow"]


def test_stages_are_as_they_were_where_there_is_no_way_to_go(tiny):
    """On the processor: packed matrices are no tensors that could be views of something."""
    from chatterbox_opt.checkpoints import registry

    t3 = loader.load_t3(registry.locate(str(tiny)), torch.float32, "int8")
    before = [t.data_ptr() for _, _, t in module_tensors(t3)]
    placement = StagePlacement({"t3": t3}, CPU, offload="none")
    for _ in range(3):
        with placement("t3") as module:
            assert [t.data_ptr() for _, _, t in module_tensors(module)] == before
        placement.offload_more()


def test_inference_mode_around_a_turn_leaves_no_trace(make):
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
def test_places_are_apart_and_aligned(shapes, data):
    found = [torch.ones(shape, dtype=data.draw(DTYPES)) for shape in shapes]
    offsets, size = layout(found)
    assert size % ALIGN == 0
    assert not any(offset % ALIGN for offset in offsets)
    taken = sorted(zip(offsets, map(extent, found), strict=True))
    for (start, length), (following, _) in zip(taken, [*taken[1:], (size, 0)], strict=True):
        assert start + length <= following


def test_what_shares_memory_shares_it_still():
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


def test_weights_that_are_stored_narrow_and_widened_when_used_move_too(card):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(2, 8)
    weight_layout.store_narrow(layer, torch.float16)
    expected = layer(x)
    placement = StagePlacement({"t3": layer}, CPU, offload="all-but-active", copier=card)
    with placement("t3") as module:
        assert torch.equal(module(x), expected)
        assert {t.dtype for _, _, t in module_tensors(module)} == {torch.float16, torch.float32}
        assert len(placement._flats["t3"].home) == 2 * ALIGN
    assert card.there() == 0


def test_bits_are_kept_whatever_they_mean():
    module = nn.Module()
    bits = torch.randint(-(2**15), 2**15, (4096,), dtype=torch.int16)
    module.register_buffer("odd", bits.clone().view(torch.float16))
    flat = FlatBuffer(module, PlainTransfer(CPU).allocate)
    flat.put(PlainTransfer(CPU).start(flat.home, aside=True).wait())
    assert torch.equal(module.odd.view(torch.int16), bits)
    assert not flat.is_home()


# -- the engine on the pretend card


@pytest.fixture
def load(tiny, store, monkeypatch, card):
    def load(offload, **overrides):
        def placement(stages, device, **_):
            return StagePlacement(stages, device, offload=offload, copier=card)

        monkeypatch.setattr(build, "StagePlacement", placement)
        return Engine.load(
            str(tiny), "dev", device="cpu", overrides=overrides, store=store, watermark=False
        )

    return load


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_an_engine_that_offloads_says_the_same_bit_by_bit(load, card, tiny, store, offload, dtype):
    with Engine.load(
        str(tiny), "dev", device="cpu", overrides={"dtype": dtype}, store=store, watermark=False
    ) as plain:
        alone = plain.synthesize("Hello. And goodbye.", None, SAMPLING).samples
        together = batch(plain, TEXTS)
    with load(offload, dtype=dtype) as engine:
        assert np.array_equal(
            engine.synthesize("Hello. And goodbye.", None, SAMPLING).samples, alone
        )
        ours = batch(engine, TEXTS)
        assert all(np.array_equal(ours[t], together[t]) for t in TEXTS)
        assert any(e.startswith("fetch") for e in card.happened()) == (offload == "stages")
    assert card.most == {"stages": 2, "all-but-active": 1}[offload]
    assert card.there() == 0, "after closing"


def test_an_engine_out_of_memory_goes_from_none_to_stages_to_all_but_active(
    load, engine, card, monkeypatch, caplog
):
    expected = engine.synthesize("Hello.", None, SAMPLING).samples
    full = torch.OutOfMemoryError("CUDA out of memory")
    with load("none") as fragile, caplog.at_level(logging.WARNING, "chatterbox_opt"):
        placement, most = fragile.pipeline.placement, []
        for name, mode in (("flow", "stages"), ("t3", "all-but-active")):
            module = stage(fragile, name)
            method = "step" if name == "t3" else "forward"
            failing = Failing(getattr(module, method), full, 1)
            monkeypatch.setattr(module, method, failing)
            assert np.array_equal(fragile.synthesize("Hello.", None, SAMPLING).samples, expected)
            assert placement.offload == mode
            most.append(card.most)
        assert most == [2, 2]
        card.most = 0
        fragile.synthesize("Hello.", None, SAMPLING)
        assert card.most == 1
        monkeypatch.setattr(module, "step", Failing(None, full, 1))
        with pytest.raises(DeviceError, match="too little free memory for t3 alone"):
            fragile.synthesize("Hello.", None, SAMPLING)
    assert card.there() == 0
    assert "only the stage that works is on the card now" in caplog.text


@pytest.mark.parametrize("name", ["t3", "flow"])
@pytest.mark.parametrize("offload", ["stages", "all-but-active"])
def test_an_engine_that_offloads_repairs_in_float32(load, monkeypatch, offload, name):
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


# -- what a card is told


class Told:
    """Stands for a stream, an event, or what is made of them."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __getattr__(self, method):
        def call(*args):
            told = [a.name if isinstance(a, Told) else "memory" for a in args]
            self.calls.append(" ".join([self.name, method, *told]))
            return Told("event", self.calls)

        return call


@pytest.fixture
def told(monkeypatch):
    """``torch.cuda`` and the tensors of "the card", noted down."""
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
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Told("side", calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Told("current", calls))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty cache"))
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda memory, s: calls.append(f"memory used by {s.name}")
    )
    return calls


def test_a_copy_aside_comes_after_what_was_there_and_before_what_is_next(told):
    side = StreamTransfer(CPU)
    source = torch.arange(256, dtype=torch.uint8)
    arriving = side.start(source, aside=True)
    assert told == [
        *("side wait_stream current", "on side", "copy without waiting", "off side"),
        "side record_event",
    ]
    told.clear()
    memory = arriving.wait()
    assert told == ["current wait_event event"]
    assert torch.equal(memory, source)
    assert memory.data_ptr() != source.data_ptr()
    told.clear()
    del arriving
    assert told == [], "it was waited for: the order of work on the current stream is enough"


def test_memory_that_nobody_waited_for_is_not_given_away_under_the_copy(told):
    arriving = StreamTransfer(CPU).start(torch.zeros(256, dtype=torch.uint8), aside=True)
    told.clear()
    del arriving
    assert told == ["memory used by side"]


def test_a_copy_that_is_needed_now_is_on_the_working_stream(told):
    memory = StreamTransfer(CPU).start(torch.ones(9, dtype=torch.uint8), aside=False).wait()
    assert told == ["copy without waiting"]
    assert memory.tolist() == [1] * 9


def test_the_card_gives_back_what_is_unused_in_all_but_active_only(told):
    for offload, expected in (("all-but-active", 1), ("stages", 0)):
        placement = StagePlacement(
            {"t3": Stage(4)}, CPU, offload=offload, copier=Unpinned(StreamTransfer(CPU))
        )
        with placement("t3"):
            pass
        assert told.count("empty cache") == expected
        told.clear()
        placement.close()
        assert told == ["empty cache"]
        told.clear()


class Unpinned:
    """A side stream's copies, from memory that needs no card."""

    def __init__(self, side):
        self.start, self.release = side.start, side.release
        self.allocate = functools.partial(torch.empty, dtype=torch.uint8)


def test_memory_to_copy_from_is_pinned_or_that_is_said(told, monkeypatch, caplog):
    asked = []

    def empty(size, *, dtype, pin_memory=False):
        asked.append(pin_memory)
        if len(asked) == 2:
            raise RuntimeError("CUDA error: out of memory")
        return torch.zeros(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    for _ in range(2):
        assert StreamTransfer(CPU).allocate(8).shape == (8,)
    assert asked == [True, True, False]
    assert "no pinned memory" in caplog.text


def test_each_device_has_its_copier(told):
    assert isinstance(weight_transfer.transfer_for(torch.device("cuda", 1)), StreamTransfer)
    assert isinstance(weight_transfer.transfer_for(torch.device("mps")), PlainTransfer)


# -- a real one


@pytest.fixture
def on_card(tiny, store):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA card")
    # the products' own workspaces come with the first one and stay, whoever asks for it
    torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
    return lambda offload: Engine.load(
        str(tiny), "dev", device="cuda", overrides={"offload": offload}, store=store,
        watermark=False,
    )  # fmt: skip


def test_a_card_holds_what_it_should_and_nothing_after_closing(on_card):
    empty, waves = torch.cuda.memory_allocated(), {}
    for offload in ("none", "stages", "all-but-active"):
        with on_card(offload) as engine:
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


def test_what_a_card_computes_with_is_what_was_fetched_aside(on_card):
    with on_card("stages") as engine, torch.inference_mode():
        placement = engine.pipeline.placement
        for name in (*NAMES, *NAMES):
            with placement(name) as module:
                sums = [t.double().sum().cpu() for _, _, t in module_tensors(module) if t.numel()]
            home = [t.double().sum() for _, _, t in module_tensors(module) if t.numel()]
            assert torch.allclose(torch.stack(sums), torch.stack(home))
