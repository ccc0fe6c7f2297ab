"""CUDA graph capture, side streams, asynchronous copies, generator state; the same for ROCm.

Responsible for streams, events, capture and cuBLAS workspaces. Not responsible for what is captured
or copied. Only used where there is a GPU.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

Work = Callable[[], None]
GeneratorState = int | Tensor  # a generator's offset on a GPU, else its whole state
Result = TypeVar("Result")
# dynamo's, inductor's and CUDA's errors are RuntimeErrors
DEVICE_ERRORS = (RuntimeError, ImportError, OSError)
# Held by whatever captures or replays. torch 2.6 registers a device's default generator with every
# graph, used or not: during a capture, a replay in another thread fails because that generator is
# capturing. And the garbage collector, which is off during captures, is the process's. So there is
# one lock for all engines of a process; it is held for a capture, or for the launch of a replay.
CAPTURE_LOCK = threading.Lock()
# in the messages of libraries that raise a plain RuntimeError where memory is missing
OUT_OF_MEMORY = (
    "error: out of memory",  # CUDA, its driver, HIP
    "[CUDA]: out of memory",  # Triton
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUFFT_ALLOC_FAILED",
    # cuDNN, without memory for any engine's workspace
    "GET was unable to find an engine to execute this computation",
)
# the first torch whose table of cuBLAS workspaces is known to have a lock
TORCH_WITH_WORKSPACE_LOCK = "2.11"


class SetupError(RuntimeError):
    """A kernel could not be compiled, loaded or launched at all, whatever its inputs."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is for want of the device's memory, whichever library has raised it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(text in message for text in OUT_OF_MEMORY)


