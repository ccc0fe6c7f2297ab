"""Integer matrices: layers against plain arithmetic, T3 against float32, and dequantization."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.common import assert_close
from helpers.quality import check_close
from helpers.t3 import decode_all, prefill_logits, sequence_of, utterance

from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.config.plan import StagePlan, resolve
from chatterbox_opt.engine import build, probe
from chatterbox_opt.engine.decoding import decode as decoding
from chatterbox_opt.engine.decoding.decode import EagerBackend, decode
from chatterbox_opt.engine.decoding.prompts import text_tokens
from chatterbox_opt.kernels.cpu import llvm
from chatterbox_opt.layers import linear_int, weight_layout
from chatterbox_opt.layers.linear_int import Int4Linear, Int8Linear, WeightOnlyInt8Linear
from chatterbox_opt.layers.linear_onednn import OneDnnLinear
from chatterbox_opt.models.t3 import int8_step
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.models.t3.ragged_kv_cache import Int8KVCache
from chatterbox_opt.models.t3.sampler import apply_cfg
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.voice import from_conditionals

UNSUPPORTED = weight_layout.unsupported_dtypes()
needs_int8 = pytest.mark.skipif("int8" in UNSUPPORTED, reason=UNSUPPORTED.get("int8", ""))
needs_int4 = pytest.mark.skipif("int4" in UNSUPPORTED, reason=UNSUPPORTED.get("int4", ""))
LAYERS = [
    pytest.param("int8", Int8Linear, marks=needs_int8),
    pytest.param("int4", Int4Linear, marks=needs_int4),
]
layers = pytest.mark.parametrize(("dtype", "layer"), LAYERS)


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_int8
def test_int8_matches_its_definition():
    """Weights and rows rounded to 127ths of their largest value, exact sums, then scaled."""
    weight, x = (
        random_tensor(96, 256),
        # 127 times the largest ones is beyond float32
        random_tensor(6, 256, seed=1) * torch.tensor([[1e-3], [1], [9], [1e4], [0], [3e36]]),
    )
    scale = weight.abs().amax(1) / 127
    largest = x.abs().amax(1, keepdim=True).clamp_min(1e-30)
    q, rows = (weight / scale[:, None]).round(), (x / largest * 127).round()
    expected = (rows.double() @ q.double().t()) * scale * largest / 127
    out = Int8Linear(weight)(x)
    assert_close(out / largest, (expected / largest).float(), atol=1e-4)
    assert_close(Int8Linear(weight).matrix(), q * scale[:, None], atol=1e-6)


@needs_int4
def test_int4_has_sixteen_levels_per_group():
    weight = random_tensor(40, 64)
    matrix = Int4Linear(weight).matrix()
    assert matrix.shape == weight.shape
    for group, exact in zip(matrix.split(32, 1), weight.split(32, 1), strict=True):
        step = (exact.amax(1) - exact.amin(1)) / 15
        assert all(len(row.unique()) <= 16 for row in group)
        assert ((group - exact).abs().amax(1) <= 0.5 * step + 0.03).all()


@pytest.mark.slow  # models/test_kv_cache.py has the rounding, one product at a time
def test_int8_kv_cache_of_a_trained_model_is_accurate(pico, reference):
    """In a static cache, as on a GPU, by PyTorch's operations."""
    tokens, exact = reference
    t3 = loader.load_t3(pico, torch.float32)
    float_cache = all_log_probs(t3, pico, tokens, EagerBackend(t3.step))
    assert (float_cache - exact).abs().max() < 1e-3
    int8_cache = all_log_probs(t3, pico, tokens, EagerBackend(t3.step, kv_cache=torch.int8))
    kl = (exact.exp() * (exact - int8_cache)).sum(-1).mean()
    top1 = (exact.argmax(-1) == int8_cache.argmax(-1)).float().mean()
    print(f"int8 keys and values: top-1 {top1:.4f}, KL {kl:.2e}, {len(int8_cache)} steps")
    assert not torch.equal(int8_cache, float_cache)
    assert top1 >= 0.98 and kl < 1e-3


@layers
def test_a_row_does_not_depend_on_the_other_rows(dtype, layer):
    """Bit for bit: a row alone, and in batches with rows a thousand times larger."""
    linear, row = layer(random_tensor(8194, 256)), random_tensor(1, 256, seed=1)
    alone = linear(row)
    for others in (1, 7, 15, 300):
        batch = torch.cat((1000 * random_tensor(others, 256, seed=2), row))
        assert torch.equal(linear(batch)[-1:], alone), others
        assert torch.equal(linear(batch[None])[0, -1:], alone), others


@layers
def test_zeros_stay_zero_and_nan_and_inf_propagate(dtype, layer):
    linear = layer(random_tensor(32, 64))
    x = torch.zeros(3, 64)
    x[1, 5], x[2, 5] = float("nan"), float("inf")
    out = linear(x)
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
def reference(pico):
    """The tokens that pico generates in float32 for each text, and their log-probabilities."""
    t3 = loader.load_t3(pico, torch.float32)
    tokens = [decode_all(t3, [request(pico, text)])[0].tokens for text in TEXTS]
    return tokens, all_log_probs(t3, pico, tokens)


