"""Accuracy level 3 on the tiny model: low-precision stages are close to float32."""

from __future__ import annotations

import pytest
import torch
from helpers.common import assert_close
from helpers.t3 import prefill_logits as logits

from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.kernels.cpu import onednn
from chatterbox_opt.layers import linear_onednn, weight_layout


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return registry.locate(str(tiny))


def mel(flow, engine):
    tokens = torch.arange(40) * 150
    return flow([tokens], [engine.voice()], [torch.Generator().manual_seed(0)])[0]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
def test_cast_t3_is_close(checkpoint, engine, dtype, bound):
    exact = logits(loader.load_t3(checkpoint, torch.float32), engine)
    assert_close(logits(loader.load_t3(checkpoint, dtype), engine), exact, atol=bound)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.3), (torch.float16, 0.05)])
def test_cast_flow_is_close_with_the_same_noise(checkpoint, engine, dtype, bound):
    """Noise drawn in fp16 or bf16 would be other random numbers: correlation near zero."""
    exact = mel(loader.load_flow(checkpoint, torch.float32), engine)
    assert_close(mel(loader.load_flow(checkpoint, dtype), engine), exact, atol=bound)


def test_fp16_storage_computes_in_float32(checkpoint, engine):
    """GTX 10xx: fp16 weights, float32 compute."""
    t3, flow = (
        loader.load_t3(checkpoint, torch.float32),
        loader.load_flow(checkpoint, torch.float32),
    )
    exact_logits, exact_mel = logits(t3, engine), mel(flow, engine)
    for stage in (t3, flow):
        weight_layout.store_narrow(stage, torch.float16)
        assert stage.dtype == torch.float32
    assert t3.blocks[0].qkv.parametrizations.weight.original.dtype == torch.float16
    assert_close(logits(t3, engine), exact_logits, atol=0.03)
    assert_close(mel(flow, engine), exact_mel, atol=0.05)


def test_set_precision_round_trip_restores_bfloat16(checkpoint, engine):
    """The float32 retry must not change the stage."""
    t3 = loader.load_t3(checkpoint, torch.bfloat16)
    before = logits(t3, engine)
    t3.set_precision(torch.float32)
    assert t3.dtype == torch.float32
    t3.set_precision(torch.bfloat16)
    assert torch.equal(logits(t3, engine), before)
    assert t3.frequencies.dtype == torch.float32


def test_flow_time_embedding_stays_float32(checkpoint):
    flow = loader.load_flow(checkpoint, torch.bfloat16)
    for layer in (flow.estimator.time_in, flow.estimator.time_out):
        assert layer.weight.dtype == torch.float32
    assert flow.dtype == flow.estimator.mel.weight.dtype == torch.bfloat16


@pytest.fixture
def packed(checkpoint):
    if not onednn.supported():
        pytest.skip("oneDNN has no packed bfloat16 GEMM on this CPU")
    t3 = loader.load_t3(checkpoint, torch.bfloat16)
    weight_layout.pack(t3, t3.matrices)
    assert isinstance(t3.head, linear_onednn.PackedBf16Linear)
    return t3


def test_packed_matrices_are_as_accurate_as_plain_bfloat16(checkpoint, engine, packed):
    """The same bfloat16 products, summed in another order."""
    plain = logits(loader.load_t3(checkpoint, torch.bfloat16), engine)
    exact = logits(loader.load_t3(checkpoint, torch.float32), engine)
    ours = logits(packed, engine)
    assert (ours - exact).abs().mean() <= 1.2 * (plain - exact).abs().mean()


def test_packed_matrices_unpack_for_float32_and_pack_again(checkpoint, engine, packed):
    before = logits(packed, engine)
    packed.set_precision(torch.float32)
    assert isinstance(packed.head, torch.nn.Linear)
    plain = loader.load_t3(checkpoint, torch.bfloat16)
    plain.set_precision(torch.float32)
    assert torch.equal(logits(packed, engine), logits(plain, engine))
    packed.set_precision(torch.bfloat16)
    assert isinstance(packed.blocks[0].down, linear_onednn.PackedBf16Linear)
    assert torch.equal(logits(packed, engine), before)


@pytest.mark.skipif(not onednn.supported(), reason="no AVX-512")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.3)])
def test_onednn_packed_flow_is_close_and_reversible(checkpoint, engine, dtype, bound):
    flow = loader.load_flow(checkpoint, dtype)
    exact = mel(loader.load_flow(checkpoint, torch.float32), engine)
    plain = [name for name, layer in flow.named_modules() if isinstance(layer, torch.nn.Linear)]
    linear_onednn.use_onednn(flow)
    assert plain, "the flow has no linear layers"
    assert not any(isinstance(layer, torch.nn.Linear) for layer in flow.modules())
    before = mel(flow, engine)
    assert_close(before, exact, atol=bound)
    flow.set_precision(torch.float32)
    assert flow.dtype == torch.float32
    flow.set_precision(dtype)
    assert torch.equal(mel(flow, engine), before)
    assert flow.estimator.time_in.blocked.dtype == torch.float32
    assert linear_onednn.use_plain(flow)
    back = [name for name, layer in flow.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert back == plain
