"""Integer matrices: each layer against plain arithmetic, T3 against float32, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.common import assert_close
from helpers.t3 import prefill_logits, say_all, utterance

from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.config.plan import resolve
from chatterbox_opt.engine import build, probe
from chatterbox_opt.engine.decode import EagerBackend, decode
from chatterbox_opt.engine.t3_runner import text_tokens
from chatterbox_opt.kernels.cpu import llvm
from chatterbox_opt.layers import linear_int, weight_layout
from chatterbox_opt.layers.linear_int import Int4Linear, Int8Linear, WeightOnlyInt8Linear
from chatterbox_opt.layers.linear_onednn import OneDnnLinear
from chatterbox_opt.models.t3 import int8_step
from chatterbox_opt.models.t3.decode_state import DecodeRequest
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.models.t3.ragged_kv_cache import RaggedKVCache
from chatterbox_opt.models.t3.sampler import apply_cfg
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.voice import from_conditionals

LACKS = weight_layout.unsupported_dtypes()
needs_int8 = pytest.mark.skipif("int8" in LACKS, reason=LACKS.get("int8", ""))
needs_int4 = pytest.mark.skipif("int4" in LACKS, reason=LACKS.get("int4", ""))
LAYERS = [
    pytest.param("int8", Int8Linear, marks=needs_int8),
    pytest.param("int4", Int4Linear, marks=needs_int4),
]
layers = pytest.mark.parametrize(("dtype", "layer"), LAYERS)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_int8
def test_int8_is_the_integer_product_that_it_says():
    """Weights and rows rounded to 127ths of their largest value, sums exact, then scaled."""
    weight, x = drawn(96, 256), drawn(5, 256, seed=1) * torch.tensor([[1e-3], [1], [9], [1e4], [0]])
    scale = weight.abs().amax(1) / 127
    largest = x.abs().amax(1, keepdim=True).clamp_min(1e-30)
    q, rows = (weight / scale[:, None]).round(), (x / largest * 127).round()
    expected = (rows.double() @ q.double().t()) * scale * largest / 127
    given = Int8Linear(weight)(x)
    assert_close(given / largest, (expected / largest).float(), atol=1e-4)
    assert_close(Int8Linear(weight).matrix(), q * scale[:, None], atol=1e-6)


@needs_int4
def test_int4_rounds_to_sixteen_levels_of_each_group():
    weight = drawn(40, 64)
    found = Int4Linear(weight).matrix()
    assert found.shape == weight.shape
    for group, exact in zip(found.split(32, 1), weight.split(32, 1), strict=True):
        step = (exact.amax(1) - exact.amin(1)) / 15
        assert all(len(row.unique()) <= 16 for row in group)
        assert ((group - exact).abs().amax(1) <= 0.5 * step + 0.03).all()


def test_int8_keys_and_values_cost_a_trained_model_little(pico, said):
    """In a static cache, as on a GPU, by PyTorch's operations."""
    tokens, exact = said
    t3 = loader.load_t3(pico, torch.float32)
    same = heard(t3, pico, tokens, EagerBackend(t3.step))
    assert (same - exact).abs().max() < 1e-3
    given = heard(t3, pico, tokens, EagerBackend(t3.step, kv_cache=torch.int8))
    kl = (exact.exp() * (exact - given)).sum(-1).mean()
    top1 = (exact.argmax(-1) == given.argmax(-1)).float().mean()
    print(f"int8 keys and values: top-1 {top1:.4f}, KL {kl:.2e}, {len(given)} steps")
    assert not torch.equal(given, same)
    assert top1 >= 0.98 and kl < 1e-3


@layers
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype, layer):
    """Bit for bit: one row alone, among small ones, and beside one a thousand times larger."""
    made, row = layer(drawn(8194, 256)), drawn(1, 256, seed=1)
    alone = made(row)
    for others in (1, 7, 15, 300):
        beside = torch.cat((1000 * drawn(others, 256, seed=2), row))
        assert torch.equal(made(beside)[-1:], alone), others
        assert torch.equal(made(beside[None])[0, -1:], alone), others


