"""Child processes with a time limit, which die with their parent.

Responsible for processes, signals and time limits. Not responsible for stages or figures.

A process that hangs inside a CUDA call runs no signal handler: it gets SIGINT first, which makes
others print a traceback, then SIGKILL. Linux kills a child when its parent dies for any reason
(PR_SET_PDEATHSIG); elsewhere the stage of a killed runner continues to its end.
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
        exit: its exit code; negative: the number of the signal that killed it.
        seconds: of waiting for it.
        timed_out: it reached its limit.
    """

    exit: int
    seconds: float
    timed_out: bool

    @property
    def good(self) -> bool:
        """It exited with 0 before its limit."""
        return self.exit == 0 and not self.timed_out


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one.

    Args:
        log: its output is appended there.

    Raises:
        OSError: it cannot be started, or the log is not writable.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # with its children in one process group
            preexec_fn=die_with_parent(os.getpid()),
        )


def die_with_parent(parent: int) -> Callable[[], None] | None:
    """A ``preexec_fn`` that has the new process killed when ``parent`` dies, and restores SIGINT,
    which a shell's background jobs ignore; None where that is unsupported. Call it in the parent's
    main thread: for Linux the parent is a thread."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def finish(process: subprocess.Popen[bytes], limit: float) -> Ending:
    """Wait for a process; terminate it and its children after ``limit`` seconds."""
    started, timed_out = time.monotonic(), False
    try:
        process.wait(max(0.0, limit))
    except subprocess.TimeoutExpired:
        timed_out = True
        _signal(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):  # then it is killed below
            process.wait(GRACE)
    finally:
        kill(process)
    return Ending(process.returncode, time.monotonic() - started, timed_out)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its remaining children."""
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):  # no process of the group is left
        os.killpg(process.pid, number)
