"""The CUDA runtime beneath tensors: graphs, copies that nobody waits for, streams for threads.

Knows streams, events and capture; the same calls serve ROCm. Knows nothing of what is recorded
or copied, and is only used where there is a card.
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
GeneratorState = (
    int | Tensor
)  # in a generator's sequence: its offset on a GPU, else its whole state
Result = TypeVar("Result")
DEVICE_ERRORS = (
    RuntimeError,
    ImportError,
    OSError,
)  # dynamo's, inductor's and CUDA's are RuntimeErrors
LOCKED = "2.11"  # the torch from which on the table of cuBLAS workspaces is known to have a lock


class GraphCapturer:
    """Records work into CUDA graphs that share one pool of memory.

    They may share it because they never run at the same time and leave their results in tensors
    that are not the pool's. Work that runs beside them is recorded by ``apart``.

    A pool that has no graph any more refuses the next one (an assertion of the allocator), and
    recordings come and go; so one graph of nothing to speak of stays as long as this.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # nobody else's: what another thread launches on it would be recorded, and the workspace
        # of matrix products, which replays use, belongs to the stream they are recorded on
        self._stream = torch.cuda.Stream(device)
        self._one_at_a_time = threading.Lock()
        self._anchor: torch.cuda.CUDAGraph | None = None

    def apart(self) -> GraphCapturer:
        """A recorder for another thread, whose graphs may run while this one's do."""
        other = GraphCapturer(self._device)
        other._one_at_a_time = self._one_at_a_time
        return other

    def __call__(self, work: Work) -> Work:
        """Note what ``work`` does, without doing it; return what does it.

        Raises:
            RuntimeError: it cannot be captured.
        """
        turn = self._one_at_a_time
        # in torch 2.6 every graph takes the default generator along, used or not; while one is
        # captured, a replay in another thread finds that generator in capture and is refused
        with turn:
            if self._anchor is None:
                self._anchor = self._captured(self._little, self._pool)
            try:
                graph = self._captured(work, self._pool)
            except DEVICE_ERRORS:
                # a capture that was broken off leaves that generator in capture, and its pool for
                # the allocator in use by a capture, so that no other one may have it
                self._pool, self._anchor = torch.cuda.graph_pool_handle(), None
                with suppress(*DEVICE_ERRORS):
                    self._anchor = self._captured(self._little, self._pool)
                raise

        def replay() -> None:
            with turn:  # for as long as a launch takes
                graph.replay()

        return replay

    def _library_handles(self) -> None:
        """Have cuBLAS and cuDNN made ready for this thread: each thread has handles of its own, and
        the first product of one must not be inside a capture (pytorch/pytorch, issue 99397)."""
        torch.cuda.current_blas_handle()
        one = torch.zeros(1, 1, 1, device=self._device)
        torch.nn.functional.conv1d(one, one)

    def _little(self) -> None:
        torch.zeros(1, device=self._device)

    def _captured(self, work: Work, pool: Any) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._library_handles()
        with gc_paused(), separate_workspaces(), torch.cuda.stream(stream):
            # other threads may go on using the card meanwhile
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph


@contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection inside the block: it might free what CUDA must be asked to free (a
    graph, an event, memory that two streams used), and asking ends a capture with an error.

    It is one switch for all threads: of two engines that capture at once, the one that ends first
    turns collection on again. If the other's capture is then broken off, its work runs eager.
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
    """Have a capture inside the block multiply in memory of its graph's pool.

    cuBLAS works in a piece of memory (32 MiB on Hopper, else 8) that torch keeps for each pair of
    handle and stream, and a graph has its address frozen. The recorder's stream may be one that
    others multiplied on before, since torch has 32 streams that go round: their workspace would be
    freed under this graph, or be in use by two graphs at once. With none kept the capture takes
    one from its pool, and with none kept after it nobody else comes to use that one. What
    remains is a free piece of the pool, which lives as long as its graphs; later captures may put
    other things there, as they may over all that is a graph's own (inductor's cudagraph_trees does
    the same).
    """
    release_workspaces()
    try:
        yield
    finally:
        release_workspaces()


def release_workspaces() -> None:
    """Free cuBLAS's workspaces, of all threads and streams; the next product takes a new one.

    Another thread may have launched products, or be about to. Its workspace goes back to the
    caching allocator, to be given out for that thread's stream only, whose work comes after those
    products; and graphs have theirs in pools that live as long as they. Only if the memory were
    given back to the driver, in the microseconds between a thread's look at the table and its
    launch, would the product be left without. Before 2.11 the table itself has no lock that we
    know of, and two threads at it could crash: there the workspaces stay.
    """
    if torch.torch_version.TorchVersion(torch.__version__) >= LOCKED:
        torch._C._cuda_clearCublasWorkspaces()


def release_memory() -> None:
    """Give back what libraries and allocator keep for work that has ended."""
    release_workspaces()
    torch.cuda.empty_cache()


class SideStream:
    """A stream for the work of another thread: see ``beside.Lane``.

    What crosses streams needs no record in the caching allocator, because no memory is used by two
    streams at once: this stream begins after all that was launched before the work was given, and
    has come to its end when the work is returned, failed or not. What passes between the threads in
    the meantime is nothing on the card: tokens come and waves go by the host, and a generator's
    state, seed and offset, is on the host and moves when a draw is launched.

    Made once and kept: streams come out of a small pool that goes round, and one made anew for each
    run would some day be the one on which another thread records.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # does not wait for the default stream: T3's

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """See ``beside.Lane``."""
        given = torch.cuda.current_stream(self._device).record_event()

        def worked() -> Result:
            # a thread has a current stream, and a current device, of its own
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(given)
                try:
                    return work()
                finally:
                    self._stream.synchronize()

        return worked


@functools.cache
def capability_major(device: torch.device) -> int:
    """The major version of an NVIDIA card's compute capability, or 0."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    return torch.cuda.get_device_capability(device)[0]


def with_index(device: torch.device) -> torch.device:
    """The device with its index: "cuda" is the current GPU, as tensors there call it."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device(device.type, torch.cuda.current_device())


def is_capturing(device: torch.device) -> bool:
    """Whether this thread's work there is being recorded."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on any device; a card's host does not wait until work before it ends."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def generator_state(generator: torch.Generator) -> GeneratorState:
    """How far a generator has come, for ``restore_generator``.

    On a GPU it is a counter (Philox; Salmon et al. 2011) that the host keeps, and the offset in it
    tells all but the seed, without a tensor to be made.
    """
    if generator.device.type == "cuda" and hasattr(generator, "get_offset"):
        offset: int = generator.get_offset()
        return offset
    return generator.get_state()


def restore_generator(generator: torch.Generator, place: GeneratorState) -> None:
    """Have a generator draw again what it drew since it was there; its seed is still the same."""
    if isinstance(place, int):
        generator.set_offset(place)
    else:
        generator.set_state(place)


def to_host_async(numbers: Tensor) -> Callable[[], list[list[int]]]:
    """Start copying int64 [n, m] to the host; what is returned waits until it is there."""
    there, copy = torch.cuda.Event(), torch.empty_like(numbers, device="cpu", pin_memory=True)
    copy.copy_(numbers, non_blocking=True)
    there.record()

    def arrived() -> list[list[int]]:
        there.synchronize()
        found: list[list[int]] = copy.tolist()
        return found

    return arrived
