"""How kernels are launched, without a GPU: whose errors are healed, and when the trial runs."""

from __future__ import annotations

import pytest
import torch
from helpers.simulated_gpu import SimulatedGPU

pytest.importorskip("triton", reason="this torch comes without Triton")

from chatterbox_opt.kernels.cuda import launch as kernel_launch  # noqa: E402
from chatterbox_opt.kernels.cuda import selftest
from chatterbox_opt.runtime import cuda

GPU = torch.device("cuda", 0)


def raised_in(module: str, error: Exception):
    """A function of that module which raises."""
    scope = {"__name__": module, "error": error}
    exec("def fail():\n    raise error", scope)
    return scope["fail"]


class TestLaunching:
    def test_an_assertion_of_tritons_driver_is_a_failure_of_the_device(self):
        fail = raised_in(
            "triton.backends.nvidia.driver", AssertionError("libcuda.so cannot found!")
        )
        with (
            pytest.raises(RuntimeError, match="Triton: libcuda.so cannot found!"),
            kernel_launch.triton_errors(),
        ):
            fail()

    @pytest.mark.parametrize("module", ["chatterbox_opt.kernels", "tritonish", "torch.nn"])
    def test_an_assertion_of_others_is_a_bug(self, module):
        fail = raised_in(module, AssertionError("not a power of two"))
        with pytest.raises(AssertionError, match="power of two"), kernel_launch.triton_errors():
            fail()

    def test_a_stage_whose_driver_is_not_found_has_no_kernels(self, monkeypatch):
        fail = raised_in(
            "triton.backends.nvidia.driver", AssertionError("libcuda.so cannot found!")
        )
        launching = kernel_launch.triton_errors()
        monkeypatch.setattr(
            "chatterbox_opt.kernels.cuda.selftest.kernels_are_correct", launching(lambda *_: fail())
        )
        reason = selftest.unsupported_reason("t3", torch.float16)
        assert "libcuda.so cannot found!" in reason


@pytest.fixture
def hopper(monkeypatch):
    """A GPU and a Triton that know early launches; the trial's kernel counts by PyTorch."""
    kernel_launch.pdl_supported.cache_clear()
    monkeypatch.setattr(kernel_launch, "gdc_wait", lambda: None)
    cuda.capability_major.cache_clear()

    class Counted:
        def __getitem__(self, grid):
            return lambda x, y, **options: y.copy_(x + 1)

    monkeypatch.setattr(kernel_launch, "counted", Counted())
    with SimulatedGPU().plugged(monkeypatch) as plugged:
        yield plugged
    kernel_launch.pdl_supported.cache_clear()
    cuda.capability_major.cache_clear()


class TestEarly:
    def test_a_gpu_is_asked_once_however_it_is_called(self, hopper):
        assert kernel_launch.pdl_options(torch.device("cuda")) == kernel_launch.PDL_ON
        captures = hopper.captures
        assert kernel_launch.pdl_options(GPU) == kernel_launch.PDL_ON
        assert hopper.captures == captures > 0

    def test_it_is_never_tried_inside_a_capture(self, hopper):
        record, x, found = cuda.GraphCapturer(GPU), torch.zeros(2, device="cuda"), []

        def work():
            found.append(kernel_launch.pdl_options(x.device))
            x.add_(1)

        record(work)()
        assert found == [kernel_launch.PDL_OFF] and x.tolist() == [1, 1]
        assert kernel_launch.pdl_options(x.device) == kernel_launch.PDL_ON, (
            "it is asked again outside"
        )
        record(work)
        assert found[1:] == [kernel_launch.PDL_ON], "and what is known is known there too"
