"""The CUDA graph backend of the decode loop, and the decode step compiled by inductor.

Responsible for the keys of T3's graphs and for the static buffers they use. Not responsible for
capture and replay (runtime/cuda_graphs.py) or for the loop (decode.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from chatterbox_opt.engine.decoding.decode import DecodeStep, StepFn, fastest_step, prefill_fn
from chatterbox_opt.models.t3.decode_state import DecodeState, PrefillFn
from chatterbox_opt.models.t3.fused_step import FusedStep
from chatterbox_opt.models.t3.kv_cache import KV_BLOCK, StaticKVCache, round_up_kv_len
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.runtime import compiler_caches, cuda
from chatterbox_opt.runtime.cuda_graphs import (
    CapturedGraph,
    CaptureFn,
    CudaGraphCache,
    weight_addresses,
)

STEPS_PER_SYNC = 8  # steps between two readbacks: at 1,500 tokens/s one every 5 ms
KV_GROWTH = 4 * KV_BLOCK  # a cache that grows moves, and its graphs are stale: grow rarely
WARM_UP_STEPS = 2  # the first call traces and compiles, the second runs the compiled code


def grown_length(positions: int) -> int:
    """The cache capacity for ``positions``, a multiple of ``KV_GROWTH``."""
    return -(-round_up_kv_len(positions) // KV_GROWTH) * KV_GROWTH


class CudaGraphBackend:
    """The ``DecodeBackend`` that replays steps and prefills as CUDA graphs.

    Its slots are reused from call to call, because graphs are bound to their addresses.
    """

    steps_per_sync = STEPS_PER_SYNC

    def __init__(
        self,
        capture: CaptureFn,
        forward: StepFn | None = None,
        *,
        fused: bool = False,
        kv_cache: torch.dtype | None = None,
    ) -> None:
        """Start without graphs.

        Args:
            capture: captures work without running it; returns the replay.
            forward, fused, kv_cache: see ``DecodeBackend``.
        """
        self.forward, self.fused, self.kv_cache = forward, fused, kv_cache
        self._cache = CudaGraphCache(capture, "the t3 step")
        self._slots: DecodeState | None = None
        self._slots_key: tuple[int, int, torch.dtype] | None = None
        self._conditioning: Tensor | None = None
        self._allocations = 0

    @property
    def captures_work(self) -> bool:
        """As ``CudaGraphCache.captures_work``."""
        return self._cache.captures_work

    def slots(self, t3: T3, count: int, rows_per_seq: int) -> DecodeState:
        """The slots of the last call if they fit, else new ones."""
        key = (count, rows_per_seq, t3.dtype)
        if self._slots is None or key != self._slots_key:
            self._slots = None  # free them before allocating others: they are large
            cache = StaticKVCache(
                num_seqs=count,
                rows_per_seq=rows_per_seq,
                shape=t3.kv_shape,
                like=t3.like,
                capacity_for=grown_length,
                dtype=self.kv_cache,
            )
            self._slots, self._slots_key = DecodeState(t3, count, cache), key
            self._allocations += 1
        return self._slots

    def release_slots(self) -> None:
        self._slots = self._slots_key = self._conditioning = None

    def release_graphs(self) -> None:
        """Drop all graphs with their buffers."""
        self._cache.clear()

    def prefill(self, t3: T3) -> PrefillFn:
        """One graph for each length that texts are padded to, and length of a voice's part."""
        weights, eager = weight_addresses(t3), prefill_fn(t3)

        def prefill(slots: DecodeState, text: Tensor, conditioning: Tensor) -> None:
            static = self._static(conditioning)
            graph = self._find(slots, weights, ("prefix", text.shape[1], static.shape[3]))
            if not graph.arguments:
                graph.set_buffers((torch.empty_like(text),))
            (buffer,) = graph.arguments
            buffer.copy_(text)
            self._cache.run(graph, lambda: eager(slots, buffer, static))

        return prefill

    def _static(self, conditioning: Tensor) -> Tensor:
        """A copy of a voice's keys and values in the buffer that all graphs read."""
        size, buffer = conditioning.numel(), self._conditioning
        if buffer is None or buffer.dtype != conditioning.dtype or len(buffer) < size:
            buffer = self._conditioning = conditioning.new_empty(size)
            self._allocations += 1
        return buffer[:size].view_as(conditioning).copy_(conditioning)

    def step(self, t3: T3) -> DecodeStep:
        """One graph for each number of slots and KV length."""
        weights, eager = weight_addresses(t3), fastest_step(self, t3)

        def step(slots: DecodeState, count: int, kv_len: int, /, *, needs_sort: bool) -> None:
            # round up to a power of two, so that there are few graphs; the output of unused slots
            # is ignored
            count = min(slots.count, 1 << (count - 1).bit_length())
            if isinstance(eager, FusedStep):  # its attention stops at each sequence's length
                assert isinstance(slots.cache, StaticKVCache)
                kv_len = slots.cache.capacity
            graph = self._find(slots, weights, (count, kv_len, needs_sort))
            self._cache.run(graph, lambda: eager(slots, count, kv_len, needs_sort=needs_sort))

        return step

    def _find(self, slots: DecodeState, weights: tuple[int, ...], key: Hashable) -> CapturedGraph:
        assert isinstance(slots.cache, StaticKVCache)
        addresses = (weights, slots.cache.addresses, self._allocations)
        return self._cache.find(key, addresses)

    def readback(self, tokens: Tensor) -> Callable[[], list[list[int]]]:
        """Asynchronous on a GPU: the next steps are launched during the copy."""
        return cuda.to_host_async(tokens) if tokens.is_cuda else tokens.tolist


def compiled_step(model: T3) -> StepFn:
    """Compile ``model.step`` with inductor and run it twice on an empty cache.

    Raises:
        One of ``DEVICE_ERRORS``: no compiler, no Triton, an operation that cannot be compiled.
    """
    compiler_caches.use_private_directories()
    step: StepFn = torch.compile(model.step, backend="inductor", fullgraph=True)
    zero = torch.zeros(1, dtype=torch.long, device=model.like.device)
    with torch.inference_mode():
        rows, shape = model.config.rows_per_seq, model.kv_shape
        cache = StaticKVCache(num_seqs=1, rows_per_seq=rows, shape=shape, like=model.like)
        cache.reserve(0, KV_BLOCK)
        for _ in range(WARM_UP_STEPS):
            step(zero, zero, zero, cache, KV_BLOCK)
    return step
