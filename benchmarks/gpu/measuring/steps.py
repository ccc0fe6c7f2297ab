"""A single decode step outside of the decode loop: timed and traced in any backend.

Responsible for slots in the middle of ten seconds of audio. Not responsible for rows or tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.kinds import HOST, STEP, TRAFFIC
from benchmarks.gpu.measuring.clocks import between_events, host_us, spread
from benchmarks.gpu.measuring.engines import TEXTS, pipeline_of, request
from benchmarks.gpu.measuring.tracing import traced
from benchmarks.gpu.measuring.traffic import by_part, step_bytes
from chatterbox_opt import Engine
from chatterbox_opt.engine.decoding.decode import DecodeBackend
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.model import T3

GENERATED, CAPACITY, KV_LEN = 250, 900, 1024  # tokens; positions; kv_len, a multiple of a bucket
STEPS, TRACED = 20, 3


@dataclass(frozen=True, slots=True)
class OneStep:
    """A decode step of a batch that can be run repeatedly.

    Attributes:
        name: in lines and traces.
        run: runs it once, continuing after the previous one.
    """

    name: str
    run: Callable[[], None]
    slots: DecodeState
    count: int


def prefilled_step(
    engine: Engine, t3: T3, backend: DecodeBackend, count: int, name: str
) -> OneStep:
    """A step of ``count`` requests with 250 generated tokens each, after warm-up."""
    slots = backend.slots(t3, count, t3.config.rows_per_seq)
    sequence = request(engine, 0, TEXTS[1], CAPACITY)
    assert sequence.prompt is not None
    prefill, ahead = backend.prefill(t3), backend.steps_per_sync
    with torch.inference_mode():
        for slot in range(count):
            slots.prefill(slot, sequence.prompt, sequence.sampling, t3, prefill, ahead)
            slots.position[slot] += GENERATED
            slots.cache.reserve(slot, CAPACITY)
    step = backend.step(t3)

    def run() -> None:
        with torch.inference_mode():
            step(slots, count, KV_LEN, needs_sort=False)

    for _ in range(4):  # eager, captured, replayed
        run()
    return OneStep(name, run, slots, count)


def time_step(context: Context, step: OneStep) -> None:
    """Microseconds of a step on the device (events around several) and of its launch."""
    device = torch.device(context.device)

    def some() -> None:
        for _ in range(STEPS):
            step.run()

    laps = [between_events(some, device) / STEPS for _ in range(6)][1:]
    line = {"step": step.name, "requests": step.count}
    context.put(STEP, line | {"us": spread(laps), "host_us": host_us(step.run, device, STEPS)})


def trace_step(context: Context, engine: Engine, t3: T3, step: OneStep) -> None:
    """Time by kernel, and by part with the bytes that each part must read."""
    positions = [int(position) for position in step.slots.position[: step.count].tolist()]
    kernels = traced(context, step.name, step.run, TRACED)
    parts = by_part(kernels, t3.config.layers, TRACED)
    if parts is None:
        context.put(TRAFFIC, {"step": step.name, "parts": None})
        return
    rows = [position for position in positions for _ in range(step.slots.rows_per_seq)]
    weights = 1 if engine.plan.t3.storage == "int8" else t3.dtype.itemsize
    keys = getattr(step.slots.cache, "keys", t3.like)
    needed = step_bytes(t3.config, weights, keys.element_size(), rows)
    figures: dict[str, Any] = {}
    for part, us in parts.items():
        size = needed.get(part)
        rate = size / us / 1e3 if size and us else None
        figures[part] = {"us": us, "bytes": size, "gb_per_second": rate}
    context.put(TRAFFIC, {"step": step.name, "requests": step.count, "parts": figures})


def host_cost(context: Context, engine: Engine, t3: T3) -> None:
    """Microseconds of the host's work for every step, or every readback of tokens."""
    from chatterbox_opt.runtime.cuda_graphs import weight_addresses

    pipeline = pipeline_of(engine)
    slots = pipeline.decoder.backend.slots(t3, 1, t3.config.rows_per_seq)
    generator = torch.Generator(pipeline.device).manual_seed(0)
    work_items = {
        "addresses of all weights": lambda: weight_addresses(t3),
        "noise of one request": lambda: slots.noise[0].exponential_(generator=generator),
        "state of a generator": generator.get_state,
        "latest tokens": lambda: slots.latest(1, 8),
    }
    for name, once in work_items.items():
        context.put(HOST, {"what": name, "us": host_us(once, pipeline.device)})
