"""Hardware detection: the only module that queries torch and the system for devices.

Responsible for detecting devices, memory and capabilities. Not responsible for choosing settings
from them (config/plan.py). Imports torch only inside functions.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from chatterbox_opt.config.hardware import (
    AUTO,
    KERNELS,
    TRITON_CAPABILITY,
    Hardware,
    format_capability,
    has_kernels,
    kernel_feature,
)
from chatterbox_opt.errors import DeviceError
from chatterbox_opt.utils.lazy_reasons import LazyReasons
from chatterbox_opt.utils.steps import announce


def probe(device: str = AUTO) -> Hardware:
    """Detect a device and its capabilities (imports torch).

    Raises:
        DeviceError: the requested device is not available.
    """
    announce("importing PyTorch")
    import torch

    available = [
        name
        for name, present in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if present
    ]
    if device == AUTO:
        device = available[0]
    if device not in available:
        raise DeviceError(
            f"there is no {device} device here (found: {', '.join(available)}); use --device "
            "auto, or see chatterbox-opt doctor for the driver and the torch build"
        )
    if device == "cpu":
        from chatterbox_opt.layers import weight_layout

        return Hardware(device, cpu_name(), unsupported=weight_layout.unsupported_dtypes())
    if device == "mps":
        return Hardware(device, cpu_name())
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and not has_kernels(capability, torch.cuda.get_arch_list()):
        raise DeviceError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} "
            f"(capability {format_capability(capability)}): install another torch, see RTX 50xx "
            "in docs/install.md, or use --device cpu"
        )
    return Hardware(
        device="cuda",
        name=torch.cuda.get_device_name(),
        total_mib=total >> 20,
        free_mib=free >> 20,
        capability=capability,
        unsupported=LazyReasons(
            {
                kernel_feature(stage, dtype): functools.partial(
                    _kernels_unsupported, stage, dtype, capability
                )
                for stage, dtypes in KERNELS.items()
                for dtype in dtypes
            }
        ),
    )


def _kernels_unsupported(stage: str, dtype: str, capability: tuple[int, int]) -> str:
    """Why our GPU kernels cannot be used for a stage in a dtype, or ""."""
    import torch

    from chatterbox_opt.kernels.cuda import support

    nvidia, since = torch.version.hip is None, TRITON_CAPABILITY[stage]
    if nvidia and capability < since:
        return f"{stage}'s kernels need compute capability {format_capability(since)}"
    binaries = [name for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if nvidia and not has_kernels(capability, binaries):
        # a GPU that torch supports only by PTX is too new for its Triton, which may abort the
        # process
        return f"this torch's Triton is older than the GPU ({format_capability(capability)})"
    announce("compiling and testing the GPU kernels")
    return support.unsupported_reason(stage, getattr(torch, dtype))


def cpu_features() -> list[str]:
    """The CPU's instruction sets that matter for speed, as PyTorch detects them."""
    import torch

    features = {
        "AVX2": "_is_avx2_supported",
        "AVX-512": "_is_avx512_supported",
        "VNNI": "_is_vnni_supported",
        "AVX-512 BF16": "_is_avx512_bf16_supported",
        "AMX": "_is_amx_tile_supported",
        "SVE": "_is_arm_sve_supported",
    }
    return [name for name, query in features.items() if getattr(torch.cpu, query, bool)()]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [name.strip() for name in visible if name.strip()]
    count = torch.cuda.device_count()
    return names[:count] or [str(number) for number in range(count)]


def cpu_name() -> str:
    """The CPU's name as reported by the system, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
