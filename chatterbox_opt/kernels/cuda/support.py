"""Whether the Triton kernels can be used here.

Responsible for the reasons why not, also where there is no Triton (Windows, some builds of torch).
Not responsible for the comparison with PyTorch (selftest.py). Imports no Triton by itself.
"""

from __future__ import annotations

import importlib.util

import torch

from chatterbox_opt.errors import first_line
from chatterbox_opt.runtime import compiler_caches
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS


def unsupported_reason(stage: str, dtype: torch.dtype, device: str = "cuda") -> str:
    """Why the Triton kernels of a stage cannot be used on this GPU in a dtype, or "".

    Runs all of them: Triton compiles them at the first run, and builds their launchers with the
    system's C compiler.

    Args:
        stage: "t3" or "flow".
    """
    if importlib.util.find_spec("triton") is None:
        return "this torch comes without Triton"
    compiler_caches.use_private_directories()
    try:
        from chatterbox_opt.kernels.cuda import selftest  # imports Triton

        correct = selftest.kernels_are_correct(stage, torch.device(device), dtype)
    except DEVICE_ERRORS as error:
        return f"Triton cannot build kernels here ({first_line(error)})"
    return "" if correct else "Triton's kernels are wrong here"
