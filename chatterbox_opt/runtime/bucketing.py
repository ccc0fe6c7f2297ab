"""Utterances of different lengths side by side: groups, padding on the right, tails.

Knows lengths and time as the last axis, and how a function of such rows is called. Knows nothing
of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKETS_PER_OCTAVE = 8  # buckets from one power of two to the next: at most an eighth is padding
SINGLE_ROW = 1  # a limit of frames that puts every utterance into a group of its own
MAX_FRAMES = {"cpu": SINGLE_ROW}  # arithmetic is all there is to win there: padding would cost
DEFAULT_MAX_FRAMES = 8192  # elsewhere: bounds the memory that a group takes


class PaddingMask(Protocol):
    """What is beyond each row's length."""

    def zero_(self, x: Tensor) -> Tensor:
        """Zero it in [rows, channels, time], in place."""
        ...

    def grown(self, rate: int, lead: int) -> PaddingMask:
        """Those after a layer that makes n * ``rate`` + ``lead`` of n."""
        ...


@dataclass(frozen=True, slots=True)
class HostLengths:
    """Lengths that the host knows: nothing but the tails is touched."""

    lengths: tuple[int, ...]

    def zero_(self, x: Tensor) -> Tensor:
        """See ``PaddingMask``."""
        for row, length in zip(x, self.lengths, strict=True):
            if length < row.shape[-1]:
                row[:, length:] = 0
        return x

    def grown(self, rate: int, lead: int) -> HostLengths:
        """See ``PaddingMask``."""
        return HostLengths(tuple(length * rate + lead for length in self.lengths))


@dataclass(frozen=True, slots=True)
class DeviceLengths:
    """Lengths int64 [rows] that are tensors only, so that one recording serves all lengths."""

    lengths: Tensor

    def zero_(self, x: Tensor) -> Tensor:
        """See ``PaddingMask``."""
        times = torch.arange(x.shape[-1], device=x.device)
        return x.masked_fill_(times >= self.lengths[:, None, None], 0)

    def grown(self, rate: int, lead: int) -> DeviceLengths:
        """See ``PaddingMask``."""
        return DeviceLengths(self.lengths * rate + lead)


class Executor(Protocol):
    """How a stage calls its functions of tensors; cuda_graphs.py has another way than ``EagerExecutor``.

    Attributes:
        records: functions are best such as can be recorded, and padded to ``room``.
    """

    records: bool

    def room(self, length: int) -> int:
        """To what length rows are best padded."""
        ...

    def tails(self, lengths: Tensor) -> PaddingMask:
        """How a function finds the ends of rows of these lengths, int64 [rows]."""
        ...

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``function(*tensors)``; ``key`` tells functions apart that differ in more than shapes."""
        ...


class EagerExecutor:
    """Calls them."""

    records = False

    def room(self, length: int) -> int:
        """No padding is needed."""
        return length

    def tails(self, lengths: Tensor) -> PaddingMask:
        """See ``Executor``."""
        return HostLengths(tuple(lengths.tolist()))

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """See ``Executor``."""
        return function(*tensors)


def bucket(length: int) -> int:
    """The smallest bucket that holds ``length``: ``BUCKETS_PER_OCTAVE`` steps to each power of two.

    A processor's convolutions are prepared anew for each length that they have not seen.
    """
    step = max(
        1, 1 << max(0, (length - 1).bit_length() - 1) >> (BUCKETS_PER_OCTAVE.bit_length() - 1)
    )
    return -(-length // step) * step


def group_by_length(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Group the indices of ``lengths`` so that little is padding and memory is bounded.

    Returns:
        groups of indices, like lengths together; within a group, rows times the longest length
        stay below the device's limit of frames unless the group is one utterance.
    """
    limit = MAX_FRAMES.get(device.type, DEFAULT_MAX_FRAMES)
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= limit:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def pad_rows(rows: Sequence[Tensor], length: int) -> Tensor:
    """Stack [..., T_i] to [rows, ..., length], zeros on the right."""
    return torch.stack([F.pad(row, (0, length - row.shape[-1])) for row in rows])
