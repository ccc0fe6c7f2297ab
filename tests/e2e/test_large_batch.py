"""Many items through the command line: linear time and constant memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "chatterbox_opt", "batch"]
QUICK = ["--max-tokens", "2", "--cfm-steps", "1", "--retries", "0", "--no-watermark", "--seed", "5"]
WORDS = ("Good morning.", "Who is there?", "It rains.", "Come in, please.", "Not yet.")


@dataclass(frozen=True)
class Usage:
    """Usage of a process when an item was finished: wall and CPU seconds, MiB of memory."""

    wall: float
    cpu: float
    memory: float

    @classmethod
    def of(cls, process: int, wall: float) -> Usage:
        proc = Path(f"/proc/{process}")
        ticks = proc.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        memory = proc.joinpath("status").read_text().split("VmRSS:")[1].split()[0]
        return cls(wall, cpu, int(memory) / 1024)


def measure(model: Path, directory: Path, count: int) -> list[Usage]:
    """Run a job of ``count`` lines; return the usage after the first item and after each tenth."""
    job = directory / f"{count}.txt"
    job.write_text("".join(f"{WORDS[i % len(WORDS)]}\n" for i in range(count)))
    out = directory / str(count)
    args = [str(job), "--out-dir", str(out), "--model", str(model), *QUICK, "-q", "--json"]
    usages, finished = [], 0
    with subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "item":
                finished += 1
                if finished == 1 or finished % (count // 10) == 0:
                    usages.append(Usage.of(process.pid, event["elapsed"]))
    assert process.returncode == 0
    assert len(list(out.glob("*.wav"))) == finished == count
    return usages


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000, 10_000])
def test_time_is_linear_and_memory_constant(tiny, tmp_path, count):
    usages = measure(tiny, tmp_path, count)
    cpu = [after.cpu - before.cpu for before, after in zip(usages, usages[1:], strict=False)]
    print(f"{count} items in {usages[-1].wall:.0f} s; CPU seconds of each tenth: {cpu}")
    print(f"MiB after each tenth: {[round(usage.memory) for usage in usages]}")
    assert cpu[-1] < 1.5 * min(cpu), "the time per item grows with the number of items"
    assert usages[-1].memory - usages[1].memory < 50
