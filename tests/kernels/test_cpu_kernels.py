"""Code of our own for the processor: one thread or more, with the instructions and without."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.common import ROOT, assert_close
from torch import nn

from chatterbox_opt.kernels.cpu import bf16_ops, compile_cache, openmp
from chatterbox_opt.layers.linear_int import Int4Linear, Int8Linear

PACKAGE = ROOT / "chatterbox_opt"
half = pytest.mark.skipif(
    not bf16_ops.supports(torch.zeros(1, dtype=torch.bfloat16)),
    reason="this processor computes no bfloat16, or PyTorch does it better",
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_compile_cache_is_named_after_every_source_file_of_the_kernels(tmp_path, monkeypatch):
    """numba looks at the file of the entry point alone; what it inlines comes from other files."""
    sources = sorted((PACKAGE / "kernels" / "cpu").glob("*.py"))
    for source in sources:
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(compile_cache, "__file__", str(tmp_path / "compile_cache.py"))
    found = {compile_cache.digest.__wrapped__()}
    assert found == {compile_cache.digest()}
    for source in sources:
        with (tmp_path / source.name).open("a") as file:
            file.write("# changed\n")
        found.add(compile_cache.digest.__wrapped__())
    assert len(found) == len(sources) + 1


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(
    not openmp.torch_openmp().parallel, reason="PyTorch's threads are not to be had"
)
@pytest.mark.parametrize("layer", [Int8Linear, Int4Linear])
def test_as_many_threads_as_one_likes(threads, layer):
    made, x = layer(drawn(200, 96)), drawn(7, 96, seed=1)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(made(x))
    assert all(torch.equal(result, results[0]) for result in results)


def test_without_a_team_one_thread_does_it(monkeypatch):
    made, x = Int8Linear(drawn(200, 96)), drawn(7, 96, seed=1)
    exact = made(x)
    monkeypatch.setattr(openmp, "torch_openmp", openmp.OpenMPRuntime)
    assert torch.equal(made(x), exact)


ELSEWHERE = """
import torch
from chatterbox_opt.kernels.cpu import llvm
from chatterbox_opt.layers import linear_int
assert not llvm.VNNI and linear_int.unsupported_reason().startswith("this processor multiplies no bytes")
for layer in (linear_int.Int8Linear, linear_int.Int4Linear):
    made = layer(torch.randn(130, 70))
    x = torch.randn(9, 70)
    largest = x.abs().amax(1, keepdim=True)
    rows = (x * (127 / largest)).round() * largest / 127
    assert torch.allclose(made(x), rows @ made.matrix().T, atol=0.05), layer
    exact = (made(x) - rows @ made.matrix().T).abs().median()
    assert exact < 1e-5, exact
made = linear_int.Int8Linear(torch.randn(130, 70), torch.randn(130))
x = x.bfloat16()
assert torch.allclose(made(x).float(), made(x.float()), rtol=0.005, atol=0.01)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="it is told to be another x86")
def test_a_processor_without_the_instruction_counts_the_same(tmp_path):
    """In a process of its own: numba is told of another processor when it is imported."""
    env = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}
    env |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@half
