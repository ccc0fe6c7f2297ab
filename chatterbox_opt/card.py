"""The CUDA runtime beneath tensors: graphs, and copies that nobody waits for.

Knows streams, events and capture; the same calls serve ROCm. Knows nothing of what is recorded
or copied, and is only used where there is a card.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

Work = Callable[[], None]
FAILURES = (RuntimeError, ImportError, OSError)  # dynamo's, inductor's and CUDA's are RuntimeErrors


class CudaRecorder:
    """Records work into CUDA graphs that share one pool of memory.

    They may share it because they never run at the same time and leave their results in tensors
    that are not the pool's.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        """Note what ``work`` does, without doing it; return what does it.

        Raises:
            RuntimeError: it cannot be captured.
        """
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # other threads may go on using the card meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph.replay


def arriving(numbers: Tensor) -> Callable[[], list[list[int]]]:
    """Start copying int64 [n, m] to the host; what is returned waits until it is there."""
    there, copy = torch.cuda.Event(), torch.empty_like(numbers, device="cpu", pin_memory=True)
    copy.copy_(numbers, non_blocking=True)
    there.record()

    def arrived() -> list[list[int]]:
        there.synchronize()
        found: list[list[int]] = copy.tolist()
        return found

    return arrived


def lacks_triton(half: torch.dtype, device: str = "cuda") -> str:
    """Why the kernels of our own (kernels.py) cannot be used on this card, or "".

    All of them are tried, in float32 and in ``half``: Triton compiles them the first time, and
    builds what launches them with the system's C compiler.
    """
    if importlib.util.find_spec("triton") is None:
        return "this torch comes without Triton"
    try:
        from chatterbox_opt import kernels

        right = all(kernels.right(torch.device(device), d) for d in (half, torch.float32))
    except FAILURES as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"Triton cannot build kernels here ({reason})"
    return "" if right else "Triton's kernels are wrong here"
