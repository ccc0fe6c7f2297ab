"""Workers that are processes of this machine, each with its share of cards or cores.

Knows pipes, signals and how a process ends. Knows nothing of engines, nor of what is in a message.
A worker hears nothing of Ctrl-C: the parent decides what is finished. It ends when its pipe does,
whatever it does: a parent that is killed leaves nobody behind.
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

from chatterbox_opt.batch.worker_pool import Message, Opening, WorkerDied, forward_logs, serve
from chatterbox_opt.request import Request

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

PATIENCE = 5.0  # seconds that an end may take
THREADS = "OMP_NUM_THREADS"
CARDS = "CUDA_VISIBLE_DEVICES"


def split_resources(
    count: int, cards: Sequence[str], environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """What each of ``count`` processes finds in its environment.

    Args:
        cards: names of the cards that are there, as CUDA_VISIBLE_DEVICES has them; they are dealt
            out in turn. If there are none, the cores are shared out.
        environment: a number of threads in it is kept.
    """
    if cards:
        return [{CARDS: cards[number % len(cards)]} for number in range(count)]
    threads = environment.get(THREADS) or str(max(1, _cores() // count))
    return [{THREADS: threads}] * count


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ProcessWorkers:
    """A crew (see worker_pool.py) of processes with a fresh interpreter each."""

    def __init__(self, opening: Opening, environments: Sequence[Mapping[str, str]]) -> None:
        self._opening, self._environments = opening, environments

    def start(self, number: int) -> _Process:
        """Start a process; what it needs is in its environment before it imports anything."""
        context = multiprocessing.get_context("spawn")
        near, far = context.Pipe()
        process = context.Process(target=_main, args=(far, self._opening))
        with _inherited(self._environments[number]), far:
            process.start()
        return _Process(near, process)

    def wait(self, ends: Sequence[Any]) -> list[Any]:
        """See ``Crew``."""
        return wait(ends)


class _Process:
    def __init__(self, pipe: Connection, process: SpawnProcess) -> None:
        self._pipe, self._process = pipe, process
        self.ends = (pipe, process.sentinel)

    def give(self, request: Request | None) -> None:
        """See ``Worker``."""
        with suppress(OSError):  # it is dead: the next receive says so
            self._pipe.send_bytes(pickle.dumps(request))

    def receive(self) -> Message:
        """See ``Worker``."""
        with suppress(OSError, EOFError):
            if self._pipe.poll():  # also what it said before it died
                message: Message = pickle.loads(self._pipe.recv_bytes())
                return message
        self._process.join(PATIENCE)
        code = self._process.exitcode
        if code is None or code >= 0:
            raise WorkerDied(f"exit code {code}")
        reason = " (out of memory?)" if -code == getattr(signal, "SIGKILL", 0) else ""
        raise WorkerDied(f"{signal.Signals(-code).name}{reason}")

    def close(self) -> None:
        """See ``Worker``."""
        self._pipe.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Have a process that starts in the block inherit these values, and deaf ears for signals."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    deaf = hasattr(signal, "pthread_sigmask")
    if deaf:
        resource_tracker.ensure_running()  # the first process starts it, and it opens our ears
        ours = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if deaf:
            signal.pthread_sigmask(signal.SIG_SETMASK, ours)


def _main(pipe: Connection, opening: Opening) -> None:
    if not hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, incoming), daemon=True).start()
    one_at_a_time = threading.Lock()  # a warning may come from another thread

    def send(message: Message) -> None:
        content = pickle.dumps(message)
        with one_at_a_time, _ending():
            pipe.send_bytes(content)

    forward_logs(send)
    serve(opening, incoming.get, send)


def _read(pipe: Connection, incoming: queue.SimpleQueue[Request | None]) -> None:
    """Take in what comes, so that two ends never wait for each other."""
    while True:
        with _ending():
            content = pipe.recv_bytes()
        incoming.put(pickle.loads(content))


@contextmanager
def _ending() -> Iterator[None]:
    """End the process, whatever it does, when there is nobody at the other end."""
    try:
        yield
    except (OSError, EOFError):
        os._exit(0)
