"""What a stage is given: the model, the GPU, how much to do, and where figures go.

Knows a stage's surroundings and how a part that fails is noted. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.kinds import BEGUN, ENDED, FAILED
from benchmarks.gpu.results import FILE, Results

# words of errors after which no later call of the process can use the GPU
BROKEN = (
    "illegal memory",
    "illegal instruction",
    "misaligned",
    "unspecified launch",
    "device-side assert",
    "hardware stack error",
    "uncorrectable",
)
BROKEN_EXIT = 3
TRACES, SPOKEN = "traces", "num_generated"  # folders under ``Context.scratch``


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done.

    Attributes:
        seconds: of sound of the table's rows; short: of those that only warm up or are long.
        runs: measured runs of each row.
        lengths, launched_lengths: seconds of sound, for flow and vocoder replayed and launched.
        texts: characters of texts, for the prefill.
        requests, tokens: requests whose tokens are compared, and the fewest tokens of each.
        spans: positions of the KV cache, for the attention of one query.
        rows: of a decode step, for its products and attention.
        frames: of the flow, for its attention.
        layers: matrices that a timed product goes through, so that none waits in the L2 cache.
        drifting, drifted: requests of the leak and drift check, and the fewest tokens of each.
        beside: requests whose sound is made beside T3 and compared.
        lines, line_tokens: of a whole batch, and the most tokens of each.
        batches: requests at once, of T3 alone.
        batch_tokens, profile_tokens, speech_tokens: the most tokens of a request of T3 alone, by
            profile, and of the built-in model.
        read, side, cold: bytes that are read, rows of square matrices, bytes of cold KV caches.
    """

    seconds: float = 10.0
    short: float = 1.0
    runs: int = 3
    lengths: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0, 40.0)
    launched_lengths: tuple[float, ...] = (2.0, 10.0)
    texts: tuple[int, ...] = (10, 100, 300)
    requests: int = 6
    tokens: int = 30
    spans: tuple[int, ...] = (256, 512, 1024)
    rows: tuple[int, ...] = (2, 64)
    frames: tuple[int, ...] = (500, 1000, 2000)
    layers: int = 30
    drifting: int = 100
    drifted: int = 25
    beside: int = 16
    lines: int = 32
    line_tokens: int = 300
    batches: tuple[int, ...] = (8, 32, 64, 128)
    batch_tokens: int = 120
    profile_tokens: int = 100
    speech_tokens: int = 400
    read: int = 2 << 30
    side: int = 8192
    cold: int = 128 << 20


TINY = Sizes(  # for tiny weights: a rehearsal, whose times mean nothing
    seconds=0.4,
    short=0.2,
    runs=1,
    lengths=(0.5,),
    launched_lengths=(0.5,),
    texts=(50,),
    requests=2,
    tokens=6,
    spans=(128,),
    rows=(2,),
    frames=(30,),
    layers=2,
    drifting=20,
    drifted=4,
    beside=6,
    lines=3,
    line_tokens=10,
    batches=(2,),
    batch_tokens=10,
    profile_tokens=10,
    speech_tokens=8,
    read=1 << 20,
    side=64,
    cold=128 << 10,
)


@dataclass(frozen=True, slots=True)
class Context:
    """A stage's surroundings.

    Attributes:
        stage: its name.
        model: a checkpoint's directory, or a name as for ``Engine.load``.
        scratch: a folder for what is no figure: ``TRACES`` and ``SPOKEN``.
        results: where figures go.
        device: "cuda".
        simulated: the GPU is that of tests/pretend_card.py, which knows no profiler, no compiler.
    """

    stage: str
    model: str
    scratch: Path
    results: Results
    device: str = "cuda"
    sizes: Sizes = Sizes()
    simulated: bool = False

    def put(self, what: str, value: Any) -> None:
        """Note a figure, see ``Results.put``."""
        self.results.put(what, value)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Note an error of the block, and let what comes after it go on.

        Raises:
            SystemExit: the GPU is broken for this process.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever failed, it must not cost the other parts
            text = f"{type(error).__name__}: {error}"
            where = traceback.format_exc()[-1500:]
            self.put(FAILED, {"part": what, "error": text[:600], "where": where})
            if any(word in text for word in BROKEN):
                raise SystemExit(BROKEN_EXIT) from error


def main(run: Callable[[Context], None], arguments: Sequence[str] | None = None) -> None:
    """A stage's process: read the command line, run the stage as one part, note begin and end."""
    import torch  # not for --help

    context = parse(run.__module__, arguments)
    warnings.simplefilter("ignore")  # upstream's and its libraries' would drown errors
    torch.set_grad_enabled(False)
    measure(context, run)


def measure(context: Context, run: Callable[[Context], None]) -> None:
    """Run a stage as one part, between its first and last line."""
    context.put(BEGUN, {"python": sys.version.split()[0]})
    with context.part(context.stage):
        run(context)
    context.put(ENDED, {})


def parse(module: str, arguments: Sequence[str] | None) -> Context:
    """The context that a command line asks for.

    Args:
        module: the stage's full name; "__main__" where it was started by ``python -m``.
    """
    name = _stage_name(module)
    parser = argparse.ArgumentParser(prog=f"benchmarks.gpu.stages.{name}", description=name)
    parser.add_argument("--model", required=True, help="a checkpoint's directory, or a name")
    parser.add_argument("--out", type=Path, required=True, help=f"the folder of {FILE}")
    parser.add_argument("--scratch", type=Path, help="for traces and sound; without it --out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on tiny weights")
    asked = parser.parse_args(arguments)
    return Context(
        name,
        asked.model,
        asked.scratch or asked.out,
        Results(asked.out / FILE, name),
        asked.device,
        TINY if asked.tiny else Sizes(),
    )


def _stage_name(module: str) -> str:
    if module == "__main__":  # python -m sets __spec__ of the module that it runs
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    return module.rpartition(".")[2]
