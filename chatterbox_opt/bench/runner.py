"""How fast this machine is, and what each configuration costs in quality.

Knows how to measure: every row is a process of its own that loads one configuration and waits;
rows take turns (A B C A B C ...), so that a machine that drifts is fair to all. Knows nothing of
tables and files (bench/report.py) or of the command line.

All rows say the same forced speech tokens, so that none is faster by saying less. ``upstream`` is
the installed chatterbox-tts itself, its own loop, its own S3Gen, in its own process.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from chatterbox_opt.bench import cold_start, roofline
from chatterbox_opt.bench.backends import (
    ROWS,
    STANDARD,
    UPSTREAM,
    BenchJob,
    BenchTarget,
    OptimizedTarget,
    UpstreamTarget,
)
from chatterbox_opt.bench.roofline import facts
from chatterbox_opt.checkpoints.registry import DEFAULT, locate, must_download
from chatterbox_opt.config.model_config import TOKEN_RATE
from chatterbox_opt.config.profile import load_profile
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ChatterboxOptError, InputError

NOISY = 0.15  # spread of the whole, relative to its median, from which a row is marked
STAGES = ("prefill", "decode", "flow", "vocoder", "watermark")
CPU_ROWS = (UPSTREAM, STANDARD, "bfloat16", "int8", "int4")
CUDA_ROWS = (UPSTREAM, STANDARD, "bfloat16", "float16", "+compile", "+offload", "+int8")


def choose_rows(rows: str | None, profiles: Sequence[str], device: str, *, tiny: bool) -> list[str]:
    """Names of the rows to measure: as asked, or those that make sense on the device.

    Raises:
        InputError: an unknown row; ProfileError: an unknown profile.
    """
    usual = CUDA_ROWS if probe.probe(device).device == "cuda" else CPU_ROWS
    # upstream's code has its shapes built in: it cannot load tiny weights
    chosen = rows.split(",") if rows else [n for n in usual if not (tiny and n == UPSTREAM)]
    if unknown := [name for name in chosen if name not in (UPSTREAM, *ROWS)]:
        raise InputError(f"unknown row '{unknown[0]}'; known: {UPSTREAM}, {', '.join(ROWS)}")
    for name in profiles:
        load_profile(name)
    return [*chosen, *profiles]


@contextmanager
def weights(model: str | None, *, tiny: bool, say: Callable[[str], None]) -> Iterator[str]:
    """Yield the model to measure; without the real weights, random ones made for the time."""
    if model or (not tiny and not must_download(DEFAULT)):
        yield model or DEFAULT
        return
    from chatterbox_opt.checkpoints.random_weights import make

    size = "tiny" if tiny else "full"
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as directory:
        say(f"making {size} random weights: speed does not depend on the values")
        make(Path(directory), size, seed=0)
        yield directory


def _serve(job: BenchJob, name: str, asked: Connection, started: float) -> None:
    """A row's process: load, then answer what a ``BenchTarget`` can, until "stop"."""
    warnings.simplefilter("ignore")
    notes = _Warnings()
    logger = logging.getLogger("chatterbox_opt")
    logger.addHandler(notes)
    logger.propagate = False
    try:
        subject: BenchTarget = (UpstreamTarget if name == UPSTREAM else OptimizedTarget)(job, name)
    except ChatterboxOptError as error:
        asked.send(str(error))
        return
    loaded = {"dtype": subject.dtype, "plan": subject.plan, "warm_ups": subject.warm_ups}
    asked.send(loaded | {"load_seconds": time.time() - started})
    answers = {"run": subject.run, "quality": subject.quality, "attention": subject.attention}
    while (question := asked.recv()) != "stop":
        asked.send(answers[question]())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    vram = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    asked.send((peak, vram, notes.messages))


