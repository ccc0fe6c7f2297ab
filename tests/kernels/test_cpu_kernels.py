"""CPU kernels: any number of threads, with VNNI, bfloat16 and AMX instructions and without."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.common import ROOT, assert_close
from helpers.other_cpu import run_without
from torch import nn

from chatterbox_opt.kernels.cpu import bf16_ops, compile_cache, openmp
from chatterbox_opt.layers.linear_int import Int4Linear, Int8Linear

PACKAGE = ROOT / "chatterbox_opt"
needs_bf16 = pytest.mark.skipif(
    not bf16_ops.supports(torch.zeros(1, dtype=torch.bfloat16)),
    reason="this CPU has no bfloat16 instructions, or PyTorch is faster",
)


def random_tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_compile_cache_digest_covers_every_kernel_source(tmp_path, monkeypatch):
    """numba checks the file of the entry point alone; inlined functions are in other files."""
    folder = PACKAGE / "kernels" / "cpu"
    sources = [path.relative_to(folder) for path in sorted(folder.rglob("*.py"))]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(compile_cache, "__file__", str(tmp_path / "compile_cache.py"))
    digests = {compile_cache.digest.__wrapped__()}
    assert digests == {compile_cache.digest()}
    for source in sources:
        with (tmp_path / source).open("a") as file:
            file.write("# changed\n")
        digests.add(compile_cache.digest.__wrapped__())
    assert len(digests) == len(sources) + 1


def test_the_compile_cache_is_the_first_place_that_can_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache.config, "CACHE_DIR", "")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot hold a folder
    if platform.system() == "Linux":
        next_to_sources = Path(compile_cache.__file__).parent / "__pycache__"
        assert compile_cache.directory() == next_to_sources / compile_cache.digest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if platform.system() == "Linux":
        assert compile_cache.directory().is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(compile_cache.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert compile_cache.directory() == tmp_path / "numba" / compile_cache.digest()
    monkeypatch.setattr(compile_cache.config, "CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="set NUMBA_CACHE_DIR"):
        compile_cache.directory()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(not openmp.torch_openmp().parallel, reason="PyTorch uses no libgomp of its own")
@pytest.mark.parametrize("layer", [Int8Linear, Int4Linear])
def test_result_is_the_same_with_any_number_of_threads(threads, layer):
    linear, x = layer(random_tensor(200, 96)), random_tensor(7, 96, seed=1)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(linear(x))
    assert all(torch.equal(result, results[0]) for result in results)


def test_without_openmp_one_thread_computes_the_same(monkeypatch):
    linear, x = Int8Linear(random_tensor(200, 96)), random_tensor(7, 96, seed=1)
    exact = linear(x)
    monkeypatch.setattr(openmp, "torch_openmp", openmp.OpenMPRuntime)
    assert torch.equal(linear(x), exact)


WITHOUT_VNNI = """
import sys, torch
from chatterbox_opt.kernels.cpu import llvm
from chatterbox_opt.layers import linear_int
assert not llvm.VNNI and linear_int.unsupported_reason().startswith("this CPU has no VNNI")
for layer in sys.argv[1:]:
    linear = getattr(linear_int, layer)(torch.randn(130, 70))
    x = torch.randn(9, 70)
    largest = x.abs().amax(1, keepdim=True)
    rows = (x * (127 / largest)).round() * largest / 127
    assert torch.allclose(linear(x), rows @ linear.matrix().T, atol=0.05), layer
    error = (linear(x) - rows @ linear.matrix().T).abs().median()
    assert error < 1e-5, error
linear = linear_int.Int8Linear(torch.randn(130, 70), torch.randn(130))
x = x.bfloat16()
assert torch.allclose(linear(x).float(), linear(x.float()), rtol=0.005, atol=0.01)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="simulates another x86 CPU")
@pytest.mark.parametrize("layer", ["Int8Linear", "Int4Linear"])
def test_without_vnni_results_are_the_same(tmp_path, layer):
    """In a subprocess: numba reads the name of the CPU to compile for when it is imported. Compiles
    all kernels of a layer. On such a CPU integers are not used by default, so that it is slow."""
    env = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}
    env |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI, layer],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@needs_bf16