def all_log_probs(t3, pico, tokens, backend=None):
    """Log-probabilities of all texts, concatenated."""
    pairs = zip(tokens, TEXTS, strict=True)
    return torch.cat([log_probs(t3, pico, *pair, backend=backend) for pair in pairs])


SAMPLING = Sampling(max_tokens=120)


def prompt(pico, text):
    voice = from_conditionals(pico.path(registry.CONDITIONALS))
    ids = text_tokens(loader.load_tokenizer(pico), text)
    return Prompt(ids, voice.speaker, voice.prompt)


def request(pico, text=TEXTS[0], **more):
    return sequence_of(prompt(pico, text), SAMPLING, **more)


def log_probs(t3, pico, tokens, text=TEXTS[0], backend=None):
    """Log-probabilities with CFG from which each of the forced tokens is drawn."""
    backend, logits = backend or EagerBackend(), []
    slots = backend.slots(t3, 1, 2)

    def on_token(*_):
        logits.append(apply_cfg(slots.logits.float(), slots.sampling_tensors.cfg_weight))

    forced = request(pico, text, forced_tokens=tuple(tokens), on_progress=on_token)
    list(decode(t3, slots, [forced], backend))
    return torch.log_softmax(torch.cat(logits), dim=-1)


BOUNDS = [  # what a default must meet; wider for int4, which is not a default
    pytest.param("bfloat16", torch.bfloat16, 0.98, 1e-3),
    pytest.param("int8", torch.float32, 0.97, 5e-3, marks=needs_int8),
    pytest.param("int4", torch.float32, 0.93, 2e-2, marks=[needs_int8, needs_int4]),
    pytest.param(weight_layout.WEIGHT_ONLY, torch.bfloat16, 0.98, 1e-3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "dtype", "top1", "kl"), BOUNDS)
def test_narrow_matrices_of_a_trained_model_are_accurate(pico, reference, layout, dtype, top1, kl):
    tokens, exact = reference
    narrow = all_log_probs(loader.load_t3(pico, dtype, layout), pico, tokens)
    assert len(narrow) > 200
    check_close(f"pico {layout}", narrow, exact, (top1, kl))


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return registry.locate(str(tiny))


@layers
def test_exactly_the_matrices_of_t3_are_quantized(checkpoint, dtype, layer):
    t3 = loader.load_t3(checkpoint, torch.float32, dtype)
    assert t3.dtype == torch.float32
    for block in t3.blocks:
        for part in (block.qkv, block.out, block.gate_up, block.down):
            assert type(part) is layer
    assert type(t3.head) is Int8Linear, "the head's outputs are the logits: 8 bits, even in int4"
    assert type(t3.emotion) is torch.nn.Linear


@layers
def test_set_precision_to_float32_dequantizes(checkpoint, engine, dtype, layer):
    """The dequantized matrices give nearly the logits of the integers."""
    t3 = loader.load_t3(checkpoint, torch.float32, dtype)
    before = prefill_logits(t3, engine)
    t3.set_precision(torch.float32)
    assert type(t3.head) is type(t3.blocks[0].down) is torch.nn.Linear
    assert t3.head.weight.dtype == torch.float32
    assert_close(
        prefill_logits(t3, engine), before, atol=0.3
    )  # of logits that reach from -12 to 12
    t3.set_precision(torch.bfloat16)
    assert type(t3.head) is torch.nn.Linear, "quantization is not restored"


@needs_int8
def test_loaded_layers_match_the_plan(checkpoint):
    plan = resolve("dev", probe.probe("cpu"), {"dtype": "int8"}, {})
    pipeline = build.load_pipeline(checkpoint, plan)
    assert type(pipeline.placement.module("t3").head) is Int8Linear
    block = pipeline.placement.module("flow").estimator.middle[0].transformers[0]
    assert (type(block.up) is Int8Linear) == (plan.flow.storage == "int8")
    assert pipeline.placement.module("flow").dtype == getattr(torch, plan.flow.compute)
    plain = build.load_pipeline(checkpoint, replace(plan, t3=StagePlan(), flow=StagePlan()))
    assert type(plain.placement.module("t3").head) in (torch.nn.Linear, OneDnnLinear)


def test_a_failing_compiler_is_reported(monkeypatch):
    def fail(*_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(llvm, "VNNI", True)
    monkeypatch.setattr(Int8Linear, "forward", fail)
    assert (
        "numba cannot compile here (cannot cache function"
        in weight_layout.unsupported_dtypes()["int8"]
    )


def test_the_selftest_detects_wrong_products(monkeypatch):
    monkeypatch.setattr(llvm, "VNNI", True)
    exact = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: exact(self, x).clamp(max=33.0))
    assert "wrong results here" in linear_int.unsupported_reason()


def test_a_cpu_without_vnni_is_reported(monkeypatch):
    monkeypatch.setattr(llvm, "VNNI", False)
    assert "no VNNI" in weight_layout.unsupported_dtypes()["int4"]


