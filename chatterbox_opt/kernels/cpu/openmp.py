"""Runs compiled kernels on PyTorch's own OpenMP threads.

Responsible for the entry points of the OpenMP library that PyTorch has loaded, and for the
self-test that decides whether kernels can run here; not responsible for what the kernels compute.

Why not threads of our own
--------------------------
An OpenMP runtime keeps its threads alive between parallel regions, spinning for a while so that
the next region starts quickly. A second thread pool in the same process would compete with the
first for the cores: while one computes, the other spins. So our kernels use the pool that PyTorch's
operations already use. A compiled kernel is a C function ``void work(void *data)``; we pass its
address to libgomp's ``GOMP_parallel``, which calls it once in each thread:

    run(work, data) -> GOMP_parallel -+- thread 0: work(data)   omp_get_thread_num() = 0
                                      +- thread 1: work(data)   omp_get_thread_num() = 1
                                      +- implicit barrier, then run returns

``data`` is a numpy record of int64 fields (``new_task``): addresses of tensors, sizes, and the
addresses of three OpenMP functions, so that compiled code can find out its thread index and wait at
a barrier (llvm.py: ``thread_index``, ``barrier_wait``) without linking against anything.

Starting a parallel region takes 2 us and a barrier 0.4 us on two cores, so a T3 step can afford
nine barriers per layer. Where PyTorch uses another OpenMP library (Windows, macOS), kernels could
only run in the calling thread, and are refused if PyTorch uses more than one (``selftest``).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatterbox_opt.errors import first_line

MAPS = "/proc/self/maps"  # the shared libraries of this process, on Linux


@dataclass(frozen=True, slots=True)
class OpenMPRuntime:
    """Addresses of C functions; 0 where there are none, and then everything runs in one thread.

    Attributes:
        parallel: void (*)(void (*work)(void *), void *data, unsigned threads, unsigned flags).
        thread_num: int (*)(void), index of the calling thread.
        num_threads: int (*)(void), number of threads in the parallel region.
        barrier: void (*)(void), returns when all threads have called it.
    """

    parallel: int = 0
    thread_num: int = 0
    num_threads: int = 0
    barrier: int = 0

    def run(self, work: int, data: int) -> None:
        """Call the C function at ``work`` with ``data`` in as many threads as PyTorch uses.

        The GIL is released meanwhile.
        """
        if self.parallel:
            _PARALLEL(self.parallel)(work, data, torch.get_num_threads(), 0)
        else:
            _WORK(work)(data)

    def new_task(self, kind: Any) -> Any:
        """A zeroed record [1] of dtype ``kind``, its OpenMP function addresses filled in."""
        task = np.zeros(1, kind)
        task["thread_num"], task["num_threads"] = self.thread_num, self.num_threads
        task["barrier"] = self.barrier
        return task


def set_pointers(task: Any, **tensors: Tensor) -> None:
    """Write tensors' addresses into a task; the tensors must outlive the call of the kernel."""
    for name, tensor in tensors.items():
        task[name] = tensor.data_ptr()


_PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def torch_openmp() -> OpenMPRuntime:
    """The GNU OpenMP library that PyTorch ships with and has loaded."""
    package = Path(torch.__file__).resolve().parent
    torch_folders = (f"{package}/", f"{package}.libs/")  # other packages load their own libgomp
    maps = Path(MAPS)
    lines = maps.read_text(errors="surrogateescape").splitlines() if maps.exists() else []
    loaded = {line.split(maxsplit=5)[-1] for line in lines}
    for path in sorted(p for p in loaded if "libgomp" in p and p.startswith(torch_folders)):
        library = ctypes.CDLL(path)
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
        return OpenMPRuntime(*(_address(library, name) for name in names))
    return OpenMPRuntime()


def _address(library: Any, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def selftest(check: Callable[[], str]) -> str:
    """Why compiled kernels cannot run here, or "".

    Args:
        check: imports kernels, runs small examples, and returns what is wrong, or "".
    """
    if not torch_openmp().parallel and torch.get_num_threads() > 1:
        return "PyTorch's threads cannot be used here (it does not use a libgomp of its own)"
    try:
        from numba.core.errors import NumbaError
    except (ImportError, OSError, AttributeError) as error:
        return f"numba cannot be loaded ({first_line(error)})"
    try:
        return check()
    except (NumbaError, ImportError, OSError, RuntimeError, AttributeError) as error:
        # RuntimeError: from LLVM, or no writable cache directory; OSError: disk full
        return f"numba cannot compile here ({first_line(error)})"


def avx512_selftest(check: Callable[[], str]) -> str:
    """``selftest`` of kernels that run on CPUs with AVX-512 only."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "this CPU has no AVX-512"
    return selftest(check)
