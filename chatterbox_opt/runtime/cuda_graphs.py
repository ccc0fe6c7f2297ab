"""CUDA graphs: work is captured once and replayed with one launch; stale graphs are dropped.

What a graph is. A decode step is hundreds of small kernels, and Python needs longer to launch them
than the GPU to run them. A CUDA graph is the list of those launches, captured from a stream; one
call replays all of it. A capture runs no kernel; it stores each launch with its arguments *frozen*:
the kernel, the grid, every scalar and every pointer. A replay launches exactly the same. So only
the contents of memory may differ between two replays:

- Every value that varies must be in a tensor at a fixed address. The decode step reads positions,
  tokens, noise and sampling parameters from static buffers (decode_state.py). For functions with
  arguments (``GraphedExecutor``), they are copied into buffers that belong to the graph, and the
  result is copied out, because the next replay overwrites it.
- Everything that changes the launches (batch size, KV length, dtype) is part of a graph's key: one
  graph per key, with shapes rounded up (``bucketing.bucket``) so that there are few keys.

Warm-up, capture, replay. The first call of a key runs eagerly: libraries create handles and
workspaces, kernels are compiled and autotuned, none of which may happen during a capture. The
second call captures and replays. Work that occurs only once is never captured. Plans that cuDNN
makes for a shape are cached by thread: on a thread that has not run a key eagerly yet, its work
runs eagerly once more before it is captured.

Stale graphs. If weights move (offload, another precision) or the KV cache is reallocated, a replay
would read and write memory that is freed or reused, without any error. Hence every lookup passes
the addresses that the graphs depend on, and if one has changed all graphs are dropped. Their number
(``MAX_GRAPHS``) and the bytes of their buffers are bounded; the least recently used go first.

Memory. Temporaries of a captured function come from a private pool, because their addresses are
frozen too. Graphs that never overlap share one pool; graphs that replay on another stream at the
same time need another (``cuda.GraphCapturer.for_other_stream``).

What cannot be captured: reading a value back (``.item()``, a branch on a tensor), pageable copies
from or to the host, creating library handles, returning an allocation to the driver. Such a capture
fails with an error, which is logged once; the key then runs eagerly, with equal results, and is
captured again after some uses (backoff.py): a failure may be one of the moment.

Why not ``torch.cuda.make_graphed_callables``: it captures one fixed set of shapes, keeps its static
inputs and outputs for ever, and does not detect moved weights. Why not torch.compile's
cudagraph trees: they need a compiler for every kernel in the graph, copy or guard inputs in Python
at each call, and manage their own pool and thread; and the steps here are hand-written Triton.

Responsible for captured graphs, what they depend on, and the warnings of the fallback. Not
responsible for what is captured.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from chatterbox_opt.errors import first_line
from chatterbox_opt.runtime import backoff
from chatterbox_opt.runtime.bucketing import DeviceLengths, PaddingMask, bucket
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS, Work

log = logging.getLogger(__name__)
MAX_GRAPHS = 64  # graphs of one stage; each holds its launches and a share of the memory pool
MANY_FAILURES = 3  # captures or replays of one stage that fail in a row before a second warning
MAX_BUFFER_BYTES = 256 << 20  # of the argument and result buffers of one stage's graphs
CaptureFn = Callable[[Work], Work]  # captures work without running it; returns the replay


def eager_from_now_on(failure: str, error: Exception) -> str:
    """The warning after a failure that disables a compiled step for good."""
    return f"{failure} ({first_line(error)}); running it eagerly from now on"


def eager_for_a_while(failure: str, error: Exception) -> str:
    """The warning after failures in a row of graphs or of a compiled step."""
    return f"{failure} ({first_line(error)}); running it eagerly, with another try now and then"


@dataclass(slots=True, eq=False)
class CapturedGraph:
    """The cache entry of one key: new, warmed up, or captured.

    Attributes:
        warmed_up: the work ran once, eagerly.
        threads: those on which it ran eagerly, while they live.
        failed: its last capture or replay failed.
        eager_uses: how often it runs eagerly before it is captured again.
        replay: launches the graph; None until it is captured.
        out_spec: shape and dtype of a function's result, known after the warm-up.
        arguments, result: a function's static buffers; allocated at the second call.
        nbytes: size of the buffers; stored because every step reads it.
    """

    warmed_up: bool = False
    # not their idents, which the next threads get
    threads: weakref.WeakSet[threading.Thread] = field(default_factory=weakref.WeakSet)
    failed: bool = False
    eager_uses: int = 0
    replay: Work | None = None
    out_spec: tuple[torch.Size, torch.dtype] | None = None
    arguments: tuple[Tensor, ...] = ()
    result: Tensor | None = None
    nbytes: int = 0

    def set_warmed_up(self) -> None:
        """The work ran eagerly on this thread."""
        self.warmed_up = True
        self.threads.add(threading.current_thread())

    def set_buffers(self, arguments: tuple[Tensor, ...], result: Tensor | None = None) -> None:
        """Set the static buffers."""
        self.arguments, self.result = arguments, result
        buffers = arguments if result is None else (*arguments, result)
        self.nbytes = sum(tensor.nbytes for tensor in buffers)


class CudaGraphCache:
    """Captured graphs by key, valid while the memory they use stays at its addresses."""

    def __init__(self, capture: CaptureFn, what: str) -> None:
        """Start empty.

        Args:
            what: the work's name in warnings.
        """
        self._capture = capture
        self._what = what
        self._graphs: dict[Hashable, CapturedGraph] = {}
        self._addresses: Hashable = None
        self._failures = 0  # since the last success

    @property
    def captures_work(self) -> bool:
        """False after a failed capture or replay: something is launched eagerly for a while."""
        return not self._failures and not any(graph.failed for graph in self._graphs.values())

    def find(self, key: Hashable, addresses: Hashable) -> CapturedGraph:
        """The graph under ``key``; all are dropped if ``addresses`` differ from the last call's.

        Args:
            key: everything that changes the launches, except values in tensors.
            addresses: of the memory that the graphs use.
        """
        if addresses != self._addresses:
            self._graphs.clear()
            self._addresses = addresses
        graph = self._graphs.pop(key, None) or CapturedGraph()
        while self._graphs and (
            len(self._graphs) >= MAX_GRAPHS or self._buffer_bytes() > MAX_BUFFER_BYTES
        ):
            del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = graph  # the most recently used comes last
        return graph

    def clear(self) -> None:
        """Drop all graphs; they are captured again when they are used."""
        self._graphs.clear()

    def _buffer_bytes(self) -> int:
        return sum(graph.nbytes for graph in self._graphs.values())

    def run(self, graph: CapturedGraph, work: Work) -> None:
        """Run ``work``: eagerly the first time, captured the second time, then by replay.

        On a thread that has not warmed it up, it runs eagerly and is captured for the next time.
        """
        if graph.eager_uses:
            graph.eager_uses -= 1
        elif graph.replay is None and graph.warmed_up:
            warm = threading.current_thread() in graph.threads
            if not warm:
                work()
            self._try_capture(graph, work)
            if not warm:
                graph.set_warmed_up()
                return
        if graph.replay is not None:
            try:
                graph.replay()
            except DEVICE_ERRORS as error:  # nothing was launched
                self._on_failure(graph, f"CUDA graph replay of {self._what}", error)
            else:
                self._failures, graph.failed = 0, False
                return
        graph.set_warmed_up()
        work()

    def _try_capture(self, graph: CapturedGraph, work: Work) -> None:
        try:
            graph.replay = self._capture(work)
        except DEVICE_ERRORS as error:
            self._on_failure(graph, f"CUDA graph capture of {self._what}", error)

    def _on_failure(self, graph: CapturedGraph, what: str, error: Exception) -> None:
        """Run this graph's work eagerly for a while, the longer the more failed in a row."""
        self._failures += 1
        graph.replay, graph.failed = None, True
        graph.eager_uses = backoff.uses_after(self._failures)
        if self._failures == 1:
            log.warning("%s failed (%s); running this shape eagerly", what, first_line(error))
        elif self._failures == MANY_FAILURES:
            failure = f"{what} failed {MANY_FAILURES} times in a row"
            log.warning("%s", eager_for_a_while(failure, error))


