"""Many items through the real command line: the time is linear, and memory does not grow."""

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
class Moment:
    """What a process had used when an item was finished: seconds by the clock and of the
    processor, MiB of memory."""

    clock: float
    work: float
    memory: float

    @classmethod
    def of(cls, process: int, clock: float) -> Moment:
        place = Path(f"/proc/{process}")
        ticks = place.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        work = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        memory = place.joinpath("status").read_text().split("VmRSS:")[1].split()[0]
        return cls(clock, work, int(memory) / 1024)


def measure(model: Path, directory: Path, count: int) -> list[Moment]:
    """Run a job of ``count`` lines; return the moments after each tenth, the first item's first."""
    job = directory / f"{count}.txt"
    job.write_text("".join(f"{WORDS[i % len(WORDS)]}\n" for i in range(count)))
    out = directory / str(count)
    args = [str(job), "--out-dir", str(out), "--model", str(model), *QUICK, "-q", "--json"]
    moments, finished = [], 0
    with subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "item":
                finished += 1
                if finished == 1 or finished % (count // 10) == 0:
                    moments.append(Moment.of(process.pid, event["elapsed"]))
    assert process.returncode == 0
    assert len(list(out.glob("*.wav"))) == finished == count
    return moments


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000, 10_000])
def test_the_last_tenth_is_as_quick_as_the_first_and_memory_stays(tiny, tmp_path, count):
    moments = measure(tiny, tmp_path, count)
    work = [after.work - before.work for before, after in zip(moments, moments[1:], strict=False)]
    print(f"{count} items in {moments[-1].clock:.0f} s; CPU seconds of each tenth: {work}")
    print(f"MiB after each tenth: {[round(moment.memory) for moment in moments]}")
    assert work[-1] < 1.5 * min(work), "a step that grows with the items would show"
    assert moments[-1].memory - moments[1].memory < 50
