"""Work on a thread of its own: results, errors, Ctrl-C, and no OpenMP threads that stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from chatterbox_opt.kernels.cpu.openmp import torch_openmp
from chatterbox_opt.runtime.own_thread import in_own_thread

PROGRAM = """
import os, sys, time, torch
from chatterbox_opt.runtime.own_thread import in_own_thread
torch.set_num_threads(4)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
multiply = lambda: (torch.ones(512, 512) @ torch.ones(512, 512)).sum().item()
assert in_own_thread(multiply) == 512.0 ** 3
deadline = time.monotonic() + 20
while count() > before and time.monotonic() < deadline:
    time.sleep(0.01)  # they end a moment later
kept = count() - before
multiply()
print(kept, count() - before)
"""


def test_the_result_comes_from_another_thread_that_has_ended():
    thread = in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread() and not thread.is_alive()


def test_an_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        in_own_thread(lambda: 1 // 0)


def test_ctrl_c_interrupts_the_work():
    """As on the main thread, from which the signal comes."""
    ended = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it

    def work() -> None:
        try:
            for _ in range(2000):
                time.sleep(0.01)
        except KeyboardInterrupt:
            ended.append(True)
            raise

    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_own_thread(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended and time.monotonic() - start < 10


@pytest.mark.slow
@pytest.mark.skipif(not torch_openmp().parallel, reason="no libgomp here")
def test_no_threads_of_openmp_stay():
    """On the calling thread one would, which this test would notice."""
    env = os.environ | {"OMP_NUM_THREADS": "4"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.split() == ["0", "3"], found.stderr