class _Warnings(logging.Handler):
    """Keeps the library's warnings, such as a compilation that fell back to eager."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class RowProcess:
    """The parent's end of a row.

    Attributes:
        laps: seconds by stage of each run that counts.
        reads: GB/s that were read beside each of them.
        given, kernels, end: see ``quality``, ``attention`` and ``stop``.
    """

    def __init__(self, job: BenchJob, name: str) -> None:
        """Start the process and wait until it has loaded.

        Raises:
            ChatterboxOptError: the row cannot be measured here; says why.
        """
        self.name, self._patience = name, job.patience
        self.laps: list[dict[str, float]] = []
        self.reads: list[float] = []
        self.given: dict[str, torch.Tensor] = {}
        self.kernels: list[str] = []
        self.end: dict[str, Any] = {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(job, name, theirs, time.time()))
        self._process.start()
        theirs.close()
        loaded = self._ask(None)
        if isinstance(loaded, str):
            raise ChatterboxOptError(f"row {name}: {loaded}")
        self.load_seconds: float = loaded["load_seconds"]
        self.dtype: str = loaded["dtype"]
        self.plan: str = loaded["plan"]
        self.warm_ups: int = loaded["warm_ups"]

    def _ask(self, question: str | None) -> Any:
        try:
            if question is not None:
                self._pipe.send(question)
            if not self._pipe.poll(self._patience):
                self.kill()
                raise ChatterboxOptError(
                    f"row {self.name} did not answer in {self._patience:.0f} s and was ended: "
                    "leave it out with --rows, or give less to say with --seconds"
                )
            return self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            self._process.join()
            raise ChatterboxOptError(
                f"row {self.name} died (exit {self._process.exitcode}): out of memory? Leave it "
                "out with --rows, or give less to say with --seconds"
            ) from error

    def run(self) -> dict[str, float]:
        """One run: seconds by stage."""
        seconds: dict[str, float] = self._ask("run")
        return seconds

    def finish(self) -> None:
        """Ask what else it gives, and end the process."""
        self.given, self.kernels = self._ask("quality"), self._ask("attention")
        rss, vram, notes = self._ask("stop")
        self._process.join()
        self.end = {"peak_rss_mib": rss, "peak_vram_mib": vram, "notes": notes}

    def kill(self) -> None:
        """End the process whatever it does."""
        self._process.kill()
        self._process.join()


class _RowProcesses:
    """Rows in work. One that fails is noted and left out, and the others go on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.rows: list[RowProcess] = []
        self.failed: dict[str, str] = {}
        self._say = say

    def load(self, job: BenchJob, names: Sequence[str]) -> None:
        """Start them, one after another.

        Raises:
            ChatterboxOptError: none can be measured here; says why the first cannot.
        """
        for name in names:
            self._say(f"loading {name}")
            with self._noting(name):
                self.rows.append(RowProcess(job, name))
        if not self.rows:
            raise ChatterboxOptError(next(iter(self.failed.values()), "no rows to measure"))

    def take_turns(self, runs: int, device: torch.device) -> None:
        """Run them: warm-ups, then ``runs`` that count."""
        for turn in range(1 - max(row.warm_ups for row in self.rows), runs + 1):
            for row in self.each():
                if turn <= -row.warm_ups:
                    continue
                self._say(f"{'warm-up' if turn < 1 else f'run {turn} of {runs}'}: {row.name}")
                with self._noting(row.name):
                    seconds = row.run()
                    if turn >= 1:
                        row.laps.append(seconds)
                        # a neighbour may read beside us
                        row.reads.append(roofline.read_gb_s(device))

    def each(self) -> list[RowProcess]:
        """Those that have not failed."""
        return [row for row in self.rows if row.name not in self.failed]

    def finish(self) -> None:
        """End them; see ``RowProcess.finish``."""
        for row in self.each():
            with self._noting(row.name):
                row.finish()

    def kill(self) -> None:
        """End what still runs."""
        for row in self.rows:
            row.kill()

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except ChatterboxOptError as error:
            self._say(f"left out: {error}")
            self.failed[name] = str(error)


