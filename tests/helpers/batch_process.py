"""``chatterbox-opt batch`` in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from chatterbox_opt.batch import manifest

TESTS = Path(__file__).parents[1]  # where a process finds the helpers
BATCH_COMMAND = [sys.executable, "-m", "chatterbox_opt", "batch"]
QUICK = ["--max-tokens", "3", "--cfm-steps", "1", "--retries", "0", "--no-watermark", "--seed", "5"]


def run_command(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*BATCH_COMMAND, *args], cwd=cwd, capture_output=True, timeout=540)


def noted_lines(directory: Path) -> list[dict]:
    path = directory / manifest.FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def listen_to_ctrl_c() -> None:
    # a suite started in the background passes an ignored signal on to its children
    signal.signal(signal.SIGINT, signal.SIG_DFL)
