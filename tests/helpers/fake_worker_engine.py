"""A fake engine for workers in processes of their own; no torch, and it can be killed."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatterbox_opt.batch.local_workers import ProcessWorkers
from chatterbox_opt.batch.worker_pool import Pool
from chatterbox_opt.errors import TextError, WeightsError
from chatterbox_opt.request import Piece, Request, Result


@dataclass(frozen=True)
class FakeWorkerEngine:
    """Speaks a row of requests together, shortest text first. What a text does:

        bad     fails; "odd" fails with an error that cannot be unpickled
        killer  kills the process that speaks it, always
        twice   kills the first two processes that speak it
        slow    takes a minute

    Attributes:
        directory: where it notes who loaded and who was asked what.
        width: requests that are in work together.
        fault: what happens while it loads: "weights", "killed", or nothing; "late" is "weights" for
            the second process, when the first is at work.
    """

    directory: Path
    width: int = 1
    pause: float = 0.0
    fault: str = ""

    @contextmanager
    def __call__(self) -> Iterator:
        self.note("loaded", str(os.getpid()))
        logging.getLogger("chatterbox_opt.made_up").warning("it is made up")
        late = self.fault == "late" and self.processes()[0] != os.getpid()
        while late and not self.noted("asked"):
            time.sleep(0.01)
        if self.fault == "weights" or (self.fault == "late" and self.noted("asked")):
            raise WeightsError("the file is damaged: get it again")
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        yield self.speak

    def speak(self, requests: Iterable[Request]) -> Iterator[Result]:
        source, row = iter(requests), []
        while True:
            while len(row) < self.width and (request := next(source, None)) is not None:
                self.note("asked", f"{os.getpid()} {request.id}")
                row.append(request)
            if not row:
                return
            row.sort(key=lambda request: (len(request.text), request.id))
            yield self.say(row.pop(0))

    def say(self, request: Request) -> Result:
        time.sleep(60 if "slow" in request.text else self.pause)
        seed = request.sampling.seed
        if "killer" in request.text or ("twice" in request.text and self.seen(request.id) < 3):
            os.kill(os.getpid(), signal.SIGKILL)
        if "bad" in request.text:
            return Result(request.id, seed, error=TextError("it is bad: mend it"))
        if "odd" in request.text:
            return Result(request.id, seed, error=Odd(1, 2))
        wave = np.random.default_rng(seed).uniform(-1, 1, 240 * len(request.text))
        return Result(
            request.id, seed, (Piece(wave.astype(np.float32), request.text, 1, {"t3": 0.5}),)
        )

    def note(self, kind: str, line: str) -> None:
        with (self.directory / kind).open("a") as file:
            file.write(f"{line}\n")

    def noted(self, kind: str) -> list[str]:
        path = self.directory / kind
        return path.read_text().splitlines() if path.exists() else []

    def seen(self, id: str) -> int:
        return sum(line.split()[1] == id for line in self.noted("asked"))

    def processes(self) -> list[int]:
        return [int(line) for line in self.noted("loaded")]

    def loaded(self, count: int, within: float = 60.0) -> bool:
        """Wait until so many have been there; whether it is exactly so many."""
        deadline = time.monotonic() + within
        while len(self.processes()) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return len(self.processes()) == count


class Odd(Exception):
    """Loses an argument on its journey."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def worker_pool(speech: FakeWorkerEngine, count: int = 2) -> Pool:
    return Pool(ProcessWorkers(speech, [{}] * count), count)


def is_running(process: int) -> bool:
    """Whether a process is there, and no mere remainder."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_ended(processes: Iterable[int], within: float = 20.0) -> bool:
    """Wait until they all ended."""
    deadline = time.monotonic() + within
    while any(is_running(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
