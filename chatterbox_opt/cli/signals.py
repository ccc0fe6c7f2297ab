"""The signals that end a command.

Responsible for which they are, and for ending at once while the command starts. Not responsible for
what a command does with them later (application.py, batch/command.py). Imports nothing that takes
time.
"""

from __future__ import annotations

import contextlib
import os
import signal

INTERRUPTED = 130  # the exit code after Ctrl-C


def ending() -> list[signal.Signals]:
    """Those that ask a process to end: SIGTERM, a terminal that was closed, Ctrl-\\."""
    names = ("SIGTERM", "SIGHUP", "SIGQUIT")  # Windows has only the first
    return [signal.Signals[name] for name in names if hasattr(signal, name)]


def heard(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those that are not ignored, as nohup has it for the commands that it starts."""
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def leave(number: int, _: object) -> None:
    """Exit at once: an exception within an import can become another error. No file is open yet."""
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, b"error: interrupted\n")
    os._exit(128 + number)
