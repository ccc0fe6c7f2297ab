"""T3's step, compiled. Knows how to compile and warm up one step; refuses nothing silently.

What cannot be compiled on this card or this PyTorch raises, and the caller runs eager.
"""

from __future__ import annotations

import torch

from chatterbox_opt.cache import SPAN
from chatterbox_opt.decoding import Forward
from chatterbox_opt.t3 import T3

WARMUP = 2  # the first call traces and compiles, the second runs what was compiled
FAILURES = (RuntimeError, ImportError, OSError)  # dynamo's and inductor's errors are RuntimeErrors


def failure(error: Exception) -> str:
    """One line for the person."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"Compilation setup failed: {reason}; the t3 step runs eager"


def compiled_step(model: T3, backend: str) -> Forward:
    """Compile ``model.step`` with torch.compile and run it twice on an empty cache.

    Args:
        backend: "cudagraphs" or "inductor".

    Raises:
        One of ``FAILURES``: no compiler, no Triton, an operation that cannot be captured.
    """
    step: Forward = torch.compile(model.step, backend=backend, fullgraph=True)
    zero = torch.zeros(1, dtype=torch.long, device=model.like.device)
    with torch.inference_mode():
        cache = model.new_cache(utterances=1, each=2, capacity=SPAN)
        for _ in range(WARMUP):
            step(zero, zero, zero, cache, SPAN)
    return step
