"""The setting of a run: folders, environment, and the commands of its processes.

Responsible for paths and command lines. Not responsible for order or time (run.py).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu import processes
from benchmarks.gpu.context import SAMPLES, TRACES

ROOT = Path(__file__).parents[2]
RAM_DISK = Path("/dev/shm")  # faster than an unknown disk, if large enough
NAME = "chatterbox-opt-gpu"
MIN_FREE_BYTES = 16 << 30  # of weights, their converted copies and voices
KERNELS = "tcache.tar.xz"  # compiled in advance, in the folder of wheels
MARKER = "config.json"  # the file of random weights that is written last
NO_GPU = 7  # an exit code that nothing else uses
NEEDED = ("chatterbox", "perth", "s3tokenizer", "soxr")  # importable if the wheels are installed
COMPLETE = ".complete"  # marks a folder whose installation completed
# the hub, progress bars and plots must not wait for a network or a display
QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One run's folders.

    Attributes:
        out: results.
        scratch: temporary files: installed and compiled code, traces, audio.
        data: large temporary files: weights, voices. No code: /dev/shm is often mounted noexec.
        wheels: a folder of wheels, or None.
        model: a checkpoint directory, or a model name.
        stage_module: the package of the stages.
        extra: arguments of every stage.
    """

    out: Path
    scratch: Path
    data: Path
    wheels: Path | None
    model: str
    stage_module: str = "benchmarks.gpu.stages"
    extra: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        """The folder where wheels are installed."""
        return self.scratch / "site"

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that dies with this one; its output goes to run.log."""
        return processes.start(command, self.variables(), self.out / "run.log")

    def variables(self) -> dict[str, str]:
        """The environment of all processes."""
        paths = [str(ROOT), str(self.site), os.environ.get("PYTHONPATH", "")]
        own = {
            "TRITON_CACHE_DIR": str(self.scratch / "kernels"),
            "NUMBA_CACHE_DIR": str(self.scratch / "numba"),
            "CHATTERBOX_WEIGHT_CACHE": str(self.data / "weights"),
            "CHATTERBOX_VOICE_CACHE": str(self.data / "voices"),
            # torch's run-time compiler requires it; the kernels need no headers
            "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda"),
        }
        own["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return {**os.environ, **QUIET, **own, **self.environment}

    def stage_command(self, name: str) -> list[str]:
        """Runs a stage."""
        options = ["--model", self.model, "--out", str(self.out), "--scratch", str(self.scratch)]
        return [sys.executable, "-m", f"{self.stage_module}.{name}", *options, *self.extra]

    def gpu_command(self) -> list[str]:
        """Exits with ``NO_GPU`` if torch finds none."""
        code = f"import sys, torch; sys.exit(0 if torch.cuda.is_available() else {NO_GPU})"
        return [sys.executable, "-c", code]

    def facts_command(self) -> list[str]:
        """Describes the machine."""
        return [sys.executable, "-m", "benchmarks.gpu.facts", str(self.out / "facts.txt")]

    def has_weights(self) -> bool:
        """Whether no random weights have to be written."""
        is_generated = Path(self.model) == self.data / "full"
        return not is_generated or (Path(self.model) / MARKER).exists()

    def weights_command(self) -> list[str]:
        """Writes random weights of full size."""
        code = (
            "import sys, pathlib; from chatterbox_opt.checkpoints.random_weights import make; "
            "make(pathlib.Path(sys.argv[1]), 'full', seed=0)"
        )
        return [sys.executable, "-c", code, self.model]

    def installations(self) -> Iterator[tuple[str, list[str], Path]]:
        """What has to be installed first: its name, the command, and a folder in which the caller
        creates a file ``COMPLETE`` afterwards."""
        if self.wheels is None:
            return
        wheels = sorted(str(path) for path in self.wheels.glob("*.whl"))
        missing = any(importlib.util.find_spec(name) is None for name in NEEDED)
        if wheels and missing and not _is_complete(self.site):
            offline = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "-q"]
            pip = [sys.executable, "-m", "pip", "install", *offline]
            yield "wheels", [*pip, "--upgrade", "--target", str(self.site), *wheels], self.site
        kernels, cache = self.wheels / KERNELS, self.scratch / "kernels"
        if kernels.exists() and not _is_complete(cache):
            unpack = [sys.executable, "-m", "benchmarks.gpu.kernel_cache"]
            yield "kernels", [*unpack, str(kernels), str(cache)], cache


def _is_complete(folder: Path) -> bool:
    """Whether an installation completed: a run may be killed during one."""
    return (folder / COMPLETE).exists()


def find(out: Path, wheels: Path | None, model: str | None) -> Setting:
    """The setting of this machine: data in a RAM disk if it is large enough."""
    free = shutil.disk_usage(RAM_DISK).free if RAM_DISK.is_dir() else 0
    scratch = Path(tempfile.gettempdir()) / NAME
    data = RAM_DISK / NAME if free >= MIN_FREE_BYTES or (RAM_DISK / NAME).exists() else scratch
    for folder in (scratch, data):
        folder.mkdir(exist_ok=True)
    for folder_name in (TRACES, SAMPLES):  # of an earlier run
        shutil.rmtree(scratch / folder_name, ignore_errors=True)
    return Setting(out.resolve(), scratch, data, wheels, model or str(data / "full"))
