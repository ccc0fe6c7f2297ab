"""Where a run happens: folders, environment, and the commands of its processes.

Knows paths and command lines of a machine. Knows nothing of order or time (run.py).
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
from benchmarks.gpu.context import SPOKEN, TRACES

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")  # quicker than an unknown disk, where it is large enough
NAME = "chatterbox-opt-gpu"
ROOM = 16 << 30  # bytes that weights, their converted copies and voices take at most
KERNELS = "tcache.tar.xz"  # compiled ahead, among the wheels
MARKER = "config.json"  # the last file of made weights
NO_GPU = 7  # an exit code that nothing else has
NEEDED = ("chatterbox", "perth", "s3tokenizer", "soxr")  # importable where wheels are installed
WHOLE = ".whole"  # a file in a folder that was laid there to its end
# hub, progress bars and plots must not wait for a network or a display
QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One run's folders.

    Attributes:
        out: results.
        scratch: what may be lost: installed and compiled code, traces, sound.
        data: what may be lost and is large: weights, voices. Memory may not hold code: /dev/shm is
            often mounted so that nothing in it can be run.
        wheels: a folder of wheels, or None.
        model: a checkpoint's directory, or a name.
        stage_module: what precedes a stage's name.
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
        """Where wheels are installed."""
        return self.scratch / "site"

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that dies with this one; what it prints goes into run.log."""
        return processes.start(command, self.variables(), self.out / "run.log")

    def variables(self) -> dict[str, str]:
        """The environment of all processes."""
        paths = [str(ROOT), str(self.site), os.environ.get("PYTHONPATH", "")]
        mine = {
            "TRITON_CACHE_DIR": str(self.scratch / "kernels"),
            "NUMBA_CACHE_DIR": str(self.scratch / "numba"),
            "CHATTERBOX_WEIGHT_CACHE": str(self.data / "weights"),
            "CHATTERBOX_VOICE_CACHE": str(self.data / "voices"),
            # torch's compiler of CUDA asks for headers, of which ours needs none
            "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda"),
        }
        mine["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return {**os.environ, **QUIET, **mine, **self.environment}

    def stage_command(self, name: str) -> list[str]:
        """A stage."""
        where = ["--model", self.model, "--out", str(self.out), "--scratch", str(self.scratch)]
        return [sys.executable, "-m", f"{self.stage_module}.{name}", *where, *self.extra]

    def gpu_command(self) -> list[str]:
        """What exits with ``NO_GPU`` where torch finds none."""
        code = f"import sys, torch; sys.exit(0 if torch.cuda.is_available() else {NO_GPU})"
        return [sys.executable, "-c", code]

    def facts_command(self) -> list[str]:
        """What tells of the machine."""
        return [sys.executable, "-m", "benchmarks.gpu.facts", str(self.out / "facts.txt")]

    def has_weights(self) -> bool:
        """Whether there is nothing to make."""
        made = Path(self.model) == self.data / "full"
        return not made or (Path(self.model) / MARKER).exists()

    def weights_command(self) -> list[str]:
        """What makes weights of the true shapes."""
        code = (
            "import sys, pathlib; from chatterbox_opt.checkpoints.random_weights import make; "
            "make(pathlib.Path(sys.argv[1]), 'full', seed=0)"
        )
        return [sys.executable, "-c", code, self.model]

    def installations(self) -> Iterator[tuple[str, list[str], Path]]:
        """What has to be installed first: its name, the command, and a folder that gets a file
        ``WHOLE`` when it has come to its end."""
        if self.wheels is None:
            return
        wheels = sorted(str(path) for path in self.wheels.glob("*.whl"))
        missing = any(importlib.util.find_spec(name) is None for name in NEEDED)
        if wheels and missing and not _whole(self.site):
            offline = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "-q"]
            pip = [sys.executable, "-m", "pip", "install", *offline]
            yield "wheels", [*pip, "--upgrade", "--target", str(self.site), *wheels], self.site
        kernels, cache = self.wheels / KERNELS, self.scratch / "kernels"
        if kernels.exists() and not _whole(cache):
            unpack = [sys.executable, "-m", "benchmarks.gpu.kernel_cache"]
            yield "kernels", [*unpack, str(kernels), str(cache)], cache


def _whole(folder: Path) -> bool:
    """Whether what was laid there came to its end: a run may be cut while it installs."""
    return (folder / WHOLE).exists()


def find(out: Path, wheels: Path | None, model: str | None) -> Setting:
    """The setting of this machine: data in memory where there is room."""
    free = shutil.disk_usage(MEMORY).free if MEMORY.is_dir() else 0
    scratch = Path(tempfile.gettempdir()) / NAME
    data = MEMORY / NAME if free >= ROOM or (MEMORY / NAME).exists() else scratch
    for folder in (scratch, data):
        folder.mkdir(exist_ok=True)
    for left in (TRACES, SPOKEN):  # of an earlier run
        shutil.rmtree(scratch / left, ignore_errors=True)
    return Setting(out.resolve(), scratch, data, wheels, model or str(data / "full"))
