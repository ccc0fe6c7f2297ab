"""``chatterbox-opt serve`` as a process of a test's own, at a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.common import ROOT


@contextmanager
def serving(voices: Path, *options: str, model: str = "pico") -> Iterator[tuple[str, int]]:
    """The address and the process id; at the end the process drains and has to succeed."""
    command = [sys.executable, "-m", "chatterbox_opt", "serve", "--model", model, "--port", "0"]
    with tempfile.TemporaryFile() as told:  # a pipe would be full after many warnings
        process = subprocess.Popen(
            [*command, *options],
            stderr=told, env={**os.environ, "CHATTERBOX_VOICES": str(voices)}, cwd=ROOT,
        )  # fmt: skip

        def lines() -> list[str]:
            return os.pread(told.fileno(), 1 << 20, 0).decode().splitlines()

        try:
            while not lines():
                assert process.poll() is None, "it ended at once"
                time.sleep(0.05)
            yield lines()[0].split()[0], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(90)
        assert code == 0, lines()
