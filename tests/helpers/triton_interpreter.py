"""Runs kernels/triton_interpreter_cases.py in a process of its own: Triton reads TRITON_INTERPRET
when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.common import ROOT


def one_element_arrays_convert_to_int() -> bool:
    """Triton's interpreter (3.2 to 3.6) needs it; numpy 2.5 raises TypeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(np.array([3])) == 3
    except TypeError:
        return False


on_this_numpy = pytest.mark.skipif(
    not one_element_arrays_convert_to_int(),
    reason="Triton's interpreter does not run on this numpy",
)


def interpreted(selected: str, tiny: Path) -> None:
    """Run the cases that a pytest -m expression selects, over the checkpoint ``tiny``."""
    cases = str(ROOT / "tests" / "kernels" / "triton_interpreter_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selected, cases],
        env={**os.environ, "TRITON_INTERPRET": "1", "TINY_CHECKPOINT": str(tiny)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
