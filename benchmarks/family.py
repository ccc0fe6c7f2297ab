"""The models of the family against each other and against upstream's own Turbo, in one run.

    python -m benchmarks.family DIR --name MACHINE-family

Makes checkpoints of random values in DIR (8 GB in all; ``--keep`` leaves them there, and those that
are there are used again), loads every row in a process of its own and lets the rows alternate
(A B C A B C ...), so that drift of the machine affects all alike. A ratio is taken within a round,
and the median over rounds is reported with its range. JSON and markdown go to benchmarks/results/.
``--size tiny`` tries the script in a few minutes; upstream's classes have no such size, so its row
is left out then.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from chatterbox_opt.bench import roofline
from chatterbox_opt.bench.backends import FLOW, ROWS, UPSTREAM
from chatterbox_opt.bench.report import total_seconds
from chatterbox_opt.bench.row_process import RowProcess
from chatterbox_opt.bench.runner import row_figures
from chatterbox_opt.bench.timing import BenchJob, forced_tokens
from chatterbox_opt.checkpoints import random_weights
from chatterbox_opt.checkpoints.families import RANDOM_KINDS
from chatterbox_opt.checkpoints.registry import locate
from chatterbox_opt.checkpoints.weight_cache import VARIABLE
from chatterbox_opt.config.config_file import is_random
from chatterbox_opt.errors import ChatterboxOptError, InputError

RESULTS = Path(__file__).parent / "results"
TURBO, NANO, BASE = "turbo", "nano", "chatterbox"
# kind of model and row of ``bench``
OURS, WITH_FLOW = f"{BASE}:int8", f"{BASE}:int8{FLOW}"
OF_TURBO, OF_NANO, THEIRS = f"{TURBO}:int8", f"{NANO}:int8", f"{TURBO}:{UPSTREAM}"
DEFAULT_ROWS = (THEIRS, OF_TURBO, OF_NANO, OURS, WITH_FLOW)
WHOLE, T3 = "whole", "t3"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast one row is as another.

    Attributes:
        what: in words.
        row, base: of the table, as "kind:row".
        part: ``WHOLE``, or T3's decode steps.
        wanted: the least that is wanted, or None.
    """

    what: str
    row: str
    base: str
    part: str = WHOLE
    wanted: float | None = None


RATIOS = (
    Ratio("Turbo int8 to upstream's Turbo, whole", OF_TURBO, THEIRS, WHOLE, 5.0),
    Ratio("Turbo int8 to upstream's Turbo, T3", OF_TURBO, THEIRS, T3, 8.0),
    Ratio("Turbo int8 to the 0.5B int8, whole", OF_TURBO, OURS, WHOLE, 2.5),
    Ratio("Nano int8 to Turbo int8, whole", OF_NANO, OF_TURBO, WHOLE, 1.5),
    Ratio("0.5B int8 with --flow turbo to without, whole", WITH_FLOW, OURS, WHOLE, 1.8),
)


def make(directory: Path, kind: str, size: str) -> bool:
    """Make a checkpoint unless one of this kind and size is there; whether it was made."""
    if is_random(directory):
        config = dataclasses.replace(locate(str(directory)).config, random_weights=False)
        if config == random_weights.config_of(kind, size):
            return False
        raise InputError(f"'{directory}' has other random weights: give another directory")
    if directory.exists():
        raise InputError(f"'{directory}' is there, without random weights: give another directory")
    # not in this process, of whose memory the rows' processes would start as copies
    command = ("models", "make", str(directory), "--kind", kind, "--size", size)
    subprocess.run([sys.executable, "-m", "chatterbox_opt", *command], check=True)
    return True


def seconds_of(lap: dict[str, float], part: str) -> float:
    """Seconds of a run."""
    return lap["decode"] if part == T3 else total_seconds(lap)


