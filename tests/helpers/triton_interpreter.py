"""Runs kernels/triton_interpreter_cases.py in a process of its own: Triton decides when it is imported whether it
interprets."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.common import ROOT

OTHERS = "Trying or Beginning or t3_says or flow or draws or begins"  # about half of the time


def one_element_arrays_are_numbers() -> bool:
    """Triton's interpreter (3.2 to 3.6) takes it for granted; numpy 2.5 refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(np.array([3])) == 3
    except TypeError:
        return False


on_this_numpy = pytest.mark.skipif(
    not one_element_arrays_are_numbers(), reason="Triton's interpreter does not run on this numpy"
)


def interpreted(names: str, tiny: Path) -> None:
    """Run those that a pytest expression names, over a checkpoint that is made already."""
    tests = str(ROOT / "tests" / "kernels" / "triton_interpreter_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, tests],
        env={**os.environ, "TRITON_INTERPRET": "1", "TINY_CHECKPOINT": str(tiny)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
