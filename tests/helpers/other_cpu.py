"""Runs code in a process whose kernels are compiled for a CPU like this one with fewer features."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.common import ROOT


def run_without(features: str, code: str, cache: Path) -> None:
    """Assert that ``code`` exits with 0.

    Args:
        features: the beginning of the names of what the CPU does not have, as LLVM spells them.
        cache: of compiled kernels.
    """
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    present = get_host_cpu_features()
    present |= dict.fromkeys((name for name in present if name.startswith(features)), False)
    env = os.environ | {"NUMBA_CPU_NAME": get_host_cpu_name(), "PYTHONPATH": str(ROOT)}
    env |= {"NUMBA_CPU_FEATURES": present.flatten(), "NUMBA_CACHE_DIR": str(cache)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
