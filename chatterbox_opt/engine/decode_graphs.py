"""The decode step as CUDA graphs, and compiled by inductor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from chatterbox_opt.engine.decode import DecodeStep, StepFn, fastest_step, prefill_fn
from chatterbox_opt.models.t3.decode_state import DecodeState, PrefillFn
from chatterbox_opt.models.t3.fused_step import FusedStep
from chatterbox_opt.models.t3.kv_cache import KV_BLOCK, StaticKVCache, round_up_kv_len
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.runtime import cuda
from chatterbox_opt.runtime.cuda_graphs import (
    CapturedGraph,
    CaptureFn,
    CudaGraphCache,
    weight_addresses,
)

log = logging.getLogger(__name__)
STEPS_PER_SYNC = 8  # steps between two looks: at 1,500 tokens/s the host looks every 5 ms
KV_GROWTH = 4 * KV_BLOCK  # a cache that grows moves, and recordings over it are void: grow rarely
WARM_UP_STEPS = 2  # the first call traces and compiles, the second runs what was compiled


def grown_length(positions: int) -> int:
    """Room of a cache for so many positions, in large pieces."""
    return -(-round_up_kv_len(positions) // KV_GROWTH) * KV_GROWTH


class CudaGraphBackend:
    """A way to decode: a step is one replay, and so is a prefill, over slots that live as long as
    the recordings.

    See ``decoding.Way``.
    """

    steps_per_sync = STEPS_PER_SYNC

    def __init__(
        self,
        record: CaptureFn,
        forward: StepFn | None = None,
        *,
        fused: bool = False,
        kv_cache: torch.dtype | None = None,
    ) -> None:
        """Take a recorder, and a compiled ``T3.step`` to be recorded, or none.

        Args:
            fused, kv_cache: see ``decoding.Way``.
        """
        self.forward, self.fused, self.kv_cache = forward, fused, kv_cache
        self._recordings = CudaGraphCache(record, "the t3 step")
        self._slots: DecodeState | None = None
        self._fits: tuple[int, int, torch.dtype] | None = None
        self._allocations = 0

    @property
    def captures_work(self) -> bool:
        """See ``CudaGraphCache``."""
        return self._recordings.captures_work

    def slots(self, t3: T3, count: int, rows_per_seq: int) -> DecodeState:
        """The slots of last time if they fit, else new ones."""
        fits = (count, rows_per_seq, t3.dtype)
        if self._slots is None or fits != self._fits:
            self._slots = None  # before there are others: they are large
            cache = StaticKVCache(
                num_seqs=count,
                rows_per_seq=rows_per_seq,
                shape=t3.kv_shape,
                like=t3.like,
                capacity_for=grown_length,
                dtype=self.kv_cache,
            )
            self._slots, self._fits = DecodeState(t3, count, cache), fits
            self._allocations += 1
        return self._slots

    def prefill(self, t3: T3) -> PrefillFn:
        """See ``Way``; one recording for each length that prefixes are padded to."""
        weights, plain = weight_addresses(t3), prefill_fn(t3)

        def prefill(slots: DecodeState, prefix: Tensor) -> None:
            recording = self._find(slots, weights, ("prefix", prefix.shape[1]))
            if not recording.arguments:
                recording.hold((torch.empty_like(prefix),))
            (mine,) = recording.arguments
            mine.copy_(prefix)
            self._recordings.run(recording, lambda: plain(slots, mine))

        return prefill

    def step(self, t3: T3) -> DecodeStep:
        """See ``Way``; recordings over weights that have moved are dropped."""
        weights, plain = weight_addresses(t3), fastest_step(self, t3)

        def step(slots: DecodeState, count: int, kv_len: int, *, needs_sort: bool) -> None:
            # few distinct programs: slots beyond those in work are stepped along, unheard
            count = min(slots.count, 1 << (count - 1).bit_length())
            if isinstance(plain, FusedStep):  # which reads each as far as it goes
                assert isinstance(slots.cache, StaticKVCache)
                kv_len = slots.cache.capacity
            recording = self._find(slots, weights, (count, kv_len, needs_sort))
            self._recordings.run(
                recording, lambda: plain(slots, count, kv_len, needs_sort=needs_sort)
            )

        return step

    def _find(self, slots: DecodeState, weights: tuple[int, ...], key: Hashable) -> CapturedGraph:
        assert isinstance(slots.cache, StaticKVCache)
        place = (weights, slots.cache.addresses, self._allocations)
        return self._recordings.find(key, place)

    def readback(self, tokens: Tensor) -> Callable[[], list[list[int]]]:
        """See ``Way``: the next steps are launched while these numbers travel."""
        return cuda.to_host_async(tokens) if tokens.is_cuda else tokens.tolist


def compiled_step(model: T3) -> StepFn:
    """Compile ``model.step`` by inductor and run it twice on an empty cache.

    Raises:
        One of ``FAILURES``: no compiler, no Triton, an operation that cannot be compiled.
    """
    step: StepFn = torch.compile(model.step, backend="inductor", fullgraph=True)
    zero = torch.zeros(1, dtype=torch.long, device=model.like.device)
    with torch.inference_mode():
        cache = StaticKVCache(num_seqs=1, rows_per_seq=2, shape=model.kv_shape, like=model.like)
        cache.reserve(0, KV_BLOCK)
        for _ in range(WARM_UP_STEPS):
            step(zero, zero, zero, cache, KV_BLOCK)
    return step