@pytest.mark.parametrize("frames", [1, 5, 63, 64, 65, 150])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_attention_of_any_number_of_frames(frames, head_dim):
    q, k, v = (2 * random_tensor(3, frames, 3, 4, head_dim)).bfloat16().transpose(1, 3).unbind(2)
    lengths = torch.tensor([frames, max(1, frames // 2), 1])
    mask = (torch.arange(frames) < lengths[:, None])[:, None, None]
    for attn_mask in (None, mask):
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask)
        out = bf16_ops.attention(q, k, v, attn_mask)
        assert out.shape == (3, frames, 4 * head_dim)
        assert_close(out.float(), exact.transpose(1, 2).flatten(2), atol=0.05)


AVX512_ATTENTION = """
import torch, torch.nn.functional as F
from chatterbox_opt.kernels.cpu import amx, bf16_ops
assert not amx.AMX
for frames in (1, 70, 150):
    q, k, v = torch.randn(3, 2, 4, frames, 64).bfloat16()
    mask = (torch.arange(frames) < torch.tensor([[frames], [1]]))[:, None, None]
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    out = bf16_ops.attention(q, k, v, mask).float()
    assert (out - exact.transpose(1, 2).flatten(2)).abs().max() < 0.05, frames
assert not bf16_ops.supports(q), "PyTorch with AMX is faster than AVX-512"
"""


@needs_bf16
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="AVX-512 is the default here")
def test_avx512_attention_on_a_cpu_with_amx(tmp_path):
    run_without("amx", AVX512_ATTENTION, tmp_path)


@needs_bf16
def test_masked_frames_do_not_affect_attention():
    q, k, v = random_tensor(2, 70, 3, 4, 32).bfloat16().transpose(1, 3).unbind(2)
    mask = (torch.arange(70) < torch.tensor([70, 41])[:, None])[:, None, None]
    exact = bf16_ops.attention(q, k, v, mask)
    garbage = [x.clone() for x in (k, v)]
    for x in garbage:
        x[1, :, 41:] = 3e38
    assert torch.equal(bf16_ops.attention(q.clone(), *garbage, mask)[1, :41], exact[1, :41])


@needs_bf16
def test_nan_and_inf_propagate():
    q, k, v = random_tensor(1, 70, 3, 4, 32).bfloat16().transpose(1, 3).unbind(2)
    k[0, 1, 3, 5] = float("nan")
    out = bf16_ops.attention(q, k, v, None).unflatten(-1, (4, 32))
    assert out[0, :, 1].isnan().all()
    assert out[0, :, 0].isfinite().all()
    layer, x = nn.LayerNorm(64).bfloat16(), random_tensor(3, 64).bfloat16()
    x[1, 7] = float("inf")
    for mish in (False, True):
        out = bf16_ops.layer_norm(layer, x, mish=mish)
        assert not out[1].isfinite().any()
        assert out[0].isfinite().all()


@needs_bf16
@pytest.mark.parametrize("mish", [False, True])
def test_layer_norm_with_and_without_mish(mish):
    layer = nn.LayerNorm(96).requires_grad_(False)
    layer.weight.copy_(random_tensor(96) * 20)
    layer.bias.copy_(random_tensor(96, seed=1))
    layer.bfloat16()
    x = random_tensor(2, 70, 96, seed=2).bfloat16()
    exact = F.layer_norm(x.float(), (96,), layer.weight.float(), layer.bias.float())
    exact = F.mish(exact) if mish else exact
    out = bf16_ops.layer_norm(layer, x, mish=mish).float()
    assert ((out - exact).abs() <= 0.005 * exact.abs() + 1e-3).all()


@needs_bf16
def test_add_layer_norm():
    layer = nn.LayerNorm(96).bfloat16().requires_grad_(False)
    x, residual = random_tensor(2, 70, 96).bfloat16(), random_tensor(2, 70, 96, seed=1).bfloat16()
    exact = x + residual
    out = bf16_ops.add_layer_norm(layer, x, residual)
    assert torch.equal(x, exact)
    assert torch.equal(out, bf16_ops.layer_norm(layer, exact))


def test_training_and_mixed_dtypes_are_unsupported():
    bf16 = torch.zeros(1, dtype=torch.bfloat16)
    assert not bf16_ops.supports(bf16, torch.zeros(1, dtype=torch.bfloat16, requires_grad=True))
    assert not bf16_ops.supports(bf16, torch.zeros(1)), "as under autocast"


def test_only_pytorchs_own_openmp_library_is_used(tmp_path, monkeypatch):
    """scikit-learn and others load their own, which would be a second thread pool."""
    maps = tmp_path / "maps"
    other = Path(torch.__file__).parent.parent / "scikit_learn.libs" / "libgomp-1.so"
    maps.write_text(f"7f-80 r-xp 0 0 1 {other}\n")
    monkeypatch.setattr(openmp, "MAPS", str(maps))
    assert openmp.torch_openmp.__wrapped__() == openmp.OpenMPRuntime()


def test_constants_defined_twice_are_equal():
    from chatterbox_opt.kernels.cpu import int8_gemm, llvm
    from chatterbox_opt.layers import linear_int

    for name in ("GROUP", "VECTOR_WIDTH", "VNNI_FACTOR", "BLOCK"):
        assert getattr(linear_int, name) == getattr(llvm, name)
    for name in ("ZERO_POINT", "LEVELS"):
        assert getattr(linear_int, name) == getattr(int8_gemm, name)
    assert bf16_ops.BLOCK == llvm.BLOCK


@pytest.mark.parametrize("layer", [Int8Linear, Int4Linear])
def test_rows_of_an_unsupported_dtype_raise(layer):
    """The kernel gets addresses without a dtype: unchecked, it would misread the memory."""
    linear = layer(random_tensor(64, 64))
    for dtype in (torch.float16, torch.float64, *([torch.bfloat16] if layer is Int4Linear else [])):
        with pytest.raises(TypeError, match="are unsupported"):
            linear(torch.zeros(2, 64, dtype=dtype))


def test_default_dtype_does_not_affect_results():
    linear, x = Int8Linear(random_tensor(64, 64), random_tensor(64)), random_tensor(5, 64, seed=1)
    exact = linear(x), linear(x.bfloat16())
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(linear(x), exact[0])
        assert torch.equal(linear(x.bfloat16()), exact[1])
    finally:
        torch.set_default_dtype(torch.float32)


def test_bias_is_added_in_float32_and_bfloat16():
    weight, bias, x = random_tensor(70, 64), random_tensor(70, seed=1), random_tensor(5, 64, seed=2)
    without, linear = Int8Linear(weight), Int8Linear(weight, bias)
    assert torch.equal(linear(x), without(x) + bias)
    x = x.bfloat16()
    assert_close(linear(x).float(), linear(x.float()), atol=0.15)


WITHOUT_JIT = """
from chatterbox_opt.kernels.cpu import bf16_ops
from chatterbox_opt.layers import weight_layout
import torch
reasons = weight_layout.unsupported_dtypes()
assert "numba" in reasons["int8"] and "numba" in reasons["int4"], reasons
assert "int8 flow" in reasons, reasons
assert not bf16_ops.supports(torch.zeros(1, dtype=torch.bfloat16))
"""


@pytest.mark.slow
def test_without_numbas_jit_kernels_are_unsupported(tmp_path):
    """With an empty cache; numba's own errors are not RuntimeErrors."""
    env = os.environ | {"NUMBA_DISABLE_JIT": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    env |= {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_JIT], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
