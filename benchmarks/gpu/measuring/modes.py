"""Execution modes of decode steps and the flow: CUDA graph or eager, Triton or PyTorch kernels.

Responsible for the modes and for switching an engine to one. A row of the table is a mode in a
dtype; a GPU without support for the Triton kernels has only the modes without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.gpu.context import Context
from benchmarks.gpu.kinds import CHECK, RUN
from benchmarks.gpu.measuring.clocks import reset_memory, vram
from benchmarks.gpu.measuring.engines import (
    eager_rendering,
    flow_by_pytorch,
    graphs_intact,
    pipeline_of,
)
from chatterbox_opt import Engine
from chatterbox_opt.bench.backends import OptimizedTarget
from chatterbox_opt.bench.roofline import weights_per_step
from chatterbox_opt.bench.timing import BenchJob, forced_tokens
from chatterbox_opt.engine.decoding.decode import DecodeBackend, EagerBackend
from chatterbox_opt.engine.decoding.decode_graphs import CudaGraphBackend
from chatterbox_opt.runtime.cuda import GraphCapturer

GRAPH_TRITON = "CUDA graph with Triton kernels"
GRAPH_PYTORCH = "CUDA graph with PyTorch ops"
EAGER_TRITON = "eager with Triton kernels"
EAGER_PYTORCH = "eager with PyTorch ops"
MODES = (GRAPH_TRITON, GRAPH_PYTORCH, EAGER_TRITON, EAGER_PYTORCH)


@dataclass(frozen=True, slots=True)
class Mode:
    """One execution mode.

    Attributes:
        name: of ``MODES``.
        steps: backend of T3's steps and prefill.
        graph: flow and vocoder use CUDA graphs too.
        fused: the flow uses Triton kernels if they are supported.
    """

    name: str
    steps: DecodeBackend
    graph: bool
    fused: bool

    def runs(self, requested: int) -> int:
        """Measured runs: fewer of eager modes, which take long and are only the reference."""
        return requested if self.graph else min(2, requested)

    @property
    def warm_ups(self) -> int:
        """Runs before the measured ones: shapes run eagerly first, and are captured next."""
        return 2 if self.graph else 1

    @contextmanager
    def rendering(self, engine: Engine) -> Iterator[None]:
        """Run flow and vocoder in this mode in the block."""
        with ExitStack() as stack:
            if not self.fused:
                stack.enter_context(flow_by_pytorch(engine))
            if not self.graph:
                stack.enter_context(eager_rendering(engine))
            yield


def modes(engine: Engine) -> list[Mode]:
    """The modes that an engine with CUDA graphs supports, the planned one first."""
    pipeline = pipeline_of(engine)
    planned = pipeline.decoder.backend
    by_name = {
        GRAPH_PYTORCH: Mode(
            GRAPH_PYTORCH, CudaGraphBackend(GraphCapturer(pipeline.device)), True, False
        ),
        EAGER_PYTORCH: Mode(EAGER_PYTORCH, EagerBackend(), False, False),
    }
    if planned.fused:
        by_name[GRAPH_TRITON] = Mode(GRAPH_TRITON, planned, True, True)
        by_name[EAGER_TRITON] = Mode(EAGER_TRITON, EagerBackend(fused=True), False, True)
    return [by_name[name] for name in MODES if name in by_name]


def measure_row(context: Context, engine: Engine, mode: Mode, runs: int) -> None:
    """Synthesize the table's forced tokens in a mode: a line per run, seconds by stage."""
    tokens = forced_tokens(context.sizes.seconds)
    target = OptimizedTarget(
        BenchJob(context.model, context.device, tokens=tokens), mode.name, engine
    )
    reset_memory()
    with mode.rendering(engine):
        for run in range(mode.warm_ups + runs):
            seconds = target.run(mode.steps)
            row = {
                "row": mode.name,
                "dtype": engine.plan.t3.storage,
                "plan": target.plan,
                "warm": run < mode.warm_ups,
                "tokens": len(tokens),
                "seconds": seconds,
                "weights_per_step": weights_per_step(engine.checkpoint.config.t3),
            }
            context.put(RUN, row | vram())
        if mode.graph:
            intact = graphs_intact(engine, mode.steps)
            name = f"CUDA graphs, {engine.plan.t3.storage}, {mode.name}"
            context.put(CHECK, {"name": name, **intact, "good": all(intact.values())})
