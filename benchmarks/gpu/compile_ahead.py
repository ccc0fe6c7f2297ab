"""Compiles the kernels for an H100 or H200 without one, into an archive for a GPU's machine.

    python -m benchmarks.gpu.compile_ahead kernels.tar.xz

Responsible for which forms are compiled, and for the archive: Triton's cache, of which a launch
reads the machine code and its description. Not responsible for how kernels are launched without
a GPU (dry_launch.py). A process on a GPU finds them if its Triton is the same build: run this by
the Python and with the torch and Triton that are there. If they are not found they are compiled
there, some 0.3 s each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu import dry_launch, kernel_cache
from benchmarks.gpu.measuring import kernel_times
from chatterbox_opt.checkpoints import registry

CAPABILITY = 90
LOOK = (
    "from benchmarks.gpu import compile_ahead; "
    "print(sum(not kernel.found for kernel in compile_ahead.compile_all()))"
)


def compile_all() -> list[dry_launch.Kernel]:
    """Compile what a run of all stages asks for."""
    small = registry.locate("pico").config.t3
    compiled: list[dry_launch.Kernel] = []
    for early in (True, False):
        with dry_launch.gpu_of(CAPABILITY, early=early) as found:
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                few = dtype != torch.float16 or not early
                counts = (1, 2, 4) if few else dry_launch.COUNTS
                for whole in (False, True):
                    dry_launch.decode_steps(dtype, counts, whole=whole, narrow=False)
                    if early:
                        dry_launch.decode_steps(dtype, (1,), whole=whole, narrow=False, shape=small)
                if not few:
                    dry_launch.decode_steps(dtype, counts, whole=False, narrow=True)
                if early:
                    dry_launch.trials(dtype, ("t3",) if dtype == torch.float32 else ("t3", "flow"))
                if early and dtype != torch.float32:
                    dry_launch.flow(dtype)
            if early:
                _tiles()
        compiled += found.kernels
    return compiled


def _tiles() -> None:
    """The other tiles that the stage lab tries."""
    tried = [(1, {"columns": columns}) for columns in kernel_times.FEW_COLUMNS]
    tried += [(32, {"columns": wide, "depth": deep}) for wide, deep in kernel_times.MANY_TILES]
    for count, tile in tried:
        for whole in (False, True):
            with kernel_times.tiled(tile):
                dry_launch.decode_steps(torch.float16, (count,), whole=whole, narrow=False)


def main() -> None:
    """Compile and pack; then look for every kernel in what was packed, laid in another folder."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.gpu.compile_ahead ARCHIVE.tar.xz")
    archive = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as there:
        os.environ["TRITON_CACHE_DIR"] = cache
        count = len({kernel.files["cubin"] for kernel in compile_all()})
        kernel_cache.pack(Path(cache), archive)
        kernel_cache.unpack(archive, Path(there))
        command = [sys.executable, "-c", LOOK]
        environment = os.environ | {"TRITON_CACHE_DIR": there}
        missed = subprocess.run(command, env=environment, capture_output=True, text=True)
        if missed.returncode or missed.stdout.strip() != "0":
            sys.exit(f"error: not found where they were laid: {missed.stdout or missed.stderr}")
    print(f"{count} kernels, {archive.stat().st_size} bytes, all found again")


if __name__ == "__main__":
    main()
