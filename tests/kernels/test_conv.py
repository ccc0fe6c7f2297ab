"""The compiled convolutions of a CPU: exact up to rounding, for every shape, and row by row."""

from __future__ import annotations

import pytest
import torch
from helpers.common import assert_close
from helpers.other_cpu import run_without
from torch import nn

from chatterbox_opt.kernels.cpu.conv import ops as conv_ops
from chatterbox_opt.kernels.cpu.conv.ops import Leaky, PackedConv, Signal, Snake, activate

pytestmark = pytest.mark.skipif(not conv_ops.supports(), reason=conv_ops.unsupported_reason())

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if conv_ops.supports(dtype)]
# inputs, outputs, taps, dilation, time: HiFT's, pico's, and the smallest
SHAPES = [
    (80, 512, 7, 1, 20),
    (128, 128, 11, 5, 131),
    (64, 64, 7, 3, 97),
    (64, 18, 7, 1, 50),
    (48, 96, 3, 1, 49),
    (24, 24, 11, 1, 25),
    (12, 12, 3, 5, 40),
    (3, 2, 3, 2, 1),
    (5, 40, 1, 1, 7),
]


def layer(inputs: int, outputs: int, taps: int, dilation: int) -> nn.Conv1d:
    torch.manual_seed(inputs + taps)
    padding = (taps - 1) * dilation // 2
    return nn.Conv1d(inputs, outputs, taps, dilation=dilation, padding=padding, device="cpu")


def exact(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    """[time, outputs] of [inputs, time], in float64."""
    weight, bias = conv.weight.data.double(), conv.bias.data.double()
    given = {"padding": conv.padding, "dilation": conv.dilation}
    return nn.functional.conv1d(x.double()[None], weight, bias, **given)[0].T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_activations_are_those_of_the_layers(shape):
    *sizes, time = shape
    conv = layer(*sizes)
    packed, outputs = PackedConv(conv), sizes[1]
    x, residual, total = torch.randn(sizes[0], time), *torch.randn(2, time, outputs)
    frequency = torch.rand(outputs) + 0.5
    out, activated = torch.full((2, time, outputs), torch.nan)
    signal = Signal.of(x, packed.margin + 3)
    added = {"residual": residual, "total": total, "out": out, "activated": activated}
    packed(signal, activation=Snake(frequency), **added)
    expected = exact(conv, x) + residual + total
    assert_close(out.double(), expected, atol=2e-5)
    y = expected * frequency
    assert_close(activated.double(), y + y.sin() ** 2, atol=6e-5)
    packed(signal, activation=Leaky(0.1), activated=activated)
    alone = exact(conv, x)
    assert_close(activated.double(), torch.where(alone > 0, alone, 0.1 * alone), atol=2e-5)
    packed(signal, total=total, out=total)
    assert_close(total.double(), expected - residual, atol=2e-5)


@pytest.mark.skipif(len(DTYPES) == 1, reason=conv_ops.unsupported_reason(torch.bfloat16))
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] % 2 == 0], ids=str)
def test_bfloat16_products_lose_what_rounding_loses(shape):
    *sizes, time = shape
    conv = layer(*sizes)
    x, residual = torch.randn(sizes[0], time), torch.randn(time, sizes[1])
    out = torch.full((time, sizes[1]), torch.nan)
    packed = PackedConv(conv, torch.bfloat16)
    packed(Signal.of(x, packed.margin), residual=residual, out=out)
    expected = exact(conv, x)
    error = (out - residual - expected).pow(2).mean().sqrt() / expected.std()
    assert 1e-3 < error < 9e-3, "41 dB at least; bfloat16 itself has 52"


def test_rounding_errors_are_of_the_size_of_the_librarys():
    conv = layer(128, 128, 11, 3)
    packed, x, out = PackedConv(conv), torch.randn(128, 600), torch.empty(600, 128)
    packed(Signal.of(x, packed.margin), out=out)
    expected = exact(conv, x)
    with torch.inference_mode():
        theirs = (conv(x[None])[0].T - expected).pow(2).mean().sqrt()
    ours = (out - expected).pow(2).mean().sqrt()
    assert ours < 6 * theirs and ours < 1.5e-6 * expected.std()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_depends_neither_on_threads_nor_on_what_follows(threads, dtype):
    conv = layer(64, 64, 7, 3)
    packed, x = PackedConv(conv, dtype), torch.randn(64, 400)
    long, short = torch.empty(400, 64), torch.empty(333, 64)
    packed(Signal.of(x, packed.margin), out=long)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed(Signal.of(x[:, :333], packed.margin), out=short)
    finally:
        torch.set_num_threads(before)
    reach = packed.margin  # a tile reads further than its outputs need
    assert torch.equal(short[:-reach], long[: 333 - reach])


def test_snake_is_exact_up_to_large_arguments():
    y = torch.cat((torch.linspace(-50, 50, 4001), torch.linspace(-9999, 9999, 4001)))[None]
    found = torch.empty_like(y)
    activate(y, Snake(torch.ones(y.shape[1])), found)
    expected = y.double() + y.double().sin() ** 2
    error = (found.double() - expected).abs() - y.abs() * 2**-23
    assert error.max() < 4e-7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_within_its_reach(dtype):
    conv = layer(16, 16, 3, 1)
    packed, x, out = PackedConv(conv, dtype), torch.randn(16, 200), torch.empty(200, 16)
    x[3, 100] = torch.nan
    packed(Signal.of(x, packed.margin), out=out)
    broken = out.isnan().any(1).nonzero()[:, 0]
    assert 99 in broken and 100 in broken and 101 in broken
    assert broken.min() >= 92 and broken.max() <= 108


WITHOUT_BFLOAT16 = """
import torch
from chatterbox_opt.kernels.cpu.conv import ops
assert ops.supports(), ops.unsupported_reason()
reason = ops.unsupported_reason(torch.bfloat16)
assert "no bfloat16 instructions" in reason or "not compile for all" in reason, reason
"""


@pytest.mark.slow
def test_a_cpu_without_bfloat16_has_the_rest(tmp_path):
    """LLVM aborts on an instruction that the CPU does not support."""
    run_without("avx512bf16", WITHOUT_BFLOAT16, tmp_path)


def test_constants_defined_twice_are_equal():
    from chatterbox_opt.kernels.cpu import llvm
    from chatterbox_opt.kernels.cpu.conv import kernel

    assert conv_ops.TILE == kernel.TILE and conv_ops.VECTOR == llvm.VECTOR_WIDTH
    assert conv_ops.ROWS == kernel.ROWS and conv_ops.MAX_WIDTH == 4 * llvm.VECTOR_WIDTH
    split, join, weights = (
        torch.tensor(m, dtype=torch.double) for m in (kernel.SPLIT, kernel.JOIN, conv_ops.WEIGHTS)
    )
    x, taps = torch.randn(5).double(), torch.randn(3).double()
    direct = x.unfold(0, 3, 1) @ taps
    assert_close(join @ ((weights @ taps) * (split @ x)), direct, atol=1e-12)
