"""Processes that are ended in time, and that end when the one that started them does.

Knows processes, signals and time. Knows nothing of stages or figures.

A process that hangs inside a CUDA call runs no handler of a signal: SIGINT first, for one that can
still say where it was, then SIGKILL. Linux kills a child when its parent dies, however it died
(PR_SET_PDEATHSIG); elsewhere a runner that is killed leaves its stage to its own end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE = 4.0  # seconds from SIGINT to SIGKILL


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    Attributes:
        exit: its code; minus the signal's number if one ended it.
        seconds: that it was waited for.
        truncated: it had to be ended.
    """

    exit: int
    seconds: float
    truncated: bool

    @property
    def good(self) -> bool:
        """It came to its end and reported success."""
        return self.exit == 0 and not self.truncated


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one.

    Args:
        log: what it prints is appended there.

    Raises:
        OSError: it cannot be started, or the log cannot be written.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own children are of its group, and end with it
            preexec_fn=dying_with(os.getpid()),
        )


def dying_with(parent: int) -> Callable[[], None] | None:
    """What a new process does first to be killed when ``parent`` dies; None where there is no such
    thing. To be called by the parent's main thread: Linux means the thread."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def finish(process: subprocess.Popen[bytes], limit: float) -> Ending:
    """Wait for a process, and end it and its children if it takes longer than ``limit`` seconds."""
    begun, truncated = time.monotonic(), False
    try:
        process.wait(max(0.0, limit))
    except subprocess.TimeoutExpired:
        truncated = True
        _signal(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):  # then it is killed below
            process.wait(GRACE)
    finally:
        kill(process)
    return Ending(process.returncode, time.monotonic() - begun, truncated)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what is left of its children, now."""
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):  # nothing of the group is left
        os.killpg(process.pid, number)
