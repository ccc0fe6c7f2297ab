"""Compiles the kernels for an H100 or H200 without one, into an archive for a GPU's machine.

    python -m benchmarks.gpu.compile_ahead kernels.tar.xz

Responsible for which forms are compiled, and for the archive: Triton's cache, of which a launch
reads the machine code and its description. Not responsible for how kernels are launched without
a GPU (dry_launch.py). A process on a GPU finds them if its Triton is the same build: run this by
the Python and with the torch and Triton that are there. If they are not found they are compiled
there, some 0.3 s each.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu import dry_launch
from chatterbox_opt import models

CAPABILITY = 90
FOLDER = "tcache"  # in the archive


def compile_all() -> int:
    """Compile what a run of all stages asks for; how many kernels that are."""
    small = models.locate("pico").shapes.t3
    compiled = []
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
        compiled += [kernel.files["cubin"] for kernel in found.kernels]
    return len(set(compiled))


def pack(cache: Path, target: Path) -> None:
    """Archive a Triton cache, without what only its compiler reads."""
    for group in cache.glob("*/__grp__*.json"):
        listed = json.loads(group.read_text())
        kept = {
            name: path
            for name, path in listed["child_paths"].items()
            if name.endswith((".cubin", ".json"))
        }
        group.write_text(json.dumps(listed | {"child_paths": kept}))
    for path in cache.glob("*/*"):
        if path.suffix not in (".cubin", ".json"):
            path.unlink()
    with tarfile.open(target, "w:xz") as archive:
        archive.add(cache, FOLDER)


def main() -> None:
    """Compile and pack."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.gpu.compile_ahead ARCHIVE.tar.xz")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # read at the first launch
        count = compile_all()
        pack(Path(cache), Path(sys.argv[1]))
    print(f"{count} kernels, {Path(sys.argv[1]).stat().st_size} bytes")


if __name__ == "__main__":
    main()
