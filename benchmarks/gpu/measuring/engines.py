"""The engine's parts for benchmarks: loading, stages, execution modes, requests.

Responsible for where the engine has its stages and how they are executed. Not responsible for
clocks or checks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.kinds import CHECK, LOADED
from benchmarks.gpu.measuring.clocks import reset_memory, vram
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.config.plan import INLINE
from chatterbox_opt.engine.decoding.decode import DecodeBackend
from chatterbox_opt.engine.decoding.prompts import text_tokens
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.rendering.renderer import Renderer
from chatterbox_opt.engine.sequence import RequestState, Sequence
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.runtime.bucketing import EagerExecutor
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.text.chunking import Chunk

TEXTS = ("hello.", "a much longer sentence, with a comma in it.", "one two three four.", "no!")
RENDER_STAGES = ("flow", "vocoder")


def load(context: Context, overrides: Mapping[str, str]) -> Engine:
    """Load an engine that uses CUDA graphs, and write a line about it.

    Args:
        overrides: as for ``Engine.load``.

    Raises:
        ChatterboxOptError: as ``Engine.load``.
    """
    reset_memory()
    start = time.perf_counter()
    engine = load_with_graphs(context.model, context.device, **overrides)
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
            "rendering": plan.rendering,
            "reasons": plan.reasons,
        }
        | vram(),
    )
    context.put(
        CHECK, {"name": f"Triton kernels, {plan.t3.storage}", "good": "t3" in plan.triton_stages}
    )
    return engine


def load_with_graphs(model: str, device: str, **overrides: str) -> Engine:
    """An engine that uses CUDA graphs."""
    return Engine.load(model, "dev", device=device, overrides={"compile": "cudagraphs"} | overrides)


def pipeline_of(engine: Engine) -> Pipeline:
    """The engine's stages, which are not upstream's here."""
    return cast(Pipeline, engine.pipeline)


@contextmanager
def on_device(engine: Engine, stage: str) -> Iterator[Any]:
    """A stage's module, on the device."""
    placement: StagePlacement = pipeline_of(engine).placement
    with placement(stage) as module:
        yield module


def graphs_intact(engine: Engine, steps: DecodeBackend) -> dict[str, bool]:
    """Whether each stage still uses CUDA graphs: after a failed capture it runs eagerly, with only
    a warning.

    Args:
        steps: T3's backend.
    """
    module = pipeline_of(engine).placement.module
    stages: dict[str, Any] = {name: module(name).executor for name in RENDER_STAGES}
    stages["t3"] = steps
    return {name: getattr(executor, "captures_work", False) for name, executor in stages.items()}


@contextmanager
def eager_rendering(engine: Engine) -> Iterator[None]:
    """Run flow and vocoder eagerly, without CUDA graphs."""
    with _stage_executors(engine, lambda *_: EagerExecutor()):
        yield


@contextmanager
def flow_by_pytorch(engine: Engine) -> Iterator[None]:
    """Run the flow with PyTorch's operations instead of Triton kernels, in new CUDA graphs."""
    from chatterbox_opt.runtime.cuda import GraphCapturer
    from chatterbox_opt.runtime.cuda_graphs import GraphedExecutor

    pipeline = pipeline_of(engine)
    capture = GraphCapturer(pipeline.device)
    parts: list[Any] = [
        part
        for part in pipeline.placement.module("flow").modules()
        if getattr(part, "fused", False)
    ]
    for part in parts:
        part.fused = False
    try:
        with _stage_executors(engine, lambda name, module: GraphedExecutor(capture, module, name)):
            yield
    finally:
        for part in parts:
            part.fused = True


@contextmanager
def _stage_executors(engine: Engine, executor_of: Any) -> Iterator[None]:
    placement = pipeline_of(engine).placement
    stages: dict[str, Any] = {name: placement.module(name) for name in RENDER_STAGES}
    before = {name: stage.executor for name, stage in stages.items()}
    for name, stage in stages.items():
        stage.executor = executor_of(name, stage)
    try:
        yield
    finally:
        for name, stage in stages.items():
            stage.executor = before[name]


def renderers(engine: Engine) -> dict[str, Renderer]:
    """Renderers of a batch: inline on T3's thread, and that of the plan."""
    pipeline = pipeline_of(engine)
    return {INLINE: Renderer(pipeline.recovery), engine.plan.rendering: pipeline.renderer}


@contextmanager
def rendered_by(engine: Engine, renderer: Renderer) -> Iterator[None]:
    """Use another renderer in the block."""
    pipeline = pipeline_of(engine)
    before, pipeline.renderer = pipeline.renderer, renderer
    try:
        yield
    finally:
        pipeline.renderer = before


def request(engine: Engine, i: int, text: str, tokens: int) -> Sequence:
    """A text with the i-th set of sampling parameters, all different."""
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
    state = RequestState(str(i), i)
    state.add_chunks([Chunk(text)], voice, sampling)
    [sequence] = state.sequences
    ids = text_tokens(pipeline.decoder.tokenizer, text)
    sequence.prompt = Prompt(ids, voice.speaker, voice.prompt)
    sequence.generator = torch.Generator(pipeline.device).manual_seed(i)
    return sequence


def requests(engine: Engine, count: int, tokens: int) -> list[Sequence]:
    """Texts with sampling parameters of every kind; the i-th has at most ``tokens`` + i tokens."""
    return [request(engine, i, TEXTS[i % len(TEXTS)], tokens + i) for i in range(count)]


def generator_on(device: torch.device, seed: int = 0) -> torch.Generator:
    """A seeded generator on a device."""
    return torch.Generator(device).manual_seed(seed)
