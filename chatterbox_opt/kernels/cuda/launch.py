"""How the Triton kernels are launched: programmatic dependent launch (PDL), and Triton's errors.

Responsible for Triton's errors and CUDA's programmatic dependent launch. Not responsible for what
kernels compute. Imports Triton, as gemv.py does.

Between two kernels of a stream there is a microsecond or two in which the GPU does nothing: the
next one starts when the last program of the previous one has ended and its writes are visible. From
Hopper on, a kernel may be launched earlier (CUDA C++ Programming Guide, 4.5):

    without PDL    [ kernel 1 ......... ] gap [ weights | compute ]
    with PDL       [ kernel 1 ......... ]
                          [ weights | wait ][ compute ]

With ``USE_PDL`` each kernel calls ``gdc_launch_dependents`` at its start, which lets the next one
start; prefetches what no kernel writes (weights); and then calls ``gdc_wait``, which returns when
all previous kernels have ended and their writes are visible. Two rules make that correct:

1. Before its ``gdc_wait`` a kernel writes nothing, and reads nothing that such a kernel writes.
2. Every kernel waits. So one whose wait has returned knows that *all* before it have ended, not
   only the one directly before it.

Other kernels and copies are launched without PDL: they do not start early, nor does one of ours
start before they have ended. So they may write weights, which these kernels never do.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from triton.errors import TritonError
from triton.language.extra import cuda as triton_cuda

from chatterbox_opt.errors import first_line
from chatterbox_opt.runtime import cuda

log = logging.getLogger(__name__)

# called in kernels if ``USE_PDL``; Triton has them from 3.4 on
gdc_launch_dependents: Any = getattr(triton_cuda, "gdc_launch_dependents", None)
gdc_wait: Any = getattr(triton_cuda, "gdc_wait", None)

# Major versions: Hopper and the large Blackwell. RTX 50xx (12) is left out: graph captures with
# such launches failed there (sgl-project/sglang, pull request 18596).
PDL_CAPABILITIES = (9, 10)
PDL_ON: dict[str, Any] = {"USE_PDL": True, "launch_pdl": True}
PDL_OFF: dict[str, Any] = {"USE_PDL": False}


@triton.jit
def increment_kernel(x, y, USE_PDL: tl.constexpr):
    """y = x + 1, for the probe of ``pdl_supported``."""
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
    tl.store(y + tl.program_id(0), tl.load(x + tl.program_id(0)) + 1)


class ProbedDuringCaptureError(RuntimeError):
    """The probe of ``pdl_supported`` waits for the GPU, which a capture forbids."""


@functools.cache
def pdl_supported(device: torch.device) -> bool:
    """Whether PDL works on a GPU: the GPU and this Triton support it, and a captured chain of
    kernels, with copies in between, computes the correct result. Without this probe, a driver that
    rejects such launches in a capture would cost T3 its CUDA graphs.

    Args:
        device: with its index, so that each GPU is probed once; see ``cuda.with_index``.

    Raises:
        ProbedDuringCaptureError: it was not probed before, and a graph is being captured.
    """
    if gdc_wait is None or cuda.capability_major(device) not in PDL_CAPABILITIES:
        return False
    if cuda.is_capturing(device):
        raise ProbedDuringCaptureError
    first, second, third = torch.zeros(3, 512, dtype=torch.long, device=device)
    grid = (len(first),)

    def chain() -> None:
        for _ in range(8):
            for source, target in ((first, second), (second, third)):
                increment_kernel[grid](source, target, **PDL_ON)
            first.copy_(third)
            increment_kernel[grid](first, first, **PDL_ON)

    try:
        with triton_errors():
            chain()
            replay = cuda.GraphCapturer(device)(chain)
            for _ in range(3):
                replay()
            # the eager run and three replays, eight times three increments each
            correct = bool((first == 4 * 3 * 8).all())
    except cuda.DEVICE_ERRORS as error:
        log.info("programmatic dependent launch is unsupported: %s", first_line(error))
        return False
    return correct


def pdl_options(device: torch.device) -> dict[str, Any]:
    """The constant ``USE_PDL`` of a kernel, and Triton's launch option.

    Work runs eagerly before it is captured (cuda_graphs.py), so the probe runs outside of captures.
    Should it ever not, that one graph is captured without PDL, and the next call probes again.
    """
    try:
        return PDL_ON if pdl_supported(cuda.with_index(device)) else PDL_OFF
    except ProbedDuringCaptureError:
        return PDL_OFF


@contextmanager
def triton_errors() -> Iterator[None]:
    """Convert errors of Triton, and of the C compiler that it calls, to RuntimeError, as which
    PyTorch raises all others of a device."""
    try:
        yield
    except (TritonError, subprocess.CalledProcessError) as error:
        raise _as_runtime_error(error) from error
    except AssertionError as error:
        if not _raised_by_triton(error):
            raise  # a bug of this package, which no fallback may hide
        raise _as_runtime_error(error) from error


def _as_runtime_error(error: Exception) -> RuntimeError:
    return cuda.SetupError(f"Triton: {str(error).strip() or type(error).__name__}")


def _raised_by_triton(error: AssertionError) -> bool:
    """Whether Triton's own code raised it, for example for want of the driver library."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    name = str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] == triton.__name__