@layers
def test_zeros_stay_zeros_and_what_is_not_finite_stays_so(dtype, layer):
    made = layer(drawn(32, 64))
    x = torch.zeros(3, 64)
    x[1, 5], x[2, 5] = float("nan"), float("inf")
    out = made(x)
    assert torch.equal(out[0], torch.zeros(32))
    assert not out[1].isfinite().any()
    assert not out[2].isfinite().all()


@pytest.fixture(scope="module")
def pico():
    return registry.locate("pico")


TEXTS = [
    "The boat left the harbour early.",
    "She had never seen so many people in one place before.",
    "Please bring the keys to the office when you come tomorrow.",
    "It rained all night, and the river rose above the bridge.",
]


@pytest.fixture(scope="module")
def said(pico):
    """What pico says in float32 for each text, and its guided logits at each of those steps."""
    t3 = loader.load_t3(pico, torch.float32)
    tokens = [say_all(t3, [line(pico, text)])[0].tokens for text in TEXTS]
    return tokens, heard(t3, pico, tokens)


def heard(t3, pico, tokens, way=None):
    """Log-probabilities of all texts, one after the other."""
    rows_per_seq = zip(tokens, TEXTS, strict=True)
    return torch.cat([logits(t3, pico, *one, way=way) for one in rows_per_seq])


SAMPLING = Sampling(max_tokens=120)


def prompt(pico, text):
    voice = from_conditionals(pico.path(registry.CONDITIONALS))
    ids = text_tokens(loader.load_tokenizer(pico), text)
    return Prompt(ids, voice.speaker, voice.prompt)


def line(pico, text=TEXTS[0], script=(), told=lambda count: None):
    generator = torch.Generator().manual_seed(0)
    return DecodeRequest(prompt(pico, text), SAMPLING, generator, told, script)


def logits(t3, pico, tokens, text=TEXTS[0], way=None):
    """Guided log-probabilities from which each of the tokens is drawn."""
    way, found = way or EagerBackend(), []
    slots = way.slots(t3, 1, 2)

    def told(_):
        found.append(apply_cfg(slots.logits.float(), slots.knobs.cfg_weight))

    waiting = iter([line(pico, text, tokens, told)])
    list(decode(t3, slots, lambda: next(waiting, None), way))
    return torch.log_softmax(torch.cat(found), dim=-1)


BOUNDS = [  # the project's goals for a default, wider for int4, which is none
    pytest.param("bfloat16", torch.bfloat16, 0.98, 1e-3),
    pytest.param("int8", torch.float32, 0.97, 5e-3, marks=needs_int8),
    pytest.param("int4", torch.float32, 0.93, 2e-2, marks=[needs_int8, needs_int4]),
    pytest.param(weight_layout.WEIGHT_ONLY, torch.bfloat16, 0.98, 1e-3),
]


@pytest.mark.parametrize(("layout", "dtype", "top1", "kl"), BOUNDS)
def test_a_trained_model_says_the_same_with_narrow_matrices(pico, said, layout, dtype, top1, kl):
    tokens, exact = said
    given = heard(loader.load_t3(pico, dtype, layout), pico, tokens)
    assert len(given) > 200
    assert (given.argmax(-1) == exact.argmax(-1)).float().mean() >= top1
    divergence = (exact.exp() * (exact - given)).sum(-1).mean()
    assert 0 < divergence <= kl


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return registry.locate(str(tiny))


@layers
def test_all_of_t3s_matrices_are_narrow_and_nothing_else(checkpoint, dtype, layer):
    t3 = loader.load_t3(checkpoint, torch.float32, dtype)
    assert t3.dtype == torch.float32
    for block in t3.blocks:
        for part in (block.qkv, block.out, block.gate_up, block.down):
            assert type(part) is layer
    assert type(t3.head) is Int8Linear, "the head chooses the words: 8 bits even beside 4"
    assert type(t3.emotion) is torch.nn.Linear