def measure(job: BenchJob, names: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all rows; return the report (see bench/report.py for its columns).

    Args:
        say: told what is being done, a line at a time.

    Raises:
        ChatterboxOptError: no row could be measured.
    """
    card, device = facts(job, locate(job.model)), torch.device(probe.probe(job.device).device)
    rows = _RowProcesses(say)
    try:
        rows.load(job, names)
        rows.take_turns(job.runs, device)
        rows.finish()
    finally:
        rows.kill()
    measured = rows.each()
    if not measured:
        raise ChatterboxOptError(next(iter(rows.failed.values())))
    every = list(itertools.chain.from_iterable(row.reads for row in measured))
    card |= {"read_gb_s": statistics.median(every)}
    card |= {"ceiling_tokens_per_second": roofline.steps_per_second(card, every)}
    table = _table(job, card, measured)
    starts = cold_start.measure(job, [row.name for row in measured], say) if job.cold else []
    unmeasured: dict[str, Any] = dict.fromkeys(cold_start.FIGURES)
    for entry, figures in itertools.zip_longest(table, starts, fillvalue=unmeasured):
        entry |= figures
    return {"card": card, "rows": table, "failed": rows.failed}


def _table(
    job: BenchJob, card: Mapping[str, Any], rows: Sequence[RowProcess]
) -> list[dict[str, Any]]:
    exact = next((row.given for row in rows if row.name == STANDARD), {})
    table = []
    for row in rows:
        ceiling = roofline.steps_per_second(card, row.reads)[row.dtype]
        entry = _entry(job, row.laps, ceiling) | row.end
        entry |= {"name": row.name, "plan": row.plan, "load_seconds": row.load_seconds}
        entry |= {"attention_kernels": row.kernels, "quality": closeness(row.given, exact)}
        table.append(entry)
    add_ratios(table, "vs_upstream", UPSTREAM)
    add_ratios(table, "vs_standard", STANDARD)
    return table


def _entry(job: BenchJob, laps: list[dict[str, float]], ceiling: float) -> dict[str, Any]:
    entry = row_figures(laps, len(job.tokens))
    return entry | {
        "t3_share_of_ceiling": entry["t3_tokens_per_second"] / ceiling,
        # one chunk: nothing is heard before it is whole
        "first_audio_seconds": entry["synthesis_seconds"],
    }


def row_figures(laps: Sequence[Mapping[str, float]], tokens: int) -> dict[str, Any]:
    """A row's columns that its runs alone tell.

    Args:
        laps: seconds by stage of each run.
        tokens: that each of them said.
    """
    median = {stage: statistics.median(lap[stage] for lap in laps) for stage in STAGES}
    whole = [sum(lap.values()) for lap in laps]
    synthesis, audio = statistics.median(whole), tokens / TOKEN_RATE
    return {
        "t3_tokens_per_second": (tokens - 1) / median["decode"],
        "prefill_seconds": median["prefill"],
        "flow_seconds": median["flow"],
        "vocoder_seconds": median["vocoder"],
        "watermark_seconds": median["watermark"],
        "synthesis_seconds": synthesis,
        "audio_seconds": audio,
        "realtime_x": audio / synthesis,
        "noisy": (max(whole) - min(whole)) / synthesis > NOISY,
    }


def add_ratios(table: list[dict[str, Any]], column: str, base: str) -> None:
    """Give each row how often faster it is than the row named ``base``, or None without one."""
    reference = next((row for row in table if row["name"] == base), None)
    for row in table:
        row[column] = reference and {
            "t3": row["t3_tokens_per_second"] / reference["t3_tokens_per_second"],
            "flow": reference["flow_seconds"] / row["flow_seconds"],
            "vocoder": reference["vocoder_seconds"] / row["vocoder_seconds"],
            "synthesis": reference["synthesis_seconds"] / row["synthesis_seconds"],
        }


def closeness(
    given: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Compare with float32 on the same forced tokens.

    Returns:
        top1: share of steps whose likeliest token is the same; kl: mean KL divergence of the
        distributions, in nats; log_mel_cosine: of the flow's mel; wer: word error rate of some
        sentences spoken freely, None without a recognizer or with random weights.
    """
    if not given or not exact:
        return dict.fromkeys(("top1", "kl", "log_mel_cosine", "wer"))
    ours, theirs = (torch.log_softmax(g["logits"], dim=-1) for g in (given, exact))
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    kl = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    wer = None
    if "words" in given:
        errors, words = given["words"].tolist()
        wer = errors / words
    mels = (given["mel"].flatten(), exact["mel"].flatten())
    cosine = torch.nn.functional.cosine_similarity(*mels, dim=0).item()
    return {"top1": same, "kl": kl, "log_mel_cosine": cosine, "wer": wer}
