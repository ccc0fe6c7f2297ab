"""What machine this is, as its own tools tell it: python -m benchmarks.gpu.facts FILE

Knows commands. A command that is missing or hangs costs its own lines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.gpu import processes

COMMANDS = (
    ("nvidia-smi",),
    ("nvidia-smi", "-q", "-d", "CLOCK,POWER,PERFORMANCE"),
    (sys.executable, "-m", "pip", "list"),
    ("df", "-h"),
    ("free", "-g"),
    ("lscpu",),
    ("ldconfig", "-p"),  # whether the driver's library is known
)
CLOCKS = (
    "nvidia-smi",
    "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu",
    "--format=csv,noheader",
)
TOOLS = ("gcc", "nvcc", "ncu", "nsys")
VARIABLES = ("CUDA", "TRITON", "TORCH", "LD_LIBRARY", "NVIDIA")
ROWS_PER_SEQ = 20.0  # seconds


def told(command: tuple[str, ...]) -> str:
    """What a command prints, or why it prints nothing."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ROWS_PER_SEQ,
            preexec_fn=processes.dying_with(os.getpid()),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
    return done.stdout + done.stderr


def main() -> None:
    """Write them, one after another."""
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        variables = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(VARIABLES)]
        tools = [f"{tool}: {shutil.which(tool)}" for tool in TOOLS]
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"  # Triton's launchers need it
        tools.append(f"{header}: {'there' if header.exists() else 'missing'}")
        print(sys.version, *tools, *variables, sep="\n", file=file)
        for command in COMMANDS:
            print(f"\n$ {' '.join(command)}\n{told(command)}", file=file, flush=True)


if __name__ == "__main__":
    main()
