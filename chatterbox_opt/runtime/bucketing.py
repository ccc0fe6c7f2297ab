"""Batches of sequences of different lengths: grouping, padding on the right, padding masks.

Responsible for lengths (time is the last axis) and for how a stage's tensor functions are called.
Not responsible for what the values mean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKETS_PER_OCTAVE = 8  # buckets from one power of two to the next: at most an eighth is padding
SINGLE_ROW = 1  # as a limit of frames: every sequence is a group of its own
MAX_FRAMES = {"cpu": SINGLE_ROW}  # flow and vocoder are compute-bound on a CPU: padding costs time
DEFAULT_MAX_FRAMES = 8192  # on other devices: bounds the memory of a group


class PaddingMask(Protocol):
    """Which positions of each row are padding."""

    def zero_(self, x: Tensor) -> Tensor:
        """Zero the padding of [rows, channels, time], in place."""
        ...

    def after_layer(self, rate: int, lead: int) -> PaddingMask:
        """The mask after a layer whose output has n * ``rate`` + ``lead`` positions for n."""
        ...


@dataclass(frozen=True, slots=True)
class HostLengths:
    """Mask from lengths known to the host: only the padding itself is written."""

    lengths: tuple[int, ...]

    def zero_(self, x: Tensor) -> Tensor:
        for row, length in zip(x, self.lengths, strict=True):
            if length < row.shape[-1]:
                row[:, length:] = 0
        return x

    def after_layer(self, rate: int, lead: int) -> HostLengths:
        return HostLengths(tuple(length * rate + lead for length in self.lengths))


@dataclass(frozen=True, slots=True)
class DeviceLengths:
    """Mask from lengths int64 [rows] on the device: one captured graph serves all lengths."""

    lengths: Tensor

    def zero_(self, x: Tensor) -> Tensor:
        times = torch.arange(x.shape[-1], device=x.device)
        return x.masked_fill_(times >= self.lengths[:, None, None], 0)

    def after_layer(self, rate: int, lead: int) -> DeviceLengths:
        return DeviceLengths(self.lengths * rate + lead)


class Executor(Protocol):
    """Runs a stage's tensor functions: ``EagerExecutor``, or CUDA graph replay (cuda_graphs.py).

    Attributes:
        captures: functions are captured, so they must not read values back to the host, and their
            inputs should be padded to ``padded_length``.
    """

    captures: bool

    def padded_length(self, length: int) -> int:
        """The length that rows of ``length`` should be padded to."""
        ...

    def padding_mask(self, lengths: Tensor) -> PaddingMask:
        """The mask for rows of these lengths, int64 [rows]."""
        ...

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``function(*tensors)``; ``key`` distinguishes functions that take equal shapes."""
        ...


class EagerExecutor:
    """Calls functions directly; needs no padding."""

    captures = False

    def padded_length(self, length: int) -> int:
        return length

    def padding_mask(self, lengths: Tensor) -> PaddingMask:
        return HostLengths(tuple(lengths.tolist()))

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*tensors)


def bucket(length: int) -> int:
    """The smallest bucket that holds ``length``: ``BUCKETS_PER_OCTAVE`` per power of two.

    Few distinct lengths save time on a CPU too: oneDNN creates a convolution primitive for every
    new length.
    """
    step = max(
        1, 1 << max(0, (length - 1).bit_length() - 1) >> (BUCKETS_PER_OCTAVE.bit_length() - 1)
    )
    return -(-length // step) * step


def group_by_length(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Group the indices of ``lengths`` so that padding is small and memory is bounded.

    Returns:
        groups of indices of similar lengths. In a group of several sequences, rows times the
        longest length are at most the device's limit of frames.
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
