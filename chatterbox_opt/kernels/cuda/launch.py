"""How a kernel of our own is launched: what errors it gives, and how early it may begin.

Knows Triton's errors and CUDA's programmatic dependent launch. Knows nothing of what kernels
compute. Imports Triton, as gemv.py does.

From Hopper on a kernel may be launched while the one before it works (CUDA C++ Programming Guide,
4.5), which hides the microsecond or two between them. Each of ours, where ``USE_PDL``, says at its
beginning that the next may come, sends for what no kernel writes (weights), and then waits until
all before it is done and to be seen. Two things make that right. Before its wait a kernel reads
nothing that any such kernel writes, and writes nothing; and all of them wait, so whoever has waited
has waited for all. Other kernels and copies never begin early, and let none begin before they have
ended: weights may be theirs to write, never those of a kernel that lets others begin.
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

# for kernels, where ``USE_PDL``; Triton has them from 3.4 on
gdc_launch_dependents: Any = getattr(triton_cuda, "gdc_launch_dependents", None)
gdc_wait: Any = getattr(triton_cuda, "gdc_wait", None)

# Major versions: Hopper and the large Blackwell. RTX 50xx (12) is left out: others' captures with
# such launches were refused there (sgl-project/sglang, pull request 18596).
PDL_CAPABILITIES = (9, 10)
PDL_ON: dict[str, Any] = {"USE_PDL": True, "launch_pdl": True}
PDL_OFF: dict[str, Any] = {"USE_PDL": False}


@triton.jit
def counted(x, y, USE_PDL: tl.constexpr):
    """y = x + 1, for the trial."""
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
    tl.store(y + tl.program_id(0), tl.load(x + tl.program_id(0)) + 1)


class ProbedDuringCaptureError(RuntimeError):
    """The trial of ``pdl_supported`` waits for the GPU, which a capture forbids."""


@functools.cache
def pdl_supported(device: torch.device) -> bool:
    """Whether kernels may begin early there: the card and this Triton know how, and a recorded
    chain of them, with a copy between, counts right. A driver that refuses would cost T3 its
    recordings.

    Args:
        device: with its index, so that each GPU is asked once; see ``card.indexed``.

    Raises:
        AskedInCaptureError: it was not asked before, and a graph is being captured.
    """
    if gdc_wait is None or cuda.capability_major(device) not in PDL_CAPABILITIES:
        return False
    if cuda.is_capturing(device):
        raise ProbedDuringCaptureError
    here, there, aside = torch.zeros(3, 512, dtype=torch.long, device=device)
    grid = (len(here),)

    def chain() -> None:
        for _ in range(8):
            for source, target in ((here, there), (there, aside)):
                counted[grid](source, target, **PDL_ON)
            here.copy_(aside)
            counted[grid](here, here, **PDL_ON)

    try:
        with triton_errors():
            chain()
            replay = cuda.GraphCapturer(device)(chain)
            for _ in range(3):
                replay()
            right = bool((here == 4 * 3 * 8).all())
    except cuda.DEVICE_ERRORS as error:
        log.info("kernels do not begin early here: %s", first_line(error))
        return False
    return right


def pdl_options(device: torch.device) -> dict[str, Any]:
    """The constant ``USE_PDL`` of a kernel, and the launch's option.

    Work is run before it is recorded (cuda_graphs.py), so it is asked outside of captures. If ever not,
    that one graph has its kernels in turn, and the next one asks again.
    """
    try:
        return PDL_ON if pdl_supported(cuda.with_index(device)) else PDL_OFF
    except ProbedDuringCaptureError:
        return PDL_OFF


@contextmanager
def triton_errors() -> Iterator[None]:
    """Errors of Triton, and of the C compiler that it calls, made RuntimeErrors as all others of a
    device are."""
    try:
        yield
    except (TritonError, subprocess.CalledProcessError) as error:
        raise _as_runtime_error(error) from error
    except AssertionError as error:
        if not _raised_by_triton(error):
            raise  # a mistake of ours, which no fallback shall hide
        raise _as_runtime_error(error) from error


def _as_runtime_error(error: Exception) -> RuntimeError:
    return cuda.SetupError(f"Triton: {str(error).strip() or type(error).__name__}")


def _raised_by_triton(error: AssertionError) -> bool:
    """Whether Triton's own code raised it: a driver library that it cannot find, for example."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    name = str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] == triton.__name__