@layers
def test_again_in_float32_works_for_integers_too(checkpoint, engine, dtype, layer):
    """The rounded values as plain float32 matrices: near to what the integers gave."""
    t3 = loader.load_t3(checkpoint, torch.float32, dtype)
    before = prefill_logits(t3, engine)
    t3.set_precision(torch.float32)
    assert type(t3.head) is type(t3.blocks[0].down) is torch.nn.Linear
    assert t3.head.weight.dtype == torch.float32
    assert_close(
        prefill_logits(t3, engine), before, atol=0.3
    )  # of logits that reach from -12 to 12
    t3.set_precision(torch.bfloat16)
    assert type(t3.head) is torch.nn.Linear, "what was given up does not come back by itself"


@needs_int8
def test_the_plan_is_what_is_loaded(checkpoint):
    here = probe.probe("cpu")
    how = resolve("dev", here, {"dtype": "int8"}, {})
    pipeline = build.load_pipeline(checkpoint, how)
    assert type(pipeline.placement.module("t3").head) is Int8Linear
    block = pipeline.placement.module("flow").estimator.middle[0].transformers[0]
    assert (type(block.up) is Int8Linear) == (how.flow == "int8")
    assert pipeline.placement.module("flow").dtype == weight_layout.compute_dtype(
        "bfloat16" if how.flow == "int8" else how.flow
    )
    plain = build.load_pipeline(checkpoint, replace(how, t3="float32", flow="float32"))
    assert type(plain.placement.module("t3").head) in (torch.nn.Linear, OneDnnLinear)


def test_an_installation_that_cannot_compile_says_so(monkeypatch):
    def nowhere(*_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(llvm, "VNNI", True)
    monkeypatch.setattr(Int8Linear, "forward", nowhere)
    assert (
        "numba cannot compile here (cannot cache function"
        in weight_layout.unsupported_dtypes()["int8"]
    )


def test_products_that_are_wrong_are_found_out(monkeypatch):
    monkeypatch.setattr(llvm, "VNNI", True)
    exact = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: exact(self, x).clamp(max=33.0))
    assert "wrong here" in linear_int.unsupported_reason()


def test_a_processor_without_the_instructions_says_so(monkeypatch):
    monkeypatch.setattr(llvm, "VNNI", False)
    assert "no VNNI" in weight_layout.unsupported_dtypes()["int4"]


@layers
def test_what_is_kept_is_what_was_made(dtype, layer):
    made, x = layer(drawn(70, 96)), drawn(3, 96, seed=1)
    again = layer.from_state_tensors(
        {name: tensor.clone() for name, tensor in made.state_tensors().items()}
    )
    assert torch.equal(again(x), made(x))
    assert torch.equal(again.matrix(), made.matrix())
    assert made.matrix().shape == (70, 96)


@layers
def test_a_step_in_one_call_is_the_step_of_modules(pico, monkeypatch, dtype, layer):
    """The same numbers, but for the order of sums: which now and then turns a rounding to int8.

    Keys and values are rounded to float16 for the modules too.
    """
    rounded = RaggedKVCache.at

    def at(self, places, span):
        attend = rounded(self, places, span)
        return lambda i, q, k, v: attend(i, q, k.half().float(), v.half().float())

    fill = RaggedKVCache.fill
    narrow = loader.load_t3(pico, torch.float32, dtype)
    tokens = tuple(range(100, 140))
    one_call = logits(narrow, pico, tokens)
    monkeypatch.setattr(int8_step, "supports", lambda t3: False)
    monkeypatch.setattr(RaggedKVCache, "at", at)
    monkeypatch.setattr(
        RaggedKVCache,
        "fill",
        lambda self, *a: fill(self, *a[:2], *(x.half().float() for x in a[2:])),
    )
    worst = (logits(narrow, pico, tokens) - one_call).abs().amax(-1)
    assert worst[0] == 0, "a prefill has no step in it"
    assert (worst[:4] < 1e-3).all(), worst
    assert (worst < 1.5).all(), worst


