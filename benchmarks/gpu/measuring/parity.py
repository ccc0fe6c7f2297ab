"""Whether it is right: what is replayed against what is launched, what leaks, what drifts.

Knows how outputs are compared. Each function gives plain data with "good". Knows nothing of files
or of when a check is made (stages/checks.py).
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
    generator_on,
    launched,
    on_device,
    pipeline_of,
    recorded,
    requests,
    sound_made_by,
)
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.bench.backends import StageTimer, forced_tokens
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.decode import DecodeBackend, EagerBackend, decode
from chatterbox_opt.engine.decode_graphs import CudaGraphBackend
from chatterbox_opt.engine.overlap import InlineRenderer, Renderer
from chatterbox_opt.models.t3.decode_state import DecodeRequest
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.request import Wave
from chatterbox_opt.runtime.cuda import GraphCapturer

DRIFT = 1.2  # the last tenth may take so much more time than the second
LEAST_LEAK = 1 << 20  # bytes that may have come to stay
LIBRARIES = 64 << 20  # bytes that libraries may keep as long as the process lives
SOUND_SECONDS = 3.1  # no bucket's edge: there is padding
SHARE = 1e-2  # of what the watermark adds, that a GPU's may be off
CLOSE = 1e-3  # float32, padded and replayed against launched: mels, and waves of one mel


def tokens_of(
    t3: T3, steps: DecodeBackend, asked: list[DecodeRequest], slots: int
) -> list[tuple[int, ...]]:
    """Tokens of each request, in their order."""
    left = iter(asked)
    decoded = decode(t3, steps.slots(t3, slots, 2), lambda: next(left, None), steps)
    found = {one.sequence: one for one in decoded}
    return [found[one].tokens for one in asked]


def token_parity(
    engine: Engine, steps: DecodeBackend, plain: DecodeBackend, slots: int, count: int, tokens: int
) -> dict[str, Any]:
    """Steps of two modes, ``slots`` at once: exact, whatever the knobs."""
    with on_device(engine, "t3") as t3:
        expected, found = (
            tokens_of(t3, way, requests(engine, count, tokens), slots) for way in (plain, steps)
        )
    return {
        "equal": sum(a == b for a, b in zip(expected, found, strict=True)),
        "of": count,
        "tokens": sum(map(len, expected)),
        "good": expected == found,
    }


def pytorch_parity(
    engine: Engine, steps: DecodeBackend, slots: int, count: int, tokens: int
) -> dict[str, Any]:
    """Steps by kernels of our own against PyTorch's operations; good in float32 only if equal, for
    narrower numbers are rounded elsewhere."""
    found = token_parity(engine, steps, EagerBackend(), slots, count, tokens)
    equal = found["good"]
    return found | {"equal all": equal, "good": equal or engine.plan.t3.storage != "float32"}


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Have cuDNN multiply all 24 bits, where by default it takes 11 of them (TF32): another
    algorithm would be another sound."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def sound_parity(engine: Engine, seconds: float = SOUND_SECONDS) -> dict[str, Any]:
    """Flow and vocoder replayed against launched: the largest difference of the flow's mel, and of
    the wave of one mel."""
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
        with launched(engine):
            plain_mel = mel()
            plain_wave = wave(plain_mel)
        mels = max((mel() - plain_mel).abs().max().item() for _ in range(3))
        waves = max((wave(plain_mel) - plain_wave).abs().max().item() for _ in range(3))
    exact = engine.plan.flow.storage == "float32"
    return {"mel": mels, "wave": waves, "good": waves < CLOSE and (mels < CLOSE or not exact)}


def beside_parity(engine: Engine, lines: int) -> dict[str, Any]:
    """Waves made beside T3 against those made in turn, bit by bit; and whether what was recorded
    beside it went well."""
    batch.never_stop(engine)
    asked = [
        replace(one, sampling=replace(one.sampling, max_tokens=20 + i % 50, cfm_steps=4 + i % 2))
        for i, one in enumerate(batch.requests(lines))
    ]

    def waves(sound: Renderer) -> dict[str, Wave]:
        with sound_made_by(engine, sound):
            return {result.id: result.audio().samples for result in engine.batch(asked)}

    pipeline = pipeline_of(engine)
    planned, steps = pipeline.renderer, pipeline.backend
    for _ in range(2):  # met, recorded
        waves(planned)
    here, *others = waves(InlineRenderer()), waves(planned), waves(InlineRenderer()), waves(planned)
    equal = sum(all(np.array_equal(one[id], here[id]) for id in here) for one in others)
    kept = pipeline.backend is steps and not getattr(planned, "disabled", False)
    kept &= all(recorded(engine, steps).values())
    return {"equal": equal, "of": len(others), "kept": kept, "good": kept and equal == len(others)}


def watermark_parity(engine: Engine, seconds: float = 3.0) -> dict[str, Any]:
    """The GPU's watermark against the CPU's: the largest difference of a wave, and seconds of
    both. A GPU's convolutions may take 11 of float32's 24 bits (TF32)."""
    mark = engine._watermark
    if mark is None or mark._gpu is None:
        return {"here": False, "good": True}
    drawn = np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE))
    wave = (0.1 * drawn).astype(np.float32)
    laps = []
    for _ in range(3):
        start = time.perf_counter()
        there = mark.apply(wave)
        laps.append(time.perf_counter() - start)
    plain, start = Watermark(), time.perf_counter()
    expected = plain.apply(wave)
    cpu = time.perf_counter() - start
    difference = float(np.abs(there - expected).max())
    added = float(np.abs(expected - wave[: len(expected)]).max())
    times = {"gpu_seconds": laps[-1], "cpu_seconds": cpu}
    found = {"here": True, "difference": difference, "added": added, **times}
    return found | {"good": difference < SHARE * added}


def early_parity(engine: Engine, t3: T3, count: int, tokens: int) -> dict[str, Any]:
    """Kernels that begin while the one before them works (programmatic dependent launch) against
    none that do: the same tokens, and how many a second, one request at a time."""
    from chatterbox_opt.kernels.cuda import (
        launch as kernel_launch,  # imports Triton, which is not everywhere
    )

    device, usual = (
        t3.like.device,
        cast(Callable[[torch.device], bool], kernel_launch.pdl_supported),
    )
    if not usual(device):
        return {"here": False, "good": True}
    found: dict[str, Any] = {"here": True}
    every = []
    try:
        for name, early in (("early", usual), ("in turn", lambda _: False)):
            kernel_launch.pdl_supported = early  # type: ignore[assignment] # a cached function, or another
            steps = CudaGraphBackend(GraphCapturer(device), fused=True)
            for _ in range(3):  # met, recorded, replayed; the last counts
                asked, clock = requests(engine, count, tokens), StageTimer(device)
                every.append(tokens_of(t3, steps, asked, 1))
                clock.lap("seconds")
            rate = sum(map(len, every[-1])) / clock.seconds["seconds"]
            found[f"{name}, tokens/s"] = rate
    finally:
        kernel_launch.pdl_supported = usual  # type: ignore[assignment]
    return found | {"good": all(one == every[0] for one in every)}


def drift(engine: Engine, count: int, tokens: int) -> dict[str, Any]:
    """Many short requests: memory and time of the second and last tenth."""
    tenth, times, held = count // 10, [], []
    for i in range(count):
        start = time.perf_counter()
        engine.synthesize(TEXTS[i % 4], None, Sampling(seed=i, max_tokens=tokens + i % 7))
        times.append(time.perf_counter() - start)
        held.append(allocated())
    grown = held[-1] - max(held[: 2 * tenth])
    first, last = sum(times[tenth : 2 * tenth]), sum(times[-tenth:])
    return {
        "requests": count,
        "grown_mib": grown / 2**20,
        "last_tenth_over_second": last / first,
        "good": grown <= LEAST_LEAK and last <= DRIFT * first,
    }


def closed(before: int, clear: Callable[[], None] | None = None) -> dict[str, Any]:
    """Whether closed engines have left memory behind.

    Args:
        before: bytes of tensors before they were loaded.
        clear: frees what libraries keep, see ``clear_workspaces``.
    """
    gc.collect()
    kept = allocated()
    (clear or clear_workspaces)()
    left = allocated() - before
    libraries = (kept - before - left) / 2**20
    return {"left_mib": left / 2**20, "libraries_mib": libraries, "good": left <= LIBRARIES}


def clear_workspaces() -> None:
    """Free cuBLAS's workspaces: 32 MiB on Hopper for each stream that it was ever used on."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()
