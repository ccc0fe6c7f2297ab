"""How kernels are launched, without a GPU: which errors are converted, and when PDL is probed."""

from __future__ import annotations

import pytest
import torch
from helpers.simulated_gpu import SimulatedGPU

pytest.importorskip("triton", reason="this torch comes without Triton")

from chatterbox_opt.kernels.cuda import launch as kernel_launch  # noqa: E402
from chatterbox_opt.kernels.cuda import support
from chatterbox_opt.runtime import cuda

GPU = torch.device("cuda", 0)


def raising_in(module: str, error: Exception):
    """A function of that module that raises."""
    scope = {"__name__": module, "error": error}
    exec("def fail():\n    raise error", scope)
    return scope["fail"]


class TestTritonErrors:
    def test_an_assertion_in_tritons_driver_is_a_runtime_error(self):
        fail = raising_in(
            "triton.backends.nvidia.driver", AssertionError("libcuda.so cannot found!")
        )
        with (
            pytest.raises(RuntimeError, match="Triton: libcuda.so cannot found!"),
            kernel_launch.triton_errors(),
        ):
            fail()

    @pytest.mark.parametrize("module", ["chatterbox_opt.kernels", "tritonish", "torch.nn"])
    def test_an_assertion_elsewhere_is_a_bug(self, module):
        fail = raising_in(module, AssertionError("not a power of two"))
        with pytest.raises(AssertionError, match="power of two"), kernel_launch.triton_errors():
            fail()

    def test_without_the_driver_library_a_stage_has_no_kernels(self, monkeypatch):
        fail = raising_in(
            "triton.backends.nvidia.driver", AssertionError("libcuda.so cannot found!")
        )
        converting = kernel_launch.triton_errors()
        monkeypatch.setattr(
            "chatterbox_opt.kernels.cuda.selftest.kernels_are_correct",
            converting(lambda *_: fail()),
        )
        reason = support.unsupported_reason("t3", torch.float16)
        assert "libcuda.so cannot found!" in reason


@pytest.fixture
def hopper(monkeypatch):
    """A GPU and a Triton that support PDL; the probe's kernel is replaced by PyTorch."""
    kernel_launch.pdl_supported.cache_clear()
    monkeypatch.setattr(kernel_launch, "gdc_wait", lambda: None)
    cuda.capability_major.cache_clear()

    class IncrementKernel:
        def __getitem__(self, grid):
            return lambda x, y, **options: y.copy_(x + 1)

    monkeypatch.setattr(kernel_launch, "increment_kernel", IncrementKernel())
    with SimulatedGPU().plugged(monkeypatch) as plugged:
        yield plugged
    kernel_launch.pdl_supported.cache_clear()
    cuda.capability_major.cache_clear()


class TestPDL:
    def test_a_gpu_is_probed_once_with_or_without_an_index(self, hopper):
        assert kernel_launch.pdl_options(torch.device("cuda")) == kernel_launch.PDL_ON
        captures = hopper.captures
        assert kernel_launch.pdl_options(GPU) == kernel_launch.PDL_ON
        assert hopper.captures == captures > 0

    def test_it_is_never_probed_during_a_capture(self, hopper):
        capture, x, options = cuda.GraphCapturer(GPU), torch.zeros(2, device="cuda"), []

        def work():
            options.append(kernel_launch.pdl_options(x.device))
            x.add_(1)

        capture(work)()
        assert options == [kernel_launch.PDL_OFF] and x.tolist() == [1, 1]
        assert kernel_launch.pdl_options(x.device) == kernel_launch.PDL_ON, (
            "it is probed again outside"
        )
        capture(work)
        assert options[1:] == [kernel_launch.PDL_ON], "the cached result is used during a capture"
