"""What a probe says of a machine that is not here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.common import ROOT

PROBE = """
import sys
{hidden}
import torch
from chatterbox_opt.engine import probe
torch.cuda.get_arch_list = lambda: ["sm_80"]
print(probe._kernels_unsupported("t3", "float16", (8, 0)))
"""


@pytest.mark.parametrize(
    ("hidden", "reason"),
    [
        pytest.param(
            "sys.modules['triton'] = None",
            "this torch comes without Triton",
            marks=pytest.mark.slow,
        ),
        ("sys.path.insert(0, {broken!r})", "Triton cannot build kernels here (no driver library)"),
    ],
)
def test_a_gpu_without_a_working_triton_uses_pytorch(tmp_path, hidden, reason):
    """CUDA builds of torch for Windows have no Triton: probing must not import it."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('no driver library')")
    script = PROBE.format(hidden=hidden.format(broken=str(tmp_path)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == reason