def weight_addresses(module: nn.Module) -> tuple[int, ...]:
    """The addresses of a module's parameters and buffers; shared ones occur more than once.

    Walks the modules' own dictionaries: ``parameters()`` takes four times as long, and this is
    called for every lookup of a graph.
    """
    addresses: list[int] = []
    stack: list[nn.Module | None] = [module]
    while stack:
        submodule = stack.pop()
        if submodule is None:
            continue
        for tensors in (submodule._parameters, submodule._buffers):
            addresses += [tensor.data_ptr() for tensor in tensors.values() if tensor is not None]
        stack += submodule._modules.values()
    return tuple(addresses)


class GraphedExecutor:
    """The ``Executor`` that replays a module's functions: one graph per key and set of shapes."""

    captures = True

    def __init__(self, capture: CaptureFn, module: nn.Module, what: str) -> None:
        """Start empty.

        Args:
            module: whose weights the functions use.
            what: the work's name in warnings.
        """
        self._cache = CudaGraphCache(capture, what)
        # weak, because the module refers to this object: without a reference cycle, a closed
        # engine's memory is freed at once
        self._module = weakref.ref(module)

    @property
    def captures_work(self) -> bool:
        """As ``CudaGraphCache.captures_work``."""
        return self._cache.captures_work

    def release_graphs(self) -> None:
        """Drop all graphs with their buffers."""
        self._cache.clear()

    def padded_length(self, length: int) -> int:
        """The next bucket: few graphs serve all lengths."""
        return bucket(length)

    def padding_mask(self, lengths: Tensor) -> PaddingMask:
        return DeviceLengths(lengths)

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        module = self._module()
        assert module is not None  # the caller holds it
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        graph = self._cache.find((key, shapes), weight_addresses(module))
        # 1) warm up; no buffers yet, because these shapes may not occur again
        if graph.out_spec is None:
            out = function(*tensors)
            graph.set_warmed_up()
            graph.out_spec = (out.shape, out.dtype)
            return out
        # 2) allocate static buffers
        if graph.result is None:
            shape, dtype = graph.out_spec
            arguments = tuple(torch.empty_like(tensor) for tensor in tensors)
            graph.set_buffers(arguments, tensors[0].new_empty(shape, dtype=dtype))
        result = graph.result
        assert result is not None
        # 3) copy in, capture or replay, copy out
        for buffer, tensor in zip(graph.arguments, tensors, strict=True):
            buffer.copy_(tensor)

        def work() -> None:
            result.copy_(function(*graph.arguments))

        self._cache.run(graph, work)
        return result.clone()
