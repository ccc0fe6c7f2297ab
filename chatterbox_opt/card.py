"""The CUDA runtime beneath tensors: graphs, and copies that nobody waits for.

Knows streams, events and capture; the same calls serve ROCm. Knows nothing of what is recorded
or copied, and is only used where there is a card.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Work = Callable[[], None]


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
