"""Description of a machine: a value, and the compute capabilities that features need.

Responsible for describing hardware. Not responsible for detecting it (engine/probe.py) or for
choosing settings from it (plan.py, downgrade.py). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AUTO = "auto"
DEVICES = (AUTO, "cuda", "mps", "cpu")
# compute capabilities
BFLOAT16_CAPABILITY = (8, 0)  # torch reports bfloat16 from 7.5 on, where it is emulated and slow
# for 7.0 Triton's compiler aborts the process; for 7.5 newer Triton versions use no tensor cores
TRITON_CAPABILITY = {"t3": (7, 5), "flow": (8, 0)}
HALF_CAPABILITY = (7, 0)  # below, half-precision arithmetic is up to 64 times slower than float32
ONEDNN, BFLOAT16_VOCODER = "onednn", "bfloat16 vocoder"  # keys of ``Hardware.unsupported``
# stages and dtypes that our GPU kernels (kernels/cuda) exist for
KERNELS = {"t3": ("float32", "float16", "bfloat16"), "flow": ("float16", "bfloat16")}


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device.

    Attributes:
        device: "cuda", "mps" or "cpu".
        name: as reported by the driver or the system.
        total_mib, free_mib: GPU memory in MiB; 0 elsewhere.
        capability: CUDA compute capability; (0, 0) elsewhere.
        unsupported: feature -> why it cannot be used or is not faster. Features of a CPU are its
            narrow dtypes, ``ONEDNN``, "int8 flow" and ``BFLOAT16_VOCODER``; of a GPU, every
            ``kernel_feature``. Supported features are absent.
    """

    device: str
    name: str
    total_mib: int = 0
    free_mib: int = 0
    capability: tuple[int, int] = (0, 0)
    unsupported: Mapping[str, str] = field(default_factory=dict)


def kernel_feature(stage: str, dtype: str) -> str:
    """The key in ``Hardware.unsupported`` of our GPU kernels for a stage in a dtype."""
    return f"{stage} kernels, {dtype}"


def has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a torch built for these architectures (``sm_86``, ``compute_90``) runs on a GPU.

    Binaries (sm) run on the same major version with an equal or higher minor one, PTX (compute) on
    equal and higher versions.
    """
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
    """(8, 6) as "8.6"."""
    return ".".join(map(str, capability))
