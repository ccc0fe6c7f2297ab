"""Independent computations at the same time, each with its share of the cores.

An operation that takes less than a millisecond gains little from a second core: its threads wait
for each other, and for the interpreter between two operations. Two whole computations on a core
each do not.

Responsible for these threads. Not responsible for whether a computation gives the same bits on
fewer cores, which the caller has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Value = TypeVar("Value")


class CoreThreads:
    """Threads that compute with PyTorch; started when they are first needed."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    def run(self, work: Sequence[Callable[[], Value]]) -> list[Value]:
        """The results in order; a single computation runs on this thread with all cores.

        Raises:
            Exception: the first error, after all have ended.
        """
        cores = torch.get_num_threads()
        if len(work) == 1 or cores == 1:
            return [one() for one in work]
        self._executor = self._executor or ThreadPoolExecutor(cores, "cores")
        share, changed = max(1, cores // len(work)), []

        def compute(one: Callable[[], Value]) -> Value:
            if torch.get_num_threads() != share:
                torch.set_num_threads(share)
                changed.append(share)
            with torch.inference_mode():  # a per-thread setting
                return one()

        futures = [self._executor.submit(compute, one) for one in work]
        wait(futures)
        if changed:  # it is also what threads get that compute for the first time
            torch.set_num_threads(cores)
        return [future.result() for future in futures]
