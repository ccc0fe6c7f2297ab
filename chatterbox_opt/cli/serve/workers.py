"""Several server processes behind one port: one for each GPU.

Responsible for starting them, for starting those again that have crashed, and for ending them. Not
responsible for what they do: each is this same command, which finds its sockets in ``SOCKETS``. The
kernel hands each connection to one of those that accept.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from chatterbox_opt.cli import signals
from chatterbox_opt.errors import DeviceError
from chatterbox_opt.server.settings import METRICS_DIRECTORY

SOCKETS = "CHATTERBOX_SERVE_SOCKETS"  # numbers of the open sockets, "3,4"
POLL = 0.2  # seconds
SOON = 10.0  # seconds; a process that ends sooner cannot serve, and is not started again
KILL_AFTER = 10.0  # seconds beyond those that its requests have


def inherited() -> list[socket.socket]:
    """The sockets that the parent process has opened, or none."""
    numbers = os.environ.get(SOCKETS, "")
    return [socket.socket(fileno=int(number)) for number in numbers.split(",") if number]


def supervise(
    environments: Sequence[Mapping[str, str]],
    sockets: Sequence[socket.socket],
    drain: float,
    warn: Callable[[str], None],
) -> None:
    """Keep a process running in each environment until a signal asks to end.

    Args:
        sockets: that listen.
        drain: seconds that a process has for its requests.
        warn: told of every process that has crashed.

    Raises:
        DeviceError: a process ends at once, again and again.
    """
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-metrics-") as counts:
        together = [{**one, METRICS_DIRECTORY: counts} for one in environments]
        _keep_running(together, sockets, drain, warn)


def _keep_running(
    environments: Sequence[Mapping[str, str]],
    sockets: Sequence[socket.socket],
    drain: float,
    warn: Callable[[str], None],
) -> None:
    from prometheus_client.multiprocess import mark_process_dead  # an extra

    asked: list[int] = []
    numbers = signals.heard(signal.SIGINT, *signals.ending())
    before = {one: signal.signal(one, lambda number, _: asked.append(number)) for one in numbers}
    running = [_start(environment, sockets) for environment in environments]
    started = [time.monotonic()] * len(running)
    try:
        while not asked:
            time.sleep(POLL)
            for index, process in enumerate(running):
                if (code := process.poll()) is None or asked:
                    continue
                if time.monotonic() - started[index] < SOON:
                    raise DeviceError(
                        f"server process {index + 1} ended at once with exit code {code}: "
                        "run the command without --workers to see why"
                    )
                warn(f"server process {index + 1} ended with exit code {code}: started again")
                mark_process_dead(process.pid, environments[index][METRICS_DIRECTORY])
                running[index] = _start(environments[index], sockets)
                started[index] = time.monotonic()
    finally:
        _end(running, drain)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    environment: Mapping[str, str], sockets: Sequence[socket.socket]
) -> subprocess.Popen[bytes]:
    numbers = [one.fileno() for one in sockets]
    return subprocess.Popen(
        [sys.executable, "-m", "chatterbox_opt", *sys.argv[1:]],
        env={**os.environ, **environment, SOCKETS: ",".join(map(str, numbers))},
        pass_fds=numbers,
        start_new_session=True,  # a terminal's Ctrl-C comes to the parent only
    )


def _end(running: Sequence[subprocess.Popen[bytes]], drain: float) -> None:
    for process in running:
        process.terminate()
    end = time.monotonic() + drain + KILL_AFTER
    for process in running:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
