"""Sampling on a CPU: each row by itself, all of them in one compiled call.

Responsible for the addresses of the slots' tensors, and for whether the kernel runs here. Not
responsible for the arithmetic (kernels/cpu/sampling.py) or for what the parameters mean
(sampler.py).

On a CPU an operation over one row of the vocabulary costs less than its dispatch, above all between
two steps that have read all of T3 through the caches.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from chatterbox_opt.kernels.cpu import openmp
from chatterbox_opt.models.t3.sampler import NOT_FINITE, UNFORCED, SamplingTensors


class RowSampler:
    """Draws the next tokens of slots and stores them, where a draw does not depend on rounding."""

    def __init__(
        self,
        logits: Tensor,
        seen: Tensor,
        params: SamplingTensors,
        noise: Tensor,
        token_buffer: Tensor,
        counters: tuple[Tensor, Tensor, Tensor],
        *,
        start: int,
        turbo: bool = False,
    ) -> None:
        """Bind the buffers of a ``DecodeState``, which must stay where they are.

        Args:
            logits: float32 [slots or 2 slots, V].
            seen: bool [slots, V].
            noise: float32 [slots, V].
            token_buffer: int64 [slots, n].
            counters: int64 [slots] each: last token, number generated, position.
            start, turbo: see ``DecodeState``.
        """
        from chatterbox_opt.kernels.cpu import sampling  # numba is only needed here

        slots, vocabulary = seen.shape
        assert logits.dtype == torch.float32 and logits.is_contiguous()
        self._undecided = np.zeros(slots, np.int64)
        self._tokens, self._generated = token_buffer.numpy(), counters[1].numpy()
        self._work = sampling.sample_tokens.address
        task = self._task = openmp.torch_openmp().new_task(sampling.SAMPLE)
        task["rows_per_seq"], task["vocabulary"] = len(logits) // slots, vocabulary
        task["limit"], task["turbo"], task["start"] = token_buffer.shape[1], turbo, start
        task["unforced"], task["not_finite"] = UNFORCED, NOT_FINITE
        buffers = {"logits": logits, "seen": seen, "params": params.values, "noise": noise}
        buffers |= {"token_buffer": token_buffer, "scratch": torch.empty(slots, 4, vocabulary)}
        buffers |= dict(zip(sampling.COUNTERS, counters, strict=True))
        openmp.set_pointers(task, **buffers)
        self._buffers = buffers  # kept alive
        task["undecided"] = self._undecided.ctypes.data

    def __call__(self, first: int, last: int) -> list[int]:
        """``DecodeState.sample_next`` of slots ``first`` to ``last``.

        Returns:
            The slots that are left to it: nothing of them has changed.
        """
        self._task["first"], self._task["last"] = first, last
        openmp.torch_openmp().run(self._work, self._task.ctypes.data)
        return [slot for slot in range(first, last) if self._undecided[slot]]

    def latest(self, slots: int, count: int) -> list[list[int]]:
        """``DecodeState.latest``; zeros before the first token."""
        rows = []
        for slot, end in enumerate(self._generated[:slots].tolist()):
            row = self._tokens[slot, max(end - count, 0) : end].tolist()
            rows.append([0] * (count - len(row)) + row)
        return rows


def supports() -> bool:
    """Whether a ``RowSampler`` can be made: on CPUs with AVX-512, where numba works.

    On others numba is loaded for nothing else, and takes longer to load than this saves.
    """
    return not _unsupported_reason()


@functools.cache
def _unsupported_reason() -> str:
    return openmp.avx512_selftest(_selftest_failure)


def _selftest_failure() -> str:
    logits, seen = torch.linspace(0, 1, 64)[None], torch.zeros(1, 64, dtype=torch.bool)
    last, generated, position = torch.zeros(3, 1, dtype=torch.long).unbind()
    tokens, params = torch.full((1, 2), UNFORCED), SamplingTensors.allocate(1)
    noise = torch.ones(1, 64)
    noise[0, 9] = 1e-3
    counters = last, generated, position
    undecided = RowSampler(logits, seen, params, noise, tokens, counters, start=0)(0, 1)
    right = not undecided and last.item() == tokens[0, 0].item() == 9
    return "" if right else "tokens are drawn wrongly here"
