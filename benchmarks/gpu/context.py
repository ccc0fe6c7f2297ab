"""The context of a stage: the model, the GPU, how much to measure, and the output files.

Responsible for a stage's command line and for recording a part that fails. Not responsible for what
is measured.
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

# substrings of errors after which the process cannot use the GPU any more
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
TRACES, SAMPLES = "traces", "samples"  # folders under ``Context.scratch``


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        seconds: of audio of the table's rows; short: of a warm-up run.
        runs: measured runs of each row.
        lengths, eager_lengths: seconds of audio, for flow and vocoder in CUDA graphs and eager.
        texts: characters of texts, for the prefill.
        requests, tokens: requests whose tokens are compared, and the minimum tokens of each.
        kv_lens: positions of the KV cache, for decode attention.
        rows: of a decode step, for its matrices and attention.
        frames: of the flow, for its attention.
        layers: matrices that a timed product cycles through, so that none is in the L2 cache.
        drift_requests, drift_tokens: requests of the leak and drift check, and the minimum tokens
            of each.
        overlap_requests: requests that are rendered overlapped with T3 and compared.
        batch_requests, batch_request_tokens: requests of a batch through all stages, and the
            maximum tokens of each.
        batch_sizes: sequences per step, of T3 alone.
        t3_batch_tokens, profile_tokens, sample_tokens: maximum tokens of a request of T3 alone, by
            profile, and of the built-in model.
        read_bytes, gemm_size, kv_cache_bytes: bytes of a bandwidth test, rows of square matrices,
            bytes of the KV caches that a timed attention cycles through.
    """

    seconds: float = 10.0
    short: float = 1.0
    runs: int = 3
    lengths: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0, 40.0)
    eager_lengths: tuple[float, ...] = (2.0, 10.0)
    texts: tuple[int, ...] = (10, 100, 300)
    requests: int = 6
    tokens: int = 30
    kv_lens: tuple[int, ...] = (256, 512, 1024)
    rows: tuple[int, ...] = (2, 64)
    frames: tuple[int, ...] = (500, 1000, 2000)
    layers: int = 30
    drift_requests: int = 100
    drift_tokens: int = 25
    overlap_requests: int = 16
    batch_requests: int = 32
    batch_request_tokens: int = 300
    batch_sizes: tuple[int, ...] = (8, 32, 64, 128)
    t3_batch_tokens: int = 120
    profile_tokens: int = 100
    sample_tokens: int = 400
    read_bytes: int = 2 << 30
    gemm_size: int = 8192
    kv_cache_bytes: int = 128 << 20


TINY = Sizes(  # for tests with tiny weights, whose times mean nothing
    seconds=0.4,
    short=0.2,
    runs=1,
    lengths=(0.5,),
    eager_lengths=(0.5,),
    texts=(50,),
    requests=2,
    tokens=6,
    kv_lens=(128,),
    rows=(2,),
    frames=(30,),
    layers=2,
    drift_requests=20,
    drift_tokens=4,
    overlap_requests=6,
    batch_requests=3,
    batch_request_tokens=10,
    batch_sizes=(2,),
    t3_batch_tokens=10,
    profile_tokens=10,
    sample_tokens=8,
    read_bytes=1 << 20,
    gemm_size=64,
    kv_cache_bytes=128 << 10,
)


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage's process is started with.

    Attributes:
        stage: its name.
        model: a checkpoint's directory, or a name as for ``Engine.load``.
        scratch: a folder for output that is no figure: ``TRACES`` and ``SAMPLES``.
        results: the file of figures.
        device: "cuda".
        simulated: the GPU is tests/helpers/simulated_gpu.py, without profiler and compiler.
    """

    stage: str
    model: str
    scratch: Path
    results: Results
    device: str = "cuda"
    sizes: Sizes = Sizes()
    simulated: bool = False

    def put(self, what: str, value: Any) -> None:
        """Write a figure, see ``Results.put``."""
        self.results.put(what, value)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Record an error of the block, and continue after it.

        Raises:
            SystemExit: the GPU is broken for this process.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - no error may cost the other parts
            text = f"{type(error).__name__}: {error}"
            where = traceback.format_exc()[-1500:]
            self.put(FAILED, {"part": what, "error": text[:600], "where": where})
            if any(word in text for word in BROKEN):
                raise SystemExit(BROKEN_EXIT) from error


def main(run: Callable[[Context], None], arguments: Sequence[str] | None = None) -> None:
    """A stage's process: parse the command line, run the stage as one part."""
    import torch  # not for --help

    context = parse(run.__module__, arguments)
    warnings.simplefilter("ignore")  # those of upstream and its libraries would hide errors
    torch.set_grad_enabled(False)
    measure(context, run)


def measure(context: Context, run: Callable[[Context], None]) -> None:
    """Run a stage as one part, and write its first and last line."""
    context.put(BEGUN, {"python": sys.version.split()[0]})
    with context.part(context.stage):
        run(context)
    context.put(ENDED, {})


def parse(module: str, arguments: Sequence[str] | None) -> Context:
    """The context of a command line.

    Args:
        module: the stage's full name; "__main__" where it was started by ``python -m``.
    """
    name = _stage_name(module)
    parser = argparse.ArgumentParser(prog=f"benchmarks.gpu.stages.{name}", description=name)
    parser.add_argument("--model", required=True, help="checkpoint directory or model name")
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {FILE}")
    parser.add_argument("--scratch", type=Path, help="folder for traces and audio (default: --out)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="small sizes, for tests with tiny weights"
    )
    parsed = parser.parse_args(arguments)
    return Context(
        name,
        parsed.model,
        parsed.scratch or parsed.out,
        Results(parsed.out / FILE, name),
        parsed.device,
        TINY if parsed.tiny else Sizes(),
    )


def _stage_name(module: str) -> str:
    if module == "__main__":  # python -m sets __spec__ of the module that it runs
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    return module.rpartition(".")[2]