class GraphCapturer:
    """Captures work into CUDA graphs that share one memory pool.

    Sharing is safe because these graphs never run at the same time and copy their results into
    tensors outside of the pool. Work that overlaps with them is captured by ``for_other_stream``.

    Once its last graph is freed, a pool cannot be captured into again (the allocator asserts).
    Graphs are dropped and captured again, so one almost empty graph, the anchor, is kept.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # used for captures only: what another thread launches on a capturing stream would be
        # captured too, and the cuBLAS workspace that replays use belongs to the capture's stream
        self._stream = torch.cuda.Stream(device)
        self._lock = CAPTURE_LOCK
        self._anchor: torch.cuda.CUDAGraph | None = None

    def for_other_stream(self) -> GraphCapturer:
        """A capturer with its own pool, for a thread whose graphs may overlap with this one's."""
        return GraphCapturer(self._device)

    def release(self) -> None:
        """Give up the pool: its memory can be freed as soon as the graphs in it are dropped."""
        with self._lock:
            self._forget_pool()

    def __call__(self, work: Work) -> Work:
        """Capture ``work`` without running it; return the function that replays it.

        Raises:
            RuntimeError: it cannot be captured.
        """
        lock = self._lock
        with lock:
            graph = self._with_memory(work)

        def replay() -> None:
            with lock:  # held only for the launch
                graph.replay()

        return replay

    def _with_memory(self, work: Work) -> torch.cuda.CUDAGraph:
        """Capture ``work``; if memory is short, again without what the allocator has cached, which
        it cannot free during a capture."""
        try:
            return self._with_anchor(work)
        except DEVICE_ERRORS as error:
            if not is_out_of_memory(error):
                raise
        # outside of the handler, so that the failed frames and their memory are freed
        torch.cuda.empty_cache()
        return self._with_anchor(work)

    def _with_anchor(self, work: Work) -> torch.cuda.CUDAGraph:
        """Capture ``work``, and the anchor before it if there is none."""
        captured = False
        try:
            if self._anchor is None:
                self._anchor = self._capture(self._anchor_work)
            graph = self._capture(work)
            captured = True
        finally:
            if not captured:
                # the pool may have lost its last graph, and the default generator remains in the
                # state "capturing": use a new pool, and let another capture reset the generator
                self._forget_pool()
                try:
                    self._anchor = self._capture(self._anchor_work)
                except DEVICE_ERRORS:
                    self._forget_pool()
        return graph

    def _forget_pool(self) -> None:
        """Capture into a new pool from now on; the old one is freed with its last graph."""
        self._pool, self._anchor = torch.cuda.graph_pool_handle(), None

    def _create_library_handles(self) -> None:
        """Create this thread's cuBLAS and cuDNN handles: each thread has its own, and they must not
        be created during a capture (pytorch/pytorch, issue 99397)."""
        torch.cuda.current_blas_handle()
        one = torch.zeros(1, 1, 1, device=self._device)
        torch.nn.functional.conv1d(one, one)

    def _anchor_work(self) -> None:
        torch.zeros(1, device=self._device)

    def _capture(self, work: Work) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._create_library_handles()
        with gc_paused(), separate_workspaces(), torch.cuda.stream(stream):
            ended = False
            try:
                # thread_local: other threads may use the GPU meanwhile
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
                ended = True
            finally:
                if not ended:
                    self._abandon(graph)
        torch.cuda.current_stream().wait_stream(stream)
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that has failed at any point.

        ``capture_end`` checks the stream before it tells the allocator: after a capture that CUDA
        has invalidated, the allocator would go on serving this stream from the pool, and
        ``empty_cache`` would fail (an assertion of torch 2.6).
        """
        with suppress(*DEVICE_ERRORS):
            graph.capture_end()
        with suppress(*DEVICE_ERRORS):
            index = with_index(self._device).index
            _end_allocations(index, self._pool)  # raises if ``capture_end`` has done it
            torch._C._cuda_releasePool(index, self._pool)  # this graph's use of the pool


def _end_allocations(index: int, pool: Any) -> None:
    """Tell the allocator of a device that what allocated from a pool has ended."""
    # renamed after torch 2.6
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    (end or torch._C._cuda_endAllocateCurrentStreamToPool)(index, pool)


@contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection inside the block.

    It might free a graph, an event or memory that two streams used; those CUDA calls invalidate a
    capture. The setting is the process's, so only one thread may be in such a block
    (``CAPTURE_LOCK``): else the first that leaves it would enable collection for the other.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def separate_workspaces() -> Iterator[None]:
    """Make a capture inside the block use a cuBLAS workspace from its graph's own pool.

    torch caches a workspace (32 MiB on Hopper, else 8) for each pair of cuBLAS handle and stream,
    and a graph freezes its address. The capture's stream may be one that others have used, because
    torch reuses its 32 streams in turn: the cached workspace would be freed under this graph, or be
    used by two graphs at once. If none is cached, the capture allocates one from its pool; if none
    is cached afterwards, no other work uses that one. It remains as a free block of the pool,
    which lives as long as its graphs; later captures may reuse it, as they may reuse all memory
    that is private to a graph (inductor's cudagraph_trees does the same).
    """
    release_workspaces()
    try:
        yield
    finally:
        release_workspaces()


def release_workspaces() -> None:
    """Free cuBLAS's workspaces of all threads and streams; the next GEMM allocates a new one.

    Another thread may have launched GEMMs, or be about to. Its workspace returns to the caching
    allocator, which reuses it for that thread's stream only, in order after those GEMMs; and graphs
    have theirs in pools that live as long as they. A GEMM would lose its workspace only if the
    memory returned to the driver in the microseconds between the thread's lookup and its launch.
    Before torch 2.11 the table itself has no lock that we know of, and concurrent access could
    crash: there the workspaces stay.
    """
    if torch.torch_version.TorchVersion(torch.__version__) >= TORCH_WITH_WORKSPACE_LOCK:
        torch._C._cuda_clearCublasWorkspaces()


def release_memory() -> None:
    """Free cuBLAS workspaces and the allocator's cached blocks."""
    release_workspaces()
    torch.cuda.empty_cache()


class SideStream:
    """Runs another thread's work on a stream of its own (an ``overlap.StreamContext``).

    No ``record_stream`` is needed, because no memory is used by two streams at once: this stream
    starts after everything that was launched before the call, and is synchronized when the work
    returns or raises. In between the threads exchange nothing on the GPU: tokens and waveforms pass
    through the host, and a generator's state (seed and offset) is host memory that advances when a
    draw is launched.

    Created once and reused: torch reuses a small pool of streams in turn, and a new one for each
    run would eventually be the stream on which another thread captures.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # does not wait for the default stream (T3's)

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Wrap ``work`` for another thread; it runs after what is queued on the current stream."""
        launched = torch.cuda.current_stream(self._device).record_event()

        def run() -> Result:
            # the current stream and the current device are per thread
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(launched)
                try:
                    return work()
                finally:
                    self._stream.synchronize()

        return run


def disable_cudnn_attention() -> None:
    """Let this process's attention be computed by PyTorch's own kernels, not by cuDNN's.

    On Hopper torch prefers cuDNN, which compiles a plan for each shape on first use (a second or
    more each) and caches it by thread: a capture on another thread would compile inside the
    capture, which fails. PyTorch's kernels (flash, memory-efficient) need no plan.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def is_available() -> bool:
    """Whether there is a CUDA device."""
    return torch.cuda.is_available()


@functools.cache
def capability_major(device: torch.device) -> int:
    """The major version of an NVIDIA GPU's compute capability, or 0."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    return torch.cuda.get_device_capability(device)[0]


def with_index(device: torch.device) -> torch.device:
    """The device with its index, as tensors report it: "cuda" is the current GPU."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device(device.type, torch.cuda.current_device())


def is_capturing(device: torch.device) -> bool:
    """Whether this thread's current stream is capturing."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device; to a GPU from pinned memory, without synchronizing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def generator_state(generator: torch.Generator) -> GeneratorState:
    """The state of a generator, for ``restore_generator``.

    On a GPU it is the offset of a counter-based generator (Philox; Salmon et al. 2011), which is
    host memory: reading it creates no tensor.
    """
    if generator.device.type == "cuda" and hasattr(generator, "get_offset"):
        offset: int = generator.get_offset()
        return offset
    return generator.get_state()


def restore_generator(generator: torch.Generator, state: GeneratorState) -> None:
    """Reset a generator, whose seed must be unchanged, to an earlier state."""
    if isinstance(state, int):
        generator.set_offset(state)
    else:
        generator.set_state(state)


def to_host_async(numbers: Tensor) -> Callable[[], list[list[int]]]:
    """Start copying int64 [n, m] to the host; the returned function waits for the copy."""
    done, copy = torch.cuda.Event(), torch.empty_like(numbers, device="cpu", pin_memory=True)
    copy.copy_(numbers, non_blocking=True)
    done.record()

    def wait() -> list[list[int]]:
        done.synchronize()
        values: list[list[int]] = copy.tolist()
        return values

    return wait
