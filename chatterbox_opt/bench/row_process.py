"""A process that loads one configuration and measures it on request.

Responsible for the process: start, commands, timeout, memory usage, warnings, and what libraries
print, which is kept in a file and shown if the process dies. Not responsible for which rows are
measured, in which order, or for what the figures mean (bench/runner.py).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from chatterbox_opt.bench.backends import UPSTREAM, BenchTarget, OptimizedTarget
from chatterbox_opt.bench.timing import BenchJob
from chatterbox_opt.bench.upstream import UpstreamTarget
from chatterbox_opt.errors import ChatterboxOptError

PROC_STATUS = "/proc/self/status"  # Linux only
STANDARD_STREAMS = (1, 2)  # file descriptors of output and error


def _serve(job: BenchJob, name: str, pipe: Connection, started: float, printed: Path) -> None:
    """Main of a row's process: load, then call a ``BenchTarget``'s methods until "stop".

    Args:
        printed: the file that gets what libraries print, also those written in C++.
    """
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in STANDARD_STREAMS:
        os.dup2(file, stream)
    warnings.simplefilter("ignore")
    warnings_log = _WarningCollector()
    logger = logging.getLogger("chatterbox_opt")
    logger.addHandler(warnings_log)
    logger.propagate = False
    try:
        target: BenchTarget = (UpstreamTarget if name == UPSTREAM else OptimizedTarget)(job, name)
    except ChatterboxOptError as error:
        pipe.send(str(error))
        return
    loaded = {"dtype": target.dtype, "plan": target.plan, "warm_ups": target.warm_ups}
    pipe.send(loaded | {"load_seconds": time.time() - started})
    methods = {"run": target.run, "quality": target.quality, "attention": target.attention}
    while (command := pipe.recv()) != "stop":
        pipe.send(methods[command]())
    vram = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    pipe.send((peak_rss_mib(), vram, warnings_log.messages))


def peak_rss_mib() -> float | None:
    """Peak resident memory of this process, MiB; None on Windows, which has no ``resource``.

    Linux's ``ru_maxrss`` is that of the process that started this one until its own is higher.
    """
    if (status := Path(PROC_STATUS)).exists():
        peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if peak:
            return int(peak[1]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    units_per_mib = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_mib


class _WarningCollector(logging.Handler):
    """Collects the library's warnings, such as a failed compilation."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class RowProcess:
    """The parent's handle of a row.

    Attributes:
        laps: seconds by stage of each measured run.
        reads: memory bandwidth in GB/s, measured after each of them.
        quality, attention: of the ``BenchTarget``, after ``finish``.
        usage: memory and warnings, after ``finish``.
    """

    def __init__(self, job: BenchJob, name: str) -> None:
        """Start the process and wait until it has loaded.

        Raises:
            ChatterboxOptError: the row cannot be measured here.
        """
        self.name, self._timeout = name, job.timeout
        self.laps: list[dict[str, float]] = []
        self.reads: list[float] = []
        self.quality: dict[str, torch.Tensor] = {}
        self.attention: list[str] = []
        self.usage: dict[str, Any] = {}
        self._scratch = tempfile.TemporaryDirectory(
            prefix="chatterbox-opt-", ignore_cleanup_errors=True
        )
        self._printed = Path(self._scratch.name) / "printed"
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        arguments = (job, name, child_end, time.time(), self._printed)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        child_end.close()
        loaded = self._call(None)
        if isinstance(loaded, str):
            self.kill()
            raise ChatterboxOptError(f"row {name}: {loaded}")
        self.load_seconds: float = loaded["load_seconds"]
        self.dtype: str = loaded["dtype"]
        self.plan: str = loaded["plan"]
        self.warm_ups: int = loaded["warm_ups"]

    def _call(self, command: str | None) -> Any:
        """Send a command, if any, and wait for the reply."""
        try:
            if command is not None:
                self._pipe.send(command)
            if not self._pipe.poll(self._timeout):
                self.kill()
                raise ChatterboxOptError(
                    f"row {self.name} did not reply in {self._timeout:.0f} s and was ended: "
                    "exclude it with --rows, or reduce --seconds"
                )
            return self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            self._process.join()
            code, last_line = self._process.exitcode, self._last_line()
            self.kill()
            raise ChatterboxOptError(
                f"row {self.name} died (exit {code}{last_line}): out of memory? Exclude "
                "it with --rows, or reduce --seconds"
            ) from error

    def _last_line(self) -> str:
        """The last line that the process printed, as a part of a sentence; or ""."""
        if not self._printed.is_file():
            return ""
        lines = self._printed.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((f", {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def run(self) -> dict[str, float]:
        """One run: seconds by stage."""
        seconds: dict[str, float] = self._call("run")
        return seconds

    def finish(self, *, compare: bool = True) -> None:
        """Get quality, attention kernels and usage, and end the process.

        Args:
            compare: False leaves out the runs that quality and attention kernels take.
        """
        if compare:
            self.quality, self.attention = self._call("quality"), self._call("attention")
        rss, vram, notes = self._call("stop")
        self._process.join()
        self._scratch.cleanup()
        self.usage = {"peak_rss_mib": rss, "peak_vram_mib": vram, "notes": notes}

    def kill(self) -> None:
        """End the process, whatever its state."""
        self._process.kill()
        self._process.join()
        self._scratch.cleanup()
