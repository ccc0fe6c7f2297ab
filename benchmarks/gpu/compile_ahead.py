"""Compiles the kernels for an H100 or H200 without a GPU, into an archive for a machine with one.

    python -m benchmarks.gpu.compile_ahead kernels.tar.xz

Responsible for which specializations are compiled, and for the archive: Triton's cache, of which a
launch loads the machine code and its metadata. Not responsible for launching without a GPU
(dry_launch.py). Triton's cache keys include its own build: run this with the Python, torch and
Triton of the other machine. Kernels that are missing in the cache are compiled there, some 0.3 s
each.
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
COUNT_MISSING = (
    "from benchmarks.gpu import compile_ahead; "
    "print(sum(not kernel.cached for kernel in compile_ahead.compile_all()))"
)


def compile_all() -> list[dry_launch.Kernel]:
    """Compile what a run of all stages launches."""
    builtin = registry.locate("pico").config.t3
    compiled: list[dry_launch.Kernel] = []
    for pdl in (True, False):
        with dry_launch.fake_gpu(CAPABILITY, pdl=pdl) as result:
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                all_counts = dtype == torch.float16 and pdl
                counts = dry_launch.COUNTS if all_counts else (1, 2, 4)
                for int8 in (False, True):
                    options = {"int8": int8, "kv_int8": False}
                    dry_launch.decode_steps(dtype, counts, **options)
                    if pdl:
                        dry_launch.decode_steps(dtype, (1,), **options, shape=builtin)
                if all_counts:
                    dry_launch.decode_steps(dtype, counts, int8=False, kv_int8=True)
                if pdl:
                    stages = ("t3",) if dtype == torch.float32 else ("t3", "flow")
                    dry_launch.selftests(dtype, stages)
                if pdl and dtype != torch.float32:
                    dry_launch.flow(dtype)
            if pdl:
                _tiles()
        compiled += result.kernels
    return compiled


def _tiles() -> None:
    """The tiles that the stage lab measures besides the planned ones."""
    tiles = [(1, {"columns": columns}) for columns in kernel_times.GEMV_COLUMNS]
    tiles += [(32, {"columns": n, "depth": k}) for n, k in kernel_times.GEMM_TILES]
    for count, tile in tiles:
        for int8 in (False, True):
            with kernel_times.tiled(tile):
                dry_launch.decode_steps(torch.float16, (count,), int8=int8, kv_int8=False)


def main() -> None:
    """Compile and pack; then verify that every kernel is found after unpacking elsewhere."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.gpu.compile_ahead ARCHIVE.tar.xz")
    archive = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as unpacked:
        os.environ["TRITON_CACHE_DIR"] = cache
        count = len({kernel.files["cubin"] for kernel in compile_all()})
        kernel_cache.pack(Path(cache), archive)
        kernel_cache.unpack(archive, Path(unpacked))
        command = [sys.executable, "-c", COUNT_MISSING]
        environment = os.environ | {"TRITON_CACHE_DIR": unpacked}
        check = subprocess.run(command, env=environment, capture_output=True, text=True)
        if check.returncode or check.stdout.strip() != "0":
            sys.exit(f"error: missing after unpacking: {check.stdout or check.stderr}")
    print(f"{count} kernels, {archive.stat().st_size} bytes, all found after unpacking")


if __name__ == "__main__":
    main()
