"""How a kernel of our own is launched: what errors it gives, and how early it may begin.

Knows Triton's errors and CUDA's programmatic dependent launch. Knows nothing of what kernels
compute. Imports Triton, as kernels.py does.

From Hopper on a kernel may be launched while the one before it works (CUDA C++ Programming Guide,
4.5), which hides the microsecond or two between them. Each of ours, where ``EARLY``, says at its
beginning that the next may come, sends for what no kernel writes (weights), and then waits until
all before it is done and to be seen. Before that wait nothing is read that a kernel writes, and
nothing is written; every kernel waits, so whoever has waited has waited for all.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.errors import TritonError
from triton.language.extra import cuda

from chatterbox_opt import card

# for kernels, where ``EARLY``; Triton has them from 3.4 on
next_may_begin: Any = getattr(cuda, "gdc_launch_dependents", None)
wait_for_those_before: Any = getattr(cuda, "gdc_wait", None)

# Major versions. RTX 50xx (12) is left out: captures with such launches were refused there
# (sgl-project/sglang, pull request 18596).
EARLY_ON = (9, 10)


def early(device: torch.device) -> bool:
    """Whether kernels may begin early there: the card and this Triton know how."""
    return wait_for_those_before is not None and card.generation(device) in EARLY_ON


def beginning(device: torch.device) -> dict[str, Any]:
    """The constant ``EARLY`` of a kernel, and the launch's option."""
    return {"EARLY": True, "launch_pdl": True} if early(device) else {"EARLY": False}


@contextmanager
def launching() -> Iterator[None]:
    """Errors of Triton, and of the C compiler that it calls, made RuntimeErrors as all others of a
    device are."""
    try:
        yield
    except (TritonError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"Triton: {str(error).strip() or type(error).__name__}") from error
