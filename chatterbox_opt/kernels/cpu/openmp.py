"""PyTorch's own threads, lent to compiled code of ours (compiled_*.py).

Knows OpenMP's entry points inside the library that PyTorch has loaded. Knows nothing of the work.

A second team of threads in the process would fight the first for the cores: either one spins for a
while when it has nothing to do. So there is only one. Starting it takes 2 us and waiting for each
other 0.4 us on two cores. Where PyTorch's library is another one (Windows, macOS), work of ours
could only be done by the thread that asks for it, and is refused if PyTorch has more (``selftest``).
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

MAPS = "/proc/self/maps"  # what is loaded into this process, on Linux


@dataclass(frozen=True, slots=True)
class OpenMPRuntime:
    """Addresses of C functions; 0 where there are none, and then one thread does it all.

    Attributes:
        parallel: void (*)(void (*work)(void *), void *data, unsigned threads, unsigned flags).
        number: int (*)(void), which of the team's threads asks.
        size: int (*)(void), how many they are.
        barrier: void (*)(void), waits until all of them are there.
    """

    parallel: int = 0
    number: int = 0
    size: int = 0
    barrier: int = 0

    def run(self, work: int, data: int) -> None:
        """Call the C function at ``work`` with ``data`` in as many threads as PyTorch uses.

        The interpreter's lock is free meanwhile.
        """
        if self.parallel:
            _PARALLEL(self.parallel)(work, data, torch.get_num_threads(), 0)
        else:
            _WORK(work)(data)

    def task(self, kind: Any) -> Any:
        """A record [1] of a compiled_*.py, zeros but for what its threads ask each other with."""
        made = np.zeros(1, kind)
        made["number"], made["size"], made["barrier"] = self.number, self.size, self.barrier
        return made


def set_pointers(task: Any, **tensors: Tensor) -> None:
    """Write where tensors lie; they have to live until the work is done."""
    for name, tensor in tensors.items():
        task[name] = tensor.data_ptr()


_PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def torch_openmp() -> OpenMPRuntime:
    """The team of the GNU OpenMP library that PyTorch brings."""
    package = Path(torch.__file__).resolve().parent
    inside = (f"{package}/", f"{package}.libs/")  # others bring their own
    maps = Path(MAPS)
    lines = maps.read_text(errors="surrogateescape").splitlines() if maps.exists() else []
    loaded = {line.split(maxsplit=5)[-1] for line in lines}
    for path in sorted(p for p in loaded if "libgomp" in p and p.startswith(inside)):
        library = ctypes.CDLL(path)
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
        return OpenMPRuntime(*(_address(library, name) for name in names))
    return OpenMPRuntime()


def _address(library: Any, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def selftest(work: Callable[[], str]) -> str:
    """Try code of ours: why it cannot serve here, or "".

    Args:
        work: imports it, runs a little of it, and says what is wrong.
    """
    if not torch_openmp().parallel and torch.get_num_threads() > 1:
        return "PyTorch's threads cannot be lent here (no libgomp of its own)"
    try:
        from numba.core.errors import NumbaError
    except (ImportError, OSError, AttributeError) as error:
        return f"numba cannot be loaded ({first_line(error)})"
    try:
        return work()
    except (NumbaError, ImportError, OSError, RuntimeError, AttributeError) as error:
        # RuntimeError: LLVM's, or nowhere to keep what is compiled; OSError: a full disk
        return f"numba cannot compile here ({first_line(error)})"
