"""A decode step's kernels against the bytes that each must read.

Knows the order of the launches of ``fused_step.FusedStep`` and T3's shapes. Knows nothing of how a
profile is made (tracing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatterbox_opt.config.model_config import T3Config

PRODUCTS = ("gemv", "gemm")  # kernels of the modules of these names in chatterbox_opt
IN_LAYER = ("qkv", "out", "gate_up", "down")
ENTER, ATTENTION, HEAD, DRAW = "enter", "attention", "head", "draw"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One run of a kernel; times in microseconds."""

    name: str
    start: float
    end: float


def matrix_sizes(shape: T3Config) -> dict[str, tuple[int, int]]:
    """T3's matrices [out, in] of a layer, and its head."""
    width, ffn = shape.width, shape.ffn
    return {
        "qkv": (3 * width, width),
        "out": (width, width),
        "gate_up": (2 * ffn, width),
        "down": (width, ffn),
        HEAD: (shape.speech_vocab, width),
    }


def step_bytes(
    shape: T3Config, weight_width: float, cache_width: float, positions: Sequence[int]
) -> dict[str, float]:
    """Bytes that a step reads at least, by part: weights once, keys and values of every row.

    Args:
        weight_width, cache_width: bytes of a number.
        positions: that each row of the step sees.
    """
    found = {
        name: (1 if name == HEAD else shape.layers) * rows * depth * weight_width
        for name, (rows, depth) in matrix_sizes(shape).items()
    }
    found[ATTENTION] = shape.layers * 2 * shape.width * cache_width * sum(positions)
    return found


def exclusive(kernels: Sequence[Kernel]) -> list[float]:
    """Microseconds that each kernel adds to those before it: where it begins while another works,
    the time from that one's end."""
    spent, latest = [], float("-inf")
    for kernel in kernels:
        spent.append(max(0.0, kernel.end - max(kernel.start, latest)))
        latest = max(latest, kernel.end)
    return spent


def by_part(kernels: Sequence[Kernel], layers: int, steps: int) -> dict[str, float] | None:
    """Microseconds of a step by part, from the kernels of some alike steps in their order.

    What runs between the product of queries, keys and values and the next product is attention,
    however many kernels it has.

    Returns:
        None where the kernels are not those of such steps.
    """
    if steps < 1 or not kernels or len(kernels) % steps:
        return None
    rows_per_seq, spent = len(kernels) // steps, exclusive(kernels)
    found: dict[str, float] = {}
    for first in range(0, len(kernels), rows_per_seq):
        names = [kernel.name for kernel in kernels[first : first + rows_per_seq]]
        if sum(is_product(name) for name in names) != len(IN_LAYER) * layers + 1:
            return None
        for part, us in zip(
            _parts(names, layers), spent[first : first + rows_per_seq], strict=True
        ):
            found[part] = found.get(part, 0.0) + us / steps
    return found


def is_product(name: str) -> bool:
    """Whether a kernel of this name multiplies by a matrix."""
    return name.split("(")[0].strip() in PRODUCTS


def _parts(names: Sequence[str], layers: int) -> list[str]:
    """Which part of a step each kernel is."""
    last, met, found = len(IN_LAYER) * layers, 0, []
    for name in names:
        if is_product(name):
            found.append(HEAD if met == last else IN_LAYER[met % len(IN_LAYER)])
            met += 1
        elif met == 0:
            found.append(ENTER)
        else:
            found.append(ATTENTION if met <= last else DRAW)
    return found
