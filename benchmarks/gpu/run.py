"""The runner: all stages, the most valuable first, each a process with a time limit.

    python -m benchmarks.gpu.run --out DIR [--limit SECONDS] [--wheels DIR] [STAGE ...]

Responsible for the order of a run and its time. Not responsible for what is measured (stages/).
Imports no torch, so no crash of a stage affects it. Writes under --out: results.jsonl (a line per
figure), run.log, facts.txt, traces.tar.gz, samples.tar.gz. Exits with 1 if a stage crashed or timed
out, a part of one failed or a check is not good.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu import facts, processes, results, schedule, setting, summary
from benchmarks.gpu.context import BROKEN_EXIT, SAMPLES, TRACES
from benchmarks.gpu.kinds import SETUP, SKIPPED, STAGE
from benchmarks.gpu.processes import Ending
from benchmarks.gpu.schedule import CEILINGS, Stage
from benchmarks.gpu.setting import Setting
from chatterbox_opt.config.settings import GPU_KERNELS  # imports no torch

INSTALL_LIMIT = 60.0  # seconds
PROBE_LIMIT = 60.0  # seconds to find a GPU in; after a timeout one is assumed to exist


@dataclass(slots=True)
class Run:
    """One run.

    Attributes:
        limit: seconds from ``started`` (of the monotonic clock) to the end of the last stage.
        good: no stage has failed so far.
    """

    setting: Setting
    lines: results.Results
    limit: float
    started: float
    good: bool = True

    @property
    def left(self) -> float:
        """Remaining seconds."""
        return self.limit - (time.monotonic() - self.started)

    def stage(self, stage: Stage) -> None:
        """Run one stage if there is time, and archive its other output."""
        if self.left < min(schedule.MIN_SECONDS, stage.limit):
            self.good = False
            self.lines.put(SKIPPED, {"name": stage.name, "left": round(self.left, 1)})
            return
        limit = min(stage.limit, self.left - processes.GRACE)
        process = self.setting.start(self.setting.stage_command(stage.name))
        ending = processes.finish(process, limit)
        self.note(STAGE, stage.name, ending)
        if ending.exit == BROKEN_EXIT:
            self.disable_kernels(stage)
        for folder in (TRACES, SAMPLES):
            with suppress(OSError):  # of a full disk; figures are in another file
                pack(self.setting.scratch / folder, self.setting.out / f"{folder}.tar.gz")

    def disable_kernels(self, stage: Stage) -> None:
        """Disable the Triton kernels after a stage that broke the CUDA context: probably they did,
        and the later stages can still measure PyTorch's operations."""
        off = {**self.setting.environment, GPU_KERNELS: "false"}
        self.setting = replace(self.setting, environment=off)
        self.lines.put(SETUP, {"name": "Triton kernels", "off": True, "after": stage.name})

    def note(self, what: str, name: str, ending: Ending) -> None:
        """Write a line on how a process ended."""
        self.good &= ending.good
        line = {"name": name, "exit": ending.exit, "seconds": round(ending.seconds, 1)}
        if what == STAGE:  # clocks and temperature explain differences between runs
            line["gpu"] = facts.output_of(facts.CLOCKS).strip()[:100]
        self.lines.put(what, line | {"timed_out": ending.timed_out})

    def prepare(self) -> bool:
        """Install the packed wheels and kernels, and probe for a GPU meanwhile; returns whether
        there is one. A failed installation costs only the stages that need it."""
        probe = self.setting.start(self.setting.gpu_command())
        try:
            for name, command, folder in self.setting.installations():
                process = self.setting.start(command)
                ending = processes.finish(process, min(INSTALL_LIMIT, self.left))
                self.note(SETUP, name, ending)
                if ending.good:
                    (folder / setting.COMPLETE).touch()
        finally:
            probed = processes.finish(probe, min(PROBE_LIMIT, self.left))
        has_gpu = probed.exit != setting.NO_GPU
        seconds = round(probed.seconds, 1)
        self.lines.put(SETUP, {"name": "gpu", "found": has_gpu, "seconds": seconds})
        if not has_gpu:
            print("error: there is no CUDA GPU here; make test runs what needs none")
        return has_gpu

    def weights(self, stages: Sequence[Stage]) -> Sequence[Stage]:
        """Write random weights if there are none, and measure the ceilings meanwhile.

        Returns:
            the remaining stages.
        """
        if self.setting.has_weights():
            return stages
        process = self.setting.start(self.setting.weights_command())
        try:
            if CEILINGS in stages:
                self.stage(CEILINGS)
        finally:
            ending = processes.finish(process, min(schedule.WEIGHTS_LIMIT, self.left))
        self.note(SETUP, "weights", ending)
        remaining = [stage for stage in stages if stage != CEILINGS]
        return remaining if ending.good else [one for one in remaining if not one.weights]


def pack(folder: Path, target: Path) -> None:
    """Archive a folder, if it exists; the target is replaced atomically."""
    if not folder.is_dir():
        return
    part = target.with_suffix(".part")
    with tarfile.open(part, "w:gz") as file:
        file.add(folder, folder.name)
    part.replace(target)


def run(setting: Setting, stages: Sequence[Stage], limit: float, started: float) -> bool:
    """Run the stages; returns whether none of them failed.

    Args:
        limit: seconds of the whole run.
        started: its start on the monotonic clock.
    """
    current = Run(setting, results.Results(setting.out / results.FILE, "run"), limit, started)
    facts_process = setting.start(setting.facts_command())
    try:
        if not current.prepare():
            return False
        for stage in current.weights(stages):
            current.stage(stage)
    finally:
        processes.finish(facts_process, 0 if current.left < 1 else 1)
    return current.good


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.run", description=__doc__)
    parser.add_argument("stages", nargs="*", help="stages to run, in this order (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--limit", type=float, default=schedule.LIMIT, help="seconds of the whole run"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels, installed if needed")
    parser.add_argument("--model", help="model (default: random weights)")
    parsed = parser.parse_args(arguments)
    try:
        stages = schedule.choose(parsed.stages)
    except ValueError as error:
        parser.error(str(error))
    parsed.out.mkdir(parents=True, exist_ok=True)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # finally blocks end the stage
    machine = setting.find(parsed.out, parsed.wheels, parsed.model)
    good = run(machine, stages, parsed.limit, started)
    lines = results.read(parsed.out / results.FILE)
    print("\n".join(summary.lines(lines)))
    return 0 if good and not summary.wrong(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
