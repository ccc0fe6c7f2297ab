"""Ways to run decode steps and the flow: in CUDA graphs or launched, by kernels of our own or not.

Knows which modes there are and how an engine is put into one. A row of the table is a mode in a
dtype; the modes of a GPU that cannot have our kernels are those without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.gpu.context import Context
from benchmarks.gpu.kinds import CHECK, RUN
from benchmarks.gpu.measuring.clocks import fresh_memory, vram
from benchmarks.gpu.measuring.engines import launched, pipeline_of, recorded, sound_by_pytorch
from chatterbox_opt import Engine
from chatterbox_opt.bench.backends import BenchJob, OptimizedTarget, forced_tokens
from chatterbox_opt.bench.roofline import weights_per_step
from chatterbox_opt.engine.decode import DecodeBackend, EagerBackend
from chatterbox_opt.engine.decode_graphs import CudaGraphBackend
from chatterbox_opt.runtime.cuda import GraphCapturer

GRAPH_OWN = "graph with own kernels"
GRAPH_PYTORCH = "graph with PyTorch's operations"
LAUNCHED_OWN = "launched with own kernels"
LAUNCHED_PYTORCH = "launched with PyTorch's operations"
MODES = (GRAPH_OWN, GRAPH_PYTORCH, LAUNCHED_OWN, LAUNCHED_PYTORCH)


@dataclass(frozen=True, slots=True)
class Mode:
    """One way.

    Attributes:
        name: of ``MODES``.
        steps: how T3's steps and prefill are run.
        graph: flow and vocoder are replayed too.
        own: they have kernels of our own where there are any.
    """

    name: str
    steps: DecodeBackend
    graph: bool
    own: bool

    def runs(self, most: int) -> int:
        """Runs that count: launched ones take long, and are what others are compared with."""
        return most if self.graph else min(2, most)

    @property
    def warm_ups(self) -> int:
        """Runs before those that count: what is recorded is met first, and recorded next."""
        return 2 if self.graph else 1

    @contextmanager
    def sound(self, engine: Engine) -> Iterator[None]:
        """Have flow and vocoder run so."""
        with ExitStack() as stack:
            if not self.own:
                stack.enter_context(sound_by_pytorch(engine))
            if not self.graph:
                stack.enter_context(launched(engine))
            yield


def modes(engine: Engine) -> list[Mode]:
    """Those that there are for an engine that records, the planned one first."""
    pipeline = pipeline_of(engine)
    planned = pipeline.backend
    found = {
        GRAPH_PYTORCH: Mode(
            GRAPH_PYTORCH, CudaGraphBackend(GraphCapturer(pipeline.device)), True, False
        ),
        LAUNCHED_PYTORCH: Mode(LAUNCHED_PYTORCH, EagerBackend(), False, False),
    }
    if planned.fused:
        found[GRAPH_OWN] = Mode(GRAPH_OWN, planned, True, True)
        found[LAUNCHED_OWN] = Mode(LAUNCHED_OWN, EagerBackend(fused=True), False, True)
    return [found[name] for name in MODES if name in found]


def measure_row(context: Context, engine: Engine, mode: Mode, runs: int) -> None:
    """Say the forced tokens of the table in a mode: a line a run, seconds by stage."""
    tokens = forced_tokens(context.sizes.seconds)
    ours = OptimizedTarget(
        BenchJob(context.model, context.device, tokens=tokens), mode.name, engine
    )
    fresh_memory()
    with mode.sound(engine):
        for turn in range(mode.warm_ups + runs):
            lap = ours.run(mode.steps)
            row = {
                "row": mode.name,
                "dtype": engine.plan.t3.storage,
                "plan": ours.plan,
                "warm": turn < mode.warm_ups,
                "tokens": len(tokens),
                "seconds": lap,
                "weights_per_step": weights_per_step(engine.checkpoint.config.t3),
            }
            context.put(RUN, row | vram())
        if mode.graph:
            found = recorded(engine, mode.steps)
            name = f"recorded, {engine.plan.t3.storage}, {mode.name}"
            context.put(CHECK, {"name": name, **found, "good": all(found.values())})