@pytest.mark.parametrize("frames", [1, 5, 63, 64, 65, 150])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_attention_of_any_length(frames, head_dim):
    q, k, v = (2 * drawn(3, frames, 3, 4, head_dim)).bfloat16().transpose(1, 3).unbind(2)
    lengths = torch.tensor([frames, max(1, frames // 2), 1])
    mask = (torch.arange(frames) < lengths[:, None])[:, None, None]
    for given in (None, mask):
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=given)
        found = bf16_ops.attention(q, k, v, given)
        assert found.shape == (3, frames, 4 * head_dim)
        assert_close(found.float(), exact.transpose(1, 2).flatten(2), atol=0.05)


BY_VECTORS = """
import torch, torch.nn.functional as F
from chatterbox_opt.kernels.cpu import amx, bf16_ops
assert not amx.AMX
for frames in (1, 70, 150):
    q, k, v = torch.randn(3, 2, 4, frames, 64).bfloat16()
    mask = (torch.arange(frames) < torch.tensor([[frames], [1]]))[:, None, None]
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    found = bf16_ops.attend(q, k, v, mask).float()
    assert (found - exact.transpose(1, 2).flatten(2)).abs().max() < 0.05, frames
assert not bf16_ops.supports(q), "PyTorch's are quicker than these"
"""


@half
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="all that is tested here is so")
def test_attention_by_vectors_where_there_would_be_tiles(tmp_path):
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    features = get_host_cpu_features()
    features |= dict.fromkeys((name for name in features if name.startswith("amx")), False)
    env = os.environ | {"NUMBA_CPU_NAME": get_host_cpu_name(), "PYTHONPATH": str(ROOT)}
    env |= {"NUMBA_CPU_FEATURES": features.flatten(), "NUMBA_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", BY_VECTORS], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@half
def test_hidden_frames_may_hold_anything():
    q, k, v = drawn(2, 70, 3, 4, 32).bfloat16().transpose(1, 3).unbind(2)
    mask = (torch.arange(70) < torch.tensor([70, 41])[:, None])[:, None, None]
    exact = bf16_ops.attention(q, k, v, mask)
    dirty = [x.clone() for x in (k, v)]
    for x in dirty:
        x[1, :, 41:] = 3e38
    assert torch.equal(bf16_ops.attention(q.clone(), *dirty, mask)[1, :41], exact[1, :41])


@half
def test_what_is_not_finite_does_not_vanish():
    q, k, v = drawn(1, 70, 3, 4, 32).bfloat16().transpose(1, 3).unbind(2)
    k[0, 1, 3, 5] = float("nan")
    found = bf16_ops.attention(q, k, v, None).unflatten(-1, (4, 32))
    assert found[0, :, 1].isnan().all()
    assert found[0, :, 0].isfinite().all()
    layer, x = nn.LayerNorm(64).bfloat16(), drawn(3, 64).bfloat16()
    x[1, 7] = float("inf")
    for mish in (False, True):
        found = bf16_ops.layer_norm(layer, x, mish=mish)
        assert not found[1].isfinite().any()
        assert found[0].isfinite().all()


@half
@pytest.mark.parametrize("mish", [False, True])
def test_a_norm_and_what_follows_it(mish):
    layer = nn.LayerNorm(96).requires_grad_(False)
    layer.weight.copy_(drawn(96) * 20)
    layer.bias.copy_(drawn(96, seed=1))
    layer.bfloat16()
    x = drawn(2, 70, 96, seed=2).bfloat16()
    exact = F.layer_norm(x.float(), (96,), layer.weight.float(), layer.bias.float())
    exact = F.mish(exact) if mish else exact
    found = bf16_ops.layer_norm(layer, x, mish=mish).float()
    assert ((found - exact).abs() <= 0.005 * exact.abs() + 1e-3).all()


@half
def test_a_sum_and_its_norm():
    layer = nn.LayerNorm(96).bfloat16().requires_grad_(False)
    x, more = drawn(2, 70, 96).bfloat16(), drawn(2, 70, 96, seed=1).bfloat16()
    exact = x + more
    found = bf16_ops.add_layer_norm(layer, x, more)
    assert torch.equal(x, exact)
    assert torch.equal(found, bf16_ops.layer_norm(layer, exact))


def test_training_keeps_what_knows_gradients():
    half = torch.zeros(1, dtype=torch.bfloat16)
    assert not bf16_ops.supports(half, torch.zeros(1, dtype=torch.bfloat16, requires_grad=True))
    assert not bf16_ops.supports(half, torch.zeros(1)), "as under autocast"


def test_of_all_openmp_libraries_it_takes_pytorchs(tmp_path, monkeypatch):
    """scikit-learn and others bring their own, which would be a second team."""
    maps = tmp_path / "maps"
    theirs = Path(torch.__file__).parent.parent / "scikit_learn.libs" / "libgomp-1.so"
    maps.write_text(f"7f-80 r-xp 0 0 1 {theirs}\n")
    monkeypatch.setattr(openmp, "MAPS", str(maps))
    assert openmp.torch_openmp.__wrapped__() == openmp.OpenMPRuntime()


def test_sizes_are_the_same_wherever_they_stand():
    from chatterbox_opt.kernels.cpu import int8_gemm, llvm
    from chatterbox_opt.layers import linear_int

    for name in ("GROUP", "VECTOR_WIDTH", "STEP", "BLOCK"):
        assert getattr(linear_int, name) == getattr(llvm, name)
    for name in ("ZERO", "LEVELS"):
        assert getattr(linear_int, name) == getattr(int8_gemm, name)
    assert bf16_ops.BLOCK == llvm.BLOCK


@pytest.mark.parametrize("layer", [Int8Linear, Int4Linear])
def test_rows_that_it_cannot_read_are_refused(layer):
    """Addresses say nothing of a dtype: what is not checked here would be read as something else."""
    made = layer(drawn(64, 64))
    for dtype in (torch.float16, torch.float64, *([torch.bfloat16] if layer is Int4Linear else [])):
        with pytest.raises(TypeError, match="are not known"):
            made(torch.zeros(2, 64, dtype=dtype))


def test_another_default_dtype_changes_nothing():
    made, x = Int8Linear(drawn(64, 64), drawn(64)), drawn(5, 64, seed=1)
    exact = made(x), made(x.bfloat16())
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(made(x), exact[0])
        assert torch.equal(made(x.bfloat16()), exact[1])
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_bias_is_added_in_either_dtype():
    weight, bias, x = drawn(70, 64), drawn(70, seed=1), drawn(5, 64, seed=2)
    without, made = Int8Linear(weight), Int8Linear(weight, bias)
    assert torch.equal(made(x), without(x) + bias)
    x = x.bfloat16()
    assert_close(made(x).float(), made(x.float()), atol=0.15)


FAILING = """
from chatterbox_opt.kernels.cpu import bf16_ops
from chatterbox_opt.layers import weight_layout
import torch
lacks = weight_layout.unsupported_dtypes()
assert "numba" in lacks["int8"] and "numba" in lacks["int4"] and "int8 flow" in lacks, lacks
assert not bf16_ops.supports(torch.zeros(1, dtype=torch.bfloat16))
"""


def test_where_nothing_can_be_compiled_pytorch_serves(tmp_path):
    """numba without its compiler, and nothing kept: its own errors are no RuntimeErrors."""
    env = os.environ | {"NUMBA_DISABLE_JIT": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    env |= {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", FAILING], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
