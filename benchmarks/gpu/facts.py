"""Describes the machine by the output of its tools: python -m benchmarks.gpu.facts FILE

Responsible for the commands. One that is missing or hangs costs only its own lines.
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
    ("ldconfig", "-p"),  # whether it finds the driver's library
)
CLOCKS = (
    "nvidia-smi",
    "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu",
    "--format=csv,noheader",
)
TOOLS = ("gcc", "nvcc", "ncu", "nsys")
VARIABLES = ("CUDA", "TRITON", "TORCH", "LD_LIBRARY", "NVIDIA")
TIMEOUT = 20.0  # seconds


def output_of(command: tuple[str, ...]) -> str:
    """What a command prints, or why it failed."""
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            preexec_fn=processes.die_with_parent(os.getpid()),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
    return finished.stdout + finished.stderr


def main() -> None:
    """Write environment, tools and the output of all commands."""
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        variables = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(VARIABLES)]
        tools = [f"{tool}: {shutil.which(tool)}" for tool in TOOLS]
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"  # Triton's launchers need it
        tools.append(f"{header}: {'exists' if header.exists() else 'missing'}")
        print(sys.version, *tools, *variables, sep="\n", file=file)
        for command in COMMANDS:
            print(f"\n$ {' '.join(command)}\n{output_of(command)}", file=file, flush=True)


if __name__ == "__main__":
    main()