@layers
def test_state_tensors_restore_the_layer(dtype, layer):
    linear, x = layer(random_tensor(70, 96)), random_tensor(3, 96, seed=1)
    restored = layer.from_state_tensors(
        {name: tensor.clone() for name, tensor in linear.state_tensors().items()}
    )
    assert torch.equal(restored(x), linear(x))
    assert torch.equal(restored.matrix(), linear.matrix())
    assert linear.matrix().shape == (70, 96)


@layers
def test_the_compiled_step_matches_the_modules(pico, monkeypatch, dtype, layer):
    """Equal up to the order of sums, which occasionally changes a rounding to int8.

    Both over int8 keys and values.
    """
    narrow = loader.load_t3(pico, torch.float32, dtype)
    tokens = tuple(range(100, 140))
    compiled = log_probs(narrow, pico, tokens)
    monkeypatch.setattr(int8_step, "supports", lambda t3: False)
    monkeypatch.setattr(decoding, "RaggedKVCache", Int8KVCache)
    worst = (log_probs(narrow, pico, tokens) - compiled).abs().amax(-1)
    assert worst[0] == 0, "the first logits come from prefill"
    assert (worst[:4] < 1e-3).all(), worst
    assert (worst < 1.5).all(), worst


@layers
def test_batching_does_not_change_tokens_of_the_compiled_step(pico, dtype, layer):
    """Sequences of different lengths, refilled slots, growing cache buffers: the same tokens."""
    narrow = loader.load_t3(pico, torch.float32, dtype)

    def generate(slots):
        backend = EagerBackend()
        sequences = [request(pico, text) for text in TEXTS]
        outputs = decode_all(narrow, sequences, slots=slots, backend=backend)
        return [output.tokens for output in outputs]

    assert generate(1) == generate(3)


@needs_int8
def test_an_int8_flow_goes_to_float32_and_back(pico):
    plan = resolve("cpu", probe.probe("cpu"), {}, {})
    if plan.flow.storage != "int8":
        pytest.skip("no int8 flow here")
    flow = build.load_pipeline(pico, plan).placement.module("flow")
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
    exact = build.load_pipeline(pico, replace(plan, t3=StagePlan(), flow=StagePlan()))
    flow = exact.placement.module("flow")
    for quantized, bound in ((before, 0.999), (wide, 0.9999)):
        assert F.cosine_similarity(quantized.flatten(), mel().flatten(), dim=0) > bound


class TestWeightOnly:
    """int8 weights for GPUs, by plain arithmetic; kernels/test_cuda_kernels.py has the kernel."""

    def test_only_the_weights_are_rounded(self):
        weight, x = random_tensor(96, 256), random_tensor(5, 256, seed=1)
        layer = WeightOnlyInt8Linear(weight)
        step = weight.abs().amax(1, keepdim=True) / 127
        rounded = layer.weight * layer.scales[:, None]
        assert ((rounded - weight).abs() <= 0.5 * step + 1e-7).all()
        assert_close(layer(x), x @ rounded.t(), atol=1e-4)
        assert layer(x.half()).dtype == torch.float16

    def test_a_row_of_zeros_stays_zero(self):
        assert not WeightOnlyInt8Linear(torch.zeros(4, 8))(torch.ones(2, 8)).any()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_t3_is_restored_from_the_weight_cache(self, tiny, tmp_path, dtype, engine):
        checkpoint = registry.locate(str(tiny))
        cache = WeightCache(tmp_path, min_bytes=0)
        plain = loader.load_t3(checkpoint, dtype, weight_layout.WEIGHT_ONLY)
        other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
        loader.load_t3(checkpoint, other, weight_layout.WEIGHT_ONLY, cache)
        first = loader.load_t3(checkpoint, dtype, weight_layout.WEIGHT_ONLY, cache)
        assert len(list(tmp_path.iterdir())) == 2, "one file per dtype of the other tensors"
        restored = loader.load_t3(checkpoint, dtype, weight_layout.WEIGHT_ONLY, cache)
        assert restored.dtype == first.dtype == dtype
        layers = [m for m in restored.modules() if isinstance(m, WeightOnlyInt8Linear)]
        assert len(layers) == 4 * restored.config.layers + 1
        tokens = [
            decode_all(t3, [utterance(engine, "hello.", Sampling(seed=3, max_tokens=12))])[0].tokens
            for t3 in (plain, first, restored)
        ]
        assert tokens[0] == tokens[1] == tokens[2]

    def test_set_precision_to_float32_keeps_weight_only_layers(self, tiny, engine):
        """Recovery from NaN widens a stage in place: weight-only layers accept any dtype."""
        t3 = loader.load_t3(registry.locate(str(tiny)), torch.bfloat16, weight_layout.WEIGHT_ONLY)
        t3.set_precision(torch.float32)
        [output] = decode_all(t3, [utterance(engine, "hello.", Sampling(seed=3, max_tokens=6))])
        assert output.error is None and output.tokens
        assert isinstance(t3.blocks[0].qkv, WeightOnlyInt8Linear)
