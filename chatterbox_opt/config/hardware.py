"""What is there: the only place that asks what the machine can do.

Knows torch's questions to the card. Knows nothing of wishes or of what is done with the answers.
Imports torch only in ``probe``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AUTO = "auto"
DEVICES = (AUTO, "cuda", "mps", "cpu")
# compute capabilities
BFLOAT16_CAPABILITY = (8, 0)  # torch reports bfloat16 from 7.5 on, where it is emulated and slow
# for 7.0 Triton's compiler ends the process; for 7.5 its newer versions multiply without the units
TRITON_CAPABILITY = {"t3": (7, 5), "flow": (8, 0)}
HALF_CAPABILITY = (7, 0)  # below, half-precision arithmetic is up to 64 times slower than float32
# what there are kernels of our own for, on a card
KERNELS = {"t3": ("float32", "float16", "bfloat16"), "flow": ("float16", "bfloat16")}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was found. Memory in MiB; ``capability`` is CUDA's, (0, 0) elsewhere; ``unsupported`` names a
    processor's missing or slow narrow dtypes, or a card's ``kernel_feature`` that cannot be used, each
    with the reason."""

    device: str
    name: str
    total_mib: int = 0
    free_mib: int = 0
    capability: tuple[int, int] = (0, 0)
    unsupported: Mapping[str, str] = field(default_factory=dict)


def kernel_feature(stage: str, dtype: str) -> str:
    """The name in ``unsupported`` of the kernels of our own for a stage on a card."""
    return f"{stage} kernels, {dtype}"


def has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a torch built for these architectures (``sm_86``, ``compute_90``) runs on a card:
    binary kernels run on the same major version from their minor one on, PTX on all later."""
    major, minor = capability
    for name in built_for:
        kind, _, digits = name.partition("_")
        version = int("".join(c for c in digits if c.isdigit()) or 0)
        exact = divmod(version, 10)
        if kind == "sm" and exact[0] == major and exact[1] <= minor:
            return True
        if kind == "compute" and exact <= capability:
            return True
    return False


def format_capability(capability: tuple[int, int]) -> str:
    """A capability as people write it."""
    return ".".join(map(str, capability))
