"""What is there: the only place that asks what the machine can do.

Knows torch's questions to the card. Knows nothing of wishes or of what is done with the answers.
Imports torch only in ``probe``.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chatterbox_opt.errors import DeviceError
from chatterbox_opt.lacks import Lacks

AUTO = "auto"
DEVICES = (AUTO, "cuda", "mps", "cpu")
# compute capabilities
BFLOAT16_FROM = (8, 0)  # torch reports bfloat16 from 7.5 on, where it is emulated and slow
# for 7.0 Triton's compiler ends the process; for 7.5 its newer versions multiply without the units
TRITON_FROM = {"t3": (7, 5), "flow": (8, 0)}
HALF_FROM = (7, 0)  # below, half-precision arithmetic is up to 64 times slower than float32

# what there are kernels of our own for, on a card
KERNELS = {"t3": ("float32", "float16", "bfloat16"), "flow": ("float16", "bfloat16")}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was found. Memory in MiB; ``capability`` is CUDA's, (0, 0) elsewhere; ``lacks`` names a
    processor's missing or slow narrow dtypes, or a card's ``kernels`` that cannot be used, each
    with the reason."""

    device: str
    name: str
    total_mib: int = 0
    free_mib: int = 0
    capability: tuple[int, int] = (0, 0)
    lacks: Mapping[str, str] = field(default_factory=dict)


def probe(device: str = AUTO) -> Hardware:
    """Look at the machine (imports torch).

    Raises:
        DeviceError: the device asked for is not there.
    """
    import torch

    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == AUTO:
        device = next(name for name, there in found.items() if there)
    if not found.get(device, False):
        here = ", ".join(name for name, there in found.items() if there)
        raise DeviceError(
            f"there is no {device} device here (found: {here}); use --device auto, or see "
            "chatterbox-opt doctor for the driver and the torch build"
        )
    if device == "cpu":
        from chatterbox_opt import packing

        return Hardware(device, processor(), lacks=packing.lacks())
    if device == "mps":
        return Hardware(device, processor())
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and not has_kernels(capability, torch.cuda.get_arch_list()):
        raise DeviceError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} "
            f"(capability {dotted(capability)}): install another torch, see RTX 50xx in the "
            "README, or use --device cpu"
        )
    return Hardware(
        device="cuda",
        name=torch.cuda.get_device_name(),
        total_mib=total >> 20,
        free_mib=free >> 20,
        capability=capability,
        lacks=Lacks(
            {
                kernels(stage, dtype): functools.partial(_lacks_kernels, stage, dtype, capability)
                for stage, dtypes in KERNELS.items()
                for dtype in dtypes
            }
        ),
    )


def kernels(stage: str, dtype: str) -> str:
    """The name in ``lacks`` of the kernels of our own for a stage on a card."""
    return f"{stage} kernels, {dtype}"


def _lacks_kernels(stage: str, dtype: str, capability: tuple[int, int]) -> str:
    """Why they cannot be used on the card, or ""."""
    import torch

    from chatterbox_opt import card

    nvidia, since = torch.version.hip is None, TRITON_FROM[stage]
    if nvidia and capability < since:
        return f"{stage}'s kernels need compute capability {dotted(since)}"
    binaries = [name for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if nvidia and not has_kernels(capability, binaries):
        # a card that torch only knows by PTX is newer than its Triton, which may end the process
        return f"this torch's Triton is older than the card ({dotted(capability)})"
    return card.lacks_kernels(stage, getattr(torch, dtype))


def cards() -> list[str]:
    """Names of the cards that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [name.strip() for name in visible if name.strip()]
    count = torch.cuda.device_count()
    return names[:count] or [str(number) for number in range(count)]


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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


def dotted(capability: tuple[int, int]) -> str:
    """A capability as people write it."""
    return ".".join(map(str, capability))
