"""Time of a decode step's kernels by part, and the bytes that each part must read.

Responsible for the order of launches of ``fused_step.FusedStep`` and for T3's shapes. Not
responsible for profiling (tracing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatterbox_opt.config.model_config import GPT2, T3Config

LINEAR_KERNELS = ("gemv", "gemm")  # in kernels/cuda
IN_LAYER = ("qkv", "out", "gate_up", "down")
EMBED, ATTENTION, HEAD, SAMPLE = "embed", "attention", "head", "sample"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One run of a kernel; times in microseconds."""

    name: str
    start: float
    end: float


def matrix_sizes(shape: T3Config) -> dict[str, tuple[int, int]]:
    """T3's matrices [out, in] of a layer, and its head; GPT-2 has no gate."""
    width, ffn = shape.width, shape.ffn
    return {
        "qkv": (3 * width, width),
        "out": (width, width),
        "gate_up": ((1 if shape.backbone == GPT2 else 2) * ffn, width),
        "down": (width, ffn),
        HEAD: (shape.speech_vocab, width),
    }


def step_bytes(
    shape: T3Config, weight_width: float, cache_width: float, positions: Sequence[int]
) -> dict[str, float]:
    """Minimum bytes that a step reads, by part: weights once, keys and values of every row.

    Args:
        weight_width, cache_width: bytes per element.
        positions: number of positions that each row attends to.
    """
    by_part = {
        name: (1 if name == HEAD else shape.layers) * rows * depth * weight_width
        for name, (rows, depth) in matrix_sizes(shape).items()
    }
    by_part[ATTENTION] = shape.layers * 2 * shape.width * cache_width * sum(positions)
    return by_part


def exclusive(kernels: Sequence[Kernel]) -> list[float]:
    """Microseconds that each kernel adds to those before it: if it starts while another one runs,
    the time from that one's end."""
    added, latest = [], float("-inf")
    for kernel in kernels:
        added.append(max(0.0, kernel.end - max(kernel.start, latest)))
        latest = max(latest, kernel.end)
    return added


def by_part(kernels: Sequence[Kernel], layers: int, steps: int) -> dict[str, float] | None:
    """Microseconds of a step by part, from the kernels of several equal steps in order.

    All kernels between the QKV product and the next product count as attention.

    Returns:
        None if the kernels are not those of such steps.
    """
    if steps < 1 or not kernels or len(kernels) % steps:
        return None
    step_len, added = len(kernels) // steps, exclusive(kernels)
    totals: dict[str, float] = {}
    for first in range(0, len(kernels), step_len):
        names = [kernel.name for kernel in kernels[first : first + step_len]]
        if sum(is_linear(name) for name in names) != len(IN_LAYER) * layers + 1:
            return None
        parts = _parts(names, layers)
        for part, us in zip(parts, added[first : first + step_len], strict=True):
            totals[part] = totals.get(part, 0.0) + us / steps
    return totals


def is_linear(name: str) -> bool:
    """Whether a kernel of this name is a linear layer."""
    return name.split("(")[0].strip() in LINEAR_KERNELS


def _parts(names: Sequence[str], layers: int) -> list[str]:
    """The part of a step that each kernel belongs to."""
    last, index, parts = len(IN_LAYER) * layers, 0, []  # index: of the next linear layer
    for name in names:
        if is_linear(name):
            parts.append(HEAD if index == last else IN_LAYER[index % len(IN_LAYER)])
            index += 1
        elif index == 0:
            parts.append(EMBED)
        else:
            parts.append(ATTENTION if index <= last else SAMPLE)
    return parts
