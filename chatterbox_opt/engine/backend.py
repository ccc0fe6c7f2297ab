"""The backend interface of the engine: our own pipeline and plain Chatterbox implement it.

Responsible for the interface and the capacity that a run requests. Not responsible for any
implementation (pipeline.py, upstream_backend.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from chatterbox_opt.engine.sequence import ChunkResult, NextChunk


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Capacity that a backend allocates before it has seen the requests; never changes the output.

    Attributes:
        slots: the maximum number of sequences decoded at once.
        use_cfg: requests may have a cfg_weight above 0, which needs a second row per sequence.
    """

    slots: int = 1
    use_cfg: bool = True


ONE_AT_A_TIME = BatchOptions()


class SpeechBackend(Protocol):
    """Turns chunk requests into audio: ``Pipeline`` or ``UpstreamBackend``.

    Attributes:
        device: the model's.
    """

    device: torch.device

    def synthesize_chunks(
        self, next_chunk: NextChunk, options: BatchOptions = ONE_AT_A_TIME
    ) -> Iterator[ChunkResult]:
        """Synthesize requests until there are none; yield each as it finishes, in any order.

        A request that fails is yielded with its error and does not end the others.

        Args:
            next_chunk: called whenever a slot is free; None if there is no request (for now).
            options: the capacity to allocate; a backend whose capacity is fixed ignores them.
        """
        ...

    def close(self) -> None:
        """Free the model and the device's memory."""
        ...
