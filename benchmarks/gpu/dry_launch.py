"""Launches the Triton kernels without a GPU: they are compiled, and nothing runs.

Responsible for a fake Triton driver of any compute capability, and for launching what the engine
does: decode steps of T3 at full size, the flow's attention and norms, and the self-test of both.
Not responsible for the use of the compiled kernels (resources.py prints them, compile_ahead.py
packs them).

The launches go through the engine's own functions and Triton's own launch path, so they are
specialized as in a process with a GPU, and found in its cache. Needs Triton 3.4 or newer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.kernels.cuda import decode_attention, decode_io, decode_linear, selftest
from chatterbox_opt.kernels.cuda import flow as flow_kernels
from chatterbox_opt.kernels.cuda import launch as kernel_launch
from chatterbox_opt.layers.linear_int import WeightOnlyInt8Linear
from chatterbox_opt.models.t3.convert import make_t3
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.fused_step import FusedStep
from chatterbox_opt.models.t3.kv_cache import StaticKVCache
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.runtime import cuda
from chatterbox_opt.utils.skip_init import skip_init

POSITIONS = 512  # of the KV cache; any multiple of 16 gives the same kernels
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # batch sizes in sequences


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled kernel.

    Attributes:
        name: of its function.
        constants: the constexpr parameters.
        types: of the others, as Triton writes them ("*fp16", "i32").
        warps, stages, shared: warps of a program, software pipeline stages, bytes of shared memory.
        files: by suffix ("cubin", "ptx", "json").
        cached: it was in Triton's cache.
    """

    name: str
    constants: dict[str, Any]
    types: dict[str, str]
    warps: int
    stages: int
    shared: int
    files: dict[str, Path]
    cached: bool


@dataclass(slots=True)
class Compiled:
    """What was compiled, or taken from Triton's cache, in the order of the launches."""

    kernels: list[Kernel] = field(default_factory=list)

    def note(
        self, *, src: Any, metadata: Any, metadata_group: Any, cache_hit: bool, **_: Any
    ) -> None:
        """Triton's compilation listener."""
        names = src.fn.arg_names
        files = {Path(name).suffix[1:]: Path(path) for name, path in metadata_group.items()}
        self.kernels.append(
            Kernel(
                metadata["name"],
                {names[path[0]]: value for path, value in src.constants.items()},
                {name: kind for name, kind in src.signature.items() if kind != "constexpr"},
                metadata["num_warps"],
                metadata["num_stages"],
                metadata["shared"],
                files,
                cache_hit,
            )
        )


class _Utils:
    """Fake of Triton's loader of machine code."""

    def load_binary(self, *_: object) -> tuple[int, ...]:
        return (0, 0, 0, 0, 1024)

    def get_device_properties(self, _: object) -> dict[str, int]:
        unknown = dict.fromkeys(("sm_clock_rate", "mem_clock_rate", "mem_bus_width"), 0)
        known = {"max_shared_mem": 232_448, "max_num_regs": 65_536, "warpSize": 32}
        return {**known, "multiprocessor_count": 132, **unknown}


class _NoLauncher:
    """Fake of a launch."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> None:
        pass


class _Driver:
    """Fake of Triton's CUDA driver; see ``triton.backends.driver.GPUDriver``."""

    launcher_cls = _NoLauncher

    def __init__(self, capability: int) -> None:
        self._capability, self.utils = capability, _Utils()

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # Triton's in-memory cache is keyed by device

    def set_current_device(self, _: int) -> None:
        pass

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def fake_gpu(capability: int, *, pdl: bool) -> Iterator[Compiled]:
    """Make Triton and the engine treat CPU tensors as those of a GPU.

    Args:
        capability: 75 for compute capability 7.5, and so on.
        pdl: kernels are launched with programmatic dependent launch.

    Raises:
        RuntimeError: Triton is older than 3.4.
    """
    try:
        from triton import knobs
        from triton.runtime import driver
    except ImportError as error:
        raise RuntimeError("compiling without a GPU needs Triton 3.4 or newer") from error
    compiled = Compiled()
    options = kernel_launch.PDL_ON if pdl else kernel_launch.PDL_OFF
    with ExitStack() as stack:
        # not with reset_active: without a GPU there is no other driver to return to
        stack.enter_context(mock.patch.object(driver, "_active", _Driver(capability)))
        stack.enter_context(mock.patch.object(knobs.compilation, "listener", compiled.note))
        stack.enter_context(mock.patch.object(cuda, "capability_major", lambda _: capability // 10))
        for module in (decode_linear, decode_attention, decode_io):
            stack.enter_context(mock.patch.object(module, "pdl_options", lambda _: options))
        yield compiled


def decode_steps(
    dtype: torch.dtype,
    counts: Sequence[int],
    *,
    int8: bool,
    kv_int8: bool,
    shape: T3Config | None = None,
) -> None:
    """One decode step of T3: two rows a sequence, and also one row for a single sequence. GPT-2's
    sequences have one row.

    Args:
        dtype: of the arithmetic.
        counts: batch sizes in sequences.
        int8: int8 matrices.
        kv_int8: int8 keys and values.
        shape: of another model; one layer is enough, they are alike.
    """
    with skip_init():
        t3 = make_t3(replace(shape or T3Config(), layers=1)).to(dtype)
    if int8:
        _quantize(t3)
    one_row = [(1, 1)] if 1 in counts else []
    rows = t3.config.rows_per_seq
    for rows_per_seq, count in [(rows, count) for count in counts] + one_row:
        kv_dtype = torch.int8 if kv_int8 else None
        cache = StaticKVCache(
            num_seqs=count,
            rows_per_seq=rows_per_seq,
            shape=t3.kv_shape,
            like=t3.like,
            dtype=kv_dtype,
        )
        cache.reserve(0, POSITIONS)
        FusedStep(t3)(DecodeState(t3, count, cache), count, POSITIONS, needs_sort=False)


def _quantize(t3: T3) -> None:
    """Replace the matrices of the blocks and the head by int8 ones with arbitrary values."""
    for path in t3.matrices:
        parent, _, name = path.rpartition(".")
        linear = cast(nn.Linear, t3.get_submodule(path))
        rows, depth = linear.weight.shape
        state = {"weight-only": torch.empty(rows, depth, dtype=torch.int8),
                "scales": torch.empty(rows)}  # fmt: skip
        state |= {} if linear.bias is None else {"bias": linear.bias}
        int8 = WeightOnlyInt8Linear.from_state_tensors(state)
        setattr(t3.get_submodule(parent), name, int8)


def selftests(dtype: torch.dtype, stages: Sequence[str] = ("t3", "flow")) -> None:
    """The self-test at an engine's first start (selftest.py); its result is ignored."""

    def close(*_: Tensor) -> bool:
        return True

    with mock.patch.object(selftest, "_close", close):
        for stage in stages:
            selftest.kernels_are_correct(stage, torch.device("cpu"), dtype)


def flow(dtype: torch.dtype) -> None:
    """Attention over frames, padded and not, and norms, as in the flow's estimator."""
    q, k, v = torch.empty(2, 1024, 3, 8, 64, dtype=dtype).transpose(1, 3).unbind(2)
    x, weight = torch.empty(2, 1024, 256, dtype=dtype), torch.empty(256, dtype=dtype)
    for lengths in (torch.ones(2, dtype=torch.int32), None):
        flow_kernels.attention(q, k, v, lengths)
    for residual, mish in ((x, False), (None, True), (None, False)):
        flow_kernels.layer_norm(x, weight, weight, 1e-5, residual, mish=mish)
