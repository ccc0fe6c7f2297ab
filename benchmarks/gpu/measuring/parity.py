"""Correctness checks: CUDA graphs against eager execution, memory leaks, slowdown over time.

Responsible for comparing outputs. Each function returns plain data with "good". Not responsible for
files or for when a check runs (stages/checks.py).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from benchmarks import batch
from benchmarks.gpu.measuring.clocks import allocated
from benchmarks.gpu.measuring.engines import (
    TEXTS,
    eager_rendering,
    generator_on,
    graphs_intact,
    on_device,
    pipeline_of,
    rendered_by,
    requests,
)
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.bench.timing import StageTimer, forced_tokens
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.config.plan import OVERLAPPED
from chatterbox_opt.engine.decoding.decode import DecodeBackend, EagerBackend, decode
from chatterbox_opt.engine.decoding.decode_graphs import CudaGraphBackend
from chatterbox_opt.engine.rendering.renderer import Renderer
from chatterbox_opt.engine.sequence import Sequence
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.runtime.cuda import GraphCapturer
from chatterbox_opt.utils.wave import Wave

MAX_SLOWDOWN = 1.2  # maximum time of the last tenth of requests relative to the second tenth
MAX_GROWTH = 1 << 20  # bytes by which allocated memory may have grown
MAX_LIBRARY_BYTES = 64 << 20  # that libraries may keep until the process ends
AUDIO_SECONDS = 3.1  # between two buckets, so that inputs are padded
MAX_WATERMARK_ERROR = 1e-2  # relative to what the watermark adds
MAX_ERROR = 1e-3  # float32, padded in CUDA graphs against eager: mels, and waves of one mel


def tokens_of(
    t3: T3, steps: DecodeBackend, requested: list[Sequence], slots: int
) -> list[list[int]]:
    """Tokens of each request, in order."""
    for _ in decode(t3, steps.slots(t3, slots, 2), requested, steps):
        pass
    return [sequence.tokens for sequence in requested]


def token_parity(
    engine: Engine,
    steps: DecodeBackend,
    reference: DecodeBackend,
    slots: int,
    count: int,
    tokens: int,
) -> dict[str, Any]:
    """Tokens of two backends with ``slots`` slots: equal, whatever the sampling parameters."""
    with on_device(engine, "t3") as t3:
        expected, actual = (
            tokens_of(t3, backend, requests(engine, count, tokens), slots)
            for backend in (reference, steps)
        )
    return {
        "equal": sum(a == b for a, b in zip(expected, actual, strict=True)),
        "of": count,
        "tokens": sum(map(len, expected)),
        "good": expected == actual,
    }


def pytorch_parity(
    engine: Engine, steps: DecodeBackend, slots: int, count: int, tokens: int
) -> dict[str, Any]:
    """Tokens with Triton kernels against PyTorch's operations; must be equal only in float32,
    because lower precisions round at other points."""
    result = token_parity(engine, steps, EagerBackend(), slots, count, tokens)
    equal = result["good"]
    return result | {"equal all": equal, "good": equal or engine.plan.t3.storage != "float32"}


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Make cuDNN use full float32, where by default it uses TF32 (11 of 24 bits): with TF32,
    another algorithm would give a different waveform."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def rendering_parity(engine: Engine, seconds: float = AUDIO_SECONDS) -> dict[str, Any]:
    """Flow and vocoder in CUDA graphs against eager: the largest difference of the flow's mel, and
    of the wave of one mel."""
    pipeline = pipeline_of(engine)
    device, voice = pipeline.device, engine.voice().to(pipeline.device)
    tokens = torch.tensor(forced_tokens(seconds), device=device)

    def mel() -> torch.Tensor:
        with on_device(engine, "flow") as flow:
            return cast(torch.Tensor, flow([tokens], [voice], [generator_on(device)])[0])

    def wave(mel: torch.Tensor) -> torch.Tensor:
        with on_device(engine, "vocoder") as vocoder:
            return cast(torch.Tensor, vocoder([mel], [generator_on(device)])[0])

    with float32_convolutions():
        with eager_rendering(engine):
            plain_mel = mel()
            plain_wave = wave(plain_mel)
        mels = max((mel() - plain_mel).abs().max().item() for _ in range(3))
        waves = max((wave(plain_mel) - plain_wave).abs().max().item() for _ in range(3))
    exact = engine.plan.flow.storage == "float32"
    return {
        "mel": mels,
        "wave": waves,
        "good": waves < MAX_ERROR and (mels < MAX_ERROR or not exact),
    }


def overlap_parity(engine: Engine, count: int) -> dict[str, Any]:
    """Waves rendered overlapped with T3 against those rendered inline, bit by bit; and whether the
    captures during the overlap succeeded."""
    batch.never_stop(engine)
    requested = [
        replace(one, sampling=replace(one.sampling, max_tokens=20 + i % 50, cfm_steps=4 + i % 2))
        for i, one in enumerate(batch.requests(count))
    ]

    def waves(renderer: Renderer) -> dict[str, Wave]:
        with rendered_by(engine, renderer):
            return {result.id: result.audio().samples for result in engine.batch(requested)}

    pipeline = pipeline_of(engine)
    planned, steps = pipeline.renderer, pipeline.decoder.backend
    for _ in range(2):  # eager first, then captured
        waves(planned)
    plain = Renderer(pipeline.recovery)
    inline, *others = (waves(renderer) for renderer in (plain, planned, plain, planned))
    equal = sum(all(np.array_equal(one[id], inline[id]) for id in inline) for one in others)
    overlapped = engine.plan.rendering == OVERLAPPED
    intact = pipeline.decoder.backend is steps and planned.overlaps == overlapped
    intact &= all(graphs_intact(engine, steps).values())
    return {
        "equal": equal,
        "of": len(others),
        "intact": intact,
        "good": intact and equal == len(others),
    }


def watermark_parity(engine: Engine, seconds: float = 3.0) -> dict[str, Any]:
    """The GPU's watermark against the CPU's: the largest difference of a wave, and seconds of
    both. A GPU's convolutions may use TF32, 11 of float32's 24 bits."""
    mark = engine._watermark
    if mark is None or mark._gpu is None:
        return {"available": False, "good": True}
    noise = np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE))
    wave = (0.1 * noise).astype(np.float32)
    laps = []
    for _ in range(3):
        start = time.perf_counter()
        on_gpu = mark.apply(wave)
        laps.append(time.perf_counter() - start)
    reference, start = Watermark(), time.perf_counter()
    expected = reference.apply(wave)
    cpu_seconds = time.perf_counter() - start
    difference = float(np.abs(on_gpu - expected).max())
    added = float(np.abs(expected - wave[: len(expected)]).max())
    times = {"gpu_seconds": laps[-1], "cpu_seconds": cpu_seconds}
    result = {"available": True, "difference": difference, "added": added, **times}
    return result | {"good": difference < MAX_WATERMARK_ERROR * added}


def pdl_parity(engine: Engine, t3: T3, count: int, tokens: int) -> dict[str, Any]:
    """Programmatic dependent launch on against off: tokens, which must be equal, and tokens per
    second, one request at a time."""
    from chatterbox_opt.kernels.cuda import (
        launch as kernel_launch,  # needs Triton
    )

    device, supported = (
        t3.like.device,
        cast(Callable[[torch.device], bool], kernel_launch.pdl_supported),
    )
    if not supported(device):
        return {"available": False, "good": True}
    result: dict[str, Any] = {"available": True}
    all_tokens = []
    try:
        for name, pdl in (("PDL", supported), ("no PDL", lambda _: False)):
            kernel_launch.pdl_supported = pdl  # type: ignore[assignment]
            steps = CudaGraphBackend(GraphCapturer(device), fused=True)
            for _ in range(3):  # eager, captured, replayed; the last one counts
                requested, clock = requests(engine, count, tokens), StageTimer(device)
                all_tokens.append(tokens_of(t3, steps, requested, 1))
                clock.lap("seconds")
            rate = sum(map(len, all_tokens[-1])) / clock.seconds["seconds"]
            result[f"{name}, tokens/s"] = rate
    finally:
        kernel_launch.pdl_supported = supported  # type: ignore[assignment]
    return result | {"good": all(one == all_tokens[0] for one in all_tokens)}


def drift(engine: Engine, count: int, tokens: int) -> dict[str, Any]:
    """Many short requests: growth of memory, and time of the last tenth relative to the second."""
    tenth, times, allocated_bytes = count // 10, [], []
    for i in range(count):
        start = time.perf_counter()
        engine.synthesize(TEXTS[i % 4], None, Sampling(seed=i, max_tokens=tokens + i % 7))
        times.append(time.perf_counter() - start)
        allocated_bytes.append(allocated())
    growth = allocated_bytes[-1] - max(allocated_bytes[: 2 * tenth])
    first, last = sum(times[tenth : 2 * tenth]), sum(times[-tenth:])
    return {
        "requests": count,
        "grown_mib": growth / 2**20,
        "last_tenth_over_second": last / first,
        "good": growth <= MAX_GROWTH and last <= MAX_SLOWDOWN * first,
    }


def memory_after_close(before: int, clear: Callable[[], None] | None = None) -> dict[str, Any]:
    """Whether closed engines have leaked memory.

    Args:
        before: allocated bytes before they were loaded.
        clear: frees what libraries cache, see ``clear_workspaces``.
    """
    gc.collect()
    retained = allocated()
    (clear or clear_workspaces)()
    leaked = allocated() - before
    libraries = (retained - before - leaked) / 2**20
    return {
        "left_mib": leaked / 2**20,
        "libraries_mib": libraries,
        "good": leaked <= MAX_LIBRARY_BYTES,
    }


def clear_workspaces() -> None:
    """Free cuBLAS's workspaces: 32 MiB on Hopper for each stream that it has used."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()
