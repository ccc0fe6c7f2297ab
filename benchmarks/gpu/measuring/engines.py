"""The engine as a benchmark wants it: loaded with a note, taken apart, given requests.

Knows where the engine keeps its stages and how they are run. Knows nothing of clocks or checks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.kinds import CHECK, LOADED
from benchmarks.gpu.measuring.clocks import fresh_memory, vram
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.config.plan import INLINE
from chatterbox_opt.engine.decode import DecodeBackend
from chatterbox_opt.engine.overlap import InlineRenderer, Renderer
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.t3_runner import text_tokens
from chatterbox_opt.models.t3.decode_state import DecodeRequest
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.runtime.bucketing import EagerExecutor
from chatterbox_opt.runtime.offload import StagePlacement

TEXTS = ("hello.", "a much longer sentence, with a comma in it.", "one two three four.", "no!")
SOUND_STAGES = ("flow", "vocoder")


def load(context: Context, overrides: Mapping[str, str]) -> Engine:
    """Load an engine that records CUDA graphs, and note how.

    Args:
        overrides: as for ``Engine.load``.

    Raises:
        ChatterboxOptError: as ``Engine.load``.
    """
    fresh_memory()
    start = time.perf_counter()
    engine = recording(context.model, context.device, **overrides)
    plan = engine.plan
    context.put(
        LOADED,
        {
            "overrides": dict(overrides),
            "dtype": plan.t3.storage,
            "seconds": time.perf_counter() - start,
            "plan": plan.summary(),
            "fused": plan.triton_stages,
            "slots": plan.slots,
            "sound": plan.rendering,
            "reasons": plan.reasons,
        }
        | vram(),
    )
    context.put(
        CHECK, {"name": f"own kernels, {plan.t3.storage}", "good": "t3" in plan.triton_stages}
    )
    return engine


def recording(model: str, device: str, **overrides: str) -> Engine:
    """An engine that records CUDA graphs."""
    return Engine.load(model, "dev", device=device, overrides={"compile": "cudagraphs"} | overrides)


def pipeline_of(engine: Engine) -> Pipeline:
    """The engine's own stages."""
    return cast(Pipeline, engine.pipeline)


@contextmanager
def on_device(engine: Engine, stage: str) -> Iterator[Any]:
    """A stage's module, on the device."""
    placement: StagePlacement = pipeline_of(engine).placement
    with placement(stage) as module:
        yield module


def recorded(engine: Engine, steps: DecodeBackend) -> dict[str, bool]:
    """Whether each stage is still replayed: a capture that fails has it launched from then on, with
    no more than a warning.

    Args:
        steps: how T3's are run.
    """
    module = pipeline_of(engine).placement.module
    stages: dict[str, Any] = {name: module(name).executor for name in SOUND_STAGES}
    stages["t3"] = steps
    return {name: getattr(how, "captures_work", False) for name, how in stages.items()}


@contextmanager
def launched(engine: Engine) -> Iterator[None]:
    """Have flow and vocoder launched, not replayed."""
    with _stages_through(engine, lambda *_: EagerExecutor()):
        yield


@contextmanager
def sound_by_pytorch(engine: Engine) -> Iterator[None]:
    """Have the flow run by PyTorch's operations, recorded anew, not by kernels of our own."""
    from chatterbox_opt.runtime.cuda import GraphCapturer
    from chatterbox_opt.runtime.cuda_graphs import GraphedExecutor

    pipeline = pipeline_of(engine)
    record = GraphCapturer(pipeline.device)
    parts: list[Any] = [
        part
        for part in pipeline.placement.module("flow").modules()
        if getattr(part, "fused", False)
    ]
    for part in parts:
        part.fused = False
    try:
        with _stages_through(engine, lambda name, module: GraphedExecutor(record, module, name)):
            yield
    finally:
        for part in parts:
            part.fused = True


@contextmanager
def _stages_through(engine: Engine, through: Any) -> Iterator[None]:
    placement = pipeline_of(engine).placement
    stages: dict[str, Any] = {name: placement.module(name) for name in SOUND_STAGES}
    before = {name: stage.executor for name, stage in stages.items()}
    for name, stage in stages.items():
        stage.executor = through(name, stage)
    try:
        yield
    finally:
        for name, stage in stages.items():
            stage.executor = before[name]


def sounds(engine: Engine) -> dict[str, Renderer]:
    """Who can make the sound of a batch: always T3's own thread, and whom the plan has."""
    return {INLINE: InlineRenderer(), engine.plan.rendering: pipeline_of(engine).renderer}


@contextmanager
def sound_made_by(engine: Engine, sound: Renderer) -> Iterator[None]:
    """Have another make it."""
    pipeline = pipeline_of(engine)
    before, pipeline.renderer = pipeline.renderer, sound
    try:
        yield
    finally:
        pipeline.renderer = before


def request(engine: Engine, i: int, text: str, tokens: int) -> DecodeRequest:
    """A text with the i-th set of knobs, no two alike."""
    pipeline, voice = pipeline_of(engine), engine.voice()
    sampling = Sampling(
        seed=i,
        temperature=(0.0, 0.8, 1.7)[i % 3],
        cfg_weight=(0.5, 0.0, 1.0, 0.3)[i % 4],
        exaggeration=0.25 * (i % 5),
        min_p=(0.05, 0.0, 0.3)[i % 3],
        top_k=(0, 0, 0, 12)[i % 4],
        repetition_penalty=(1.2, 1.0, 2.0)[i % 3],
        max_tokens=tokens,
    )
    prompt = Prompt(text_tokens(pipeline.tokenizer, text), voice.speaker, voice.prompt)
    generator = torch.Generator(pipeline.device).manual_seed(i)
    return DecodeRequest(prompt, sampling, generator, lambda count: None)


def requests(engine: Engine, count: int, tokens: int) -> list[DecodeRequest]:
    """Texts with knobs of every kind, of at most ``tokens`` tokens and some more each."""
    return [request(engine, i, TEXTS[i % len(TEXTS)], tokens + i) for i in range(count)]


def generator_on(device: torch.device, seed: int = 0) -> torch.Generator:
    """A generator there."""
    return torch.Generator(device).manual_seed(seed)
