"""One decode step taken out of the loop: replayed, launched, timed, traced.

Knows slots in the middle of ten seconds of sound. Knows nothing of rows or tables.
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
from chatterbox_opt.engine.decode import DecodeBackend
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.model import T3

SPOKEN_SO_FAR, ROOM, KV_BLOCK = (
    250,
    900,
    1024,
)  # tokens, positions of the KV cache, multiple of a block
STEPS, TRACED = 20, 3


@dataclass(frozen=True, slots=True)
class OneStep:
    """A step of some requests, to be run as often as one likes.

    Attributes:
        name: for lines and traces.
        run: runs it once; it goes on from where the last one ended.
    """

    name: str
    run: Callable[[], None]
    slots: DecodeState
    count: int


def entered(engine: Engine, t3: T3, way: DecodeBackend, count: int, name: str) -> OneStep:
    """A step of ``count`` requests that have said 250 tokens each, warm."""
    slots = way.slots(t3, count, 2)
    asked = request(engine, 0, TEXTS[1], ROOM)
    with torch.inference_mode():
        for slot in range(count):
            slots.prefill(slot, asked, t3, way.prefill(t3), way.steps_per_sync)
            slots.position[slot] += SPOKEN_SO_FAR
            slots.cache.reserve(slot, ROOM)
    step = way.step(t3)

    def run() -> None:
        with torch.inference_mode():
            step(slots, count, KV_BLOCK, needs_sort=False)

    for _ in range(4):  # met, recorded, replayed
        run()
    return OneStep(name, run, slots, count)


def time_step(context: Context, step: OneStep) -> None:
    """Microseconds of a step on the device, by events around some, and of the host that asks."""
    device = torch.device(context.device)

    def some() -> None:
        for _ in range(STEPS):
            step.run()

    laps = [between_events(some, device) / STEPS for _ in range(6)][1:]
    told = {"step": step.name, "requests": step.count}
    context.put(STEP, told | {"us": spread(laps), "host_us": host_us(step.run, device, STEPS)})


def trace_step(context: Context, engine: Engine, t3: T3, step: OneStep) -> None:
    """Time by kernel, and by part against the bytes that each part must read."""
    positions = [int(place) for place in step.slots.position[: step.count].tolist()]
    kernels = traced(context, step.name, step.run, TRACED)
    parts = by_part(kernels, t3.config.layers, TRACED)
    if parts is None:
        context.put(TRAFFIC, {"step": step.name, "parts": None})
        return
    rows = [place for place in positions for _ in range(step.slots.rows_per_seq)]
    weights = 1 if engine.plan.t3.storage == "int8" else t3.dtype.itemsize
    keys = getattr(step.slots.cache, "keys", t3.like)
    needed = step_bytes(t3.config, weights, keys.element_size(), rows)
    found: dict[str, Any] = {}
    for part, us in parts.items():
        size = needed.get(part)
        rate = size / us / 1e3 if size and us else None
        found[part] = {"us": us, "bytes": size, "gb_per_second": rate}
    context.put(TRAFFIC, {"step": step.name, "requests": step.count, "parts": found})


def host_cost(context: Context, engine: Engine, t3: T3) -> None:
    """Microseconds of the host for what every step, or every look at the tokens, asks of it."""
    from chatterbox_opt.runtime.cuda_graphs import weight_addresses

    pipeline = pipeline_of(engine)
    slots = pipeline.backend.slots(t3, 1, 2)
    generator = torch.Generator(pipeline.device).manual_seed(0)
    asked = {
        "addresses of all weights": lambda: weight_addresses(t3),
        "noise of one request": lambda: slots.noise[0].exponential_(generator=generator),
        "state of a generator": generator.get_state,
        "latest tokens": lambda: slots.latest(1, 8),
    }
    for name, once in asked.items():
        context.put(HOST, {"what": name, "us": host_us(once, pipeline.device)})