@layers
def test_neighbours_change_nothing_in_one_call(pico, dtype, layer):
    """Utterances of other lengths, slots refilled, cache longer than a strip: the same tokens."""
    narrow = loader.load_t3(pico, torch.float32, dtype)

    def spoken(slots):
        way = EagerBackend()
        waiting = iter([line(pico, text) for text in TEXTS])
        said = list(decode(narrow, way.slots(narrow, slots, 2), lambda: next(waiting, None), way))
        return sorted(one.tokens for one in said)

    assert spoken(1) == spoken(3)


@needs_int8
def test_a_flow_in_integers_goes_to_float32_and_comes_back(pico):
    how = resolve("cpu", probe.probe("cpu"), {}, {})
    if how.flow != "int8":
        pytest.skip("no int8 flow here")
    flow = build.load_pipeline(pico, how).placement.module("flow")
    voice = from_conditionals(pico.path(registry.CONDITIONALS))

    def mel():
        tokens = torch.arange(100, 160)
        return flow([tokens], [voice], [torch.Generator().manual_seed(1)], 4)[0]

    before = mel()
    flow.set_precision(torch.float32)
    wide = mel()
    assert not any(isinstance(part, Int8Linear) for part in flow.modules())
    flow.set_precision(torch.bfloat16)
    assert torch.equal(mel(), before)
    exact = build.load_pipeline(pico, replace(how, t3="float32", flow="float32"))
    flow = exact.placement.module("flow")
    for given, bound in ((before, 0.999), (wide, 0.9999)):
        assert F.cosine_similarity(given.flatten(), mel().flatten(), dim=0) > bound


class TestWeightOnly:
    """The integer matrices of a card, by their plain arithmetic; test_cuda_kernels.py has the kernel."""

    def test_only_the_weights_are_rounded(self):
        weight, x = drawn(96, 256), drawn(5, 256, seed=1)
        layer = WeightOnlyInt8Linear(weight)
        step = weight.abs().amax(1, keepdim=True) / 127
        rounded = layer.weight * layer.scales[:, None]
        assert ((rounded - weight).abs() <= 0.5 * step + 1e-7).all()
        assert_close(layer(x), x @ rounded.t(), atol=1e-4)
        assert layer(x.half()).dtype == torch.float16

    def test_a_row_of_zeros_stays_zero(self):
        assert not WeightOnlyInt8Linear(torch.zeros(4, 8))(torch.ones(2, 8)).any()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_t3_comes_back_from_the_cache_as_it_was(self, tiny, tmp_path, dtype, engine):
        checkpoint = registry.locate(str(tiny))
        cache = WeightCache(tmp_path, least=0)
        plain = loader.load_t3(checkpoint, dtype, weight_layout.WEIGHT_ONLY)
        other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
        loader.load_t3(checkpoint, other, weight_layout.WEIGHT_ONLY, cache)
        first = loader.load_t3(checkpoint, dtype, weight_layout.WEIGHT_ONLY, cache)
        assert len(list(tmp_path.iterdir())) == 2, "a form for each dtype beside the integers"
        again = loader.load_t3(checkpoint, dtype, weight_layout.WEIGHT_ONLY, cache)
        assert again.dtype == first.dtype == dtype
        layers = [m for m in again.modules() if isinstance(m, WeightOnlyInt8Linear)]
        assert len(layers) == 4 * again.shape.layers + 1
        said = [
            say_all(t3, [utterance(engine, "hello.", Sampling(seed=3, max_tokens=12))])[0].tokens
            for t3 in (plain, first, again)
        ]
        assert said[0] == said[1] == said[2]

    def test_numbers_that_are_not_finite_are_met_in_float32(self, tiny, engine):
        """The ladder widens a stage in place: integers multiply rows of any dtype."""
        t3 = loader.load_t3(registry.locate(str(tiny)), torch.bfloat16, weight_layout.WEIGHT_ONLY)
        t3.set_precision(torch.float32)
        [said] = say_all(t3, [utterance(engine, "hello.", Sampling(seed=3, max_tokens=6))])
        assert said.error is None and said.tokens
        assert isinstance(t3.blocks[0].qkv, WeightOnlyInt8Linear)
