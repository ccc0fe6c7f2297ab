"""Launches the engine's Triton kernels without a GPU: they are compiled, and nothing runs.

Responsible for a driver that Triton takes for a GPU of any compute capability, and for what the
engine launches there: decode steps of T3 at its true shapes, the flow's attention and norms, and
the trial of both. Not responsible for what becomes of the compiled kernels (resources.py prints
them, compile_ahead.py packs them).

The launches go through the engine's own functions and Triton's own launch path, so what is
compiled is what a GPU's process will look for, specialized alike. Needs Triton 3.4 or newer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from chatterbox_opt.config.model_config import T3Config
from chatterbox_opt.kernels.cuda import decode_attention, decode_io, decode_linear, selftest
from chatterbox_opt.kernels.cuda import flow as flow_kernels
from chatterbox_opt.kernels.cuda import launch as kernel_launch
from chatterbox_opt.layers.linear_int import WeightOnlyInt8Linear
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.fused_step import FusedStep
from chatterbox_opt.models.t3.kv_cache import StaticKVCache
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.runtime import cuda
from chatterbox_opt.utils.skip_init import skip_init

POSITIONS = 512  # of the KV cache; any multiple of 16 gives the same kernels
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # utterances at once


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled kernel.

    Attributes:
        name: of its function.
        constants: the constexpr parameters.
        types: of the others, as Triton writes them ("*fp16", "i32").
        warps, stages, shared: threads / 32 of a program, software pipeline stages, bytes.
        files: by ending ("cubin", "ptx", "json").
        found: it was in Triton's cache.
    """

    name: str
    constants: dict[str, Any]
    types: dict[str, str]
    warps: int
    stages: int
    shared: int
    files: dict[str, Path]
    found: bool


@dataclass(slots=True)
class Compiled:
    """What was compiled, or found compiled, in the order of the launches."""

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
                {names[place[0]]: value for place, value in src.constants.items()},
                {name: kind for name, kind in src.signature.items() if kind != "constexpr"},
                metadata["num_warps"],
                metadata["num_stages"],
                metadata["shared"],
                files,
                cache_hit,
            )
        )


class _Utils:
    """Stands in for Triton's loader of machine code."""

    def load_binary(self, *_: object) -> tuple[int, ...]:
        return (0, 0, 0, 0, 1024)

    def get_device_properties(self, _: object) -> dict[str, int]:
        unknown = dict.fromkeys(("sm_clock_rate", "mem_clock_rate", "mem_bus_width"), 0)
        known = {"max_shared_mem": 232_448, "max_num_regs": 65_536, "warpSize": 32}
        return {**known, "multiprocessor_count": 132, **unknown}


class _NoLauncher:
    """Stands in for a launch."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> None:
        pass


class _Driver:
    """Stands in for Triton's CUDA driver; see ``triton.backends.driver.GPUDriver``."""

    launcher_cls = _NoLauncher

    def __init__(self, capability: int) -> None:
        self._capability, self.utils = capability, _Utils()

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # Triton keeps what it compiled by device

    def set_current_device(self, _: int) -> None:
        pass

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def gpu_of(capability: int, *, early: bool) -> Iterator[Compiled]:
    """Have Triton and the engine take the CPU's tensors for those of a GPU.

    Args:
        capability: 75 for compute capability 7.5, and so on.
        early: kernels are launched with programmatic dependent launch.

    Raises:
        RuntimeError: Triton is older than 3.4.
    """
    try:
        from triton import knobs
        from triton.runtime import driver
    except ImportError as error:
        raise RuntimeError("compiling without a GPU needs Triton 3.4 or newer") from error
    compiled = Compiled()
    options = kernel_launch.PDL_ON if early else kernel_launch.PDL_OFF
    with ExitStack() as stack:
        # not by reset_active: without a GPU there is no other driver to go back to
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
    whole: bool,
    narrow: bool,
    shape: T3Config | None = None,
) -> None:
    """One decode step of T3, two rows an utterance and, where one is alone, one row too.

    Args:
        dtype: of the arithmetic.
        counts: utterances at once.
        whole: int8 matrices.
        narrow: int8 keys and values.
        shape: of another model; one layer of it is as good as all.
    """
    with skip_init():
        t3 = T3(replace(shape or T3Config(), layers=1)).to(dtype)
    if whole:
        _quantize(t3)
    alone = [(1, 1)] if 1 in counts else []
    for rows_per_seq, count in [(2, count) for count in counts] + alone:
        kept = torch.int8 if narrow else None
        cache = StaticKVCache(
            num_seqs=count, rows_per_seq=rows_per_seq, shape=t3.kv_shape, like=t3.like, dtype=kept
        )
        cache.reserve(0, POSITIONS)
        FusedStep(t3)(DecodeState(t3, count, cache), count, POSITIONS, needs_sort=False)


def _quantize(t3: T3) -> None:
    """Give the blocks and the head int8 matrices, of any numbers."""
    for module in (*t3.blocks, t3):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name in ("qkv", "out", "gate_up", "down", "head"):
                rows, depth = child.weight.shape
                kept = {"weight-only": torch.empty(rows, depth, dtype=torch.int8),
                        "scales": torch.empty(rows)}  # fmt: skip
                setattr(module, name, WeightOnlyInt8Linear.from_state_tensors(kept))


def trials(dtype: torch.dtype, stages: Sequence[str] = ("t3", "flow")) -> None:
    """What is tried at a GPU's first start, see selftest.py; what it finds is no matter."""

    def alike(*_: Tensor) -> bool:
        return True

    with mock.patch.object(selftest, "_alike", alike):
        for stage in stages:
            selftest.kernels_are_correct(stage, torch.device("cpu"), dtype)


def flow(dtype: torch.dtype) -> None:
    """Attention over frames, padded and not, and norms, as the flow's estimator has them."""
    q, k, v = torch.empty(2, 1024, 3, 8, 64, dtype=dtype).transpose(1, 3).unbind(2)
    x, weight = torch.empty(2, 1024, 256, dtype=dtype), torch.empty(256, dtype=dtype)
    for lengths in (torch.ones(2, dtype=torch.int32), None):
        flow_kernels.attention(q, k, v, lengths)
    for more, mish in ((x, False), (None, True), (None, False)):
        flow_kernels.layer_norm(x, weight, weight, 1e-5, more, mish=mish)
