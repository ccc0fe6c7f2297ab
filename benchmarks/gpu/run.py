"""The runner: all stages, the most valuable first, each a process under a limit, the whole bounded.

    python -m benchmarks.gpu.run --out DIR [--limit SECONDS] [--wheels DIR] [STAGE ...]

Knows the order of a run and its time. Knows nothing of what is measured (stages/), and imports no
torch: it outlives what a stage does to it. Writes under --out: results.jsonl (a line a figure),
run.log, facts.txt, traces.tar.gz, spoken.tar.gz. Exits 1 if a stage did not end well, a part of one
failed or a check is not good.
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
from benchmarks.gpu.context import BROKEN_EXIT, SPOKEN, TRACES
from benchmarks.gpu.kinds import SETUP, SKIPPED, STAGE
from benchmarks.gpu.processes import Ending
from benchmarks.gpu.schedule import CEILINGS, Stage
from benchmarks.gpu.setting import Setting
from chatterbox_opt.config.settings import GPU_KERNELS  # imports no torch

INSTALL_LIMIT = 60.0  # seconds
LOOK_LIMIT = 60.0  # seconds to find a GPU in; one that is not found in time may still be there


@dataclass(slots=True)
class Run:
    """One run.

    Attributes:
        limit: seconds from ``started`` (of the monotonic clock) to the end of the last stage.
        good: no stage has ended badly.
    """

    setting: Setting
    lines: results.Results
    limit: float
    started: float
    good: bool = True

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.limit - (time.monotonic() - self.started)

    def stage(self, stage: Stage) -> None:
        """Run one stage if there is time, and keep what it left besides figures."""
        if self.left < min(schedule.LEAST, stage.limit):
            self.good = False
            self.lines.put(SKIPPED, {"name": stage.name, "left": round(self.left, 1)})
            return
        limit = min(stage.limit, self.left - processes.GRACE)
        process = self.setting.start(self.setting.stage_command(stage.name))
        ending = processes.finish(process, limit)
        self.note(STAGE, stage.name, ending)
        if ending.exit == BROKEN_EXIT:
            self.without_kernels(stage)
        for folder in (TRACES, SPOKEN):
            with suppress(OSError):  # of a full disk; figures are elsewhere
                pack(self.setting.scratch / folder, self.setting.out / f"{folder}.tar.gz")

    def without_kernels(self, stage: Stage) -> None:
        """Have the stages after one that broke the GPU's context do without kernels of our own,
        which are likely to have broken it: PyTorch's operations have figures too."""
        off = {**self.setting.environment, GPU_KERNELS: "false"}
        self.setting = replace(self.setting, environment=off)
        self.lines.put(SETUP, {"name": "own kernels", "off": True, "after": stage.name})

    def note(self, what: str, name: str, ending: Ending) -> None:
        """A line on how a process ended."""
        self.good &= ending.good
        told = {"name": name, "exit": ending.exit, "seconds": round(ending.seconds, 1)}
        if what == STAGE:  # clocks and heat explain what differs from run to run
            told["gpu"] = facts.told(facts.CLOCKS).strip()[:100]
        self.lines.put(what, told | {"cut": ending.truncated})

    def prepare(self) -> bool:
        """Install wheels and kernels that came along, a GPU being looked for meanwhile; whether
        there is one. What cannot be installed costs the stages that need it."""
        looking = self.setting.start(self.setting.gpu_command())
        try:
            for name, command, folder in self.setting.installations():
                process = self.setting.start(command)
                ending = processes.finish(process, min(INSTALL_LIMIT, self.left))
                self.note(SETUP, name, ending)
                if ending.good:
                    (folder / setting.WHOLE).touch()
        finally:
            found = processes.finish(looking, min(LOOK_LIMIT, self.left))
        there = found.exit != setting.NO_GPU
        self.lines.put(SETUP, {"name": "gpu", "found": there, "seconds": round(found.seconds, 1)})
        if not there:
            print("error: there is no CUDA GPU here; make test proves what can be without")
        return there

    def weights(self, stages: Sequence[Stage]) -> Sequence[Stage]:
        """Have weights made where there are none, the ceilings being measured meanwhile.

        Returns:
            the stages that are left.
        """
        if self.setting.has_weights():
            return stages
        maker = self.setting.start(self.setting.weights_command())
        try:
            if CEILINGS in stages:
                self.stage(CEILINGS)
        finally:
            ending = processes.finish(maker, min(schedule.WEIGHTS_LIMIT, self.left))
        self.note(SETUP, "weights", ending)
        left = [stage for stage in stages if stage != CEILINGS]
        return left if ending.good else [stage for stage in left if not stage.weights]


def pack(folder: Path, target: Path) -> None:
    """A folder as one file, if there is one; replaced whole."""
    if not folder.is_dir():
        return
    part = target.with_suffix(".part")
    with tarfile.open(part, "w:gz") as file:
        file.add(folder, folder.name)
    part.replace(target)


def run(setting: Setting, stages: Sequence[Stage], limit: float, started: float) -> bool:
    """Run the stages; whether all of them ended well.

    Args:
        limit: seconds of all of it.
        started: when it began, on the monotonic clock.
    """
    now = Run(setting, results.Results(setting.out / results.FILE, "run"), limit, started)
    machine = setting.start(setting.facts_command())
    try:
        if not now.prepare():
            return False
        for stage in now.weights(stages):
            now.stage(stage)
    finally:
        processes.finish(machine, 0 if now.left < 1 else 1)
    return now.good


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; the exit code."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.run", description=__doc__)
    parser.add_argument("stages", nargs="*", help="of all, in this order; none means all")
    parser.add_argument("--out", type=Path, required=True, help="where results go")
    parser.add_argument("--limit", type=float, default=schedule.LIMIT, help="seconds of it all")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, installed if need be")
    parser.add_argument("--model", help="without one random weights are made")
    asked = parser.parse_args(arguments)
    try:
        stages = schedule.choose(asked.stages)
    except ValueError as error:
        parser.error(str(error))
    asked.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end the stage
    here = setting.find(asked.out, asked.wheels, asked.model)
    good = run(here, stages, asked.limit, started)
    lines = results.read(asked.out / results.FILE)
    print("\n".join(summary.lines(lines)))
    return 0 if good and not summary.wrong(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
