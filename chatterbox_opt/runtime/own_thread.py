"""Runs work on a thread that ends with it, so that the thread's OpenMP team ends too.

GNU OpenMP, which PyTorch uses on Linux, keeps a team of threads for each thread that has computed
something in parallel, until that thread ends. Between two parallel regions the members of a team
wait for the next one in a loop (they spin). With more members than cores, counted over all teams,
they sleep at once instead, and to wake them takes longer than many a region of a decode step lasts.
So if one thread has loaded the model and another one decodes, decoding takes 1.5 times as long
(measured on two cores, docs/performance-log.md), although the first one does nothing.

Hence what is computed before the first request (loading, voices, warming up) runs here.

Responsible for that, for errors and for Ctrl-C. Not responsible for the threads of the engine
(engine/serving/loop.py).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from chatterbox_opt.runtime import cuda

Value = TypeVar("Value")
_POLL = 0.1  # seconds; on Windows a wait does not end by Ctrl-C


def in_own_thread(work: Callable[[], Value]) -> Value:
    """Call ``work`` on a new thread and return its result.

    On this thread where there is a CUDA device, because the current device belongs to a thread.
    Ctrl-C interrupts ``work`` as it would on this thread: before its next bytecode.

    Raises:
        Exception: what ``work`` raises.
    """
    if cuda.is_available():
        return work()
    with ThreadPoolExecutor(1, "chatterbox-opt") as executor:
        started: Future[int] = executor.submit(threading.get_ident)
        future = executor.submit(work)
        try:
            while not future.done():
                wait([future], _POLL)
        finally:
            if not future.done():  # this thread was interrupted
                thread = ctypes.c_ulong(started.result())
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    thread, ctypes.py_object(KeyboardInterrupt)
                )
        return future.result()
