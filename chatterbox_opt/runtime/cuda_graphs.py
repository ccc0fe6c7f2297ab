"""Work that Python launches once and the device repeats: recorded, replayed, dropped when stale.

Knows recordings, what they depend on, and torch.compile. Knows nothing of what the work means.

A CUDA graph is a list of launches with their addresses and numbers frozen in it. Everything that
may differ between two runs must therefore be a tensor at the same place: the decode step works over
its slots (decode_state.py), which live as long as the recordings; other work gets its arguments copied
into tensors of the recording's own. Work is run the first time that it is met (libraries set
themselves up then, and kernels are compiled), recorded the second time, and replayed from then on.
What cannot be recorded is said once and run without.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatterbox_opt.errors import first_line
from chatterbox_opt.runtime.bucketing import DeviceLengths, PaddingMask, bucket
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS, Work

log = logging.getLogger(__name__)
MAX_GRAPHS = 64  # recordings of one stage; each holds its launches and a share of the memory pool
MAX_BUFFER_BYTES = 256 << 20  # bytes of their own arguments and results, of one stage
CaptureFn = Callable[[Work], Work]  # notes what the work does, without doing it; returns the replay


def capture_failed(error: Exception, what: str = "the t3 step") -> str:
    """One line for the person."""
    reason = first_line(error)
    return f"Compilation setup failed: {reason}; {what} runs eager"


@dataclass(slots=True, eq=False)
class CapturedGraph:
    """One piece of work.

    Attributes:
        met: it was done once, unrecorded.
        replay: does it again; None until it is recorded.
        gives: shape and dtype of a function's result, once it is met.
        arguments, result: of such a function, where the recording has them.
        size: bytes of those; noted once, for every step asks.
    """

    met: bool = False
    replay: Work | None = None
    gives: tuple[torch.Size, torch.dtype] | None = None
    arguments: tuple[Tensor, ...] = ()
    result: Tensor | None = None
    size: int = 0

    def hold(self, arguments: tuple[Tensor, ...], result: Tensor | None = None) -> None:
        """Have these for its own."""
        self.arguments, self.result = arguments, result
        held = arguments if result is None else (*arguments, result)
        self.size = sum(tensor.nbytes for tensor in held)


class CudaGraphCache:
    """Recordings by key, for as long as what they work over stays where it is."""

    def __init__(self, record: CaptureFn, what: str) -> None:
        """Keep nothing yet.

        Args:
            what: the work, for a warning.
        """
        self._record: CaptureFn | None = record
        self._what = what
        self._known: dict[Hashable, CapturedGraph] = {}
        self._place: Hashable = None

    @property
    def captures_work(self) -> bool:
        """Whether nothing has failed to be recorded or replayed yet; else all is launched."""
        return self._record is not None

    def find(self, key: Hashable, place: Hashable) -> CapturedGraph:
        """The recording under ``key``; all are dropped if ``place`` is another one.

        Args:
            key: all that shapes the work, apart from values in tensors.
            place: the addresses that the recordings depend on.
        """
        if place != self._place:
            self._known.clear()
            self._place = place
        found = self._known.pop(key, None) or CapturedGraph()
        while self._known and (len(self._known) >= MAX_GRAPHS or self._size() > MAX_BUFFER_BYTES):
            del self._known[next(iter(self._known))]
        self._known[key] = found  # the last is the one used last
        return found

    def _size(self) -> int:
        return sum(recording.size for recording in self._known.values())

    def run(self, recording: CapturedGraph, work: Work) -> None:
        """Do ``work``: the first time as it is, the second time recorded, then by replay."""
        if recording.replay is None and recording.met and self._record is not None:
            try:
                recording.replay = self._record(work)
            except DEVICE_ERRORS as error:
                log.warning("%s", capture_failed(error, self._what))
                self._record = None
        recording.met = True
        if recording.replay is not None:
            try:
                recording.replay()
            except DEVICE_ERRORS as error:  # nothing was launched
                log.warning("%s", capture_failed(error, self._what))
                self._record = None
                self._known.clear()
            else:
                return
        work()


def weight_addresses(module: nn.Module) -> tuple[int, ...]:
    """Where a module's numbers are; what is shared comes as often as it is met.

    By the modules' own tables: ``parameters()`` takes four times as long, and recorded work asks
    each time.
    """
    found: list[int] = []
    left: list[nn.Module | None] = [module]
    while left:
        part = left.pop()
        if part is None:
            continue
        for held in (part._parameters, part._buffers):
            found += [tensor.data_ptr() for tensor in held.values() if tensor is not None]
        left += part._modules.values()
    return tuple(found)


class GraphedExecutor:
    """Calls a module's functions by recordings, one for each key and set of shapes.

    See ``rows.Through``.
    """

    records = True

    def __init__(self, record: CaptureFn, module: nn.Module, what: str) -> None:
        """Prepare.

        Args:
            module: whose weights the functions read.
            what: the work, for a warning.
        """
        self._recordings = CudaGraphCache(record, what)
        self._module = weakref.ref(module)  # which has this as its attribute: no cycle, so that
        # what a closed engine held is free at once

    @property
    def captures_work(self) -> bool:
        """See ``CudaGraphCache``."""
        return self._recordings.captures_work

    def room(self, length: int) -> int:
        """A bucket: few recordings serve all lengths."""
        return bucket(length)

    def tails(self, lengths: Tensor) -> PaddingMask:
        """See ``rows.Through``."""
        return DeviceLengths(lengths)

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """See ``rows.Through``."""
        module = self._module()
        assert module is not None  # its functions are called
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        recording = self._recordings.find((key, shapes), weight_addresses(module))
        if recording.gives is None:  # it may be the only time: nothing is kept for it
            made = function(*tensors)
            recording.met, recording.gives = True, (made.shape, made.dtype)
            return made
        if recording.result is None:
            shape, dtype = recording.gives
            arguments = tuple(torch.empty_like(tensor) for tensor in tensors)
            recording.hold(arguments, tensors[0].new_empty(shape, dtype=dtype))
        result = recording.result
        assert result is not None
        for mine, given in zip(recording.arguments, tensors, strict=True):
            mine.copy_(given)

        def work() -> None:
            result.copy_(function(*recording.arguments))

        self._recordings.run(recording, work)
        return result.clone()