def ratios(laps: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Every ratio whose rows were measured, with its range over the rounds."""
    found = []
    for one in RATIOS:
        if not (laps.get(one.row) and laps.get(one.base)):
            continue
        rounds = [
            seconds_of(base, one.part) / seconds_of(row, one.part)
            for row, base in zip(laps[one.row], laps[one.base], strict=True)
        ]
        median = statistics.median(rounds)
        entry = dataclasses.asdict(one) | {"median": median, "least": min(rounds)}
        entry |= {"most": max(rounds), "met": one.wanted is None or median >= one.wanted}
        found.append(entry)
    return found


class Rows:
    """The processes of all rows; one that fails is left out, and the others continue."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.processes: dict[str, RowProcess] = {}
        self.failed: dict[str, str] = {}
        self._say = say

    def load(self, label: str, job: BenchJob) -> None:
        self._say(f"loading {label}")
        try:
            self.processes[label] = RowProcess(job, label.partition(":")[2])
        except ChatterboxOptError as error:
            self._leave_out(label, error)

    def run(self, *, warm_up: bool) -> None:
        """One round of all rows."""
        for label, process in list(self.processes.items()):
            try:
                lap = process.run()
            except ChatterboxOptError as error:
                self._leave_out(label, error)
                continue
            self._say(f"{'warm-up of ' if warm_up else ''}{label}: {seconds_of(lap, WHOLE):.2f} s")
            if not warm_up:
                process.laps.append(lap)
                process.reads.append(roofline.read_gb_s(torch.device("cpu")))

    def finish(self) -> None:
        for label, process in list(self.processes.items()):
            try:
                process.finish(compare=False)
            except ChatterboxOptError as error:
                self._leave_out(label, error)

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()

    def _leave_out(self, label: str, error: ChatterboxOptError) -> None:
        self._say(f"left out: {label}: {error}")
        self.failed[label] = str(error)
        if process := self.processes.pop(label, None):
            process.kill()


def measure(
    directory: Path,
    labels: Sequence[str],
    seconds: float,
    runs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure rows of checkpoints that are made; return the report."""
    jobs = {
        label: BenchJob(
            str(directory / label.partition(":")[0]),
            "cpu",
            tokens=forced_tokens(seconds),
            flow=str(directory / TURBO),
        )
        for label in labels
    }
    first = next(iter(jobs.values()))
    rows = Rows(say)
    try:
        for label, job in jobs.items():
            rows.load(label, job)
        facts = roofline.machine_facts(first, locate(first.model))
        rows.run(warm_up=True)
        for _ in range(runs):
            rows.run(warm_up=False)
        rows.finish()
    finally:
        rows.kill()
    table = [
        {"name": label, "plan": row.plan, "load_seconds": row.load_seconds}
        | row_figures(row.laps, len(first.tokens))
        | row.usage
        for label, row in rows.processes.items()
    ]
    laps = {label: row.laps for label, row in rows.processes.items()}
    reads = [read for row in rows.processes.values() for read in row.reads]
    facts |= {"read_gb_s": statistics.median(reads)} if reads else {}
    return {
        "card": facts,
        "runs": runs,
        "rows": table,
        "ratios": ratios(laps),
        "failed": rows.failed,
    }


def markdown(report: dict[str, Any]) -> str:
    """The tables of rows and of ratios."""
    facts = report["card"]
    lines = [
        f"{facts['device']} · {facts['cores']} threads of {facts['instructions']} · torch "
        f"{facts['torch']} · reads {facts['read_gb_s']:.1f} GB/s · {report['runs']} rounds",
        "",
        "| model: row | T3 tok/s | prefill s | + voice s | flow s | vocoder s | watermark s "
        "| total s | limit | x real time | RSS MiB |",
        "|" + " --- |" * 11,
    ]
    for row in report["rows"]:
        stages = ("prefill", "voice", "flow", "vocoder", "watermark", "synthesis")
        cells = [f"{row[f'{stage}_seconds']:.2f}" for stage in stages]
        noisy = " ~" if row["noisy"] else ""
        memory = row["peak_rss_mib"]
        lines.append(
            f"| {row['name']}{noisy} | {row['t3_tokens_per_second']:.1f} | {' | '.join(cells)} | "
            f"{row['limit']} | {row['realtime_x']:.2f} | {memory or 0:.0f} |"
        )
    lines += ["", "| times as fast | median | least | most | wanted | met |", "|" + " --- |" * 6]
    for one in report["ratios"]:
        wanted = "-" if one["wanted"] is None else f"{one['wanted']:.1f}"
        lines.append(
            f"| {one['what']} | {one['median']:.2f} | {one['least']:.2f} | {one['most']:.2f} | "
            f"{wanted} | {'yes' if one['met'] else 'no'} |"
        )
    lines += ["", *(f"left out: {label}: {why}" for label, why in report["failed"].items())]
    return "\n".join(lines).rstrip() + "\n"


def main(
    directory: Annotated[Path, typer.Argument(help="Where the checkpoints are made.")],
    size: Annotated[str, typer.Option(help="full or tiny.")] = "full",
    seconds: Annotated[float, typer.Option(help="Seconds of audio per run.")] = 10.0,
    runs: Annotated[int, typer.Option(help="Measured rounds after the warm-up.")] = 3,
    rows: Annotated[
        str, typer.Option(help="kind:row, ...; kinds of models make, rows of bench.")
    ] = ",".join(DEFAULT_ROWS),
    name: Annotated[str, typer.Option(help="Of the files of the report.")] = "family",
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = RESULTS,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the checkpoints there.")] = False,
) -> None:
    """Measure and write the report."""
    labels = rows.split(",")
    for label in labels:
        kind, _, row = label.partition(":")
        if kind not in RANDOM_KINDS or row not in (UPSTREAM, *ROWS):
            raise InputError(f"there is no row '{label}'; such as {', '.join(DEFAULT_ROWS)}")
    kinds = [label.partition(":")[0] for label in labels]
    kinds += [TURBO] if any(label.endswith(FLOW) for label in labels) else []
    # of temporary files: not in the user's cache. Child processes inherit it
    os.environ[VARIABLE] = "false"
    os.environ.setdefault("TQDM_DISABLE", "1")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    made = []
    try:
        for kind in dict.fromkeys(kinds):
            say(f"making {size} random weights: {kind}")
            if make(directory / kind, kind, size):
                made.append(directory / kind)
        report = measure(directory, labels, seconds, runs, say)
    finally:
        for path in () if keep else made:
            shutil.rmtree(path, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    (output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (output / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
