"""Workers that are processes of this machine, each with its share of the GPUs or cores.

Responsible for pipes, signals and exit codes. Not responsible for engines or the content of
messages. Workers ignore Ctrl-C: the parent decides what is finished. A worker exits when its pipe
is closed, even in the middle of a request, so a killed parent leaves no processes behind.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from chatterbox_opt.batch.worker_pool import (
    EngineFactory,
    Message,
    WorkerDied,
    forward_logs,
    serve,
)
from chatterbox_opt.request import Request

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

JOIN_TIMEOUT = 5.0  # seconds
THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"


def split_resources(
    count: int, gpus: Sequence[str], environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """The environment variables of each of ``count`` processes.

    Args:
        gpus: the visible GPUs, named as in CUDA_VISIBLE_DEVICES; assigned round robin. Without
            GPUs the cores are divided.
        environment: if it sets a number of threads, that number is used.
    """
    if gpus:
        return [{GPUS: gpus[number % len(gpus)]} for number in range(count)]
    threads = environment.get(THREADS) or str(max(1, _cores() // count))
    return [{THREADS: threads}] * count


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ProcessWorkers:
    """A ``WorkerFactory`` of processes, each with a fresh interpreter."""

    def __init__(
        self, load_engine: EngineFactory, environments: Sequence[Mapping[str, str]]
    ) -> None:
        self._load_engine, self._environments = load_engine, environments

    def start(self, number: int) -> _Process:
        """Start a process; its environment variables are set before it imports anything."""
        context = multiprocessing.get_context("spawn")
        parent_end, worker_end = context.Pipe()
        process = context.Process(target=_main, args=(worker_end, self._load_engine))
        with _child_settings(self._environments[number]), worker_end:
            process.start()
        return _Process(parent_end, process)

    def wait(self, ends: Sequence[Any]) -> list[Any]:
        return wait(ends)


class _Process:
    """The parent's handle to a process."""

    def __init__(self, pipe: Connection, process: SpawnProcess) -> None:
        self._pipe, self._process = pipe, process
        self.ends = (pipe, process.sentinel)

    def send(self, request: Request | None) -> None:
        with suppress(OSError):  # it is dead: the next receive raises
            self._pipe.send_bytes(pickle.dumps(request))

    def receive(self) -> Message:
        with suppress(OSError, EOFError):
            if self._pipe.poll():  # including messages sent before it died
                message: Message = pickle.loads(self._pipe.recv_bytes())
                return message
        self._process.join(JOIN_TIMEOUT)
        code = self._process.exitcode
        if code is None or code >= 0:
            raise WorkerDied(f"exit code {code}")
        reason = " (out of memory?)" if -code == getattr(signal, "SIGKILL", 0) else ""
        raise WorkerDied(f"{signal.Signals(-code).name}{reason}")

    def close(self) -> None:
        self._pipe.close()
        self._process.join(JOIN_TIMEOUT)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _child_settings(environment: Mapping[str, str]) -> Iterator[None]:
    """Start child processes with these environment variables, signals to end blocked.

    It finishes their work, or ends, and so do they. A terminal sends its signals to all of them.
    """
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    has_sigmask = hasattr(signal, "pthread_sigmask")
    if has_sigmask:
        # the first process would start the tracker, which unblocks the parent's signals
        resource_tracker.ensure_running()
        ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if has_sigmask:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _main(pipe: Connection, load_engine: EngineFactory) -> None:
    """The worker process."""
    if not hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, incoming), daemon=True).start()
    send_lock = threading.Lock()  # a warning may come from another thread

    def send(message: Message) -> None:
        content = pickle.dumps(message)
        with send_lock, _exit_without_parent():
            pipe.send_bytes(content)

    forward_logs(send)
    serve(load_engine, incoming.get, send)


def _read(pipe: Connection, incoming: queue.SimpleQueue[Request | None]) -> None:
    """Empty the pipe continuously, so that parent and worker cannot block each other."""
    while True:
        with _exit_without_parent():
            content = pipe.recv_bytes()
        incoming.put(pickle.loads(content))


@contextmanager
def _exit_without_parent() -> Iterator[None]:
    """Exit the process immediately if the other end of the pipe is closed."""
    try:
        yield
    except (OSError, EOFError):
        os._exit(0)
